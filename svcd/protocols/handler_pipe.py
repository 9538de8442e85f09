"""Pair of sockets of a handler process whose client's connection the daemon keeps: with TLS or WebSocket.

The daemon has one end of the pair and the handler the other (unix(7), unnamed). Each direction ends independently and
has its own back-pressure. All output that a handler has written before its exit reaches the client, whether or not the
handler has read its input.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from svcd.net.sock_diag import GONE
from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.protocols.pipe import BufferedPipeEnd, PipeEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import AdoptConnection, DescriptorCounter, FdReactor
    from svcd.protocols.websocket.protocol import WebSocketProtocol

__all__ = ["ClientEnd", "HandlerEnd", "PipedConnection"]

#: Size of a read after the handler's exit, in bytes, and number of reads: more than the buffers of the pair hold.
_PIECE = 65_536
_MAX_PIECES = 64


def _no_op() -> None:
    """Do nothing."""


class PipedConnection:
    """Mixin of the protocol on a client's connection that the daemon keeps and pipes into the pair of its handler.

    The class that it is mixed into does the handshake, and builds the inner protocol after it.

    Attributes:
        closed: whether the connection is closed.
        final_byte_counts: bytes received and sent, once it is closed; -1 if unknown.
        websocket: the WebSocket protocol of the connection; None without WebSocket.
    """

    transport: Any
    received_data: bool
    failure_text: Any
    websocket: WebSocketProtocol | None
    _build_inner: Callable[[], Any]

    def begin_pipe(
        self,
        adopt: AdoptConnection,
        descriptors: DescriptorCounter,
        on_handshake_done: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        """Initialize the attributes.

        Args:
            adopt: connects a protocol to the daemon's end of the pair.
            descriptors: counts the connection, and in advance the daemon's end of the pair.
            on_handshake_done: called when the handshake is done.
            on_close: called when the connection is closed.
        """
        self._adopt = adopt
        self._descriptors = descriptors
        self._on_handshake_done = on_handshake_done
        self._on_close = on_close
        self._client_end: ClientEnd | None = None
        self._aborted = self._handler_connected = self.closed = False
        self.final_byte_counts = -1, -1
        # One for the connection and one for the daemon's end of the pair: after its handshake a client must not fail
        # for lack of a descriptor.
        descriptors.acquire()
        descriptors.acquire()

    def make_client_end(self, reactor: FdReactor) -> ClientEnd:
        """Return the client's end of the pipe."""
        self._client_end = ClientEnd(self._on_handshake_done, reactor)
        return self._client_end

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Start the handshake on a new connection."""
        super().makeConnection(transport)  # type: ignore[misc]
        if self._aborted:
            transport.abortConnection()

    def connect_handler(self) -> int:
        """Create the pair of sockets; return the descriptor of the handler's blocking end. The caller owns it.

        Raises:
            OSError: no descriptor is left.
        """
        client = self._client_end
        assert client is not None  # noqa: S101 - the handshake is done
        daemon_end, handler_end = socket.socketpair()
        end = HandlerEnd(client, self._descriptors.release)
        self._handler_connected = True
        try:
            self._adopt(daemon_end.detach(), "", socket.AF_UNIX, end)
        except OSError:
            self._handler_connected = False
            handler_end.close()
            raise
        return handler_end.detach()

    def end(self, *, linger: bool = True) -> None:
        """Close the connection after the handler's exit, as soon as the client has all output of the handler.

        Args:
            linger: whether the client has some time to close first.
        """
        client = self._client_end
        if client is None or self.closed:
            return
        client.handler_ended, client.linger = True, linger
        if not self._handler_connected:
            client.other_lost(orderly=True)
        elif isinstance(client.other, HandlerEnd):
            client.other.close_if_done()

    def set_outcome(self, code: int, reason: str) -> None:
        """Set what a WebSocket client is told about the end of the handler: the status and reason of a Close frame."""
        if self.websocket is not None:
            self.websocket.set_close(code, reason)

    def abort(self) -> None:
        """Close the connection at once."""
        self._aborted = True
        if self.transport is not None and not self.closed:
            self.abort_client()

    def abort_client(self) -> None:
        """Abort the client's connection."""
        raise NotImplementedError

    def info(self, *, subject: bool) -> dict[str, object]:
        """Return fields of the connection for svcctl and the status page.

        Args:
            subject: whether to include the subject of the client's certificate.
        """
        found: dict[str, object] = {}
        if self.transport is not None and not self.closed:
            found |= {"in": self.transport.bytes_in, "out": self.transport.bytes_out}
        found |= super().info(subject=subject)  # type: ignore[misc]
        if self.websocket is not None and self.websocket.agreement is None:
            found["state"] = "handshake"
        return found

    def byte_counts(self) -> tuple[int, int] | None:
        """Return the bytes received, 0 before application data, and the bytes that the peer has acknowledged.

        Returns:
            The two counts; GONE if the connection is closed, None if the transport does not count them.
        """
        if self.closed:
            return GONE
        if self.transport is None:
            return 0, 0
        counted = self.transport if self.websocket is None else self.websocket
        found: tuple[int, int] | None = getattr(counted, "traffic", None)
        return found if found is None or self.received_data else (0, found[1])

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection."""
        self.final_byte_counts = getattr(self.transport, "bytes_in", -1), getattr(self.transport, "bytes_out", -1)
        try:
            super().connectionLost(reason)  # type: ignore[misc]
        finally:
            self.closed = True
            self._descriptors.release()
            if not self._handler_connected:
                self._descriptors.release()
            on_close = self._on_close
            # Breaks reference cycles.
            self._build_inner = self._on_handshake_done = self._on_close = _no_op
            self._client_end = None
            on_close()


class ClientEnd(BufferedPipeEnd):
    """Client's end of the pipe: plaintext from and to the client.

    Args:
        on_handshake_done: called when the handshake is done.
        reactor: provides timers.

    Attributes:
        handler_ended: whether the handler has exited.
        linger: whether the client has some time to close after the end of output.
    """

    linger = True

    def __init__(self, on_handshake_done: Callable[[], None], reactor: FdReactor) -> None:
        self._on_handshake_done = on_handshake_done
        self._reactor = reactor
        self._shutdown_sent = self.handler_ended = False
        self._discarded_bytes = 0
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Report the end of the handshake; pause the client's input until the pair of sockets exists."""
        self.transport.pauseProducing()
        self._on_handshake_done()

    def dataReceived(self, data: bytes) -> None:
        """Pass data on to the handler; after its exit, discard a limited amount."""
        if self.other is not None:
            self.other.transport.write(data)
            return
        super().dataReceived(data)
        if self.closed:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                # The client still has time to read the remaining output.
                self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """Pass the end of the client's input on to the handler."""
        super().readConnectionLost()
        if self.closed:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Handle the shutdown of output; after the handler's exit the client's time to close begins."""
        self._shutdown_sent = True
        if self.closed:
            self._linger()

    def other_lost(self, *, orderly: bool) -> None:  # noqa: ARG002 - signature of PipeEnd
        """Close after the handler's exit, as soon as the client has all output.

        Closing with unread input sends a reset, which discards unsent output (RFC 1122, 4.2.2.13). So the client has
        some time to close first.
        """
        self.closed = True
        if self.input_ended:
            self.transport.loseConnection()
            return
        self.transport.loseWriteConnection()
        self.transport.resumeProducing()
        if self._shutdown_sent:
            self._linger()

    def _linger(self) -> None:
        if not self.linger:
            self.transport.loseConnection()
        elif self._timer is None:
            self._timer = self._reactor.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Handle the end of the client's connection."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(reason)


class HandlerEnd(PipeEnd):
    """The daemon's end of the pair of sockets.

    Args:
        client: the client's end of the pipe.
        release: called when the descriptor is closed.
    """

    def __init__(self, client: ClientEnd, release: Callable[[], None]) -> None:
        self._client = client
        self._release = release
        self._shutdown_sent = False
        self._discarded_bytes = 0

    def connectionMade(self) -> None:
        """Connect both ends of the pipe."""
        transport: Any = self.transport
        self._socket: socket.socket = transport.getHandle()
        if self._client.closed:
            # The client has closed the connection meanwhile.
            transport.loseConnection()
        else:
            self._client.join(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass output on to the client; after the client's end, discard a limited amount."""
        if self.other is not None:
            self.other.transport.write(data)
            return
        self._discarded_bytes += len(data)
        if self._discarded_bytes > LINGER_BYTES:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """Pass the end of the handler's output on to the client."""
        # Twisted's reactors may report the end while reading is paused, with output still unread.
        self._read_remaining()
        super().readConnectionLost()
        if self.other is None:
            self.transport.loseConnection()
        else:
            self.close_if_done()

    def close_if_done(self) -> None:
        """Close both ends if the handler has exited and its output has ended."""
        client = self.other
        if client is not None and self.input_ended and self._client.handler_ended:
            self._disconnect()
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Handle that all input of the client is written to the handler's socket."""
        self._shutdown_sent = True
        if self.other is None:
            self.transport.loseConnection()

    def other_lost(self, *, orderly: bool) -> None:
        """Close after the client's end; the handler may still read what the client has sent."""
        if not orderly:
            self.transport.abortConnection()
        elif self._shutdown_sent or self.input_ended:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: ARG002 - Twisted's signature
        """Handle the end of the pair."""
        if self.other is not None:
            # A handler that leaves input unread resets the pair, possibly before all its output has been read.
            self._read_remaining()
            self._disconnect()
        self._release()

    def _read_remaining(self) -> None:
        """Pass on the remaining output in the socket's buffer."""
        client = self.other
        if client is None:
            return
        with contextlib.suppress(OSError):
            for _ in range(_MAX_PIECES):
                data = self._socket.recv(_PIECE)
                if not data:
                    break
                client.transport.write(data)

    def _disconnect(self) -> None:
        """Separate both ends of the pipe; the client's end then closes."""
        client = self._client
        self.other = client.other = None
        client.transport.unregisterProducer()
        client.other_lost(orderly=True)
