"""Reloads: read the services file in a thread and apply all changes, one reload at a time."""

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

#: The number of svcctl diff requests that may read files at the same time.
_DIFFS = 4

ResultT = TypeVar("ResultT")


class Reloader:
    """Changes the configuration of the running daemon, one change at a time.

    Args:
        supervisor: runs the services.
        load: reads a services file, the daemon's own for None; raises ConfigError.
        in_thread: runs a blocking call in a thread, as deferToThread does.
        check: checks again whether the machine can serve services.

    Attributes:
        reopen: called at the beginning of each reload; must not raise.
        finished: called at the end of each reload, also of one that has failed; must not raise.
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
        # Separate from _lock: reading a file that blocks must not delay a reload.
        self._diffs = DeferredSemaphore(_DIFFS)
        self.reopen: Callable[[], None] | None = None
        self.finished: Callable[[], None] | None = None

    def reload(self, *, now: bool = False, strict: bool = False, allow_empty: bool = False) -> Deferred[ReloadResult]:
        """Read the services file again and change to the services in it.

        Args:
            now: end the connections of removed services.
            strict: change nothing if a service can't be served.
            allow_empty: whether a file without a service is accepted; it may be a truncated file.

        Returns:
            A Deferred with the result. It fails with a ConfigError, ListenErrors or an OSError if nothing was changed;
            the reason is logged then.
        """
        return self._lock.run(self._reload, now, strict, allow_empty)

    def retry(self, ids: Sequence[str]) -> Deferred[None]:
        """Check and serve services again, by their ids: broken ones, and those whose addresses may have changed."""
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
        """Check services and serve those that the machine can serve; the others are broken.

        Args:
            services: returns the services; called once no other change is in progress.

        Returns:
            A Deferred that fires when the services are served. It fails with a StoppingError if the daemon is stopping.
        """
        return self._lock.run(self._serve, services)

    def _serve(self, services: Callable[[], Sequence[Service]]) -> Deferred[None]:
        chosen = services()
        if not chosen:
            return succeed(None)
        return self._in_thread(lambda: self._check(chosen)).addCallback(self._supervisor.serve)

    def run_exclusively(self, call: Callable[..., Deferred[ResultT]], *arguments: object) -> Deferred[ResultT]:
        """Call a function while no reload is in progress: enable, disable, upgrade; return a Deferred of its result."""
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
        done.addErrback(self._name_owners).addErrback(self._log_failure)

        def over(result: ReloadResult | Failure) -> ReloadResult | Failure:
            status_reporter.reloaded()
            if not isinstance(result, Failure):
                self._supervisor.registry.config_seconds = time.monotonic() - began
            if self.finished is not None:
                self.finished()
            return result

        return done.addBoth(over)

    def _with_time_zone(self, desired: DesiredServices) -> DesiredServices:
        """Read the time zone, in the reactor's thread, before the new configuration applies."""
        self._supervisor.read_time_zone()
        return desired

    def _name_owners(self, failure: Failure) -> Failure | Deferred[Failure]:
        """Add the processes that have the addresses to the errors, before they are logged and sent as the answer."""
        error = failure.value
        if not isinstance(error, ListenErrors) or error.with_owners is None:
            return failure
        named = self._in_thread(error.with_owners)
        return named.addCallbacks(Failure, lambda _failed: failure)

    def _log_failure(self, failure: Failure) -> Failure:
        failure.trap(SvcdError, OSError)
        error = failure.value
        texts = list(map(str, error.problems)) if isinstance(error, ConfigError) else [str(error)]
        if isinstance(error, ListenErrors):
            texts = list(map(str, error.errors))
        for text in texts:
            log_event(self._log, PROBLEM, text=text)
        self._supervisor.registry.reloads_failed += 1
        log_event(self._log, RELOAD_FAILED, problems=len(texts))
        return failure

    def on_signal(self) -> None:
        """Reload on SIGHUP; the result is logged."""
        self.reload().addErrback(lambda failure: failure.trap(SvcdError, OSError))

    def diff(self, file: str | None = None) -> Deferred[ReloadResult]:
        """Return the changes that a reload of the daemon's services file, or of another file, would make.

        Returns:
            A Deferred with the result, which fails with a ConfigError if the file can't be used. The faults are those
            that a check finds, and rights that the daemon lacks, but not sockets that can't be opened.
        """
        read: Deferred[DesiredServices] = self._diffs.run(self._in_thread, lambda: self._load(file))
        read.addCallback(_not_empty, file)
        return read.addCallback(self._supervisor.difference)


def _not_empty(desired: DesiredServices, file: str | None) -> DesiredServices:
    """Return the services if there are any.

    Raises:
        ConfigError: there is no service.
    """
    if desired.endpoints or desired.faulty:
        return desired
    text = "no service is enabled in it; to serve nothing, use svcctl reload --allow-empty"
    raise ConfigError([ConfigProblem(SourceLocation(file or "the services file"), text)])
