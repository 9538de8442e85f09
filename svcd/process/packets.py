"""Packets for another process, over a socket that may be full or gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Hashable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor

__all__ = ["PacketQueue"]

#: A process whose socket is full is sent more after so many seconds.
_RETRY_SECONDS = 0.02


class PacketQueue:
    """Packets in their order, one for each key at most; they wait where there is no room.

    Args:
        reactor: for the time.
    """

    def __init__(self, reactor: FdReactor) -> None:
        self._reactor = reactor
        self._packets: dict[Hashable, bytes] = {}
        self._socket: socket.socket | None = None
        self._call: IDelayedCall | None = None

    def put(self, key: Hashable, packet: bytes) -> None:
        """Send a packet, in place of one of the same key that was not sent yet."""
        self._packets[key] = packet
        self._send()

    def open(self, sock: socket.socket) -> None:
        """Send to this non-blocking socket from now on."""
        self._socket = sock
        self._send()

    def close(self) -> None:
        """Send no more, and forget what was not sent."""
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
            # The process has ended, which whoever reads from it is about to hear.
            return
        except OSError:
            # It has no room for more, or the system has not (ENOBUFS).
            self._call = self._reactor.callLater(_RETRY_SECONDS, self._retry)
