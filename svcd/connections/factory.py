"""The factory of a service's gates: who comes asks it first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import succeed
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory

from svcd.access.admission import ConnectionSlot
from svcd.access.rules import Refusal, RefusalReason
from svcd.addresses import LOCAL_CLIENT, unmapped
from svcd.connections.lingering_close import RejectProtocol
from svcd.connections.pending import PendingConnection
from svcd.connections.tracker import ConnectionTracker
from svcd.connections.wrapper import ConnectionWrapper, HalfCloseableWrapper
from svcd.errors import reason_of
from svcd.metrics.counters import LiveTraffic
from svcd.net.peer_credentials import UNIXPeer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext

__all__ = ["TrackingFactory"]

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

    def flow(self) -> LiveTraffic:
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
            RejectProtocol(service_admission.lingering_closer, service_admission.refuse_banner)
            if service_admission.refuse_banner
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
        self.service_admission.refused(refusal, self.peer_of(addr))

    def peer_of(self, addr: IAddress) -> str:
        """The client as the log has it."""
        if isinstance(addr, _INET):
            return self.peer_text(addr.host, addr.port)
        return addr.text if isinstance(addr, UNIXPeer) else LOCAL_CLIENT

    def name_of(self, addr: IAddress) -> Deferred[str | None]:
        """The client's confirmed name."""
        return self.resolver.confirmed_host_of(unmapped(addr.host)) if isinstance(addr, _INET) else succeed(None)
