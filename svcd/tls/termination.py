"""The connection of a client with TLS whose handler is a process: in the clear the bytes go over a pair of sockets.

The daemon has one end of the pair and the handler the other (unix(7), unnamed). Each of the two ends its own direction,
and stops the other when it does not read. What a handler has written when it ends arrives, whatever it has not read.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from svcd.net.sock_diag import GONE
from svcd.tls.protocol import TlsProtocol
from svcd.tls.termination_ends import ClientEnd, HandlerEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from svcd.interfaces import AdoptConnection, DescriptorCounter
    from svcd.tls.handshakes import HandshakeTracker

__all__ = ["TlsTerminator"]


def _nobody() -> None:
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

    __slots__ = ("_adopt", "_begin", "_cut", "_descriptors", "_over", "_plugged", "carried", "gone")

    def __init__(
        self,
        handshakes: HandshakeTracker,
        adopt: AdoptConnection,
        descriptors: DescriptorCounter,
        begin: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        super().__init__(handshakes, self._make_side)
        self._adopt = adopt
        self._descriptors = descriptors
        self._begin = begin
        self._over = over
        self._cut = self._plugged = self.gone = False
        self.carried = -1, -1
        # Its own, and one for the end of the pair that it will have: who has shaken hands is not to find none left.
        descriptors.acquire()
        descriptors.acquire()

    def _make_side(self) -> ClientEnd:
        return ClientEnd(self._begin, self._handshakes.reactor)

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """The connection is there."""
        super().makeConnection(transport)
        if self._cut:
            transport.abortConnection()

    def plug(self) -> int:
        """Make the pair of sockets; returns the descriptor of the handler's end, which blocks.

        Raises:
            OSError: there are no descriptors.
        """
        near, far = socket.socketpair()
        side = HandlerEnd(self.inner, self._descriptors.release)
        self._plugged = True
        try:
            self._adopt(near.detach(), "", socket.AF_UNIX, side)
        except OSError:
            self._plugged = False
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
        if not self._plugged:
            client.leave(orderly=True)
        elif isinstance(client.other, HandlerEnd):
            client.other.settle()

    def abort(self) -> None:
        """Close it now, whatever is under way."""
        self._cut = True
        if self.transport is not None and not self.gone:
            self.abortConnection()

    def moved(self) -> tuple[int, int] | None:
        """Bytes that came from the client, without those of the handshake alone, and bytes that its system has taken.

        Returns:
            GONE when it is over, None if nobody counts them.
        """
        if self.gone:
            return GONE
        if self.transport is None:
            return 0, 0
        found: tuple[int, int] | None = getattr(self.transport, "traffic", None)
        return found if found is None or self.heard else (0, found[1])

    def facts(self, *, subject: bool) -> dict[str, object]:
        """What is known of the connection."""
        counts = {} if self.transport is None else {"in": self.transport.bytes_in, "out": self.transport.bytes_out}
        return {**(counts if not self.gone else {}), **super().facts(subject=subject)}

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.carried = getattr(self.transport, "bytes_in", -1), getattr(self.transport, "bytes_out", -1)
        try:
            super().connectionLost(reason)
        finally:
            self.gone = True
            self._descriptors.release()
            if not self._plugged:
                self._descriptors.release()
            over = self._over
            # These know each other.
            self._build = self._begin = self._over = _nobody
            over()
