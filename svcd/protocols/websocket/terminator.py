"""WebSocketTerminator: WebSocket without TLS for handler processes, which get bytes on a pair of sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.protocols.handler_pipe import PipedConnection
from svcd.protocols.websocket.protocol import WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.interfaces import AdoptConnection, DescriptorCounter
    from svcd.protocols.handler_pipe import ClientEnd
    from svcd.protocols.websocket.settings import WebSocketSettings

__all__ = ["WebSocketTerminator"]


class WebSocketTerminator(PipedConnection, WebSocketProtocol):
    """WebSocket connection of a client, piped into the pair of sockets of its handler.

    Args:
        settings: the options of the service.
        adopt: connects a protocol to the daemon's end of the pair.
        descriptors: counts the connection, and in advance the daemon's end of the pair.
        on_handshake_done: called when the handshake is done.
        on_close: called when the connection is closed.
    """

    #: The handshake counts as data.
    received_data = True

    def __init__(
        self,
        settings: WebSocketSettings,
        adopt: AdoptConnection,
        descriptors: DescriptorCounter,
        on_handshake_done: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(settings, self._make_client_end, keeps_open=True)
        self.begin_pipe(adopt, descriptors, on_handshake_done, on_close)

    @property
    def websocket(self) -> WebSocketProtocol:  # type: ignore[override]
        """The connection itself."""
        return self

    def _make_client_end(self) -> ClientEnd:
        return self.make_client_end(self._settings.clock)

    def abort_client(self) -> None:
        """Abort the client's connection."""
        self.transport.abortConnection()
