"""How long to wait before something that has ended is started again."""

from __future__ import annotations

__all__ = ["Backoff"]

#: The first pause, in seconds; doubled by each end, up to the longest.
_FIRST = 0.1
_LONGEST = 30.0
#: What lived so long, in seconds, was good: the next end is the first again.
_GOOD_LIFE = 10.0


class Backoff:
    """The pauses of one thing that is to run all the time."""

    def __init__(self) -> None:
        self._next = _FIRST

    def pause(self, lived: float) -> float:
        """It has ended after so many seconds: how many to wait."""
        pause = _FIRST if lived >= _GOOD_LIFE else self._next
        self._next = min(2 * pause, _LONGEST)
        return pause
