"""Rate limits: token buckets for a service as a whole and for each source.

A bucket holds `burst` tokens and gets `rate` a second, so that in any span of time no more than burst + rate x span are
taken. Instead of tokens it keeps one number, the time at which it will be full again (GCRA, ITU-T I.371): a source that
is idle long enough needs no entry at all.

The table of sources is bounded, and an attacker can fill it: over UDP with forged senders, over IPv6 with addresses of
a single network. It has two halves. A source that requests a token is written into the young half, whether it gets one
or not; when the young half is full it becomes the old half and the old half is forgotten: the sources with the oldest
requests go first, at no cost for each. So these properties hold under any flood:

- A source without an earlier request, or a forgotten one, has a token at once. Forged senders lock no source out,
  however slow the rate is.
- A source gets no more than burst + rate x span tokens in any span of time while it is remembered. To be forgotten it
  must make no request until MAX_SOURCES / 2 others have made one, and it gains one token by that, not a new burst: the
  latest time of fullness that was ever forgotten is kept, and an unknown source has what is left of a bucket with that
  time, but one token at least. After a flood of slow sources a new source's burst may be that much smaller, for at most
  burst / rate seconds.
- Memory is bounded by MAX_SOURCES entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.access.rules import RefusalReason
from svcd.addresses import V6

if TYPE_CHECKING:
    from svcd.access.rules import AccessRules, Refusal
    from svcd.access.types import PrefixLengths, Rate

__all__ = ["MAX_SOURCES", "NonDecreasingClock", "RateLimiter", "SourceMask", "SourceTokenBuckets", "TokenBucket"]

#: How many sources a service remembers; about 100 bytes each, and nothing for a source that is idle.
MAX_SOURCES = 65_536
#: Idle sources are removed at most this often, in seconds.
_SWEEP_SECONDS = 1.0

_NEVER = float("-inf")


class NonDecreasingClock:
    """A clock that never goes back, derived from a clock that may: a step back counts as no time."""

    __slots__ = ("_last", "_skipped")

    def __init__(self) -> None:
        self._last = _NEVER
        self._skipped = 0.0

    def at(self, now: float) -> float:
        """Return the time of this clock for a time of the other clock, in seconds."""
        if now < self._last:
            self._skipped += self._last - now
        self._last = now
        return now + self._skipped


class TokenBucket:
    """One token bucket. Its times must not decrease.

    Args:
        rate: the rate of new tokens.
        burst: the number of tokens that it holds, at least 1.
    """

    __slots__ = ("_full_at", "_interval", "_slack")

    def __init__(self, rate: Rate, burst: int) -> None:
        self._interval = rate.seconds / rate.count
        self._slack = (burst - 1) * self._interval
        self._full_at = _NEVER

    def ready(self, now: float) -> bool:
        """Return whether there is a token."""
        return self._full_at <= now + self._slack

    def take(self, now: float) -> None:
        """Take a token; ready() must have returned True."""
        self._full_at = max(self._full_at, now) + self._interval


class SourceTokenBuckets:
    """One token bucket for each source, in bounded memory. Its times must not decrease.

    Args:
        rate: the rate of new tokens of a source.
        burst: the number of tokens that a bucket holds, at least 1.
        max_sources: how many sources are remembered at once.
    """

    __slots__ = ("_floor", "_half", "_interval", "_old", "_old_latest", "_slack", "_sweep_at", "_young",
                 "_young_latest")  # fmt: skip

    def __init__(self, rate: Rate, burst: int, max_sources: int = MAX_SOURCES) -> None:
        self._interval = rate.seconds / rate.count
        self._slack = (burst - 1) * self._interval
        self._half = max(1, max_sources // 2)
        # By source: when its bucket is full again. An entry in the young half precedes one in the old half.
        self._young: dict[int, float] = {}
        self._old: dict[int, float] = {}
        self._young_latest = self._old_latest = self._floor = self._sweep_at = _NEVER

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def take(self, source: int, now: float) -> bool:
        """Take a token of a source; returns whether there was one. A source that is not remembered has one."""
        if now >= self._sweep_at:
            self._rotate(now)
        young, latest = self._young, now + self._slack
        full_at = young.get(source)
        if full_at is None:
            full_at = self._old.get(source)
            if full_at is None:
                full_at = min(self._floor, latest)
        admitted = full_at <= latest
        if admitted:
            if full_at < now:
                full_at = now
            full_at += self._interval
        elif source in young:
            return False
        # A refused source is remembered as well: it must not be forgotten while it requests tokens.
        young[source] = full_at
        if full_at > self._young_latest:
            self._young_latest = full_at
        if len(young) >= self._half:
            self._rotate(now)
        return admitted

    def _rotate(self, now: float) -> None:
        """Forget the old half and begin a new young half."""
        if self._floor < self._old_latest:
            self._floor = self._old_latest
        self._old, self._old_latest = self._young, self._young_latest
        self._young, self._young_latest = {}, _NEVER
        # By then all buckets of the old half are full.
        self._sweep_at = max(self._old_latest, now + _SWEEP_SECONDS)


class SourceMask:
    """Maps an address to its source: the leading bits that its owner cannot change at will."""

    __slots__ = ("_mask4", "_mask6")

    def __init__(self, prefixes: PrefixLengths) -> None:
        self._mask4 = (1 << 32) - (1 << 32 - prefixes.v4)
        self._mask6 = (1 << 129) - (1 << 128 - prefixes.v6)

    def of(self, number: int) -> int:
        """Return the source of an address, given as a number; a local user (a negative number) is its own source."""
        if number < 0:
            return number
        return number & (self._mask6 if number >= V6 else self._mask4)


class RateLimiter:
    """The rates of one service: `rate` for all, `per_source_rate` for each source.

    Args:
        rules: the service's.
    """

    __slots__ = ("_bucket", "_clock", "_refusals", "_rules", "_sources")

    def __init__(self, rules: AccessRules) -> None:
        self._clock = NonDecreasingClock()
        self._bucket: TokenBucket | None = None
        self._sources: SourceTokenBuckets | None = None
        self._rules: AccessRules | None = None
        self.retune(rules)

    def retune(self, rules: AccessRules) -> None:
        """Take new rules; a bucket whose own rule is the same stays as full as it is."""
        old, self._rules = self._rules, rules
        self._refusals = {
            RefusalReason.RATE: rules.refusal(RefusalReason.RATE, f"more than rate={rules.rate}"),
            RefusalReason.PER_SOURCE_RATE: rules.refusal(
                RefusalReason.PER_SOURCE_RATE, f"more than per_source_rate={rules.per_source_rate} from this source"
            ),
        }
        rate, burst = rules.rate, rules.rate_burst
        if old is None or (old.rate, old.rate_burst) != (rate, burst):
            self._bucket = TokenBucket(rate, burst or rate.count) if rate else None
        rate = rules.per_source_rate
        new = (rate, burst, rules.per_source_prefix)
        if old is None or (old.per_source_rate, old.rate_burst, old.per_source_prefix) != new:
            self._sources = SourceTokenBuckets(rate, burst or rate.count) if rate else None

    @property
    def idle(self) -> bool:
        """Whether there are no rates at all."""
        return self._bucket is None and self._sources is None

    def take(self, source: int, now: float) -> Refusal | None:
        """Take a token of each bucket, or of none.

        Args:
            source: from SourceMask.of().
            now: seconds of any clock, which may go back.

        Returns:
            None if there were tokens, else the refusal.
        """
        now = self._clock.at(now)
        if self._bucket is not None and not self._bucket.ready(now):
            return self._refusals[RefusalReason.RATE]
        if self._sources is not None and not self._sources.take(source, now):
            return self._refusals[RefusalReason.PER_SOURCE_RATE]
        if self._bucket is not None:
            self._bucket.take(now)
        return None
