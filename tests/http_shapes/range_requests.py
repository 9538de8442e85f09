"""Byte ranges of a file of 26 bytes (RFC 9110, section 14)."""

from __future__ import annotations

from tests.http_shapes.conditional_requests import MODIFIED
from tests.http_shapes.shape import Shape, get, kept

__all__ = ["RANGE_REQUESTS"]

_FILE = b"abcdefghijklmnopqrstuvwxyz"
_WHOLE = {"Content-Range": None, "Content-Length": "26", "Accept-Ranges": "bytes"}


def _part(section: str, name: str, value: str, first: int, last: int, *more: str) -> Shape:
    fields = {"Content-Range": f"bytes {first}-{last}/26", "Content-Length": str(last - first + 1)}
    data = get("/file.txt", f"Range: {value}", *more)
    return kept(section, name, data, 206, fields=fields, content=_FILE[first : last + 1])


def _whole(section: str, name: str, value: str, *more: str) -> Shape:
    return kept(section, name, get("/file.txt", f"Range: {value}", *more), 200, fields=_WHOLE, content=_FILE)


def _unsatisfiable(section: str, name: str, value: str) -> Shape:
    return kept(section, name, get("/file.txt", f"Range: {value}"), 416, fields={"Content-Range": "bytes */26"})


_SINGLE = (
    _part("9110 14.1.2", "the first bytes", "bytes=0-4", 0, 4),
    _part("9110 14.1.2", "one byte", "bytes=0-0", 0, 0),
    _part("9110 14.1.2", "the last byte", "bytes=25-25", 25, 25),
    _part("9110 14.1.2", "from a byte on", "bytes=20-", 20, 25),
    _part("9110 14.1.2", "all bytes", "bytes=0-", 0, 25),
    _part("9110 14.1.2", "the last bytes", "bytes=-5", 21, 25),
    _part("9110 14.1.2", "a suffix longer than the file", "bytes=-100", 0, 25),
    _part("9110 14.1.2", "an end after the file", "bytes=20-100", 20, 25),
    _part("9110 14.1.2", "an end after all files", "bytes=20-99999999999999999999999", 20, 25),
    _part("9110 14.1.2", "leading zeros", "bytes=0000-0004", 0, 4),
    _part("9110 14.1", "the unit in upper case", "BYTES=0-4", 0, 4),
    _part("9110 14.2", "whitespace around the value", "\t bytes=0-4 ", 0, 4),
    _part("9110 14.2", "one of two ranges", "bytes=0-4,100-", 0, 4),
    _part("9110 5.6.1", "empty elements of the list", "bytes=,0-4,", 0, 4),
    _unsatisfiable("9110 15.5.17", "a start after the file", "bytes=26-"),
    _unsatisfiable("9110 15.5.17", "a range after the file", "bytes=30-40"),
    _unsatisfiable("9110 15.5.17", "a suffix of no bytes", "bytes=-0"),
    _unsatisfiable("9110 15.5.17", "two ranges after the file", "bytes=26-,30-40"),
    _unsatisfiable("9110 15.5.17", "a start after all files", "bytes=99999999999999999999999-"),
    kept("9110 14.2", "HEAD has no ranges", get("/file.txt", "Range: bytes=0-4", method="HEAD"), 200, fields=_WHOLE,
         content=b""),
    kept("9110 14.2", "a missing file", get("/missing", "Range: bytes=0-4"), 404),
    kept("9110 14.2", "a redirect", get("/folder", "Range: bytes=0-4"), 301),
    kept("9110 14.2", "another method", get("/file.txt", "Range: bytes=0-4", method="DELETE"), 405),
    kept("9110 14.3", "a response without a range", get("/file.txt"), 200, fields={"Accept-Ranges": "bytes"}),
    kept("9110 15.5.17", "a range of an empty file", get("/empty.txt", "Range: bytes=0-"), 416,
         fields={"Content-Range": "bytes */0"}),
)  # fmt: skip
_IGNORED = (
    _whole("9110 14.2", "another unit", "lines=0-4"),
    _whole("9110 14.2", "no unit", "0-4"),
    _whole("9110 14.1.1", "no ranges", "bytes="),
    _whole("9110 14.1.1", "no numbers", "bytes=-"),
    _whole("9110 14.1.1", "no number", "bytes=a-b"),
    _whole("9110 14.1.1", "an end before the start", "bytes=5-4"),
    _whole("9110 14.1.1", "an invalid range after a valid one", "bytes=0-4,5-4"),
    _whole("9110 14.1.1", "two hyphens", "bytes=0--4"),
    _whole("9110 14.1.1", "a negative start", "bytes=-1-4"),
    _whole("9110 14.1.1", "a plus sign", "bytes=+0-4"),
    _whole("9110 14.1.1", "a hexadecimal number", "bytes=0x0-0x4"),
    _whole("9110 14.1.1", "a blank in a range", "bytes=0 - 4"),
    _whole("9110 14.1.1", "an underscore", "bytes=0_0-4"),
    _whole("9110 14.2", "digits above ASCII", "bytes=\xb2-"),
    _whole("9110 14.2", "two fields", "bytes=0-4", "Range: lines=0-4"),
    _whole("9110 14.2", "more overlapping ranges than are useful", "bytes=" + ",".join(["0-"] * 500)),
)
_MANY = (
    kept("9110 14.6", "two ranges", get("/file.txt", "Range: bytes=0-0,10-14"), 206, fields={"Content-Range": None}),
    kept("9110 14.6", "two ranges in reverse order", get("/file.txt", "Range: bytes=20-,0-4"), 206,
         fields={"Content-Range": None}),
    kept("9110 14.6", "blanks between ranges", get("/file.txt", "Range: bytes=0-0 , 10-14"), 206,
         fields={"Content-Range": None}),
)  # fmt: skip
_CONDITIONS = (
    _part("9110 13.1.5", "the same tag", "bytes=0-4", 0, 4, "If-Range: {etag}"),
    _whole("9110 13.1.5", "another tag", "bytes=0-4", 'If-Range: "other"'),
    _whole("9110 13.1.5", "the tag as a weak one", "bytes=0-4", "If-Range: W/{etag}"),
    _whole("9110 13.1.5", "any tag is no tag", "bytes=0-4", "If-Range: *"),
    _part("9110 13.1.5", "the same date", "bytes=0-4", 0, 4, f"If-Range: {MODIFIED}"),
    _whole("9110 13.1.5", "a later date is another one", "bytes=0-4", "If-Range: Sun, 06 Nov 1994 08:49:38 GMT"),
    _whole("9110 13.1.5", "no tag and no date", "bytes=0-4", "If-Range: x"),
    _whole("9110 13.1.5", "another tag, and a range after the file", "bytes=26-", 'If-Range: "other"'),
    kept("9110 13.1.5", "If-Range without Range", get("/file.txt", "If-Range: {etag}"), 200, fields=_WHOLE),
    kept("9110 13.2.2", "304 before a range", get("/file.txt", "Range: bytes=0-4", "If-None-Match: {etag}"), 304,
         content=b""),
    kept("9110 13.2.2", "412 before a range", get("/file.txt", "Range: bytes=0-4", 'If-Match: "other"'), 412),
)  # fmt: skip

RANGE_REQUESTS = (*_SINGLE, *_IGNORED, *_MANY, *_CONDITIONS)
