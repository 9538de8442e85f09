"""Conditional requests: dates, entity tags, and the precedence of the preconditions (RFC 9110, section 13)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.http_conditions import Validators, failed_precondition, parse_date, range_applies

#: RFC 9110, section 5.6.7, has this time as its example.
TIME = 784_111_777
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE, AFTER = b"Sun, 06 Nov 1994 08:49:36 GMT", b"Sun, 06 Nov 1994 08:49:38 GMT"
STRONG = Validators(b'"a"', TIME)
WEAK = Validators(b'W/"a"', TIME)


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        (DATE, TIME),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", TIME),
        (b"Sun Nov  6 08:49:37 1994", TIME),
        (b"Sun Nov 16 08:49:37 1994", TIME + 10 * 86_400),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0),
        (b"Thu, 29 Feb 2024 12:00:00 GMT", 1_709_208_000),
        (b"Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800),
        (b"", None),
        (b"0", None),
        (b"yesterday", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 06 Nov 1994 08:49:37 +0000", None),
        (b"Sun, 6 Nov 1994 08:49:37 GMT", None),
        (b"sun, 06 nov 1994 08:49:37 gmt", None),
        (b"Sun, 06 Nov 1994 24:00:00 GMT", None),
        (b"Sun, 06 Nov 1994 08:60:37 GMT", None),
        (b"Sun, 31 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 00 Nov 1994 08:49:37 GMT", None),
        (b"Wed, 29 Feb 2023 12:00:00 GMT", None),
        (b"Sun, 06 Nov 0000 08:49:37 GMT", None),
        (b"Sun Nov   08:49:37 1994", None),
        (DATE + b" ", None),
        (DATE + b", " + DATE, None),
        ("Sun, ٠٦ Nov 1994 08:49:37 GMT".encode(), None),
    ],
)  # fmt: skip
def test_dates(field: bytes, seconds: int | None) -> None:
    """The three formats of HTTP-date are read, and nothing else."""
    assert parse_date(field) == seconds


def test_a_year_of_two_digits() -> None:
    """A year of two digits that would be more than 50 years in the future is in the past (RFC 9110, section 5.6.7)."""
    this_year = time.gmtime().tm_year
    for ahead in (0, 1, 49, 50, 51, 60, 99):
        year = (this_year + ahead) % 100
        seconds = parse_date(b"Sunday, 01-Jul-%02d 00:00:00 GMT" % year)
        assert seconds is not None
        assert this_year - 100 < time.gmtime(seconds).tm_year <= this_year + 50


@pytest.mark.parametrize(
    ("fields", "validators", "status"),
    [
        ({}, STRONG, None),
        # 13.1.1: If-Match, by strong comparison.
        ({"if-match": b'"a"'}, STRONG, None),
        ({"if-match": b'"b", "a"'}, STRONG, None),
        ({"if-match": b"*"}, STRONG, None),
        ({"if-match": b"*"}, WEAK, None),
        ({"if-match": b'"b"'}, STRONG, 412),
        ({"if-match": b'W/"a"'}, STRONG, 412),
        ({"if-match": b'W/"a"'}, WEAK, 412),
        ({"if-match": b'"a"'}, WEAK, 412),
        ({"if-match": b"a"}, STRONG, 412),
        ({"if-match": b""}, STRONG, 412),
        ({"if-match": b'"b" "a"'}, STRONG, 412),
        ({"if-match": b'"b,"a"'}, STRONG, 412),
        # 13.1.2: If-None-Match, by weak comparison.
        ({"if-none-match": b'"a"'}, STRONG, 304),
        ({"if-none-match": b'W/"a"'}, STRONG, 304),
        ({"if-none-match": b'"a"'}, WEAK, 304),
        ({"if-none-match": b'W/"a"'}, WEAK, 304),
        ({"if-none-match": b"*"}, STRONG, 304),
        ({"if-none-match": b' , "b" ,, W/"a"\t,'}, STRONG, 304),
        ({"if-none-match": b'"b","a"'}, STRONG, 304),
        ({"if-none-match": b'"b"'}, STRONG, None),
        ({"if-none-match": b'"A"'}, STRONG, None),
        ({"if-none-match": b"a"}, STRONG, None),
        ({"if-none-match": b'w/"a"'}, STRONG, None),
        ({"if-none-match": b'"b, a"'}, STRONG, None),
        ({"if-none-match": b'"a'}, STRONG, None),
        ({"if-none-match": b'"a" x'}, STRONG, None),
        # 13.1.3: If-Modified-Since.
        ({"if-modified-since": DATE}, STRONG, 304),
        ({"if-modified-since": AFTER}, STRONG, 304),
        ({"if-modified-since": BEFORE}, STRONG, None),
        ({"if-modified-since": b"never"}, STRONG, None),
        # 13.1.4: If-Unmodified-Since.
        ({"if-unmodified-since": DATE}, STRONG, None),
        ({"if-unmodified-since": AFTER}, STRONG, None),
        ({"if-unmodified-since": BEFORE}, STRONG, 412),
        ({"if-unmodified-since": b"never"}, STRONG, None),
        # 13.2.2: precedence.
        ({"if-match": b'"a"', "if-unmodified-since": BEFORE}, STRONG, None),
        ({"if-match": b'"b"', "if-unmodified-since": AFTER}, STRONG, 412),
        ({"if-none-match": b'"b"', "if-modified-since": DATE}, STRONG, None),
        ({"if-none-match": b'"a"', "if-modified-since": BEFORE}, STRONG, 304),
        ({"if-match": b'"b"', "if-none-match": b'"a"'}, STRONG, 412),
        ({"if-match": b'"a"', "if-none-match": b'"a"'}, STRONG, 304),
        ({"if-unmodified-since": BEFORE, "if-none-match": b'"a"'}, STRONG, 412),
        ({"if-unmodified-since": DATE, "if-modified-since": DATE}, STRONG, 304),
        ({"if-match": b'"a"', "if-modified-since": DATE}, STRONG, 304),
    ],
)
def test_preconditions(fields: dict[str, bytes], validators: Validators, status: int | None) -> None:
    """Each precondition, and their order, leads to the status of RFC 9110, section 13."""
    given_fields = {name.encode(): value for name, value in fields.items()}
    assert failed_precondition(given_fields, validators) == status


@pytest.mark.parametrize(
    ("condition", "validators", "applies"),
    [
        (None, STRONG, True),
        (b'"a"', STRONG, True),
        (b'"b"', STRONG, False),
        (b'W/"a"', STRONG, False),
        (b'"a"', WEAK, False),
        (b'W/"a"', WEAK, False),
        (b'"b", "a"', STRONG, False),
        (DATE, STRONG, True),
        (BEFORE, STRONG, False),
        (AFTER, STRONG, False),
        (b"never", STRONG, False),
        (b"", STRONG, False),
        (b"*", STRONG, False),
        (DATE, Validators(b'"a"', TIME, date_is_strong=False), False),
    ],
)
def test_if_range(condition: bytes | None, validators: Validators, applies: bool) -> None:
    """If-Range applies for the same strong validator only (RFC 9110, section 13.1.5)."""
    fields = {} if condition is None else {b"if-range": condition}
    assert range_applies(fields, validators) is applies


@pytest.mark.parametrize("filling", [b" ", b",", b", ", b'"', b'"a"', b'"a",', b'W/"', b'"a" ', b"W/", b"\t,"])
def test_a_long_field_takes_little_time(filling: bytes) -> None:
    """A field as long as a request head is read in linear time, malformed or not."""
    start = time.process_time()
    for end in (b"", b"x", b'"'):
        field = (filling * 32_768)[:32_768] + end
        failed_precondition({b"if-match": field}, STRONG)
        failed_precondition({b"if-none-match": field}, STRONG)
        parse_date(field)
    assert time.process_time() - start < 1


@given(st.binary(max_size=40), st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-range"]))
def test_no_field_raises(value: bytes, name: str) -> None:
    """No value of a field raises an exception."""
    fields = {name.encode(): value}
    assert failed_precondition(fields, STRONG) in (None, 304, 412)
    assert range_applies(fields, STRONG) in (True, False)
