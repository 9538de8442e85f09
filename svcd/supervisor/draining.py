"""Graceful end of a service's connections, and their abort after shutdown_timeout."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import succeed
from twisted.logger import Logger

from svcd.connections.tracker import cancelling
from svcd.errors import reason_of
from svcd.log.events import PROBLEM, log_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from svcd.interfaces import FdReactor
    from svcd.supervisor.running_service import RunningService

__all__ = ["abort_all", "attempt", "drain"]


_log = Logger()


def attempt(running: RunningService, call: Callable[[], object]) -> None:
    """Call a function for a service; log what it raises, so that other services are not affected."""
    try:
        call()
    except KeyboardInterrupt:
        # Ctrl-C stops the daemon; it is not an error of this service.
        raise
    except BaseException as error:  # noqa: BLE001 - the service's own code
        log_event(_log, PROBLEM, text=f"{running.service.id}: {reason_of(error)}")


def abort_all(running: RunningService) -> None:
    """Abort every connection of a service, and end its CGI programs."""
    if running.tracker is not None:
        for session in running.tracker.all_connections():
            attempt(running, partial(session.abort, "shutdown"))
        attempt(running, running.abort_programs)


def drain(running: RunningService, reactor: FdReactor) -> Deferred[None]:
    """Drain the connections of a service; abort those that are open after shutdown_timeout.

    Returns:
        A Deferred that fires when the service has no connection.
    """
    tracker = running.tracker
    if tracker is None:
        attempt(running, running.finished)
        return succeed(None)
    attempt(running, tracker.service_admission.refusals.flush)
    for session in tracker.all_connections():
        attempt(running, session.drain)
    timer = reactor.callLater(running.service.options.shutdown_timeout, abort_all, running)
    return tracker.when_empty().addCallback(cancelling(timer))
