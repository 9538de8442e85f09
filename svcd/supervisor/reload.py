"""Reloads: the services file is read in a thread, and all changes are made, one reload after the other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import DeferredLock, DeferredSemaphore, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from svcd.errors import ConfigError, ListenErrors, SvcdError
from svcd.log.events import PROBLEM, RELOAD_FAILED, log_event
from svcd.model import ConfigProblem, SourceLocation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred

    from svcd.config.endpoints import DesiredServices
    from svcd.config.service import Service
    from svcd.supervisor.supervisor import ReloadResult, Supervisor

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
        check: checks services again, whether the machine can serve them.

    Attributes:
        reloaded: called after each reload that has succeeded.
        reopen: called before each reload, whatever comes of it: it must not fail.
    """

    _log = Logger()

    def __init__(
        self,
        supervisor: Supervisor,
        load: Callable[[str | None], DesiredServices],
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        check: Callable[[Sequence[Service]], DesiredServices],
    ) -> None:
        self._check = check
        self._supervisor = supervisor
        self._load = load
        self._in_thread = in_thread
        self._lock = DeferredLock()
        # A file that can't be read blocks no reload.
        self._diffs = DeferredSemaphore(_DIFFS)
        self.reloaded: Callable[[], None] | None = None
        self.reopen: Callable[[], None] | None = None

    def reload(self, *, now: bool = False, strict: bool = False, allow_empty: bool = False) -> Deferred[ReloadResult]:
        """Read the services file again, and serve what it has now.

        Args:
            now: end the connections of services that are no more.
            strict: change nothing if a service can't be served.
            allow_empty: whether a file without a service is accepted; it may be a truncated file.

        Returns:
            A Deferred with what was done. It fails with a ConfigError, ListenErrors or an OSError when nothing was; the
            reason is logged then.
        """
        return self._lock.run(self._reload, now, strict, allow_empty)

    def retry(self, ids: Sequence[str]) -> Deferred[None]:
        """Check and serve services again, by their ids: broken ones, and those whose addresses may be others now."""
        broken, hosted = self._supervisor.broken, self._supervisor.hosted

        def services() -> list[Service]:
            found = [broken.get(each) or hosted.get(each) for each in ids]
            return [each.service for each in found if each is not None]

        def failed(failure: Failure) -> None:
            if self._supervisor.registry.state != "stopping":
                log_event(self._log, PROBLEM, text=f"can't try broken services again: {failure.getErrorMessage()}")
                broken.postpone(ids)

        return self.serve(services).addErrback(failed)

    def serve(self, services: Callable[[], Sequence[Service]]) -> Deferred[None]:
        """Check services, and serve those that the machine can serve; the others are broken.

        Args:
            services: called when it is their turn.

        Returns:
            A Deferred that fails with a StoppingError when the daemon is about to stop.
        """
        return self._lock.run(self._serve, services)

    def _serve(self, services: Callable[[], Sequence[Service]]) -> Deferred[None]:
        chosen = services()
        if not chosen:
            return succeed(None)
        return self._in_thread(lambda: self._check(chosen)).addCallback(self._supervisor.serve)

    def alone(self, call: Callable[..., Deferred[ResultT]], *arguments: object) -> Deferred[ResultT]:
        """Call what no reload may come into, when it is its turn: enabling, disabling, an upgrade."""
        return self._lock.run(call, *arguments)

    def _reload(self, now: bool, strict: bool, allow_empty: bool) -> Deferred[ReloadResult]:
        status_reporter, began = self._supervisor.status_reporter, time.monotonic()
        status_reporter.reloading()
        if self.reopen is not None:
            self.reopen()
        read = self._in_thread(lambda: self._load(None))
        if not allow_empty:
            read.addCallback(_not_empty, None)
        read.addCallback(self._with_time_zone)
        done = read.addCallback(lambda desired: self._supervisor.change_to(desired, now=now, strict=strict))
        done.addErrback(self._name_owners).addErrback(self._tell_why)

        def over(result: ReloadResult | Failure) -> ReloadResult | Failure:
            status_reporter.reloaded()
            if not isinstance(result, Failure):
                self._supervisor.registry.config_seconds = time.monotonic() - began
                if self.reloaded is not None:
                    self.reloaded()
            return result

        return done.addBoth(over)

    def _with_time_zone(self, desired: DesiredServices) -> DesiredServices:
        """Read the time zone, in the reactor's thread, before anything of the new configuration holds."""
        self._supervisor.read_time_zone()
        return desired

    def _name_owners(self, failure: Failure) -> Failure | Deferred[Failure]:
        """Name the processes that have addresses, before the log and the answer say that these can't be had."""
        error = failure.value
        if not isinstance(error, ListenErrors) or error.with_owners is None:
            return failure
        named = self._in_thread(error.with_owners)
        return named.addCallbacks(Failure, lambda _failed: failure)

    def _tell_why(self, failure: Failure) -> Failure:
        failure.trap(SvcdError, OSError)
        error = failure.value
        texts = list(map(str, error.problems)) if isinstance(error, ConfigError) else [str(error)]
        if isinstance(error, ListenErrors):
            texts = list(map(str, [*error.errors, *error.problems]))
        for text in texts:
            log_event(self._log, PROBLEM, text=text)
        self._supervisor.registry.reloads_failed += 1
        log_event(self._log, RELOAD_FAILED, problems=len(texts))
        return failure

    def on_signal(self) -> None:
        """Reload because of SIGHUP; the result is logged."""
        self.reload().addErrback(lambda failure: failure.trap(SvcdError, OSError))

    def diff(self, file: str | None = None) -> Deferred[ReloadResult]:
        """Return what a reload of the daemon's services file, or of another file, would do.

        Returns:
            A Deferred that fails with a ConfigError when the file can't be used. Of the faults those are known that a
            check finds, and rights that the daemon does not have; not sockets that can't be opened.
        """
        read: Deferred[DesiredServices] = self._diffs.run(self._in_thread, lambda: self._load(file))
        read.addCallback(_not_empty, file)
        return read.addCallback(self._supervisor.difference)


def _not_empty(desired: DesiredServices, file: str | None) -> DesiredServices:
    """Return the services.

    Raises:
        ConfigError: there is none.
    """
    if desired.endpoints or desired.faulty:
        return desired
    text = "no service is enabled in it; if nothing is to be served, use svcctl reload --allow-empty"
    raise ConfigError([ConfigProblem(SourceLocation(file or "the services file"), text)])
