"""Transports of stream connections.

A transport is both an asyncio protocol for uvloop and a Twisted transport for the Twisted protocol. A single object
saves memory, since a process may have very many connections.
"""

from __future__ import annotations

import socket
import struct
from functools import partial
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

from svcd.reactor.log_context import LOG_PREFIX, log_prefix
from svcd.reactor.output import OutputMixin, discard
from svcd.reactor.socket_handle import SocketHandle

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Callable

    from twisted.internet.interfaces import IProtocolFactory

    from svcd.reactor.native import NativeReactor

__all__ = ["UvTransport"]

# All connections share these, as in Twisted's reactors.
_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())
#: The value of SO_LINGER with which close(2) resets the connection (socket(7)).
_RESET = struct.pack("ii", 1, 0)


@implementer(ITransport, IConsumer, IPushProducer, ISystemHandle, ILoggingContext)
class UvTransport(OutputMixin):
    """Transport of a stream connection.

    uvloop reads `data_received` when the protocol is set, and calls this function for input. So input is passed from
    libuv to the Twisted protocol without another Python call: a `dataReceived` that a protocol sets in the instance
    before its connectionMade() returns is called directly, for the life of the connection. For other protocols the
    method is looked up for each piece of data, since some replace it later.

    Args:
        reactor: the reactor whose loop runs the connection.
        fd: the connection; uvloop closes it.
        factory: builds the Twisted protocol.
        peer: the client's address, an IAddress.
        server: the port that accepted the connection; None if none did.
        sessionno: the number of the connection at that port.

    """

    __slots__ = (
        "__weakref__",
        "_aborting",
        "_factory",
        "_failure",
        "_got_eof",
        "_handle",
        "_held",
        "_peer",
        "_reading",
        "server",
        "sessionno",
    )  # fmt: skip

    TLS = False
    _log = Logger(namespace="svcd.reactor")
    _family = socket.AF_UNSPEC

    def __init__(
        self,
        reactor: NativeReactor,
        fd: int,
        factory: IProtocolFactory,
        peer: Any,  # noqa: ANN401 - an IAddress
        server: Any,  # noqa: ANN401 - any port
        sessionno: int,
    ) -> None:
        super().__init__(reactor)
        self._fd = fd
        self._factory = factory
        self._peer = peer
        self.server = server
        self.sessionno = sessionno
        self._handle: SocketHandle | None = None
        self._failure: Failure | None = None
        self._aborting = False
        self._reading = True
        self._got_eof = False
        # Input that arrived after the application had paused reading, before uvloop could be stopped.
        self._held: list[bytes] | None = None

    def __repr__(self) -> str:
        protocol = getattr(self, "_protocol", None)
        name = type(self).__name__ if protocol is None else type(protocol).__name__
        where = self.client if self.server is None else self.server.where
        return f"<{name} #{self.sessionno} on {where}>"

    @property
    def hostname(self) -> Any:  # noqa: ANN401 - text, or a path
        """The client's host, or the path of its UNIX socket."""
        return self._peer.host

    @property
    def client(self) -> tuple[Any, ...]:
        """The client's socket address, as Twisted's transports have it."""
        return self._peer.host, self._peer.port

    def logPrefix(self) -> str:
        """Return the prefix of the connection's log lines. It is made on demand, since few connections log."""
        protocol = getattr(self, "_protocol", None)
        return f"{log_prefix(protocol)},{self.sessionno},{self.hostname}"

    @property
    def logstr(self) -> str:
        """The log prefix, under its name in Twisted's transports."""
        return self.logPrefix()

    # Called by uvloop.

    def connection_made(self, transport: Transport) -> None:
        """Build the protocol and connect it; uvloop starts reading after this."""
        self._uv = transport
        try:
            protocol = self._factory.buildProtocol(self._peer)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - any error ends this connection alone
            self._log.failure("buildProtocol raised")
            protocol = None
        if protocol is None:
            self._refuse()
        else:
            self._protocol = protocol
            self._connect_protocol()

    def _refuse(self) -> None:
        """Close a connection that has no protocol."""
        self.disconnected = True
        if self._handle is not None:
            self._handle.forget()
        self._uv.abort()

    def _connect_protocol(self) -> None:
        protocol = self._protocol
        # This runs in the connection's own context, which keeps the variable.
        LOG_PREFIX.set(self)
        self.connected = True
        self.reactor.natives[self] = None
        self._send_by(self._direct())
        try:
            protocol.makeConnection(self)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - any error ends this connection alone
            self._fail(Failure())
        if self.connected:
            self._start_reading()

    @property
    def data_received(self) -> Callable[[bytes], None]:
        """The function that is called with input; uvloop reads it once, when the protocol is set."""
        if self._held is not None:
            return self._hold
        received: Callable[[bytes], None] = self._protocol.dataReceived
        if getattr(received, "__self__", None) is self._protocol:
            return self._deliver
        return received

    def eof_received(self) -> bool:
        """Handle the end of input; return whether the connection stays open."""
        if not self._reading:
            # uvloop reports the end of input again when reading resumes.
            return True
        self._got_eof = True
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._call(self._protocol.readConnectionLost)
            return True
        # Buffered output is still sent, but the producer adds no more.
        self.disconnecting = True
        self._stop_producer()
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        """Handle the end of the connection; uvloop closes the descriptor after this."""
        if self.disconnected:
            return
        self.reactor.natives.pop(self, None)
        self.connected = False
        self.disconnected = True
        self._send_by(discard)
        self.write = discard
        self._held = self.file_output = None
        self._stop_producer()
        try:
            self._protocol.connectionLost(self._reason(error))
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - the connection has already ended
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
            # uvloop makes such an exception for an error of the system.
            return _LOST
        failure = Failure(error)
        self._log.failure("a protocol raised", failure)
        return failure

    def raised(self, error: BaseException) -> None:
        """Close the connection after an exception in its dataReceived(); called by the loop's exception handler."""
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

    # Input.

    @property
    def protocol(self) -> Any:  # noqa: ANN401 - an IProtocol
        """The protocol that gets input; it may be replaced at any time."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: Any) -> None:  # noqa: ANN401 - an IProtocol
        self._protocol = protocol
        if self.connected:
            self._uv.set_protocol(self)  # type: ignore[arg-type]

    def pauseProducing(self) -> None:
        """Pause reading."""
        self._reading = False
        if self.connected:
            self._uv.pause_reading()

    stopReading = pauseProducing

    def resumeProducing(self) -> None:
        """Resume reading."""
        if self.connected and not (self.disconnecting or self._got_eof):
            self._reading = True
            if self._held is None:
                self._uv.resume_reading()
            else:
                self._call_soon(self._settle)

    startReading = resumeProducing

    @property
    def reading(self) -> bool:
        """Whether reading is not paused."""
        return self._reading and not (self.disconnecting or self._got_eof)

    def _deliver(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def _hold(self, data: bytes) -> None:
        assert self._held is not None  # noqa: S101 - uvloop was given this method with the list
        self._held.append(data)

    def _settle(self) -> None:
        """Pause reading that uvloop has started despite the pause, or deliver the held input."""
        if not self.connected or self._held is None:
            return
        if not self._reading:
            self._uv.pause_reading()
            return
        while self._held:
            data = self._held.pop(0)
            self._call(partial(self._deliver, data))
            if not (self.reading and self.connected):
                # If reading is paused again, the rest stays held; if the connection is closed, it is dropped.
                return
        self._held = None
        self._uv.set_protocol(self)  # type: ignore[arg-type]
        self._uv.resume_reading()

    def _start_reading(self) -> None:
        """Prepare input after connectionMade(): uvloop starts reading in any case, and may have to be paused."""
        if not self._reading:
            self._held = []
            self._call_soon(self._settle)
        # The protocol may have set its own dataReceived.
        self._uv.set_protocol(self)  # type: ignore[arg-type]

    # Called by the application.

    def loseConnection(self, _reason: object = None) -> None:
        """Close the connection when all data is written and no producer is registered."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            if self.producer is None:
                self._uv.close()
            else:
                self._uv.pause_reading()

    def abortConnection(self) -> None:
        """Reset the connection at once; unsent output is lost."""
        if self.connected and not self._aborting:
            self._raw_handle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._abort()

    def _abort(self) -> None:
        self._aborting = True
        self._uv.abort()

    def stopProducing(self) -> None:
        """Close the connection, as a producer."""
        self.loseConnection()

    def getPeer(self) -> Any:  # noqa: ANN401 - the kind of address that the kind of transport has
        """Return the client's address."""
        return self._peer

    def getHost(self) -> Any:  # noqa: ANN401 - the kind of address that the kind of transport has
        """Return the local address of the connection."""
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:
        """Handle the stop of the reactor."""
        transport = self._uv
        self._failure = reason
        self.connection_lost(None)
        transport.abort()

    def fileno(self) -> int:
        """Return the descriptor; -1 after the end of the connection."""
        return self._fd if self.connected else -1

    def getHandle(self) -> socket.socket:
        """Return the connection as a socket, for its options; it is closed with the connection.

        Raises:
            AttributeError: the connection is gone.
        """
        return self._raw_handle()

    def _raw_handle(self) -> SocketHandle:
        if self._handle is None:
            if self.disconnected:
                raise AttributeError("the connection is gone")
            self._handle = SocketHandle(self._family, socket.SOCK_STREAM, 0, self._fd)
            self._handle.close_callback = self._abort
        return self._handle

    def getTcpKeepAlive(self) -> bool:
        """Return whether the kernel probes a silent client (SO_KEEPALIVE)."""
        return bool(self._raw_handle().getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Set whether the kernel probes a silent client (SO_KEEPALIVE)."""
        self._raw_handle().setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    @property
    def socket(self) -> socket.socket:
        """The result of getHandle(), under its name in Twisted's transports."""
        return self._raw_handle()
