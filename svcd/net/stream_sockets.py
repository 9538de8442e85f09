"""Stream sockets: accept(2) in batches, and byte counters of TCP connections (tcp(7), TCP_INFO).

The byte counters are those of struct tcp_info (linux/tcp.h). `traffic` is for open connections: it counts what the
client's system has acknowledged, and needs Linux 4.1. `byte_counts` is for connections that are about to be closed: it
counts what the application wrote, and needs Linux 4.19. Both return None for a shorter structure, which an older kernel
gives.

A FIN takes a sequence number, and the kernel counts it as a byte. Neither function does.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "COUNTS_BYTES",
    "TRAFFIC_BYTES",
    "UNKNOWN",
    "accept_batch",
    "byte_counts",
    "close_counted",
    "final_byte_counts",
    "socket_traffic",
    "traffic",
]

#: The client left while it waited (accept(2)): the next one is served.
_CLIENT_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
#: Descriptors or memory are used up: no client can be accepted for now.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: The byte counts of a connection that has none.
UNKNOWN = (-1, -1)

# tcpi_state, tcpi_bytes_acked, tcpi_bytes_received.
_TRAFFIC_FIELDS = "=B119xQQ"
_TRAFFIC = struct.Struct(_TRAFFIC_FIELDS)
# The same, and tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans.
_COUNTS = struct.Struct(_TRAFFIC_FIELDS + "8xI52xQQ")
#: How much of the structure `traffic` needs, in bytes.
TRAFFIC_BYTES = _TRAFFIC.size
#: How much of the structure `byte_counts` needs, in bytes.
COUNTS_BYTES = _COUNTS.size

# States (net/tcp_states.h).
_FIN_WAIT1, _TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 4, 6, 7, 8, 9, 11
#: The client's FIN has arrived.
_CLIENT_CLOSED = frozenset({_TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING})
#: The own FIN is queued or sent, and not acknowledged.
_FIN_PENDING = frozenset({_FIN_WAIT1, _LAST_ACK, _CLOSING})


def accept_batch(listener: socket.socket, limit: int, on_exhausted: Callable[[], object]) -> Iterator[tuple[int, Any]]:
    """Yield the descriptor of each waiting connection, and the client's socket address.

    The descriptors are close-on-exec and blocking; the caller owns each from the moment that it is yielded.

    Args:
        listener: a listening socket, non-blocking.
        limit: the greatest number of connections.
        on_exhausted: called when the system is short of descriptors or memory; the batch ends.

    Raises:
        OSError: the listening socket is of no use.
    """
    # socket.accept() is this method of C and a new socket object, which costs more than all the rest here. It is
    # private to the socket module; tests/unit/test_private_names.py fails if a Python has it no more.
    accept = listener._accept  # type: ignore[attr-defined]  # noqa: SLF001
    for _ in range(limit):
        try:
            yield accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _EXHAUSTED:
                on_exhausted()
                return
            if error.errno not in _CLIENT_GONE:
                raise


def traffic(info: bytes, *, client_closed: bool = False) -> tuple[int, int] | None:
    """Return the bytes received from the client, and the bytes that its system has acknowledged.

    Bytes that are sent and not acknowledged do not count: both numbers stand still while a client reads nothing.

    Args:
        info: the structure, or its first TRAFFIC_BYTES.
        client_closed: whether the end of input was read already.
    """
    if len(info) < TRAFFIC_BYTES:
        return None
    state, acknowledged, received = _TRAFFIC.unpack_from(info)
    return received - (client_closed or state in _CLIENT_CLOSED), acknowledged


def byte_counts(
    info: bytes, *, client_closed: bool | None = None, write_closed: bool = False
) -> tuple[int, int] | None:
    """Return the bytes received from the client, and the bytes written to the connection.

    Args:
        info: the structure, or its first COUNTS_BYTES.
        client_closed: whether the end of input was read; None if that is unknown.
        write_closed: whether the write side was shut down.
    """
    if len(info) < COUNTS_BYTES:
        return None
    state, acknowledged, received, unsent, sent, retransmitted = _COUNTS.unpack_from(info)
    if client_closed is None:
        # After the state CLOSE: both sides have closed, or a reset has ended the connection. An acknowledged FIN
        # counts as an acknowledged byte, and before a reset it is seldom acknowledged.
        client_closed = state == _CLOSE and acknowledged > sent - retransmitted
    received -= client_closed or state in _CLIENT_CLOSED
    unsent -= bool(unsent) and (write_closed or state in _FIN_PENDING)
    return received, sent - retransmitted + unsent


def socket_traffic(sock: Any, *, client_closed: bool = False) -> tuple[int, int] | None:  # noqa: ANN401 - a socket, or as much of one
    """Return `traffic` of a TCP socket.

    Raises:
        OSError: it is no open TCP socket.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TRAFFIC_BYTES)
    return traffic(info, client_closed=client_closed)


def final_byte_counts(sock: socket.socket) -> tuple[int, int]:
    """Return `byte_counts` of a connection that is about to be closed; UNKNOWN if it has none, as a UNIX socket."""
    try:
        return byte_counts(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, COUNTS_BYTES)) or UNKNOWN
    except OSError:
        return UNKNOWN


def close_counted(fd: int) -> tuple[int, int]:
    """Close a connection whose handler has ended, and return its `final_byte_counts`. Takes ownership of fd."""
    with socket.socket(fileno=fd) as sock:
        return final_byte_counts(sock)
