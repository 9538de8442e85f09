"""What the kernel counts of a TCP connection: struct tcp_info (linux/tcp.h; tcp(7), TCP_INFO) as numbers.

`traffic` returns numbers, or None for a structure that is too short: of a kernel before Linux 4.1. It needs the first
136 bytes and looks at no more.
"""

from __future__ import annotations

import struct

__all__ = ["SIZE", "traffic"]

# The state, the bytes that the client's system has acknowledged, those that came from it.
_INFO = struct.Struct("=B119xQQ")
#: How much of the structure is looked at, in bytes.
SIZE = _INFO.size
# States of a connection whose client has closed its side (net/tcp_states.h): its FIN is counted as a byte.
_CLIENT_CLOSED = frozenset({6, 8, 9, 11})


def traffic(info: bytes) -> tuple[int, int] | None:
    """Bytes that came from the client, and bytes that its system has taken.

    What was sent and is not acknowledged does not count: a client that takes nothing stops both.
    """
    if len(info) < SIZE:
        return None
    state, taken, received = _INFO.unpack_from(info)
    return received - (state in _CLIENT_CLOSED), taken
