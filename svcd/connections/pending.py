"""Connections that were accepted and not let in yet: unread, until their client's name is known or there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IProtocol
from twisted.logger import Logger
from zope.interface import implementer

from svcd.access.admission import ConnectionSlot
from svcd.connections.lingering_close import RejectProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from svcd.access.refusals import Refusal
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.descriptor_budget import Share
    from svcd.connections.tracker import Numbered, UnadmittedConnection

__all__ = ["PendingConnection"]


class _Keeper(Protocol):
    budget: Share
    clock: Callable[[], float]
    entrance: ServiceAdmission
    numbers: Iterator[int]
    visitors: dict[UnadmittedConnection, None]

    def facts(self, session: Numbered, peer: str, **more: object) -> dict[str, object]:
        """What is known of a connection."""

    def peer_of(self, addr: IAddress) -> str:
        """The client as the log has it."""

    def admit(self, addr: IAddress) -> ConnectionSlot | Refusal:
        """Ask the door."""

    def wrap(self, addr: IAddress, ticket: ConnectionSlot) -> IProtocol | None:
        """The protocol of somebody who has a ticket, which is released if there is none."""

    def refused(self, refusal: Refusal, addr: IAddress) -> None:
        """Somebody is not let in."""

    def name_of(self, addr: IAddress) -> Deferred[str | None]:
        """The client's confirmed name."""

    def notify_if_empty(self) -> None:
        """A connection may have been the last."""


@implementer(IProtocol)
class PendingConnection:
    """The protocol of such a connection, until another takes its place.

    Args:
        keeper: decides.
        addr: the client.
        ticket: of a client whose name has the last word; without one it waits for room.
        name: that name.

    Attributes:
        started: by the keeper's clock, in seconds.
    """

    _log = Logger()

    __slots__ = ("_addr", "_early", "_gone", "_keeper", "_name", "_number", "_ticket", "_transport", "started")

    def __init__(
        self, keeper: _Keeper, addr: IAddress, ticket: ConnectionSlot | None, name: Deferred[str | None] | None = None
    ) -> None:
        self._keeper = keeper
        self._addr = addr
        self._ticket = ticket
        self._name = name
        self._number = 0
        self.started = keeper.clock()
        # What was read before the transport could be stopped.
        self._early: list[bytes] = []
        self._gone = False

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Begin to wait."""
        self._transport = transport
        self._keeper.visitors[self] = None
        self._keeper.budget.acquire()
        transport.pauseProducing()
        if self._name is not None:
            self._name.addCallback(self._named)
        else:
            self._keeper.entrance.enqueue(self._again)

    def connectionMade(self) -> None:
        """Never called: makeConnection does it all."""

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self._early.append(data)

    def connectionLost(self, _reason: Failure) -> None:
        """The client has gone, as far as that is seen on a socket that is not read."""
        self._keeper.entrance.dequeue(self._again)
        self._leave()
        if self._ticket is not None:
            self._ticket.release()

    @property
    def number(self) -> int:
        """The connection's number, which it has from when it is listed first."""
        self._number = self._number or next(self._keeper.numbers)
        return self._number

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        state = "room" if self._ticket is None else "host-name"
        return self._keeper.facts(self, self._keeper.peer_of(self._addr), state=state)

    def drain(self) -> None:
        """Nothing is owed to it."""
        self.abort("")

    def abort(self, _cause: str) -> None:
        """End it."""
        self._transport.abortConnection()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "visitor"

    def _leave(self) -> None:
        self._gone = True
        del self._keeper.visitors[self]
        self._keeper.budget.release()
        self._keeper.notify_if_empty()

    def _named(self, name: str | None) -> None:
        if self._gone:
            return
        ticket = self._ticket
        assert ticket is not None  # noqa: S101 - it is what waits for a name
        refusal = ticket.check_host_name(name)
        self._decided(ticket if refusal is None else refusal)

    def _again(self) -> None:
        found = self._keeper.admit(self._addr)
        if not isinstance(found, ConnectionSlot):
            if self._keeper.entrance.should_queue(found):
                self._keeper.entrance.enqueue(self._again)
            else:
                self._decided(found)
            return
        self._ticket = found
        if found.needs_host_name:
            self._name = self._keeper.name_of(self._addr).addCallback(self._named)
        else:
            self._decided(found)

    def _decided(self, found: ConnectionSlot | Refusal) -> None:
        """Give the connection to whom it belongs now."""
        keeper, transport = self._keeper, self._transport
        follower: Any = None
        if isinstance(found, ConnectionSlot):
            follower = keeper.wrap(self._addr, found)
        else:
            keeper.refused(found, self._addr)
            if keeper.entrance.refuse_banner:
                follower = RejectProtocol(keeper.entrance.farewells, keeper.entrance.refuse_banner)
        self._ticket = None
        if follower is None:
            transport.loseConnection()
            return
        transport.protocol = follower
        # The follower may stop it again.
        transport.resumeProducing()
        try:
            follower.makeConnection(transport)
            for data in self._early:
                follower.dataReceived(data)
        except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
            self._log.failure("a connection could not be served")
            transport.abortConnection()
        finally:
            self._leave()
