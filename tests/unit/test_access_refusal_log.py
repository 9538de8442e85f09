"""Refusals aggregated by second and reason."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from svcd.access.refusal_log import RefusalAggregator, RefusalLine
from svcd.access.rules import Refusal, RefusalReason

_RATE = Refusal(RefusalReason.RATE, "too fast")
_TIME = Refusal(RefusalReason.TIME, "too late")


def test_first_refusal_is_logged_at_once_and_the_next_second_in_one_line() -> None:
    """A line has the number of refusals and the first of them."""
    summary = RefusalAggregator()
    assert summary.due(0.0) is None
    assert summary.add(_RATE, "192.0.2.1", 0.0) == RefusalLine(_RATE, "192.0.2.1", 1)
    assert summary.due(0.0) is None
    assert summary.add(_RATE, "192.0.2.2", 0.25) is None
    assert summary.add(_RATE, "192.0.2.3", 0.5) is None
    assert summary.due(0.5) == 0.5
    assert summary.pending(0.5) == []
    assert summary.pending(1.0) == [RefusalLine(_RATE, "192.0.2.2", 2)]
    assert summary.due(1.0) is None
    assert summary.pending(9.0) == []
    assert summary.add(_RATE, "192.0.2.4", 9.0) == RefusalLine(_RATE, "192.0.2.4", 1)
    assert summary.counts == {RefusalReason.RATE: 4}


def test_pending_refusals_are_logged_at_the_end() -> None:
    """At the end of the service all pending lines are returned at once."""
    summary = RefusalAggregator()
    for number in range(3):
        summary.add(_RATE, f"192.0.2.{number}", 5.0)
    assert summary.pending(float("inf")) == [RefusalLine(_RATE, "192.0.2.1", 2)]
    assert summary.due(5.0) is None


def test_each_reason_has_its_own_line() -> None:
    """Many refusals for one reason hide no other reason."""
    summary = RefusalAggregator()
    assert summary.add(_RATE, "192.0.2.1", 0.0) is not None
    assert summary.add(_RATE, "192.0.2.1", 0.0) is None
    assert summary.add(_TIME, "192.0.2.2", 0.1) == RefusalLine(_TIME, "192.0.2.2", 1)
    assert summary.counts == {RefusalReason.RATE: 2, RefusalReason.TIME: 1}


def test_clock_that_is_set_back_delays_no_line() -> None:
    """Pending refusals are logged with the next one, and the timer waits at most a second."""
    summary = RefusalAggregator()
    summary.add(_RATE, "192.0.2.1", 1e6)
    summary.add(_RATE, "192.0.2.1", 1e6)
    assert summary.due(0.0) == 1.0
    assert summary.add(_RATE, "192.0.2.1", 0.0) == RefusalLine(_RATE, "192.0.2.1", 2)


@given(st.lists(st.tuples(st.sampled_from([_RATE, _TIME]), st.integers(0, 100), st.booleans()), max_size=80))
def test_one_line_per_second_and_no_refusal_is_lost(visits: list[tuple[Refusal, int, bool]]) -> None:
    """The counts of a reason's lines add up, and any two lines are a second apart."""
    summary = RefusalAggregator()
    now, written = 0.0, []
    for refusal, step, ticks in visits:
        now += step / 64
        if ticks:
            written += [(now, line) for line in summary.pending(now)]
        line = summary.add(refusal, "192.0.2.1", now)
        written += [(now, line)] if line else []
    while (wait := summary.due(now)) is not None:
        now += wait
        written += [(now, line) for line in summary.pending(now)]
    for reason in (RefusalReason.RATE, RefusalReason.TIME):
        lines = [(at, line.count) for at, line in written if line.refusal.reason is reason]
        assert sum(count for _, count in lines) == summary.counts.get(reason, 0)
        assert all(later[0] - earlier[0] >= 1 for earlier, later in itertools.pairwise(lines))
