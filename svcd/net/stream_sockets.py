"""Stream sockets: accept(2) in batches, and byte counters of TCP connections (tcp(7), TCP_INFO).

The byte counters are those of struct tcp_info (linux/tcp.h). `traffic` is for open connections: it counts the bytes
that the client's system has acknowledged, and requires Linux 4.1. `byte_counts` is for connections that are about to be
closed: it counts the bytes that the application has written, and requires Linux 4.19. Both return None for a shorter
structure of an older kernel.

A FIN has a sequence number, and the kernel counts it as a byte; these functions do not.
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
    "consistent_info",
    "final_byte_counts",
    "socket_traffic",
    "traffic",
]

#: Errors of accept(2) for a client that has disconnected in the queue: the next client is accepted.
_CLIENT_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
#: Errors for a lack of descriptors or memory: no client can be accepted for now.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: The byte counts of a connection without counters.
UNKNOWN = (-1, -1)

# tcpi_state, tcpi_bytes_acked, tcpi_bytes_received.
_TRAFFIC_FIELDS = "=B119xQQ"
_TRAFFIC = struct.Struct(_TRAFFIC_FIELDS)
# The same, and tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans.
_COUNTS = struct.Struct(_TRAFFIC_FIELDS + "8xI52xQQ")
#: The length of the structure that `traffic` requires, in bytes.
TRAFFIC_BYTES = _TRAFFIC.size
#: The length of the structure that `byte_counts` requires, in bytes.
COUNTS_BYTES = _COUNTS.size

# States of a connection (net/tcp_states.h).
_FIN_WAIT1, _TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 4, 6, 7, 8, 9, 11
#: States in which the client's FIN has arrived.
_CLIENT_CLOSED = frozenset({_TIME_WAIT, _CLOSE_WAIT, _LAST_ACK, _CLOSING})
#: States in which the daemon's FIN is queued or sent, and not acknowledged.
_FIN_PENDING = frozenset({_FIN_WAIT1, _LAST_ACK, _CLOSING})


def accept_batch(listener: socket.socket, limit: int, on_exhausted: Callable[[], object]) -> Iterator[tuple[int, Any]]:
    """Yield the descriptor of each waiting connection, and the client's socket address.

    The descriptors are close-on-exec and blocking; the caller takes ownership of each.

    Args:
        listener: a listening socket, non-blocking.
        limit: the maximum number of connections.
        on_exhausted: called when the system lacks descriptors or memory; the batch ends then.

    Raises:
        OSError: the listening socket can't be used.
    """
    # socket.accept() calls this C method and makes a socket object, which takes longer than all other steps. The method
    # is private to the socket module; tests/unit/test_private_names.py fails if a Python version lacks it.
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

    Bytes that are sent and not acknowledged do not count, so both numbers are constant while a client reads nothing.

    Args:
        info: the structure, or its first TRAFFIC_BYTES.
        client_closed: whether the end of the input was read.
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
        client_closed: whether the end of the input was read; None if unknown.
        write_closed: whether the write side was shut down.
    """
    if len(info) < COUNTS_BYTES:
        return None
    state, acknowledged, received, unsent, sent, retransmitted = _COUNTS.unpack_from(info)
    if client_closed is None:
        # In the state CLOSE both sides have closed, or a reset has ended the connection. An acknowledged FIN counts as
        # an acknowledged byte; before a reset it is rarely acknowledged.
        client_closed = state == _CLOSE and acknowledged > sent - retransmitted
    received -= client_closed or state in _CLIENT_CLOSED
    unsent -= bool(unsent) and (write_closed or state in _FIN_PENDING)
    return received, sent - retransmitted + unsent


def socket_traffic(sock: Any, *, client_closed: bool = False) -> tuple[int, int] | None:  # noqa: ANN401 - any object with getsockopt()
    """Return `traffic` of a TCP socket.

    Raises:
        OSError: the socket is no open TCP socket.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TRAFFIC_BYTES)
    return traffic(info, client_closed=client_closed)


def final_byte_counts(sock: socket.socket) -> tuple[int, int]:
    """Return `byte_counts` of a connection that is about to be closed; UNKNOWN without counters (UNIX sockets)."""
    try:
        return byte_counts(consistent_info(sock)) or UNKNOWN
    except OSError:
        return UNKNOWN


def consistent_info(sock: Any) -> bytes:  # noqa: ANN401 - any object with getsockopt()
    """Return the first COUNTS_BYTES of a TCP socket's structure, with the state to which the counters belong.

    The kernel reads the state before it locks the connection for the counters: a FIN that arrives between them is a
    byte of the state before. A state does not come back, so two equal ones have the counters of the first between them.

    Raises:
        OSError: the socket is no open TCP socket.
    """
    info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, COUNTS_BYTES)
    while True:
        later: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, COUNTS_BYTES)
        if later[:1] == info[:1]:
            return info
        info = later


def close_counted(fd: int) -> tuple[int, int]:
    """Close a connection whose handler has exited, and return its `final_byte_counts`. Takes ownership of fd."""
    with socket.socket(fileno=fd) as sock:
        return final_byte_counts(sock)
