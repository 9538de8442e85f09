"""How the connections of a service are brought to their end: by asking, and after a while by force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import succeed

from svcd.transport.keeper import calling_off

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from svcd.interfaces import Watcher
    from svcd.supervisor.running import Running

__all__ = ["cut", "drained"]


def cut(running: Running) -> None:
    """End every connection of a service now."""
    if running.keeper is not None:
        for session in running.keeper.everybody():
            session.cut("shutdown")


def drained(running: Running, reactor: Watcher) -> Deferred[None]:
    """Let each connection of a service end in its shutdown_timeout, then end it.

    Returns:
        A Deferred that fires when there is none.
    """
    keeper = running.keeper
    if keeper is None:
        running.end()
        return succeed(None)
    keeper.entrance.finish()
    for session in keeper.everybody():
        session.drain()
    patience = reactor.callLater(running.service.options.shutdown_timeout, cut, running)
    return keeper.when_empty().addCallback(calling_off(patience))
