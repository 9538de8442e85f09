"""What the kernel is asked about connections, what it answers, and what it counts."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.net import sock_diag as sockdiag
from svcd.net import tcp_info as tcpinfo


def _info(state: int, taken: int, received: int) -> bytes:
    return struct.pack("=B119xQQ", state, taken, received) + bytes(100)


def _message(number: int, *attributes: tuple[int, bytes]) -> bytes:
    body = bytes(72)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 20, 0, number, 1) + body


def test_traffic_is_what_came_and_what_was_taken() -> None:
    """In this order, of an open connection."""
    assert tcpinfo.traffic(_info(1, 7, 5)) == (5, 7)


@pytest.mark.parametrize("state", [6, 8, 9, 11])
def test_a_fin_is_no_byte(state: int) -> None:
    """The kernel counts the client's, and we do not."""
    assert tcpinfo.traffic(_info(state, 7, 1)) == (0, 7)


def test_an_old_kernel_counts_nothing() -> None:
    """Its structure ends before the counts."""
    assert tcpinfo.traffic(_info(1, 7, 5)[: tcpinfo.TRAFFIC_BYTES - 1]) is None
    assert tcpinfo.traffic(_info(1, 7, 5)[: tcpinfo.TRAFFIC_BYTES]) == (5, 7)


def test_a_question_names_the_connection() -> None:
    """As struct inet_diag_req_v2 has it, behind a netlink header."""
    traced = sockdiag.diag_request(2, (b"\x7f\0\0\1", 7), (b"\xc0\0\2\1", 40_000), 3, b"cookie!!")
    asked = sockdiag.request_message(9, traced)
    assert struct.unpack_from("=IHHII", asked) == (len(asked), 20, 1, 9, 0)
    assert asked[16:24] == struct.pack("=BBBxI", 2, 6, 2, 0xFFFF_FFFF)
    assert asked[24:28] == struct.pack("!HH", 7, 40_000)
    assert asked[28:60] == b"\x7f\0\0\1" + bytes(12) + b"\xc0\0\2\1" + bytes(12)
    assert asked[60:] == struct.pack("=I", 3) + b"cookie!!"


def test_an_answer_has_the_structure_among_its_attributes() -> None:
    """Whichever stand before it, padded as they are."""
    assert sockdiag.parse_reply(_message(9, (8, b"\0"), (2, b"info"), (15, b"x"))) == (9, b"info")


def test_a_connection_that_is_over_has_none() -> None:
    """An error, or an answer about what the kernel keeps of it for a while."""
    error = struct.pack("=IHHIIi", 36, 2, 0, 9, 1, -2) + bytes(16)
    assert sockdiag.parse_reply(error) == (9, b"")
    assert sockdiag.parse_reply(_message(9, (8, b"\0"))) == (9, b"")


@pytest.mark.parametrize(
    "data", [b"", b"short", struct.pack("=IHHII", 16, 3, 0, 1, 1), struct.pack("=IHHII", 99, 20, 0, 1, 1)]
)
def test_what_is_no_answer_is_a_mistake(data: bytes) -> None:
    """Not taken for one."""
    with pytest.raises(ValueError):
        sockdiag.parse_reply(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_a_mistake(data: bytes) -> None:
    """Nothing else is raised, and reading ends."""
    for each in (data, struct.pack("=IHHII", 16 + len(data), 20, 0, 1, 1) + data):
        try:
            sockdiag.parse_reply(each)
        except ValueError:
            continue


def test_this_machines_own_structure() -> None:
    """The offsets are those of the kernel that runs."""
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
        assert tcpinfo.traffic(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcpinfo.TRAFFIC_BYTES)) == (6, 2)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert tcpinfo.traffic(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcpinfo.TRAFFIC_BYTES)) == (6, 2)
