"""Rate limits: token buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.rate_limit import NonDecreasingClock, RateLimiter, SourceMask, SourceTokenBuckets, TokenBucket
from svcd.access.rules import AccessRules, RefusalReason
from svcd.access.types import PrefixLengths, Rate
from svcd.addresses import address_number

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Of a second; whole multiples of it are exact.
TICK = 1 / 64

_RATES = st.builds(Rate, st.integers(1, 20), st.sampled_from([1, 60]))
_STEPS = st.lists(st.integers(0, 200), max_size=80)


def _assert_rate(times: Sequence[float], rate: Rate, burst: int) -> None:
    """Assert that every span of time has at most burst + rate x span admissions."""
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            allowed = burst + rate.count / rate.seconds * (times[last] - start)
            assert last - first + 1 <= allowed + 1e-6


@given(_RATES, st.integers(1, 8), _STEPS)
def test_a_bucket_admits_no_more_than_burst_and_rate_times_time(rate: Rate, burst: int, steps: list[int]) -> None:
    """The limit holds between any two moments, and each refusal is necessary."""
    bucket = TokenBucket(rate, burst)
    now, taken = 0.0, []
    for step in steps:
        now += step * TICK
        if bucket.ready(now):
            bucket.take(now)
            taken.append(now)
        else:
            # One more would have been too many, for some span that ends now.
            with pytest.raises(AssertionError):
                _assert_rate([*taken, now - 1e-5], rate, burst)
    _assert_rate(taken, rate, burst)


class _Remembered(SourceTokenBuckets):
    """Buckets that record whether each source was remembered at its request."""

    def remembers(self, source: int) -> bool:
        return source in self._young or source in self._old


@given(
    _RATES, st.integers(1, 5), st.integers(2, 8),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=150),
)  # fmt: skip
def test_forgotten_source_gains_one_token(rate: Rate, burst: int, most: int, visits: list[tuple[int, int]]) -> None:
    """With more sources than are remembered: burst + rate x time, and one token for an unknown source."""
    buckets = _Remembered(rate, burst, most)
    now = 0.0
    taken: dict[int, list[float]] = {}
    for source, step in visits:
        now += step * TICK
        known = buckets.remembers(source)
        if buckets.take(source, now):
            times = taken.setdefault(source, [])
            # The one for being unknown comes on top.
            if known or not times:
                times.append(now)
        else:
            assert known
        assert len(buckets) <= most
    for times in taken.values():
        _assert_rate(times, rate, burst)


@given(st.integers(1, 3), st.sampled_from([60, 3600]), st.integers(1, 4), st.integers(2, 50), st.integers(0, 400))
def test_forged_sources_lock_out_no_new_source(count: int, seconds: int, burst: int, most: int, forged: int) -> None:
    """A new source has a token, whatever the rate, the number of sources and the state of their buckets."""
    buckets = SourceTokenBuckets(Rate(count, seconds), burst, most)
    for source in range(forged):
        for _ in range(burst + 1):
            buckets.take(source, source * TICK)
    assert buckets.take(-1, forged * TICK)
    assert len(buckets) <= most


def test_active_source_is_not_forgotten() -> None:
    """With fewer than half a table of other sources between two requests, a source waits for its next token."""
    buckets = SourceTokenBuckets(Rate(1, 60), 2, max_sources=20)
    assert [buckets.take(-1, 0.0) for _ in range(3)] == [True, True, False]
    for source in range(400):
        buckets.take(source, 0.1 * source)
        if source % 8 == 0:
            assert not buckets.take(-1, 0.1 * source)
    assert buckets.take(-1, 60.0)
    assert not buckets.take(-1, 60.0)


@given(
    _RATES, st.integers(1, 5), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=100),
)  # fmt: skip
def test_remembered_sources_do_not_affect_each_other(rate: Rate, burst: int, visits: list[tuple[int, int]]) -> None:
    """Each source has the tokens of a bucket of its own."""
    buckets = SourceTokenBuckets(rate, burst)
    own = {source: TokenBucket(rate, burst) for source, _ in visits}
    now = 0.0
    for source, step in visits:
        now += step * TICK
        ready = own[source].ready(now)
        assert buckets.take(source, now) is ready
        if ready:
            own[source].take(now)


def test_forgotten_source_has_one_token_and_no_full_bucket() -> None:
    """A new source after a flood has one token as well, and the rest as soon as the fullest forgotten bucket has."""
    buckets = SourceTokenBuckets(Rate(1, 1), 2, max_sources=4)
    assert [buckets.take(1, 0.0) for _ in range(3)] == [True, True, False]
    for source in range(2, 10):
        buckets.take(source, 0.0)
    assert [buckets.take(1, 0.0) for _ in range(2)] == [True, False]
    assert [buckets.take(100, 0.0) for _ in range(2)] == [True, False]
    assert [buckets.take(101, 3.0) for _ in range(3)] == [True, True, False]


def test_idle_sources_are_removed() -> None:
    """Idle sources take no memory for long."""
    buckets = SourceTokenBuckets(Rate(10, 1), 1)
    for source in range(20_000):
        buckets.take(source, 0.0)
    assert len(buckets) == 20_000
    for second in range(1, 5):
        buckets.take(0, float(second))
    assert len(buckets) <= 2


@given(st.lists(st.integers(-10_000, 10_000), max_size=50))
def test_clock_does_not_go_back(steps: list[int]) -> None:
    """A step back of the other clock counts as no time, a step forward in full."""
    forward = NonDecreasingClock()
    clock, before, total = 0, forward.at(0), 0
    for step in steps:
        clock += step
        total += max(0, step)
        now = forward.at(clock)
        assert now == total >= before
        before = now


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.255", True),
        ("10.0.0.1", "10.0.1.1", False),
        ("10.0.0.1", "::ffff:10.0.0.2", True),
        ("fd00::1", "fd00::ffff:ffff:ffff:ffff", True),
        ("fd00::1", "fd00:0:0:1::1", False),
        ("10.0.0.0", "::", False),
        ("0.0.0.0", "::", False),
        ("::a00:0", "10.0.0.0", False),
    ],
)
def test_a_source_is_a_prefix(one: str, other: str, same: bool) -> None:
    """A /24 or a /64 is one source, and no IPv6 source has the number of an IPv4 source."""
    sources = SourceMask(PrefixLengths(24, 64))
    assert (sources.of(address_number(one)) == sources.of(address_number(other))) is same


def _answers(meter: RateLimiter, visits: Sequence[tuple[int, float]]) -> list[RefusalReason | None]:
    found = [meter.take(source, now) for source, now in visits]
    return [None if refusal is None else refusal.reason for refusal in found]


def test_refusal_by_one_rate_takes_no_token_of_the_other() -> None:
    """A source over its rate takes no token of the service, and the other way round."""
    meter = RateLimiter(AccessRules(rate=Rate(3, 1), per_source_rate=Rate(1, 1)))
    here, rate = RefusalReason.PER_SOURCE_RATE, RefusalReason.RATE
    assert _answers(meter, [(1, 0.0), (1, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]) == [None, here, here, None, None]
    assert _answers(meter, [(4, 0.0), (4, 0.34)]) == [rate, None]


def test_burst_is_the_count_of_the_rate_or_rate_burst() -> None:
    """rate=10/m admits ten at once, with rate_burst=2 two."""
    assert _answers(RateLimiter(AccessRules(rate=Rate(10, 60))), [(1, 0.0)] * 11) == [None] * 10 + [RefusalReason.RATE]
    assert _answers(RateLimiter(AccessRules(rate=Rate(10, 60), rate_burst=2)), [(1, 0.0)] * 3) == [None] * 2 + [
        RefusalReason.RATE
    ]


def test_clock_that_is_set_back_locks_out_no_source() -> None:
    """Tokens come again from the first second on."""
    meter = RateLimiter(AccessRules(per_source_rate=Rate(1, 1)))
    here = RefusalReason.PER_SOURCE_RATE
    assert _answers(meter, [(1, 1e6), (1, 1e6), (1, 0.0), (1, 1.0), (1, 1.5)]) == [None, here, here, None, here]


def test_reload_keeps_buckets_of_unchanged_rates() -> None:
    """A reload fills no bucket, unless its own rate changes."""
    meter = RateLimiter(AccessRules(rate=Rate(1, 60)))
    assert _answers(meter, [(1, 0.0), (1, 1.0)]) == [None, RefusalReason.RATE]
    meter.retune(AccessRules(rate=Rate(1, 60), per_source_rate=Rate(1, 1)))
    assert _answers(meter, [(1, 2.0)]) == [RefusalReason.RATE]
    meter.retune(AccessRules(rate=Rate(2, 60)))
    assert _answers(meter, [(1, 3.0)]) == [None]
    assert not meter.idle
    meter.retune(AccessRules())
    assert meter.idle
    assert _answers(meter, [(1, 3.0)]) == [None]
