"""TLS termination for handler processes: the daemon decrypts, and the handler gets plaintext on a pair of sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.protocols.handler_pipe import PipedConnection
from svcd.tls.protocol import TlsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.interfaces import AdoptConnection, DescriptorCounter
    from svcd.protocols.handler_pipe import ClientEnd
    from svcd.protocols.websocket.protocol import WebSocketProtocol
    from svcd.protocols.websocket.settings import WebSocketSettings
    from svcd.tls.handshakes import HandshakeTracker

__all__ = ["TlsTerminator"]


class TlsTerminator(PipedConnection, TlsProtocol):
    """TLS connection of a client, piped into the pair of sockets of its handler.

    Args:
        handshakes: the handshakes of the service.
        adopt: connects a protocol to the daemon's end of the pair.
        descriptors: counts the connection, and in advance the daemon's end of the pair.
        on_handshake_done: called when the handshake is done, with WebSocket after that of WebSocket.
        on_close: called when the connection is closed.
        websocket: the options of WebSocket, which is spoken within TLS; None without WebSocket.
    """

    def __init__(
        self,
        handshakes: HandshakeTracker,
        adopt: AdoptConnection,
        descriptors: DescriptorCounter,
        on_handshake_done: Callable[[], None],
        on_close: Callable[[], None],
        websocket: WebSocketSettings | None = None,
    ) -> None:
        self.websocket = None
        super().__init__(handshakes, self._make_inner)
        self.begin_pipe(adopt, descriptors, on_handshake_done, on_close)
        if websocket is not None:
            # Imported late: few services have it.
            from svcd.protocols.websocket.protocol import WebSocketProtocol

            self.websocket = WebSocketProtocol(websocket, self._make_client_end, keeps_open=True)

    def _make_inner(self) -> WebSocketProtocol | ClientEnd:
        return self._make_client_end() if self.websocket is None else self.websocket

    def _make_client_end(self) -> ClientEnd:
        return self.make_client_end(self._handshakes.reactor)

    def abort_client(self) -> None:
        """Abort the client's connection."""
        self.abortConnection()
