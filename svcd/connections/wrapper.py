"""Connections that are served in the daemon: admission, counts and log lines around the service's own protocol.

The wrapper is between the transport and the service's protocol for the first and the last event only: the transport
calls the dataReceived method of the protocol itself, so the wrapper adds no cost per byte.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from svcd.access.admission import ConnectionSlot
from svcd.access.rules import Refusal, RefusalReason
from svcd.addresses import LOCAL_CLIENT, unmapped
from svcd.connections.lingering_close import RejectProtocol
from svcd.connections.tracker import ConnectionTracker
from svcd.errors import reason_of
from svcd.metrics.counters import LiveTraffic
from svcd.net.peer_credentials import UNIXPeer, credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext

__all__ = ["ConnectionWrapper", "HalfCloseableWrapper", "PendingConnection", "TrackingFactory"]

_INET = (IPv4Address, IPv6Address)
_KNOWN_CLIENTS = (*_INET, UNIXPeer)
_UNWANTED = Refusal(RefusalReason.SERVICE, "the service declines the connection")


@implementer(IProtocol)
class ConnectionWrapper:
    """Protocol between the transport and the service's protocol: logs, counts and limits a connection.

    Attributes:
        connection_id: the id of the connection, unique since the start of the daemon.
        started: time of accept in seconds, by the tracker's clock.
    """

    __slots__ = (
        "_accept", "_cause", "_client", "_host", "_input_closed", "_protocol", "_slot", "_tracker", "connection_id",
        "dataReceived", "started", "transport",
    )  # fmt: skip

    def __init__(
        self, tracker: ConnectionTracker[Any], protocol: IProtocol, client: IAddress, slot: ConnectionSlot
    ) -> None:
        self._tracker = tracker
        self._protocol = protocol
        self._slot = slot
        self._cause = ""
        self._host = tracker.no_value
        # The template and the values of an accept line that waits for the client's host name.
        self._accept: tuple[str, dict[str, object]] | None = None
        self._input_closed = False
        # The address object is that of the transport, which saves memory.
        self._client: Any = client
        self.dataReceived: Callable[[bytes], None] = protocol.dataReceived

    @property
    def peer(self) -> str:
        """The client's address as text; it is not stored, as it would take more memory than the wrapper."""
        client = self._client
        return self._tracker.format_peer(client.host, client.port) if isinstance(client, _INET) else client.text

    @property
    def _quoted_peer(self) -> str:
        client, tracker = self._client, self._tracker
        return tracker.quoted_peer(client.host, client.port) if isinstance(client, _INET) else tracker.quoted(self.peer)

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Count and log the connection, and connect the service's protocol."""
        tracker = self._tracker
        self.transport = transport
        if not isinstance(self._client, _KNOWN_CLIENTS):
            self._client = UNIXPeer(None, credentials(transport.getHandle()))
        self.started = tracker.clock()
        self.connection_id = next(tracker.connection_ids)
        tracker.counters.accepted += 1
        tracker.add(self)
        if tracker.accept_line:
            self._log_accept(
                {
                    "peer": self._quoted_peer,
                    "id": self.connection_id,
                    "count": len(tracker.connections) - tracker.unlogged,
                }
            )
        if tracker.service_admission.accept_banner:
            self._send_banner(transport, tracker.service_admission.accept_banner)
        try:
            self._protocol.makeConnection(transport)
        except BaseException:
            self._cause = "error"
            raise
        # The protocol may have set a faster method.
        self.dataReceived = self._protocol.dataReceived

    def connectionMade(self) -> None:
        """Do nothing: makeConnection() passes on the transport."""

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection: write its lines and release its slot."""
        tracker = self._tracker
        try:
            self._log_pending_accept()
            del tracker.connections[self.connection_id]
            tracker.budget.release()
            self._protocol.connectionLost(reason)
        finally:
            try:
                self._log_end(reason)
            finally:
                # After the end line: this may admit a queued connection.
                self._slot.release()
                tracker.notify_if_empty()

    def _log_end(self, reason: Failure) -> None:
        tracker = self._tracker
        # failure_text of a protocol is the reason why it could not serve the client.
        failure = getattr(self._protocol, "failure_text", "")
        if failure:
            self._cause = self._cause or self._failure_word()
        if failure and tracker.fail_line:
            values = {"peer": self._quoted_peer, "id": self.connection_id, "reason": tracker.quoted(failure)}
            tracker.log_writer.write(tracker.fail_line % values)
        # end_reason of a protocol is the reason for which it closed the connection itself.
        self._cause = self._cause or getattr(self._protocol, "end_reason", "")
        seconds, word = tracker.clock() - self.started, self._cause or self._reason(reason)
        if failure or word == "error":
            tracker.counters.failures += 1
        if not (tracker.end_line or tracker.counters.watched):
            # No byte counts are logged, which saves the system calls.
            tracker.counters.end_uncounted(word, seconds)
            return
        carried = getattr(self.transport, "bytes_in", 0), getattr(self.transport, "bytes_out", 0)
        tracker.log_end(self.connection_id, self.peer, self._host, seconds, *carried, word)

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes received from the client, and those acknowledged by its system; None if they are unknown."""
        return getattr(self.transport, "traffic", None)

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        moved = {"in": getattr(self.transport, "bytes_in", 0), "out": getattr(self.transport, "bytes_out", 0)}
        return self._tracker.facts(self, self.peer, **moved)

    def drain(self) -> None:
        """Close the connection as soon as the client has all output; the protocol decides when."""
        drain = getattr(self._protocol, "drain", None)
        if drain is not None:
            drain()

    def abort(self, cause: str) -> None:
        """Close the connection now and discard unsent data; cause is the reason of the end line."""
        self._cause = self._cause or cause
        self.transport.abortConnection()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return self._tracker.service.id

    def _log_accept(self, values: dict[str, object]) -> None:
        tracker = self._tracker
        if tracker.resolves:
            # The line waits for the name for a limited time; the client is served meanwhile.
            self._defer_accept(values)
            self._look_up_name()
        else:
            tracker.log_writer.write(tracker.accept_line % values)

    def _look_up_name(self) -> None:
        host = getattr(self.transport.getPeer(), "host", None)
        found = self._tracker.resolver.host_of(host) if host else succeed(None)
        found.addCallback(self._host_name_found)

    def _host_name_found(self, host: str | None) -> None:
        if host:
            self._host = self._tracker.quoted(host)
        self._log_pending_accept()

    def _defer_accept(self, values: dict[str, object]) -> None:
        self._tracker.unlogged += 1
        self._accept = self._tracker.accept_line, values

    def _log_pending_accept(self) -> None:
        """Write the deferred accept line, if there is one, with the current time and count."""
        tracker = self._tracker
        if self._accept is not None:
            (line, values), self._accept = self._accept, None
            tracker.unlogged -= 1
            values |= {"host": self._host, "count": len(tracker.connections) - tracker.unlogged}
            if tracker.accept_line:
                tracker.log_writer.write(line % values)

    def _send_banner(self, transport: Any, welcome: bytes) -> None:  # noqa: ANN401 - as makeConnection
        transport.write(welcome)

    def _failure_word(self) -> str:
        return "failed"

    def _reason(self, failure: Failure) -> str:
        if failure.type is ConnectionDone:
            return "done"
        if failure.check(ConnectionAborted):
            return "aborted"
        if not failure.check(ConnectionLost):
            return "error"
        # At the orderly end of a UNIX socket poll(2) reports POLLHUP, which Twisted reports as ConnectionLost.
        local = not isinstance(self.transport.getPeer(), _INET)
        return "done" if local and self._input_closed else "lost"


@implementer(IHalfCloseableProtocol)
class HalfCloseableWrapper(ConnectionWrapper):
    """Wrapper of a protocol that handles half-close."""

    __slots__ = ()

    def readConnectionLost(self) -> None:
        """Handle the end of the client's input."""
        self._input_closed = True
        self._protocol.readConnectionLost()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """Handle the close of the write side."""
        self._protocol.writeConnectionLost()  # type: ignore[attr-defined]


class TrackingFactory(ConnectionTracker[ConnectionWrapper], Factory):
    """Factory that wraps the protocols of one service; all listeners of the service share it.

    Args:
        service, context, service_admission: as in ConnectionTracker.
        factory: builds the protocols of the service.
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
        """Use another factory and wrapper class for new connections."""
        self._factory = factory
        self._wrapper_type = wrapper_type

    def may_accept(self) -> int:
        """Return how many more connections may be accepted now."""
        return self.budget.room() if self.service_admission.may_accept() else 0

    def traffic(self) -> LiveTraffic:
        """Return the bytes received and sent so far on the open connections."""
        transports = [wrapper.transport for wrapper in self.connections.values()]
        return LiveTraffic(*(sum(getattr(each, name, 0) for each in transports) for name in ("bytes_in", "bytes_out")))

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """Return a wrapped protocol of the service, a PendingConnection, a RejectProtocol, or None to close."""
        found = self.admit(addr)
        if isinstance(found, ConnectionSlot) and found.needs_host_name:
            name = self.name_of(addr)
            if not name.called:
                return PendingConnection(self, addr, found, name)
            # The name was in the cache of the resolver.
            found = found.check_host_name(cast("str | None", name.result)) or found
        if isinstance(found, ConnectionSlot):
            return self.wrap(addr, found)
        if self.service_admission.should_queue(found):
            return PendingConnection(self, addr, None)
        self.refused(found, addr)
        refusals = self.service_admission.refusals
        answer = refusals.answer(found)
        return RejectProtocol(refusals.lingering_closer, answer, answers=refusals.answers_http) if answer else None

    def admit(self, addr: IAddress) -> ConnectionSlot | Refusal:
        """Admit or refuse a connection."""
        if isinstance(addr, _INET):
            return self.service_admission.admit(addr.host, self.clock())
        return self.service_admission.admit(addr.user if isinstance(addr, UNIXPeer) else "", self.clock())

    def wrap(self, addr: IAddress, slot: ConnectionSlot) -> ConnectionWrapper | None:
        """Return the wrapped protocol of an admitted connection; without one release the slot and return None."""
        try:
            protocol = self._factory.buildProtocol(addr)
        except KeyboardInterrupt:
            # Ctrl-C stops the daemon; it is not an error of this service.
            raise
        except BaseException as error:  # noqa: BLE001 - an error in the service's code ends this connection
            slot.release()
            self._build_failed(addr, reason_of(error))
            return None
        if protocol is None:
            slot.release()
            self.refused(_UNWANTED, addr)
            return None
        wrapper_type = self._wrapper_type or (
            HalfCloseableWrapper if IHalfCloseableProtocol.providedBy(protocol) else ConnectionWrapper
        )
        return wrapper_type(self, protocol, addr, slot)

    def _build_failed(self, addr: IAddress, reason: str) -> None:
        """Count and log a connection for which the service's factory raised an exception."""
        self.counters.failures += 1
        if self.fail_line:
            peer = self.quoted_peer(addr.host, addr.port) if isinstance(addr, _INET) else self.quoted("local")
            values = {"peer": peer, "id": next(self.connection_ids), "reason": self.quoted(reason)}
            self.log_writer.write(self.fail_line % values)

    def refused(self, refusal: Refusal, addr: IAddress) -> None:
        """Report the refusal of a connection."""
        self.service_admission.refusals.report(refusal, self.peer_of(addr))

    def peer_of(self, addr: IAddress) -> str:
        """Return the client's address as text, not quoted."""
        if isinstance(addr, _INET):
            return self.format_peer(addr.host, addr.port)
        return addr.text if isinstance(addr, UNIXPeer) else LOCAL_CLIENT

    def name_of(self, addr: IAddress) -> Deferred[str | None]:
        """Look up the client's confirmed host name."""
        return self.resolver.confirmed_host_of(unmapped(addr.host)) if isinstance(addr, _INET) else succeed(None)


@implementer(IProtocol)
class PendingConnection:
    """Protocol of a connection that is accepted and not admitted yet.

    The connection is not read before its client's host name is known, or before there is room. Then another protocol
    replaces this one.

    Args:
        tracker: admits the connection.
        addr: the client's address.
        slot: its admission, if that depends on the host name; None to wait for room.
        name: the look-up of the host name.

    Attributes:
        started: time of accept in seconds, by the tracker's clock.
    """

    _log = Logger()

    __slots__ = ("_addr", "_connection_id", "_early", "_name", "_removed", "_slot", "_tracker", "_transport", "started")

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
        self._connection_id = 0
        self.started = tracker.clock()
        # Data that was read before the transport could be paused.
        self._early: list[bytes] = []
        self._removed = False

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Pause the transport, and wait."""
        self._transport = transport
        self._tracker.pending[self] = None
        self._tracker.budget.acquire()
        transport.pauseProducing()
        if self._name is not None:
            self._name.addCallback(self._host_name_found)
        else:
            self._tracker.service_admission.enqueue(self._admit_again)

    def connectionMade(self) -> None:
        """Do nothing: makeConnection() is complete in itself."""

    def dataReceived(self, data: bytes) -> None:
        """Store data for the protocol that follows."""
        self._early.append(data)

    def connectionLost(self, _reason: Failure) -> None:
        """Handle the close by the client, which is not always noticed on a socket that is not read."""
        self._tracker.service_admission.dequeue(self._admit_again)
        self._remove()
        if self._slot is not None:
            self._slot.release()

    @property
    def connection_id(self) -> int:
        """The id of the connection while it waits, assigned when it is first listed."""
        self._connection_id = self._connection_id or next(self._tracker.connection_ids)
        return self._connection_id

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        state = "room" if self._slot is None else "host-name"
        return self._tracker.facts(self, self._tracker.peer_of(self._addr), state=state)

    def drain(self) -> None:
        """Close the connection: there is no output to send."""
        self.abort("")

    def abort(self, _cause: str) -> None:
        """Close the connection."""
        self._transport.abortConnection()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "pending"

    def _remove(self) -> None:
        self._removed = True
        del self._tracker.pending[self]
        self._tracker.budget.release()
        self._tracker.notify_if_empty()

    def _host_name_found(self, name: str | None) -> None:
        if self._removed:
            return
        slot = self._slot
        assert slot is not None  # noqa: S101 - without a slot no name is looked up
        refusal = slot.check_host_name(name)
        self._replace_protocol(slot if refusal is None else refusal)

    def _admit_again(self) -> None:
        found = self._tracker.admit(self._addr)
        if not isinstance(found, ConnectionSlot):
            if self._tracker.service_admission.should_queue(found):
                self._tracker.service_admission.enqueue(self._admit_again)
            else:
                self._replace_protocol(found)
            return
        self._slot = found
        if found.needs_host_name:
            self._name = self._tracker.name_of(self._addr).addCallback(self._host_name_found)
        else:
            self._replace_protocol(found)

    def _replace_protocol(self, found: ConnectionSlot | Refusal) -> None:
        """Replace this protocol by the service's, or reject the connection."""
        tracker, transport = self._tracker, self._transport
        next_protocol: Any = None
        if isinstance(found, ConnectionSlot):
            next_protocol = tracker.wrap(self._addr, found)
        else:
            tracker.refused(found, self._addr)
            refusals = tracker.service_admission.refusals
            answer = refusals.answer(found)
            if answer:
                next_protocol = RejectProtocol(refusals.lingering_closer, answer, answers=refusals.answers_http)
        self._slot = None
        if next_protocol is None:
            transport.loseConnection()
            return
        transport.protocol = next_protocol
        # The new protocol may pause it again.
        transport.resumeProducing()
        try:
            next_protocol.makeConnection(transport)
            for data in self._early:
                next_protocol.dataReceived(data)
        except Exception:  # noqa: BLE001 - an error of one connection ends that connection only
            self._log.failure("a connection could not be served")
            transport.abortConnection()
        finally:
            self._remove()
