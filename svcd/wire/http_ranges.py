"""Byte ranges of HTTP (RFC 9110, section 14): the Range field, Content-Range, and multipart/byteranges."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MOST_RANGES", "ByteRange", "content_range", "multipart", "parse_ranges", "unsatisfied_range"]

#: The first byte of a range, and the first byte after it.
ByteRange: TypeAlias = "tuple[int, int]"

#: The largest number of ranges of a request; a field with more of them is ignored (RFC 9110, section 14.2).
MOST_RANGES = 32
#: A number that no file is as long as; longer numbers are read as this one.
_HUGE = 10**18
_RANGE = re.compile(rb"([0-9]*)-([0-9]*)")


def parse_ranges(field: bytes, length: int) -> list[ByteRange] | None:
    """Return the ranges of a Range field that a representation has, in the order of the field.

    Args:
        field: the field.
        length: the number of bytes of the representation.

    Returns:
        The ranges, none of them empty. An empty list means 416. None means that the field is ignored: it is malformed,
        has another unit than bytes, more than MOST_RANGES ranges, or asks for more bytes than there are, by ranges that
        overlap.
    """
    unit, equals, text = field.partition(b"=")
    if not equals or unit.lower() != b"bytes" or text.count(b",") >= MOST_RANGES:
        return None
    found: list[ByteRange] = []
    count = 0
    for part in text.split(b","):
        spec = part.strip(b" \t")
        if not spec:
            continue
        match = _RANGE.fullmatch(spec)
        if match is None or spec == b"-":
            return None
        first, last = (_number(digits) for digits in match.groups())
        if first is not None and last is not None and last < first:
            return None
        count += 1
        if first is None:
            assert last is not None  # noqa: S101 - for the type checker: a range has a number
            if last and not length:
                # The last bytes of nothing are the whole (RFC 9110, section 14.1.2), but no Content-Range can say so.
                return None
            start, stop = max(0, length - last), length
        else:
            start, stop = first, length if last is None else min(last + 1, length)
        if start < stop:
            found.append((start, stop))
    if not count or sum(stop - start for start, stop in found) > length:
        return None
    return found


def _number(digits: bytes) -> int | None:
    if not digits:
        return None
    return int(digits) if len(digits) < len(str(_HUGE)) else _HUGE


def content_range(part: ByteRange, length: int) -> str:
    """Return the Content-Range field of a part of a representation with `length` bytes."""
    return f"bytes {part[0]}-{part[1] - 1}/{length}"


def unsatisfied_range(length: int) -> str:
    """Return the Content-Range field of a 416 response."""
    return f"bytes */{length}"


def multipart(parts: Sequence[ByteRange], length: int, content_type: str, boundary: str) -> Iterator[bytes | ByteRange]:
    """Yield the pieces of a multipart/byteranges body (RFC 9110, section 14.6): bytes, and ranges of the content."""
    for part in parts:
        yield (
            f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {content_range(part, length)}\r\n\r\n"
        ).encode("latin-1")
        yield part
    yield f"\r\n--{boundary}--\r\n".encode("latin-1")
