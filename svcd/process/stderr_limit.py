"""How much of what handlers write goes to the log: so many lines and so many bytes a second. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.process.stderr import LONGEST_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OutputLimit"]


class OutputLimit:
    """Two token buckets, one of lines and one of bytes; what does not fit into both is to be dropped.

    Args:
        lines: a second; the bucket holds as many, and `slack_lines` more.
        size: bytes a second; the bucket holds as many, or one block if that is more, and `slack_bytes` more.
        clock: seconds, monotonic.
        slack_lines: for lines that were delayed on their way.
        slack_bytes: for bytes that were.
    """

    def __init__(
        self, lines: int, size: int, clock: Callable[[], float], slack_lines: int = 0, slack_bytes: int = 0
    ) -> None:
        self._rates = lines, size
        self._most = float(lines + slack_lines), float(max(size, LONGEST_BLOCK) + slack_bytes)
        self._clock = clock
        self._lines, self._bytes = self._most
        self._last = clock()

    def take(self, size: int) -> bool:
        """Count a line of so many bytes; returns whether there is room for it. A line without room counts nothing."""
        now = self._clock()
        passed, self._last = now - self._last, now
        self._lines = min(self._lines + passed * self._rates[0], self._most[0])
        self._bytes = min(self._bytes + passed * self._rates[1], self._most[1])
        if self._lines < 1 or self._bytes < size:
            return False
        self._lines -= 1
        self._bytes -= size
        return True
