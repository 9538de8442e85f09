"""The connection of a client with TLS whose handler is a process: in the clear the bytes go over a pair of sockets.

The daemon has one end of the pair and the handler the other (unix(7), unnamed). Each of the two ends its own direction,
and stops the other when it does not read. What a handler has written when it ends arrives, whatever it has not read.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from svcd.net.sock_diag import GONE
from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.protocols.pipe import BufferedPipeEnd, PipeEnd
from svcd.tls.protocol import TlsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import AdoptConnection, DescriptorCounter, FdReactor
    from svcd.tls.handshakes import HandshakeTracker

__all__ = ["ClientEnd", "HandlerEnd", "TlsTerminator"]

#: Pieces in which the rest of a handler's words is read; more than the buffers of a pair hold.
_PIECE = 65_536
_MAX_PIECES = 64


def _no_op() -> None:
    """There is nobody any more to be asked or told."""


class TlsTerminator(TlsProtocol):
    """A client's connection with TLS, and the end of a pair of sockets whose other one is its handler's.

    Args:
        handshakes: those of the service.
        adopt: gives it the end of the pair.
        descriptors: counts it, and that end, from the beginning.
        begin: called when the handshake is done.
        over: called when the connection is gone.

    Attributes:
        gone: whether it is.
        carried: bytes that came and went, when it is gone.
    """

    __slots__ = (
        "_aborted",
        "_adopt",
        "_descriptors",
        "_handler_connected",
        "_on_close",
        "_on_handshake_done",
        "final_byte_counts",
        "gone",
    )

    def __init__(
        self,
        handshakes: HandshakeTracker,
        adopt: AdoptConnection,
        descriptors: DescriptorCounter,
        begin: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        super().__init__(handshakes, self._make_client_end)
        self._adopt = adopt
        self._descriptors = descriptors
        self._on_handshake_done = begin
        self._on_close = over
        self._aborted = self._handler_connected = self.gone = False
        self.final_byte_counts = -1, -1
        # Its own, and one for the end of the pair that it will have: who has shaken hands is not to find none left.
        descriptors.acquire()
        descriptors.acquire()

    def _make_client_end(self) -> ClientEnd:
        return ClientEnd(self._on_handshake_done, self._handshakes.reactor)

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """The connection is there."""
        super().makeConnection(transport)
        if self._aborted:
            transport.abortConnection()

    def connect_handler(self) -> int:
        """Make the pair of sockets; returns the descriptor of the handler's end, which blocks.

        Raises:
            OSError: there are no descriptors.
        """
        near, far = socket.socketpair()
        side = HandlerEnd(self.inner, self._descriptors.release)
        self._handler_connected = True
        try:
            self._adopt(near.detach(), "", socket.AF_UNIX, side)
        except OSError:
            self._handler_connected = False
            far.close()
            raise
        return far.detach()

    def end(self, *, patient: bool = True) -> None:
        """The handler has ended: when the client has all that it wrote the connection is closed.

        Args:
            patient: whether the client has some time then to close it first.
        """
        client: ClientEnd | None = self.inner
        if client is None:
            return
        client.ended, client.patient = True, patient
        if not self._handler_connected:
            client.leave(orderly=True)
        elif isinstance(client.other, HandlerEnd):
            client.other.close_if_done()

    def abort(self) -> None:
        """Close it now, whatever is under way."""
        self._aborted = True
        if self.transport is not None and not self.gone:
            self.abortConnection()

    def byte_counts(self) -> tuple[int, int] | None:
        """Bytes that came from the client, without those of the handshake alone, and bytes that its system has taken.

        Returns:
            GONE when it is over, None if nobody counts them.
        """
        if self.gone:
            return GONE
        if self.transport is None:
            return 0, 0
        found: tuple[int, int] | None = getattr(self.transport, "traffic", None)
        return found if found is None or self.received_data else (0, found[1])

    def info(self, *, subject: bool) -> dict[str, object]:
        """What is known of the connection."""
        counts = {} if self.transport is None else {"in": self.transport.bytes_in, "out": self.transport.bytes_out}
        return {**(counts if not self.gone else {}), **super().info(subject=subject)}

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.final_byte_counts = getattr(self.transport, "bytes_in", -1), getattr(self.transport, "bytes_out", -1)
        try:
            super().connectionLost(reason)
        finally:
            self.gone = True
            self._descriptors.release()
            if not self._handler_connected:
                self._descriptors.release()
            over = self._on_close
            # These know each other.
            self._build_inner = self._on_handshake_done = self._on_close = _no_op
            over()


class ClientEnd(BufferedPipeEnd):
    """What the client says and hears, in the clear.

    Args:
        begin: called when the client can be served.
        reactor: has the time.

    Attributes:
        ended: whether the handler has ended.
        patient: whether the client has time to close when it was told the end.
    """

    patient = True
    transport: TlsProtocol

    def __init__(self, begin: Callable[[], None], reactor: FdReactor) -> None:
        self._on_handshake_done = begin
        self._reactor = reactor
        self._shutdown_sent = self.ended = False
        self._discarded_bytes = 0
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """The handshake is done; nothing is read on before there is a handler's socket."""
        self.transport.pauseProducing()
        self._on_handshake_done()

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        super().dataReceived(data)
        if self.gone:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                # It has its time to take what is left, but nobody reads on.
                self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """The client will send no more."""
        super().readConnectionLost()
        if self.gone:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The client's system is being told that there is no more."""
        self._shutdown_sent = True
        if self.gone:
            self._linger()

    def leave(self, *, orderly: bool) -> None:  # noqa: ARG002 - as all sides
        """Nobody listens to the client any more, nor writes: close, when it has everything.

        To close with unread input is a reset, for which what the system still has to send is lost (RFC 1122, 4.2.2.13).
        So the client has some time to close first.
        """
        self.gone = True
        if self.heard_all:
            self.transport.loseConnection()
            return
        self.transport.loseWriteConnection()
        self.transport.resumeProducing()
        if self._shutdown_sent:
            self._linger()

    def _linger(self) -> None:
        if not self.patient:
            self.transport.loseConnection()
        elif self._timer is None:
            self._timer = self._reactor.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The client is gone."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(reason)


class HandlerEnd(PipeEnd):
    """The daemon's end of the pair.

    Args:
        client: the other side.
        release: called when its descriptor is free.
    """

    def __init__(self, client: ClientEnd, release: Callable[[], None]) -> None:
        self._client = client
        self._release = release
        self._shutdown_sent = False
        self._discarded_bytes = 0

    def connectionMade(self) -> None:
        """The reactor has it."""
        transport: Any = self.transport
        self._socket: socket.socket = transport.getHandle()
        if self._client.gone:
            # That was quick.
            transport.loseConnection()
        else:
            self._client.meet(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass it on. Once the client is gone a handler that is still reading may write a little into the void."""
        super().dataReceived(data)
        if self.other is None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The handler will write no more."""
        # A reactor of Twisted's may find the end while it was told to read nothing, and what comes before is unread.
        self._read_remaining()
        super().readConnectionLost()
        if self.other is None:
            self.transport.loseConnection()
        else:
            self.close_if_done()

    def close_if_done(self) -> None:
        """If the handler has ended and has said all, nobody is there for the client."""
        client = self.other
        if client is not None and self.heard_all and self._client.ended:
            self._disconnect()
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The handler has everything, or can read it."""
        self._shutdown_sent = True
        if self.other is None:
            self.transport.loseConnection()

    def leave(self, *, orderly: bool) -> None:
        """The client is gone. The handler may still read what that has sent, but nobody wants its answers."""
        if not orderly:
            self.transport.abortConnection()
        elif self._shutdown_sent or self.heard_all:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: ARG002 - Twisted's signature
        """The handler has closed its end, or we have closed ours."""
        if self.other is not None:
            # It may have left something unread, which ends the connection before all that it wrote is read.
            self._read_remaining()
            self._disconnect()
        self._release()

    def _read_remaining(self) -> None:
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
        client = self._client
        self.other = client.other = None
        client.transport.unregisterProducer()
        client.leave(orderly=True)
