"""How fast: token buckets."""

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


def _never_too_many(times: Sequence[float], rate: Rate, burst: int) -> None:
    """In no span of time more than burst + rate x span."""
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            allowed = burst + rate.count / rate.seconds * (times[last] - start)
            assert last - first + 1 <= allowed + 1e-6


@given(_RATES, st.integers(1, 8), _STEPS)
def test_a_bucket_admits_no_more_than_burst_and_rate_times_time(rate: Rate, burst: int, steps: list[int]) -> None:
    """Between any two moments, and no less: each refusal was necessary."""
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
                _never_too_many([*taken, now - 1e-5], rate, burst)
    _never_too_many(taken, rate, burst)


class _Remembered(SourceTokenBuckets):
    """Records of each source whether it was remembered when it asked."""

    def remembers(self, source: int) -> bool:
        return source in self._young or source in self._old


@given(
    _RATES, st.integers(1, 5), st.integers(2, 8),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=150),
)  # fmt: skip
def test_a_source_gains_one_token_by_being_pushed_out(
    rate: Rate, burst: int, most: int, visits: list[tuple[int, int]]
) -> None:
    """With more sources than are remembered, in bounded memory: burst + rate x time, and one when it is unknown."""
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
        _never_too_many(times, rate, burst)


@given(st.integers(1, 3), st.sampled_from([60, 3600]), st.integers(1, 4), st.integers(2, 50), st.integers(0, 400))
def test_forged_sources_lock_out_none_that_was_never_seen(
    count: int, seconds: int, burst: int, most: int, forged: int
) -> None:
    """However slow the rate is, however many there are, and however empty their buckets: it has its first token."""
    buckets = SourceTokenBuckets(Rate(count, seconds), burst, most)
    for source in range(forged):
        for _ in range(burst + 1):
            buckets.take(source, source * TICK)
    assert buckets.take(-1, forged * TICK)
    assert len(buckets) <= most


def test_a_source_that_asks_all_the_time_is_not_forgotten() -> None:
    """With fewer than half a table of other sources between two questions, it waits for its next token."""
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
def test_sources_that_are_all_remembered_do_not_feel_each_other(
    rate: Rate, burst: int, visits: list[tuple[int, int]]
) -> None:
    """Each is treated as if it had a bucket of its own."""
    buckets = SourceTokenBuckets(rate, burst)
    own = {source: TokenBucket(rate, burst) for source, _ in visits}
    now = 0.0
    for source, step in visits:
        now += step * TICK
        ready = own[source].ready(now)
        assert buckets.take(source, now) is ready
        if ready:
            own[source].take(now)


def test_a_source_that_was_pushed_out_finds_one_token_and_no_full_bucket() -> None:
    """A new source after a flood has one token as well, and the rest as soon as the fullest forgotten bucket has."""
    buckets = SourceTokenBuckets(Rate(1, 1), 2, max_sources=4)
    assert [buckets.take(1, 0.0) for _ in range(3)] == [True, True, False]
    for source in range(2, 10):
        buckets.take(source, 0.0)
    assert [buckets.take(1, 0.0) for _ in range(2)] == [True, False]
    assert [buckets.take(100, 0.0) for _ in range(2)] == [True, False]
    assert [buckets.take(101, 3.0) for _ in range(3)] == [True, True, False]


def test_a_flood_is_forgotten_when_it_is_over() -> None:
    """Sources that are idle take no memory for long."""
    buckets = SourceTokenBuckets(Rate(10, 1), 1)
    for source in range(20_000):
        buckets.take(source, 0.0)
    assert len(buckets) == 20_000
    for second in range(1, 5):
        buckets.take(0, float(second))
    assert len(buckets) <= 2


@given(st.lists(st.integers(-10_000, 10_000), max_size=50))
def test_a_clock_that_goes_back_only_stands_still(steps: list[int]) -> None:
    """Time never goes back, and goes on by every step forward."""
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
    """A /24 or a /64 counts as one, and no IPv6 source is an IPv4 one."""
    sources = SourceMask(PrefixLengths(24, 64))
    assert (sources.of(address_number(one)) == sources.of(address_number(other))) is same


def _answers(meter: RateLimiter, visits: Sequence[tuple[int, float]]) -> list[RefusalReason | None]:
    found = [meter.take(source, now) for source, now in visits]
    return [None if refusal is None else refusal.reason for refusal in found]


def test_who_is_refused_by_one_rate_takes_no_token_of_the_other() -> None:
    """A source that is too fast leaves the service's tokens to others, and the other way round."""
    meter = RateLimiter(AccessRules(rate=Rate(3, 1), per_source_rate=Rate(1, 1)))
    here, rate = RefusalReason.PER_SOURCE_RATE, RefusalReason.RATE
    assert _answers(meter, [(1, 0.0), (1, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]) == [None, here, here, None, None]
    assert _answers(meter, [(4, 0.0), (4, 0.34)]) == [rate, None]


def test_the_burst_is_the_rates_own_count_or_what_is_said() -> None:
    """10/m lets ten come at once, with rate_burst=2 two."""
    assert _answers(RateLimiter(AccessRules(rate=Rate(10, 60))), [(1, 0.0)] * 11) == [None] * 10 + [RefusalReason.RATE]
    assert _answers(RateLimiter(AccessRules(rate=Rate(10, 60), rate_burst=2)), [(1, 0.0)] * 3) == [None] * 2 + [
        RefusalReason.RATE
    ]


def test_a_clock_set_back_locks_nobody_out() -> None:
    """Tokens come again from the first second on."""
    meter = RateLimiter(AccessRules(per_source_rate=Rate(1, 1)))
    here = RefusalReason.PER_SOURCE_RATE
    assert _answers(meter, [(1, 1e6), (1, 1e6), (1, 0.0), (1, 1.0), (1, 1.5)]) == [None, here, here, None, here]


def test_new_rules_leave_a_bucket_alone_whose_own_is_the_same() -> None:
    """A reload is no way to get a full bucket, unless the rate itself is changed."""
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
