"""What went over a connection that its handler has left: the kernel counts."""

from __future__ import annotations

import socket
import struct

__all__ = ["let_go"]

# Of struct tcp_info (linux/tcp.h): state, bytes acknowledged, bytes received, bytes not sent yet, bytes sent, bytes
# sent again.
_TCP_INFO = struct.Struct("=B119xQQ8xI52xQQ")
# States of a connection whose client has closed its side (net/tcp_states.h): its FIN is counted as a byte.
_CLIENT_CLOSED = frozenset({6, 8, 9, 11})
# And the state after all: both have closed, or somebody has reset the connection.
_OVER = 7


def let_go(descriptor: int) -> tuple[int, int]:
    """Close a connection whose handler has ended: how many bytes came from the client, and went to it."""
    with socket.socket(fileno=descriptor) as held:
        try:
            data = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            state, acknowledged, received, waiting, sent, again = _TCP_INFO.unpack(data)
        except (OSError, struct.error):
            # A UNIX socket, or a kernel that counts less.
            return -1, -1
    # Our own FIN is acknowledged like a byte, which a connection that was reset has seldom come to.
    closed = state in _CLIENT_CLOSED or (state == _OVER and acknowledged > sent - again)
    return received - closed, sent - again + waiting
