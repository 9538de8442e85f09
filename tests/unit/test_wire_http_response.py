"""HTTP responses as a client parses them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.http_response import MOST_HEAD, Head, ResponseError, ResponseReader

#: The bytes of a server, and the status and body of the response.
WHOLE = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 404 x\r\n\r\n", 200, b"abc"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: x\r\n\r\n",
        200,
        b"abcde",
    ),
    (b"HTTP/1.0 404 Not Found\r\nA: b\r\n\r\nto the end", 404, b"to the end"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    (b"HTTP/1.1 304 \r\nContent-Length: 7\r\n\r\n", 304, b""),
    (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
]
#: Bytes that are not a response, and the error.
WRONG = [
    (b"", "without an answer"),
    (b"HTTP/1.1 200 OK\r\nContent-", "within the response header"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "after 2 of 5 bytes"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "within the chunked body, after 3 bytes"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "not HTTP"),
    (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "not HTTP"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nab", "not HTTP"),
    (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "changes the protocol"),
]


def _read(pieces: list[bytes], *, bodiless: bool = False) -> tuple[Head, bytes]:
    reader = ResponseReader(bodiless=bodiless)
    found = [each for piece in pieces for each in reader.feed(piece)]
    reader.close()
    assert reader.done
    head = found[0]
    assert isinstance(head, Head)
    return head, b"".join(each for each in found[1:] if isinstance(each, bytes))


@pytest.mark.parametrize(("raw", "status", "body"), WHOLE)
def test_a_response_at_every_split(raw: bytes, status: int, body: bytes) -> None:
    """A response is the same when it is split in two at every point, or into single bytes."""
    splits = [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    for pieces in [[raw], *splits, [bytes([byte]) for byte in raw]]:
        head, found = _read(pieces)
        assert (head.status, found) == (status, body)


@pytest.mark.parametrize(("raw", "message"), WRONG)
def test_malformed_responses(raw: bytes, message: str) -> None:
    """Malformed and incomplete responses are errors with the reason."""
    for pieces in ([raw], [bytes([byte]) for byte in raw]):
        with pytest.raises(ResponseError, match=message):
            _read(pieces)


def test_a_response_without_a_body() -> None:
    """A response to HEAD ends with its head, whatever its Content-Length."""
    reader = ResponseReader(bodiless=True)
    [head] = reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A:  b\r\n\r\n")
    assert reader.done
    reader.close()
    assert isinstance(head, Head)
    assert head.field(b"content-length") == b"3"
    assert head.field(b"nothing") is None
    assert bytes(head) == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: b\r\n\r\n"


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\nA: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
    ],
)
def test_a_head_without_end(start: bytes) -> None:
    """Heads, chunk extensions and trailers are limited to MOST_HEAD bytes."""
    reader = ResponseReader()
    reader.feed(start)
    for _ in range(MOST_HEAD // 10_000):
        assert not reader.feed(b"x" * 10_000)
    with pytest.raises(ResponseError, match=f"more than {MOST_HEAD} bytes"):
        reader.feed(b"x" * 10_000)


def test_interim_responses_without_end() -> None:
    """Interim responses count as one head."""
    reader = ResponseReader()
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    for _ in range(MOST_HEAD // len(interim)):
        assert not reader.feed(interim)
    with pytest.raises(ResponseError, match=f"more than {MOST_HEAD} bytes"):
        reader.feed(interim)


@given(st.lists(st.binary(max_size=100)))
def test_arbitrary_bytes(pieces: list[bytes]) -> None:
    """Any bytes are a response or a ResponseError."""
    reader = ResponseReader()
    with suppress(ResponseError):
        for piece in pieces:
            reader.feed(piece)
        reader.close()
        assert reader.done
