"""Byte ranges: the Range field, and the body with several parts (RFC 9110, section 14)."""

from __future__ import annotations

import email

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.http_ranges import MOST_RANGES, content_range, multipart, parse_ranges, unsatisfied_range

LENGTH = 100


@pytest.mark.parametrize(
    ("field", "ranges"),
    [
        # 14.1.2: the examples, for a representation of 100 bytes.
        (b"bytes=0-49", [(0, 50)]),
        (b"bytes=50-99", [(50, 100)]),
        (b"bytes=-30", [(70, 100)]),
        (b"bytes=95-", [(95, 100)]),
        (b"bytes=0-0,-1", [(0, 1), (99, 100)]),
        (b"bytes= 0-9, 30-39, -10", [(0, 10), (30, 40), (90, 100)]),
        (b"bytes=50-60,0-9", [(50, 61), (0, 10)]),
        (b"bytes=0-", [(0, 100)]),
        (b"bytes=0-99", [(0, 100)]),
        (b"bytes=0-100", [(0, 100)]),
        (b"bytes=90-1000", [(90, 100)]),
        (b"bytes=90-" + b"9" * 5000, [(90, 100)]),
        (b"bytes=-100", [(0, 100)]),
        (b"bytes=-101", [(0, 100)]),
        (b"bytes=-" + b"9" * 5000, [(0, 100)]),
        (b"bytes=007-008", [(7, 9)]),
        (b"Bytes=0-9", [(0, 10)]),
        (b"bytes=\t0-9", [(0, 10)]),
        (b"bytes=,,0-9,\t,", [(0, 10)]),
        # Those that do not overlap with the representation are left out.
        (b"bytes=0-9,100-", [(0, 10)]),
        (b"bytes=0-9,-0", [(0, 10)]),
        # 15.5.17: none overlaps.
        (b"bytes=100-", []),
        (b"bytes=100-200,300-", []),
        (b"bytes=-0", []),
        (b"bytes=" + b"9" * 5000 + b"-", []),
        # Ignored: another unit, malformed, or too much.
        (b"", None),
        (b"bytes", None),
        (b"bytes=", None),
        (b"bytes=,", None),
        (b"bytes=-", None),
        (b"bytes=9-0", None),
        (b"bytes=0-9,9-0", None),
        (b"bytes=0", None),
        (b"bytes=0--1", None),
        (b"bytes=a-b", None),
        (b"bytes=0-9;", None),
        (b"bytes=0 - 9", None),
        (b"bytes=+1-9", None),
        (b"bytes=0x1-9", None),
        ("bytes=\u0660-\u0669".encode(), None),
        (b"0-9", None),
        (b"items=0-9", None),
        (b"bytes:0-9", None),
        (b"bytes =0-9", None),
        # 14.2: ranges that overlap ask for more than everything.
        (b"bytes=0-,0-", None),
        (b"bytes=0-59,30-99", None),
        (b"bytes=0-" + b",5-0" * 500, None),
        (b"bytes=" + b",".join(b"%d-%d" % (at, at) for at in range(MOST_RANGES + 1)), None),
    ],
)
def test_ranges(field: bytes, ranges: list[tuple[int, int]] | None) -> None:
    """A Range field is read as RFC 9110 says: satisfiable ranges in their order, 416, or ignored."""
    assert parse_ranges(field, LENGTH) == ranges


def test_the_largest_number_of_ranges() -> None:
    """MOST_RANGES ranges are answered."""
    field = b"bytes=" + b",".join(b"%d-%d" % (at, at) for at in range(MOST_RANGES))
    assert parse_ranges(field, LENGTH) == [(at, at + 1) for at in range(MOST_RANGES)]


@pytest.mark.parametrize(
    ("field", "ranges"), [(b"bytes=0-", []), (b"bytes=0-0", []), (b"bytes=-5", None), (b"bytes=-0", [])]
)
def test_ranges_of_an_empty_file(field: bytes, ranges: list[tuple[int, int]] | None) -> None:
    """An empty representation has no first byte; its last bytes are the whole of it."""
    assert parse_ranges(field, 0) == ranges


@given(st.binary(max_size=30), st.integers(0, 50))
def test_no_field_raises(value: bytes, length: int) -> None:
    """Whatever the field, the ranges are within the representation, not empty, and no longer than it together."""
    for field in (value, b"bytes=" + value):
        ranges = parse_ranges(field, length)
        if ranges:
            assert all(0 <= start < stop <= length for start, stop in ranges)
            assert sum(stop - start for start, stop in ranges) <= length


def test_content_range() -> None:
    """Content-Range has the last byte, not the first one after it."""
    assert content_range((0, 1), 5) == "bytes 0-0/5"
    assert unsatisfied_range(5) == "bytes */5"


def test_a_body_with_several_parts() -> None:
    """A parser of MIME messages finds the parts, each with its type and range (RFC 9110, section 14.6)."""
    content = bytes(range(65, 91))
    pieces = multipart([(0, 3), (20, 26)], len(content), "text/plain", "THIS")
    body = b"".join(piece if isinstance(piece, bytes) else content[piece[0] : piece[1]] for piece in pieces)
    message = email.message_from_bytes(b"Content-Type: multipart/byteranges; boundary=THIS\r\n\r\n" + body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    found = [(part["Content-Range"], part["Content-Type"], part.get_payload()) for part in parts]  # type: ignore[index, union-attr]
    assert found == [("bytes 0-2/26", "text/plain", "ABC"), ("bytes 20-25/26", "text/plain", "UVWXYZ")]
