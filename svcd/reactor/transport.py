"""One stream connection from its beginning to its end.

It is asyncio's protocol to uvloop and a Twisted transport to the Twisted protocol, in one object: there may be very
many of them.
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

from svcd.reactor.input import InputMixin
from svcd.reactor.log_context import LOG_PREFIX, log_prefix
from svcd.reactor.output import dropped
from svcd.reactor.socket_handle import Handle

if TYPE_CHECKING:
    from asyncio import Transport

    from twisted.internet.interfaces import IProtocolFactory

    from svcd.reactor.native import NativeReactor

__all__ = ["StreamTransport"]

# What Twisted's reactors share among connections as well.
_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())
#: Closing resets the connection (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)


@implementer(ITransport, IConsumer, IPushProducer, ISystemHandle, ILoggingContext)
class StreamTransport(InputMixin):
    """A server's side of one connection.

    A protocol that puts its own `dataReceived` in place before its connectionMade() ends is called at it directly,
    and for good. For others the method is looked up for each piece of data, since some set it later.

    Args:
        reactor: whose loop runs the connection.
        descriptor: the connection's, which uvloop closes.
        factory: builds the Twisted protocol.
        peer: who it is.
        server: the port that accepted it.
        sessionno: its number there.
        where: how the listening address reads in messages.

    """

    __slots__ = ("__weakref__", "_aborting", "_descriptor", "_factory", "_failure", "_handle", "_peer", "_where",
                 "server", "sessionno")  # fmt: skip

    TLS = False
    _log = Logger(namespace="svcd.reactor")
    _family = socket.AF_UNSPEC

    def __init__(
        self,
        reactor: NativeReactor,
        descriptor: int,
        factory: IProtocolFactory,
        peer: Any,  # noqa: ANN401 - an IAddress
        server: object,
        sessionno: int,
        where: object,
    ) -> None:
        super().__init__(reactor)
        self._descriptor = descriptor
        self._factory = factory
        self._peer = peer
        self._where = where
        self.server = server
        self.sessionno = sessionno
        self._handle: Handle | None = None
        self._failure: Failure | None = None
        self._aborting = False

    def __repr__(self) -> str:
        protocol = getattr(self, "_protocol", None)
        name = type(self).__name__ if protocol is None else type(protocol).__name__
        return f"<{name} #{self.sessionno} on {self._where}>"

    @property
    def hostname(self) -> Any:  # noqa: ANN401 - text, or a path
        """The client's host."""
        return self._peer.host

    @property
    def client(self) -> tuple[Any, ...]:
        """The client as Twisted's transports have it, a socket address."""
        return self._peer.host, self._peer.port

    def logPrefix(self) -> str:
        """What its lines in the log begin with. Made when somebody logs: few connections do, and there are many."""
        protocol = getattr(self, "_protocol", None)
        return f"{log_prefix(protocol)},{self.sessionno},{self.hostname}"

    @property
    def logstr(self) -> str:
        """The same, by the name that Twisted's transports have for it."""
        return self.logPrefix()

    # What uvloop calls.

    def connection_made(self, transport: Transport) -> None:
        """The connection is there; reading begins after this."""
        self._uv = transport
        try:
            protocol = self._factory.buildProtocol(self._peer)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
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
        if self._handle is not None:
            self._handle.forget()
        self._uv.abort()

    def _begin(self) -> None:
        protocol = self._protocol
        # This runs in the connection's own context, where the variable stays.
        LOG_PREFIX.set(self)
        self.connected = True
        self.reactor.natives[self] = None
        self._send_by(self._direct())
        try:
            protocol.makeConnection(self)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one connection
            self._fail(Failure())
        if self.connected:
            self._begin_reading()

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
        self.reactor.natives.pop(self, None)
        self.connected = False
        self.disconnected = True
        self._send_by(dropped)
        self.write = dropped
        self._held = None
        self._stop_producer()
        try:
            self._protocol.connectionLost(self._reason(error))
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - there is nothing left to drop
            self._log.failure("connectionLost raised", Failure())
        self._forget()

    def _forget(self) -> None:
        if self._handle is not None:
            self._handle.forget()
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
            except KeyboardInterrupt:
                # Ctrl-C ends the program, as on Twisted's own reactors.
                raise
            except BaseException:  # noqa: BLE001 - the connection ends anyway
                self._log.failure("stopProducing raised", Failure())

    # What Twisted calls.

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

    def stopProducing(self) -> None:
        """End, as a producer."""
        self.loseConnection()

    def getPeer(self) -> Any:  # noqa: ANN401 - the kind of address that the kind of transport has
        """The client."""
        return self._peer

    def getHost(self) -> Any:  # noqa: ANN401 - the kind of address that the kind of transport has
        """Our side of the connection."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        transport = self._uv
        self._failure = reason
        self.connection_lost(None)
        transport.abort()

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return self._descriptor if self.connected else -1

    def getHandle(self) -> socket.socket:
        """The descriptor as a socket, for its options; closed with the connection.

        Raises:
            AttributeError: the connection is gone.
        """
        return self._raw_handle()

    def _raw_handle(self) -> Handle:
        if self._handle is None:
            if self.disconnected:
                raise AttributeError("the connection is gone")
            self._handle = Handle(self._family, socket.SOCK_STREAM, 0, self._descriptor)
            self._handle.let_go = self._let_go
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
