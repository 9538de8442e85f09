"""Queue of packets to another process, over a socket that may be full or closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Hashable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor

__all__ = ["PacketQueue"]

#: The pause before another attempt if the socket is full, in seconds.
_RETRY_SECONDS = 0.02


class PacketQueue:
    """Packets in their order, at most one for each key; they wait while the socket is full.

    Args:
        reactor: schedules retries.
    """

    def __init__(self, reactor: FdReactor) -> None:
        self._reactor = reactor
        self._packets: dict[Hashable, bytes] = {}
        self._socket: socket.socket | None = None
        self._call: IDelayedCall | None = None

    def put(self, key: Hashable, packet: bytes) -> None:
        """Send a packet; it replaces a packet with the same key that was not sent yet."""
        self._packets[key] = packet
        self._send()

    def open(self, sock: socket.socket) -> None:
        """Start sending to a socket, which must be non-blocking."""
        self._socket = sock
        self._send()

    def close(self) -> None:
        """Stop sending, and drop the packets that were not sent."""
        self._socket = None
        self._packets.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _retry(self) -> None:
        self._call = None
        self._send()

    def _send(self) -> None:
        if self._socket is None or self._call is not None:
            return
        try:
            for key, packet in list(self._packets.items()):
                self._socket.send(packet)
                del self._packets[key]
        except (BrokenPipeError, ConnectionResetError):
            # The process has exited, which its reader is about to notice.
            return
        except OSError:
            # The socket is full, or the system lacks resources (ENOBUFS).
            self._call = self._reactor.callLater(_RETRY_SECONDS, self._retry)
