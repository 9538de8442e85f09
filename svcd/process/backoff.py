"""Delays before an exited process is started again."""

from __future__ import annotations

__all__ = ["Backoff"]

#: The first and the longest pause, in seconds; each exit doubles the pause.
_FIRST = 0.1
_LONGEST = 30.0
#: Run time in seconds after which the next pause is the first one again.
_GOOD_LIFE = 10.0


class Backoff:
    """The delays before the restarts of one process."""

    def __init__(self) -> None:
        self._next = _FIRST

    def pause(self, run_time: float) -> float:
        """Return the pause in seconds before the restart of a process that ran for `run_time` seconds."""
        pause = _FIRST if run_time >= _GOOD_LIFE else self._next
        self._next = min(2 * pause, _LONGEST)
        return pause
