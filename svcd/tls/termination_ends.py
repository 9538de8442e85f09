"""Both sides of a pump: the client, who speaks TLS, and its handler, which has the other end of a pair of sockets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.protocols.pipe import BufferedPipeEnd, PipeEnd

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor
    from svcd.tls.protocol import TlsProtocol

__all__ = ["ClientEnd", "HandlerEnd"]

#: Pieces in which the rest of a handler's words is read; more than the buffers of a pair hold.
_PIECE, _MOST_PIECES = 65_536, 64


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
        self._begin = begin
        self._reactor = reactor
        self._told_all = self.ended = False
        self._ignored = 0
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """The handshake is done; nothing is read on before there is a handler's socket."""
        self.transport.pauseProducing()
        self._begin()

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        super().dataReceived(data)
        if self.gone:
            self._ignored += len(data)
            if self._ignored > LINGER_BYTES:
                # It has its time to take what is left, but nobody reads on.
                self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """The client will send no more."""
        super().readConnectionLost()
        if self.gone:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The client's system is being told that there is no more."""
        self._told_all = True
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
        if self._told_all:
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
        self._told_all = False
        self._ignored = 0

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
            self._ignored += len(data)
            if self._ignored > LINGER_BYTES:
                self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The handler will write no more."""
        # A reactor of Twisted's may find the end while it was told to read nothing, and what comes before is unread.
        self._read_rest()
        super().readConnectionLost()
        if self.other is None:
            self.transport.loseConnection()
        else:
            self.settle()

    def settle(self) -> None:
        """If the handler has ended and has said all, nobody is there for the client."""
        client = self.other
        if client is not None and self.heard_all and self._client.ended:
            self._part()
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The handler has everything, or can read it."""
        self._told_all = True
        if self.other is None:
            self.transport.loseConnection()

    def leave(self, *, orderly: bool) -> None:
        """The client is gone. The handler may still read what that has sent, but nobody wants its answers."""
        if not orderly:
            self.transport.abortConnection()
        elif self._told_all or self.heard_all:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: ARG002 - Twisted's signature
        """The handler has closed its end, or we have closed ours."""
        if self.other is not None:
            # It may have left something unread, which ends the connection before all that it wrote is read.
            self._read_rest()
            self._part()
        self._release()

    def _read_rest(self) -> None:
        client = self.other
        if client is None:
            return
        with contextlib.suppress(OSError):
            for _ in range(_MOST_PIECES):
                data = self._socket.recv(_PIECE)
                if not data:
                    break
                client.transport.write(data)

    def _part(self) -> None:
        client = self._client
        self.other = client.other = None
        client.transport.unregisterProducer()
        client.leave(orderly=True)
