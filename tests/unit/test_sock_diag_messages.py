"""Messages of sock_diag(7): requests and replies."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.net.sock_diag import diag_request, parse_reply, request_message


def _message(number: int, *attributes: tuple[int, bytes]) -> bytes:
    body = bytes(72)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 20, 0, number, 1) + body


def test_a_question_names_the_connection() -> None:
    """As struct inet_diag_req_v2 has it, behind a netlink header."""
    traced = diag_request(2, (b"\x7f\0\0\1", 7), (b"\xc0\0\2\1", 40_000), 3, b"cookie!!")
    asked = request_message(9, traced)
    assert struct.unpack_from("=IHHII", asked) == (len(asked), 20, 1, 9, 0)
    assert asked[16:24] == struct.pack("=BBBxI", 2, 6, 2, 0xFFFF_FFFF)
    assert asked[24:28] == struct.pack("!HH", 7, 40_000)
    assert asked[28:60] == b"\x7f\0\0\1" + bytes(12) + b"\xc0\0\2\1" + bytes(12)
    assert asked[60:] == struct.pack("=I", 3) + b"cookie!!"


def test_an_answer_has_the_structure_among_its_attributes() -> None:
    """Whichever stand before it, padded as they are."""
    assert parse_reply(_message(9, (8, b"\0"), (2, b"info"), (15, b"x"))) == (9, b"info")


def test_a_connection_that_is_over_has_none() -> None:
    """An error, or an answer about what the kernel keeps of it for a while."""
    error = struct.pack("=IHHIIi", 36, 2, 0, 9, 1, -2) + bytes(16)
    assert parse_reply(error) == (9, b"")
    assert parse_reply(_message(9, (8, b"\0"))) == (9, b"")


@pytest.mark.parametrize(
    "data", [b"", b"short", struct.pack("=IHHII", 16, 3, 0, 1, 1), struct.pack("=IHHII", 99, 20, 0, 1, 1)]
)
def test_what_is_no_answer_is_a_mistake(data: bytes) -> None:
    """Not taken for one."""
    with pytest.raises(ValueError):
        parse_reply(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_a_mistake(data: bytes) -> None:
    """Nothing else is raised, and reading ends."""
    for each in (data, struct.pack("=IHHII", 16 + len(data), 20, 0, 1, 1) + data):
        try:
            parse_reply(each)
        except ValueError:
            continue
