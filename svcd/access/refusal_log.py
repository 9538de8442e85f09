"""Refusals aggregated to at most one log line per second and reason: a flood of clients must not flood the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcd.access.rules import Refusal, RefusalReason

__all__ = ["INTERVAL_SECONDS", "RefusalAggregator", "RefusalLine"]

#: The time between two lines of the same reason.
INTERVAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RefusalLine:
    """Contents of a `refuse` line.

    Attributes:
        refusal: the first of the refusals that it summarizes.
        peer: the client of that refusal.
        count: the number of refusals, at least 1.
    """

    refusal: Refusal
    peer: str
    count: int


class _Pending:
    """Refusals of one reason since the last line."""

    __slots__ = ("count", "logged_at", "peer", "refusal")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.count = 0
        self.refusal: Refusal
        self.peer = ""


class RefusalAggregator:
    """The refusals of one service. The first is logged at once; those of the next second together, when it is over.

    Args:
        counts: where refusals are counted, by reason.
    """

    __slots__ = ("_pending", "counts")

    def __init__(self, counts: dict[str, int] | None = None) -> None:
        self.counts: dict[str, int] = {} if counts is None else counts
        self._pending: dict[RefusalReason, _Pending] = {}

    def add(self, refusal: Refusal, peer: str, now: float) -> RefusalLine | None:
        """Count a refusal.

        Returns:
            The line to write now, or None: then pending() will return it within a second.
        """
        reason = refusal.reason
        self.counts[reason] = self.counts.get(reason, 0) + 1
        held = self._pending.get(reason)
        if held is None:
            self._pending[reason] = _Pending(now)
            return RefusalLine(refusal, peer, 1)
        if not held.count:
            held.refusal, held.peer = refusal, peer
        held.count += 1
        return self._line(held, now)

    def pending(self, now: float) -> list[RefusalLine]:
        """Return the lines whose second is over; with an infinite time, all lines that wait."""
        found = [self._line(held, now) for held in self._pending.values()]
        return [line for line in found if line is not None]

    def due(self, now: float) -> float | None:
        """Return in how many seconds pending() will have a line, at least 0; None while no line waits."""
        waiting = [held.logged_at + INTERVAL_SECONDS - now for held in self._pending.values() if held.count]
        return min(INTERVAL_SECONDS, max(0.0, min(waiting))) if waiting else None

    def _line(self, held: _Pending, now: float) -> RefusalLine | None:
        # A clock that was set back must not hold a line for longer.
        if not held.count or 0 <= now - held.logged_at < INTERVAL_SECONDS:
            return None
        line = RefusalLine(held.refusal, held.peer, held.count)
        held.logged_at, held.count = now, 0
        return line
