"""Reload: read the services file again, off the reactor's thread, and go over to what it says, or to nothing new."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import DeferredLock, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from svcd.config.plan import plan
from svcd.errors import ConfigError, ListenErrors, SvcdError
from svcd.events import PROBLEM, RELOAD_FAILED, tell
from svcd.model import Place, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred

    from svcd.config.check import Endpoint
    from svcd.config.plan import Plan
    from svcd.supervisor.core import Supervisor

__all__ = ["Reloader"]

#: How many comparisons may read files at once.
_DIFFS = 4

ResultT = TypeVar("ResultT")


class Reloader:
    """Changes a running daemon, one reload after the other.

    Args:
        supervisor: runs the services.
        load: reads a services file, the daemon's own for None; raises ConfigError.
        in_thread: calls something where it may take its time, as deferToThread does.

    Attributes:
        reloaded: called after each reload that has succeeded, whoever asked for it.
    """

    _log = Logger()

    def __init__(
        self,
        supervisor: Supervisor,
        load: Callable[[str | None], Sequence[Endpoint]],
        in_thread: Callable[[Callable[[], Sequence[Endpoint]]], Deferred[Sequence[Endpoint]]],
    ) -> None:
        self._supervisor = supervisor
        self._load = load
        self._in_thread = in_thread
        self._lock = DeferredLock()
        # A file that can't be read blocks no reload.
        self._diffs = DeferredSemaphore(_DIFFS)
        self.reloaded: Callable[[], None] | None = None

    def reload(self, *, now: bool = False, allow_empty: bool = False) -> Deferred[Plan]:
        """Go over to what the daemon's services file says now.

        Args:
            now: end the connections of services that are no more.
            allow_empty: whether a file without a service is obeyed; a truncated one is no instruction.

        Returns:
            A Deferred with what was done. It fails with a ConfigError, ListenErrors or an OSError when nothing was; the
            log has said why then.
        """
        return self._lock.run(self._reload, now, allow_empty)

    def alone(self, call: Callable[..., Deferred[ResultT]], *arguments: object) -> Deferred[ResultT]:
        """Call something that no reload may come into, when it is its turn."""
        return self._lock.run(call, *arguments)

    def _reload(self, now: bool, allow_empty: bool) -> Deferred[Plan]:
        pulse, began = self._supervisor.pulse, time.monotonic()
        pulse.reloading()
        read = self._in_thread(lambda: self._load(None))
        if not allow_empty:
            read.addCallback(_not_empty, None)
        done = read.addCallback(lambda endpoints: self._supervisor.change_to(endpoints, now=now))
        done.addErrback(self._tell_why)

        def over(result: Plan | Failure) -> Plan | Failure:
            pulse.reloaded()
            if not isinstance(result, Failure):
                self._supervisor.ledger.config_seconds = time.monotonic() - began
                if self.reloaded is not None:
                    self.reloaded()
            return result

        return done.addBoth(over)

    def _tell_why(self, failure: Failure) -> Failure:
        failure.trap(SvcdError, OSError)
        error = failure.value
        texts = list(map(str, error.problems)) if isinstance(error, ConfigError) else [str(error)]
        if isinstance(error, ListenErrors):
            texts = list(map(str, error.errors))
        for text in texts:
            tell(self._log, PROBLEM, text=text)
        self._supervisor.ledger.reloads_failed += 1
        tell(self._log, RELOAD_FAILED, problems=len(texts))
        return failure

    def on_signal(self) -> None:
        """SIGHUP: reload, and let the log say what came of it."""
        self.reload().addErrback(lambda failure: failure.trap(SvcdError, OSError))

    def diff(self, file: str | None = None) -> Deferred[Plan]:
        """What a reload would do, of the daemon's services file or of another one.

        Returns:
            A Deferred that fails with a ConfigError when the file can't be used.
        """
        read: Deferred[Sequence[Endpoint]] = self._diffs.run(self._in_thread, lambda: self._load(file))
        read.addCallback(_not_empty, file)
        return read.addCallback(lambda endpoints: plan(self._supervisor.endpoints, endpoints))


def _not_empty(endpoints: Sequence[Endpoint], file: str | None) -> Sequence[Endpoint]:
    """Return the endpoints.

    Raises:
        ConfigError: there is none.
    """
    if endpoints:
        return endpoints
    text = "no service is enabled in it; if nothing is to be served, use svcctl reload --allow-empty"
    raise ConfigError([Problem(Place(file or "the services file"), text)])
