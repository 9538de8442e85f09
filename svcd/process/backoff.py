"""Delays before a process that has ended is started again."""

from __future__ import annotations

__all__ = ["Backoff"]

#: The first pause in seconds, doubled by each end, up to the longest.
_FIRST = 0.1
_LONGEST = 30.0
#: A process that has run for so many seconds starts over with the first pause.
_GOOD_LIFE = 10.0


class Backoff:
    """The delays before the restarts of one process."""

    def __init__(self) -> None:
        self._next = _FIRST

    def pause(self, lived: float) -> float:
        """Return the seconds to wait before the restart of a process that has run for so many seconds."""
        pause = _FIRST if lived >= _GOOD_LIFE else self._next
        self._next = min(2 * pause, _LONGEST)
        return pause
