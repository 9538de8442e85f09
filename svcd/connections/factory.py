"""The factory of a service's gates: who comes asks it first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from svcd.access.admission import ConnectionSlot
from svcd.access.rules import Refusal, RefusalReason
from svcd.addresses import LOCAL_CLIENT, unmapped
from svcd.connections.lingering_close import RejectProtocol
from svcd.connections.tracker import ConnectionTracker
from svcd.connections.wrapper import ConnectionWrapper, HalfCloseableWrapper
from svcd.errors import reason_of
from svcd.metrics.counters import LiveTraffic
from svcd.net.peer_credentials import UNIXPeer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext

__all__ = ["PendingConnection", "TrackingFactory"]

_INET = (IPv4Address, IPv6Address)
_UNWANTED = Refusal(RefusalReason.SERVICE, "the service wants no connection")


class TrackingFactory(ConnectionTracker[ConnectionWrapper], Factory):
    """The factory of one service's gates; all listeners of the service share it.

    Args:
        service, context, service_admission: as ConnectionTracker takes them.
        factory: builds the service's protocols.
        wrapper_type: the class of the wrappers; None to choose it for each protocol.
    """

    noisy = False

    def __init__(
        self,
        service: Service,
        context: ConnectionContext,
        service_admission: ServiceAdmission,
        factory: IProtocolFactory,
        wrapper_type: Callable[..., ConnectionWrapper] | None = None,
    ) -> None:
        super().__init__(service, context, service_admission, {"pid": os.getpid()})
        self._factory = factory
        self._wrapper_type = wrapper_type

    def replace_factory(
        self, factory: IProtocolFactory, wrapper_type: Callable[..., ConnectionWrapper] | None = None
    ) -> None:
        """Build the protocols of new connections with another factory, and perhaps another class of wrappers."""
        self._factory = factory
        self._wrapper_type = wrapper_type

    def traffic(self) -> LiveTraffic:
        """What the open connections have carried so far."""
        transports = [wrapper.transport for wrapper in self.sessions.values()]
        return LiveTraffic(*(sum(getattr(each, name, 0) for each in transports) for name in ("bytes_in", "bytes_out")))

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """A gate with the service's protocol behind it, who has to wait or gets a last word; or None to close."""
        found = self.admit(addr)
        if isinstance(found, ConnectionSlot) and found.needs_host_name:
            name = self.name_of(addr)
            if not name.called:
                return PendingConnection(self, addr, found, name)
            # It was known.
            found = found.check_host_name(cast("str | None", name.result)) or found
        if isinstance(found, ConnectionSlot):
            return self.wrap(addr, found)
        if self.service_admission.should_queue(found):
            return PendingConnection(self, addr, None)
        self.refused(found, addr)
        service_admission = self.service_admission
        return (
            RejectProtocol(service_admission.refusals.lingering_closer, service_admission.refusals.banner)
            if service_admission.refusals.banner
            else None
        )

    def admit(self, addr: IAddress) -> ConnectionSlot | Refusal:
        """Ask the door."""
        if isinstance(addr, _INET):
            return self.service_admission.admit(addr.host, self.clock())
        return self.service_admission.admit(addr.user if isinstance(addr, UNIXPeer) else "", self.clock())

    def wrap(self, addr: IAddress, slot: ConnectionSlot) -> ConnectionWrapper | None:
        """The gate of somebody who has a ticket; None, and the ticket is void, if the service wants no connection."""
        try:
            protocol = self._factory.buildProtocol(addr)
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException as error:  # noqa: BLE001 - a mistake in the service's code ends this connection
            slot.release()
            self._not_built(addr, reason_of(error))
            return None
        if protocol is None:
            slot.release()
            self.refused(_UNWANTED, addr)
            return None
        wrapper_type = self._wrapper_type or (
            HalfCloseableWrapper if IHalfCloseableProtocol.providedBy(protocol) else ConnectionWrapper
        )
        return wrapper_type(self, protocol, addr, slot)

    def _not_built(self, addr: IAddress, reason: str) -> None:
        """Count and log a connection for which the service's factory raised an exception."""
        self.counters.failures += 1
        if self.fail_line:
            peer = self.quoted_peer(addr.host, addr.port) if isinstance(addr, _INET) else self.quoted("local")
            values = {"peer": peer, "id": next(self.connection_ids), "reason": self.quoted(reason)}
            self.log_writer.write(self.fail_line % values)

    def refused(self, refusal: Refusal, addr: IAddress) -> None:
        """Somebody is not let in."""
        self.service_admission.refusals.report(refusal, self.peer_of(addr))

    def peer_of(self, addr: IAddress) -> str:
        """The client as the log has it."""
        if isinstance(addr, _INET):
            return self.peer_text(addr.host, addr.port)
        return addr.text if isinstance(addr, UNIXPeer) else LOCAL_CLIENT

    def name_of(self, addr: IAddress) -> Deferred[str | None]:
        """The client's confirmed name."""
        return self.resolver.confirmed_host_of(unmapped(addr.host)) if isinstance(addr, _INET) else succeed(None)


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
        self,
        tracker: TrackingFactory,
        addr: IAddress,
        slot: ConnectionSlot | None,
        name: Deferred[str | None] | None = None,
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
            if tracker.service_admission.refusals.banner:
                follower = RejectProtocol(
                    tracker.service_admission.refusals.lingering_closer, tracker.service_admission.refusals.banner
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
