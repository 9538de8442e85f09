"""Payloads of the small services: chargen, daytime, time, quotations."""

from __future__ import annotations

import calendar
import itertools
import re
import time
from typing import TYPE_CHECKING

import pytest

from svcd.wire import chargen
from svcd.wire.daytime import daytime, time_1900
from svcd.wire.fortune import DEFAULT, MOST_BYTES, read_quotes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

from hypothesis import given
from hypothesis import strategies as st

# 1 p.m. on a winter's day and on a summer's day, in UTC.
WINTER = calendar.timegm((2026, 1, 21, 13, 5, 9))
SUMMER = calendar.timegm((2026, 7, 1, 13, 5, 9))


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set Berlin's time zone without zone files; restore the zone after the test."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield patch
    time.tzset()


def test_the_pattern_is_that_of_rfc_864() -> None:
    """The pattern has 95 lines of 72 printable characters and CRLF, each rotated by one character (RFC 864)."""
    lines = chargen.PATTERN.split(b"\r\n")
    assert lines.pop() == b""
    assert len(lines) == 95
    assert {len(line) for line in lines} == {72}
    # The first lines of the RFC's example, which begins at the exclamation mark.
    assert lines[1] == b"!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefgh"
    assert lines[2] == b"\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghi"
    assert lines[0][0:1] == b" "
    assert lines[94] == b"~" + lines[0][:71]
    for line, after in zip(lines, lines[1:] + lines[:1], strict=True):
        assert line[1:] == after[:-1]
    assert set(b"".join(lines)) == set(range(0x20, 0x7F))


def test_blocks_have_no_gap() -> None:
    """The pattern goes on from one block to the next without a gap."""
    lines = (chargen.BLOCK * 2).split(b"\r\n")[:-1]
    assert all(line[1:] == after[:-1] for line, after in itertools.pairwise(lines))
    assert len(chargen.PATTERN) == chargen.LINE_BYTES * 95


def test_a_datagram_has_at_most_512_characters_and_rotates() -> None:
    """A datagram has whole lines of at most 512 bytes, and the next one begins one line further."""
    for number in range(200):
        answer = chargen.datagram(number)
        assert 0 < len(answer) <= 512
        assert answer.endswith(b"\r\n")
        assert answer[chargen.LINE_BYTES :] == chargen.datagram(number + 1)[: -chargen.LINE_BYTES]
    assert chargen.datagram(95) == chargen.datagram(0)


@pytest.mark.parametrize(
    ("now", "utc", "iso8601", "answer"),
    [
        (WINTER, False, False, b"Wed Jan 21 14:05:09 2026\r\n"),
        (WINTER, True, False, b"Wed Jan 21 13:05:09 2026\r\n"),
        (WINTER, False, True, b"2026-01-21T14:05:09+01:00\r\n"),
        (WINTER, True, True, b"2026-01-21T13:05:09Z\r\n"),
        (SUMMER, False, False, b"Wed Jul  1 15:05:09 2026\r\n"),
        (SUMMER, False, True, b"2026-07-01T15:05:09+02:00\r\n"),
    ],
)
@pytest.mark.usefixtures("zone")
def test_daytime(now: float, utc: bool, iso8601: bool, answer: bytes) -> None:
    """daytime is one line with CRLF, in local or universal time, in the classic format or ISO 8601."""
    assert daytime(now, utc=utc, iso8601=iso8601) == answer
    assert daytime(now + 0.999, utc=utc, iso8601=iso8601) == answer


def test_daytime_west_of_greenwich(zone: pytest.MonkeyPatch) -> None:
    """A negative offset has its sign, hours and minutes."""
    zone.setenv("TZ", "NST3:30")
    time.tzset()
    assert daytime(WINTER, iso8601=True) == b"2026-01-21T09:35:09-03:30\r\n"


@pytest.mark.parametrize(
    ("now", "answer"),
    [
        # The examples of RFC 868.
        (calendar.timegm((1970, 1, 1, 0, 0, 0)), 2_208_988_800),
        (calendar.timegm((1976, 1, 1, 0, 0, 0)), 2_398_291_200),
        (calendar.timegm((1980, 1, 1, 0, 0, 0)), 2_524_521_600),
        (calendar.timegm((1983, 5, 1, 0, 0, 0)), 2_629_584_000),
        (calendar.timegm((2036, 2, 7, 6, 28, 15)), 0xFFFF_FFFF),
        (calendar.timegm((2036, 2, 7, 6, 28, 16)), 0),
        (calendar.timegm((2036, 2, 7, 6, 28, 17)) + 0.9, 1),
    ],
)
def test_time(now: float, answer: int) -> None:
    """time is the number of seconds since 1900 as an unsigned 32-bit big-endian number, which wraps in 2036."""
    assert time_1900(now) == answer.to_bytes(4, "big")


def test_quotes_are_separated_by_percent_signs() -> None:
    """Quotations are separated by lines with `%`, stripped and ended by CRLF; empty ones are left out."""
    data = b"one\n\ttwo\n%\n%\n \n%\r\nthree %\r\nfour\r\n%  \n100 % sure\n%"
    assert read_quotes(data) == (b"one\r\n\ttwo\r\n", b"three %\r\nfour\r\n", b"100 % sure\r\n")


@pytest.mark.parametrize(("length", "kept"), [(509, True), (510, False)])
def test_the_longest_quote(length: int, kept: bool) -> None:
    """A quotation has fewer than 512 bytes with its CRLF."""
    assert bool(read_quotes(b"x" * length)) is kept


def _fortunes() -> SearchStrategy[bytes]:
    return st.lists(st.sampled_from([b"%", b"\n", b"\r\n", b"a", b" ", b"\xff", b"x" * 300])).map(b"".join)


@given(_fortunes())
def test_quotes_of_arbitrary_files(data: bytes) -> None:
    """Quotations of any file have lines with CRLF, are not empty and have at most 512 bytes (RFC 865)."""
    for quote in read_quotes(data):
        assert 2 < len(quote) <= MOST_BYTES
        assert quote.endswith(b"\r\n")
        assert not re.search(rb"(?<!\r)\n", quote)


def test_the_built_in_quotes() -> None:
    """The built-in quotations are short enough."""
    assert len(DEFAULT) > 1
    assert all(len(quote) <= MOST_BYTES for quote in DEFAULT)
