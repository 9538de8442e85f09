"""The timetable of access_times."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.conditions import Timetable
from svcd.access.types import TimeRange
from svcd.config.access_options import HOURS

BERLIN = ZoneInfo("Europe/Berlin")


def _is_open(spans: str, clock: str, zone: ZoneInfo | None = None) -> bool:
    moment = datetime.fromisoformat(clock).replace(tzinfo=UTC).timestamp()
    return Timetable(HOURS.read(spans), zone or ZoneInfo("UTC")).is_open(moment)


@pytest.mark.parametrize(
    ("spans", "opened", "closed"),
    [
        ("8:00-18:00", ["08:00:00", "17:59:59"], ["07:59:59", "18:00:00", "00:00:00"]),
        ("22:00-6:00", ["22:00:00", "23:59:59", "00:00:00", "05:59:59"], ["21:59:59", "06:00:00", "12:00:00"]),
        ("8:00-12:00,13:00-17:00", ["11:59:59", "13:00:00"], ["12:00:00", "12:59:59"]),
        ("0:00-24:00", ["00:00:00", "23:59:59"], []),
        ("22:00-24:00", ["23:59:59"], ["00:00:00"]),
        ("12:00-0:00", ["12:00:00", "23:59:59"], ["00:00:00"]),
    ],
)
def test_range_includes_its_start_and_excludes_its_end(spans: str, opened: list[str], closed: list[str]) -> None:
    """Any of several ranges is enough; a range with the end before the start spans midnight."""
    assert [clock for clock in opened if not _is_open(spans, f"2026-11-21T{clock}")] == []
    assert [clock for clock in closed if _is_open(spans, f"2026-11-21T{clock}")] == []


def test_skipped_hour() -> None:
    """On 2026-03-29 3:00 follows 1:59: of 2:30-3:30 only the second half exists."""
    clocks = ["00:59", "01:00", "01:29", "01:30"]
    found = [_is_open("2:30-3:30", f"2026-03-29T{clock}:00", BERLIN) for clock in clocks]
    assert found == [False, True, True, False]
    assert not any(_is_open("2:10-2:50", f"2026-03-29T{clock}:30", BERLIN) for clock in clocks)


def test_repeated_hour() -> None:
    """On 2026-10-25 2:00 follows 2:59 once: the range ends for half an hour and starts again."""
    clocks = ["00:29", "00:30", "00:59", "01:00", "01:29", "01:30", "01:59", "02:00"]
    found = [_is_open("2:30-3:00", f"2026-10-25T{clock}:00", BERLIN) for clock in clocks]
    assert found == [False, True, True, False, False, True, True, False]


def test_time_zone_of_the_machine_is_the_default() -> None:
    """The timetable uses the local time of the machine, as daytime does."""
    moment = 1_795_255_920.0
    wall = datetime.fromtimestamp(moment)
    minute = wall.hour * 60 + wall.minute
    table = Timetable([TimeRange(minute, minute + 1)])
    assert table.is_open(moment)
    assert not table.is_open(moment + 60)
    assert not table.is_open(moment - 60)


_SPANS = (
    st.tuples(st.integers(0, 1439), st.integers(0, 1440))
    .filter(lambda it: it[0] != it[1])
    .map(lambda it: TimeRange(*it))
)
_ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"])


@given(
    st.lists(_SPANS, max_size=3), _ZONES, st.integers(1_600_000_000, 1_900_000_000),
    st.lists(st.integers(-100_000, 100_000), max_size=20),
)  # fmt: skip
def test_result_depends_on_the_moment_only(spans: list[TimeRange], zone: str, start: int, steps: list[int]) -> None:
    """Earlier calls, with earlier or later moments, do not change the result."""
    table = Timetable(spans, ZoneInfo(zone))
    for step in [0, *steps]:
        start += step
        wall = datetime.fromtimestamp(start, ZoneInfo(zone))
        minutes = {minute % 1440 for span in spans for minute in _minutes(span)}
        assert table.is_open(start) is (wall.hour * 60 + wall.minute in minutes)


def _minutes(span: TimeRange) -> range:
    return range(span.start, span.end if span.end > span.start else span.end + 1440)
