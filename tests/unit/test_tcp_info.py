"""Byte counters of TCP connections from struct tcp_info."""

from __future__ import annotations

import socket
import struct

import pytest

from svcd.net.stream_sockets import COUNTS_BYTES, TRAFFIC_BYTES, byte_counts, traffic


def _info(state: int, acknowledged: int, received: int) -> bytes:
    return struct.pack("=B119xQQ", state, acknowledged, received) + bytes(100)


def _counts(state: int, acknowledged: int, received: int, unsent: int, sent: int, retransmitted: int = 0) -> bytes:
    return struct.pack("=B119xQQ8xI52xQQ", state, acknowledged, received, unsent, sent, retransmitted) + bytes(50)


def test_traffic() -> None:
    """traffic() returns the bytes received and the bytes acknowledged."""
    assert traffic(_info(1, 7, 5)) == (5, 7)


@pytest.mark.parametrize("state", [6, 8, 9, 11])
def test_a_fin_is_not_counted(state: int) -> None:
    """The kernel counts the client's FIN as a byte; traffic() does not."""
    assert traffic(_info(state, 7, 1)) == (0, 7)


def test_traffic_of_an_old_kernel() -> None:
    """A structure that ends before the counters has no traffic."""
    assert traffic(_info(1, 7, 5)[: TRAFFIC_BYTES - 1]) is None
    assert traffic(_info(1, 7, 5)[:TRAFFIC_BYTES]) == (5, 7)


def test_a_fin_that_was_read_is_not_counted() -> None:
    """A FIN that was read is not counted, whatever the state."""
    assert traffic(_info(7, 7, 6), client_closed=True) == (5, 7)


@pytest.mark.parametrize(
    ("info", "known", "counts"),
    [
        (_counts(1, 7, 5, 0, 7), {}, (5, 7)),
        # Sent twice, and not sent at all.
        (_counts(1, 7, 5, 3, 11, 4), {}, (5, 10)),
        # The client's FIN is a received byte: in CLOSE_WAIT, when it was read, and after an orderly end.
        (_counts(8, 7, 6, 0, 7), {}, (5, 7)),
        (_counts(7, 7, 6, 0, 7), {"client_closed": True}, (5, 7)),
        (_counts(7, 8, 6, 0, 7), {}, (5, 7)),
        # After a reset there is no FIN of the client.
        (_counts(7, 7, 5, 0, 7), {}, (5, 7)),
        (_counts(7, 8, 5, 0, 7), {"client_closed": False}, (5, 7)),
        # The own FIN is an unsent byte, by the state or since the application has shut the write side down.
        (_counts(4, 7, 5, 4, 7), {}, (5, 10)),
        (_counts(1, 7, 5, 4, 7), {"write_closed": True}, (5, 10)),
        (_counts(4, 7, 5, 0, 7), {"write_closed": True}, (5, 7)),
    ],
)
def test_byte_counts(info: bytes, known: dict[str, bool], counts: tuple[int, int]) -> None:
    """byte_counts() returns the bytes that the client has sent and the bytes written to it, without FINs."""
    assert byte_counts(info, **known) == counts


def test_byte_counts_of_an_old_kernel() -> None:
    """The structure of a kernel before 4.19 ends before these counters."""
    assert byte_counts(_counts(1, 7, 5, 0, 7)[: COUNTS_BYTES - 1]) is None
    assert byte_counts(_counts(1, 7, 5, 0, 7)[:COUNTS_BYTES]) == (5, 7)


def test_the_structure_of_this_kernel() -> None:
    """The offsets are those of the running kernel."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"
        server.sendall(b"hi")
        assert client.recv(2) == b"hi"
        client.settimeout(10)
        client.sendall(b"!")
        assert server.recv(1) == b"!"
        assert traffic(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TRAFFIC_BYTES)) == (6, 2)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert traffic(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TRAFFIC_BYTES)) == (6, 2)
