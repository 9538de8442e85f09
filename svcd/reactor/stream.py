"""One stream connection: asyncio's protocol to uvloop, and a Twisted transport to the Twisted protocol.

uvloop calls what `data_received` gave when the protocol was set, and asks no more. So input goes from libuv to the
Twisted protocol without a Python call between, and `write` is uvloop's own method.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    ILoggingContext,
    IPushProducer,
    ISystemHandle,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.reactor.prefix import LOG_PREFIX, log_prefix
from svcd.reactor.producing import Writer, dropped

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IProtocolFactory

    from svcd.reactor.core import UvReactor

__all__ = ["StreamTransport"]

# What Twisted's reactors share among connections as well.
_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())
#: Closing resets the connection (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


class _Handle(socket.socket):
    """A connection's descriptor as a socket. It stays uvloop's, so closing it is asked of the transport."""

    __slots__ = ("_transport",)

    _transport: StreamTransport | None

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport._let_go()  # noqa: SLF001 - two halves of one thing
        self.detach()

    def dup(self) -> socket.socket:
        return socket.fromfd(self.fileno(), self.family, self.type)


@implementer(ITransport, IConsumer, IPushProducer, ISystemHandle, ILoggingContext)
class StreamTransport(Writer):
    """A server's side of one connection.

    A protocol that puts its own `dataReceived` in place before its connectionMade() ends is called at it directly,
    and for good. For others the method is looked up for each piece of data, since some set it later.

    Args:
        reactor: whose loop runs the connection.
        factory: builds the Twisted protocol.
        peer: who it is.
        client: the same as a socket address, as Twisted has it.
        server: the port that accepted it.
        sessionno: its number there.
        where: how the listening address reads in messages.

    Attributes:
        logstr: what its lines in the log begin with.
    """

    __slots__ = ("__weakref__", "_aborting", "_factory", "_failure", "_got_eof", "_handle", "_held", "_peer",
                 "_reading", "_where", "client", "logstr", "server", "sessionno")  # fmt: skip

    TLS = False
    _log = Logger(namespace="svcd.reactor")
    _family = socket.AF_UNSPEC

    def __init__(
        self,
        reactor: UvReactor,
        factory: IProtocolFactory,
        peer: IAddress,
        client: Any,  # noqa: ANN401 - a socket address
        server: IListeningPort,
        sessionno: int,
        where: object,
    ) -> None:
        super().__init__(reactor)
        self._factory = factory
        self._peer = peer
        self._where = where
        self.client = client
        self.server = server
        self.sessionno = sessionno
        self._handle: _Handle | None = None
        self._failure: Failure | None = None
        # Input that came while the application wanted none, before uvloop could be told.
        self._held: list[bytes] | None = None
        self._reading = True
        self._aborting = self._got_eof = False

    def __repr__(self) -> str:
        protocol = getattr(self, "_protocol", None)
        name = type(self).__name__ if protocol is None else type(protocol).__name__
        return f"<{name} #{self.sessionno} on {self._where}>"

    @property
    def hostname(self) -> Any:  # noqa: ANN401 - a part of a socket address
        """The client's host."""
        return self.client[0]

    def logPrefix(self) -> str:
        """What its lines in the log begin with."""
        return self.logstr

    # What uvloop calls.

    @property
    def data_received(self) -> Callable[[bytes], None]:
        """Who takes input; uvloop asks once, when the protocol is set."""
        if self._held is not None:
            return self._hold
        received = self._protocol.dataReceived
        if getattr(received, "__self__", None) is self._protocol:
            return self._deliver
        return received

    def _deliver(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def connection_made(self, transport: Transport) -> None:
        """The connection is there; reading begins after this."""
        self._uv = transport
        try:
            protocol = self._factory.buildProtocol(self._peer)
        except BaseException:  # noqa: BLE001 - one connection's mistake is that connection's end
            self._log.failure("buildProtocol raised")
            protocol = None
        if protocol is None:
            self._refuse()
        else:
            self._protocol = protocol
            self._begin()

    def _refuse(self) -> None:
        """End before anything began."""
        self.disconnected = True
        self._uv.abort()

    def _begin(self) -> None:
        protocol = self._protocol
        self.logstr = f"{log_prefix(protocol)},{self.sessionno},{self.hostname}"
        # This runs in the connection's own context, where the variable stays.
        LOG_PREFIX.set(self.logstr)
        self.connected = True
        self.reactor.natives.add(self)
        self._send_by(self._direct())
        self._call(lambda: protocol.makeConnection(self))
        if self.disconnected:
            return
        if not self._reading:
            # uvloop starts to read in any case, and has to be stopped again.
            self._held = []
            self._soon(self._settle)
        # A protocol may have put its own, faster way in place.
        self._uv.set_protocol(self)  # type: ignore[arg-type]

    def eof_received(self) -> bool:
        """The client sends no more; whether the connection stays open."""
        if not self._reading:
            # It is found again as soon as reading goes on.
            return True
        self._got_eof = True
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._call(self._protocol.readConnectionLost)
            return True
        # What was written is still sent, but no more produced for it.
        self.disconnecting = True
        self._stop_producer()
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        """The connection is gone; its descriptor is closed after this."""
        if self.disconnected:
            return
        self.reactor.natives.discard(self)
        self.connected = False
        self.disconnected = True
        self._send_by(dropped)
        self.write = dropped
        self._held = None
        self._stop_producer()
        try:
            self._protocol.connectionLost(self._reason(error))
        except BaseException:  # noqa: BLE001 - there is nothing left to drop
            self._log.failure("connectionLost raised", Failure())
        self._forget()

    def _forget(self) -> None:
        if self._handle is not None:
            self._handle._transport = None  # noqa: SLF001 - two halves of one thing
            self._handle.detach()
            self._handle = None
        del self._protocol, self._uv, self._factory

    def _reason(self, error: BaseException | None) -> Failure:
        if self._failure is not None:
            return self._failure
        if self._aborting:
            return Failure(ConnectionAborted())
        if error is None:
            return _DONE
        if error.__traceback__ is None:
            # Made by uvloop from an error of the system.
            return _LOST
        failure = Failure(error)
        self._log.failure("a protocol raised", failure)
        return failure

    def raised(self, error: BaseException) -> None:
        """The loop's exception handler: the application raised while uvloop handed it input."""
        self._fail(Failure(error))

    def _fail(self, reason: Failure) -> None:
        self._log.failure("a protocol raised", reason)
        self._failure = reason
        if self.connected:
            self._uv.abort()

    def _stop_producer(self) -> None:
        producer, self.producer = self.producer, None
        if producer is not None:
            try:
                producer.stopProducing()
            except BaseException:  # noqa: BLE001 - the connection ends anyway
                self._log.failure("stopProducing raised", Failure())

    # What Twisted calls.

    @property
    def protocol(self) -> IProtocol:
        """Who takes input; another one may be set at any time."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: IProtocol) -> None:
        self._protocol = protocol
        if self.connected:
            self._uv.set_protocol(self)  # type: ignore[arg-type]

    def loseConnection(self, _reason: object = None) -> None:
        """Close when everything is written, and, with a producer, when that is unregistered."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            if self.producer is None:
                self._uv.close()
            else:
                self._uv.pause_reading()

    def abortConnection(self) -> None:
        """Close at once, by a reset; nothing more is sent."""
        if self.connected and not self._aborting:
            self._raw_handle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._let_go()

    def _let_go(self) -> None:
        self._aborting = True
        self._uv.abort()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._reading = False
        if self.connected:
            self._uv.pause_reading()

    stopReading = pauseProducing

    def resumeProducing(self) -> None:
        """Read again."""
        if self.connected and not (self.disconnecting or self._got_eof):
            self._reading = True
            if self._held is None:
                self._uv.resume_reading()
            else:
                self._soon(self._settle)

    startReading = resumeProducing

    @property
    def reading(self) -> bool:
        """Whether input is wanted."""
        return self._reading and not (self.disconnecting or self._got_eof)

    @property
    def writing(self) -> bool:
        """Whether output waits."""
        return self.connected and bool(self._uv.get_write_buffer_size())

    def stopProducing(self) -> None:
        """End, as a producer."""
        self.loseConnection()

    def _hold(self, data: bytes) -> None:
        assert self._held is not None  # noqa: S101 - uvloop was given this method with the list
        self._held.append(data)

    def _settle(self) -> None:
        """Stop reading that should not have begun, or hand over what it brought."""
        if not self.connected or self._held is None:
            return
        if not self._reading:
            self._uv.pause_reading()
            return
        held, self._held = self._held, None
        self._uv.set_protocol(self)  # type: ignore[arg-type]
        for data in held:
            if self._reading and not self.disconnecting:
                self._call(lambda data=data: self._protocol.dataReceived(data))  # type: ignore[misc]
        if self._reading and not self._got_eof:
            self._uv.resume_reading()

    def getPeer(self) -> IAddress:
        """The client."""
        return self._peer

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        transport = self._uv
        self._failure = reason
        self.connection_lost(None)
        transport.abort()

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return self._raw_handle().fileno() if self.connected or self._handle else -1

    def getHandle(self) -> socket.socket:
        """The descriptor as a socket, for its options; closed with the connection.

        Raises:
            AttributeError: the connection is gone.
        """
        return self._raw_handle()

    def _raw_handle(self) -> _Handle:
        if self._handle is None:
            descriptor = self._uv.get_extra_info("socket").fileno()
            self._handle = _Handle(self._family, socket.SOCK_STREAM, 0, descriptor)
            self._handle._transport = self  # noqa: SLF001 - two halves of one thing
        return self._handle

    def getTcpKeepAlive(self) -> bool:
        """Whether a silent client is asked if it is still there."""
        return bool(self._raw_handle().getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Say whether a silent client is asked if it is still there."""
        self._raw_handle().setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    @property
    def socket(self) -> socket.socket:
        """The same, by the name that Twisted's transports have for it."""
        return self._raw_handle()
