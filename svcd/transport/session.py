"""One connection that has a process of its own: what is known of it, and how it is made to end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.handlers.link import Link
    from svcd.interfaces import Watcher
    from svcd.journal import Journal
    from svcd.policy.admission import Ticket
    from svcd.transport.sockdiag import SocketView

__all__ = ["KILL_SECONDS", "SpawnedSession"]

#: How long a process group has after SIGTERM, in seconds, before SIGKILL.
KILL_SECONDS = 2.0


class _Keeper(Protocol):
    accept_line: str
    nameless: str
    journal: Journal
    reactor: Watcher
    sessions: dict[int, SpawnedSession]
    view: SocketView
    clock: Callable[[], float]

    def facts(self, session: SpawnedSession, peer: str, **more: object) -> dict[str, object]:
        """What is known of a connection, as plain data."""
        ...

    def failed(self, number: int, errno: int) -> None:
        """A connection has no process and never will."""

    def forgotten(self, number: int) -> None:
        """A process that nobody watches any more."""


class SpawnedSession:
    """One connection and its process.

    Attributes:
        number: the connection's, since the daemon started.
        peer: who it is, quoted as the log has it.
        ticket: its right to be in.
        host: its name, the same.
        started: by the keeper's clock, in seconds.
        pid: of the process; 0 before it has one.
        link: to the launcher that has it; None before it was handed over.
        ended: called when the connection is over.
        traced: what the kernel finds the connection by; empty if nobody asks, or it can't.
        before: how many bytes came before the client's own, of a proxy's header.
    """

    __slots__ = (
        "_accept",
        "_call",
        "_keeper",
        "_killed",
        "_last",
        "before",
        "cause",
        "ended",
        "host",
        "link",
        "number",
        "peer",
        "pid",
        "started",
        "ticket",
        "traced",
    )

    def __init__(self, keeper: _Keeper, number: int, peer: str, ticket: Ticket) -> None:
        self._keeper = keeper
        self.ticket = ticket
        # The accept line waits for what it is to say: its time, and how many connections there were.
        self._accept: tuple[str, int] | None = keeper.journal.stamp(), len(keeper.sessions) + 1
        self._call: IDelayedCall | None = None
        self._killed = self._last = False
        self.number = number
        self.peer = peer
        self.host = keeper.nameless
        self.started = keeper.clock()
        self.pid = 0
        self.link: Link | None = None
        self.cause = ""
        self.ended: Callable[[], None] | None = None
        self.traced = b""
        self.before = 0

    def tell_accept(self) -> None:
        """Write the accept line, once."""
        keeper = self._keeper
        if self._accept is None or not keeper.accept_line:
            return
        (stamp, count), self._accept = self._accept, None
        values = {"peer": self.peer, "host": self.host, "id": self.number, "count": count, "pid": self.pid}
        keeper.journal.write(keeper.accept_line % values, stamp)

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its system has taken; None where that can't be seen."""
        found = self._keeper.view.traffic(self.traced) if self.traced else None
        return found and (self.own(found[0]), found[1])

    def own(self, count: int) -> int:
        """Of the bytes that came, those of the client itself; -1 if nobody knows."""
        return max(count - self.before, 0) if count > 0 else count

    def facts(self) -> dict[str, object]:
        """What is known of the connection."""
        return self._keeper.facts(self, self.peer, pid=self.pid)

    def drain(self) -> None:
        """A process is asked nothing: what it owes only it knows. One that can't be had is not awaited."""
        self._last = True
        if not (self.pid or (self.link is not None and self.link.ready)):
            self.cut("shutdown")

    def cut(self, cause: str) -> None:
        """End the process group: politely, and soon not."""
        if self.cause:
            # On its way; to ask again is no reason to wait longer.
            return
        self.cancel()
        self.cause = cause
        keeper = self._keeper
        link = self.link
        if link is None or link.drop(self.number) or not self.pid:
            keeper.failed(self.number, 0)
            return
        link.signal(self.number, signal.SIGTERM)
        self._call = keeper.reactor.callLater(KILL_SECONDS, self._kill, link)

    def _kill(self, link: Link) -> None:
        keeper = self._keeper
        if self._killed and self._last:
            # Neither the process nor its launcher can be moved, and the daemon is to end.
            link.abandon(self.number)
            keeper.forgotten(self.number)
            return
        self._killed = True
        link.signal(self.number, signal.SIGKILL)
        self._call = keeper.reactor.callLater(KILL_SECONDS, self._kill, link)

    def cancel(self) -> None:
        """No deadline holds any more."""
        if self._call is not None and self._call.active():
            self._call.cancel()
