"""What went over a connection that its handler has left: the kernel counts."""

from __future__ import annotations

import socket
import struct

__all__ = ["UNKNOWN", "count", "final_byte_counts"]

#: The counts of a connection whose bytes nothing has counted.
UNKNOWN = (-1, -1)

# Of struct tcp_info (linux/tcp.h): state, bytes acknowledged, bytes received, bytes not sent yet, bytes sent, bytes
# sent again.
_TCP_INFO = struct.Struct("=B119xQQ8xI52xQQ")
# States of a connection whose client has closed its side (net/tcp_states.h): its FIN is counted as a byte.
_CLIENT_CLOSED = frozenset({6, 8, 9, 11})
# States of a connection whose own side is closed and not acknowledged: its FIN, while it is not sent, counts as well.
_CLOSED = frozenset({4, 9, 11})
# And the state after all: both have closed, or somebody has reset the connection.
_OVER = 7


def final_byte_counts(fd: int) -> tuple[int, int]:
    """Close a connection whose handler has ended: how many bytes came from the client, and went to it."""
    with socket.socket(fileno=fd) as held:
        return count(held)


def count(sock: socket.socket) -> tuple[int, int]:
    """Return how many bytes came from the client of a connection that is about to be closed, and went to it."""
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        state, acknowledged, received, waiting, sent, again = _TCP_INFO.unpack(data)
    except (OSError, struct.error):
        # A UNIX socket, or a kernel that counts less.
        return UNKNOWN
    # Our own FIN is acknowledged like a byte, which a connection that was reset has seldom come to.
    closed = state in _CLIENT_CLOSED or (state == _OVER and acknowledged > sent - again)
    waiting -= bool(waiting) and state in _CLOSED
    return received - closed, sent - again + waiting
