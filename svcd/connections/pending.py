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

    from svcd.access.rules import Refusal
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.descriptor_budget import Share
    from svcd.connections.tracker import Numbered, UnadmittedConnection

__all__ = ["PendingConnection"]


class _Keeper(Protocol):
    budget: Share
    clock: Callable[[], float]
    service_admission: ServiceAdmission
    connection_ids: Iterator[int]
    pending: dict[UnadmittedConnection, None]

    def facts(self, session: Numbered, peer: str, **more: object) -> dict[str, object]:
        """What is known of a connection."""

    def peer_of(self, addr: IAddress) -> str:
        """The client as the log has it."""

    def admit(self, addr: IAddress) -> ConnectionSlot | Refusal:
        """Ask the door."""

    def wrap(self, addr: IAddress, slot: ConnectionSlot) -> IProtocol | None:
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
        tracker: decides.
        addr: the client.
        slot: of a client whose name has the last word; without one it waits for room.
        name: that name.

    Attributes:
        started: by the keeper's clock, in seconds.
    """

    _log = Logger()

    __slots__ = ("_addr", "_early", "_gone", "_name", "_number", "_slot", "_tracker", "_transport", "started")

    def __init__(
        self, tracker: _Keeper, addr: IAddress, slot: ConnectionSlot | None, name: Deferred[str | None] | None = None
    ) -> None:
        self._tracker = tracker
        self._addr = addr
        self._slot = slot
        self._name = name
        self._number = 0
        self.started = tracker.clock()
        # What was read before the transport could be stopped.
        self._early: list[bytes] = []
        self._gone = False

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Begin to wait."""
        self._transport = transport
        self._tracker.pending[self] = None
        self._tracker.budget.acquire()
        transport.pauseProducing()
        if self._name is not None:
            self._name.addCallback(self._named)
        else:
            self._tracker.service_admission.enqueue(self._again)

    def connectionMade(self) -> None:
        """Never called: makeConnection does it all."""

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self._early.append(data)

    def connectionLost(self, _reason: Failure) -> None:
        """The client has gone, as far as that is seen on a socket that is not read."""
        self._tracker.service_admission.dequeue(self._again)
        self._leave()
        if self._slot is not None:
            self._slot.release()

    @property
    def number(self) -> int:
        """The connection's number, which it has from when it is listed first."""
        self._number = self._number or next(self._tracker.connection_ids)
        return self._number

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        state = "room" if self._slot is None else "host-name"
        return self._tracker.facts(self, self._tracker.peer_of(self._addr), state=state)

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
        del self._tracker.pending[self]
        self._tracker.budget.release()
        self._tracker.notify_if_empty()

    def _named(self, name: str | None) -> None:
        if self._gone:
            return
        slot = self._slot
        assert slot is not None  # noqa: S101 - it is what waits for a name
        refusal = slot.check_host_name(name)
        self._decided(slot if refusal is None else refusal)

    def _again(self) -> None:
        found = self._tracker.admit(self._addr)
        if not isinstance(found, ConnectionSlot):
            if self._tracker.service_admission.should_queue(found):
                self._tracker.service_admission.enqueue(self._again)
            else:
                self._decided(found)
            return
        self._slot = found
        if found.needs_host_name:
            self._name = self._tracker.name_of(self._addr).addCallback(self._named)
        else:
            self._decided(found)

    def _decided(self, found: ConnectionSlot | Refusal) -> None:
        """Give the connection to whom it belongs now."""
        tracker, transport = self._tracker, self._transport
        follower: Any = None
        if isinstance(found, ConnectionSlot):
            follower = tracker.wrap(self._addr, found)
        else:
            tracker.refused(found, self._addr)
            if tracker.service_admission.refuse_banner:
                follower = RejectProtocol(
                    tracker.service_admission.lingering_closer, tracker.service_admission.refuse_banner
                )
        self._slot = None
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
