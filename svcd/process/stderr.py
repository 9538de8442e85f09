"""Output of handlers for the log: splitting into lines, and limiting. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = ["BLOCK", "MAX_BLOCK", "MAX_LINE", "OutputLimit", "StderrSplitter"]

#: A longer line, in bytes, is split.
MAX_LINE = 4096
#: A longer block, in bytes, is truncated.
MAX_BLOCK = 32_768
#: Encloses a block that is logged as a whole, such as a traceback.
BLOCK = b"\0"


class StderrSplitter:
    """Splits the output of one handler. It keeps at most MAX_BLOCK bytes."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add output; return the lines and blocks that are complete now, without line ends and empty lines."""
        complete = []
        rest = self._rest + data
        size, at = len(rest), 0
        while at < size:
            if rest.startswith(BLOCK, at):
                end = rest.find(BLOCK, at + 1)
                if end < 0 and size - at <= MAX_BLOCK:
                    break
                end = end if 0 < end < at + MAX_BLOCK else at + MAX_BLOCK
                complete.append(rest[at + 1 : end])
                at = end + 1
                continue
            block = rest.find(BLOCK, at, at + MAX_LINE + 1)
            limit = at + MAX_LINE if block < 0 else block
            end = rest.find(b"\n", at, limit + 1 if block < 0 else limit)
            if end < 0 and block < 0 and size - at <= MAX_LINE:
                break
            whole = rest[at : limit if end < 0 else end]
            complete.append(whole.rstrip(b"\r"))
            at += len(whole) + (end >= 0)
        self._rest = rest[at:]
        return [each for each in complete if each.strip()]

    def end(self) -> list[bytes]:
        """Return the remaining lines at the end of the output."""
        rest, self._rest = self._rest.strip(BLOCK), b""
        return [rest] if rest.strip() else []


class OutputLimit:
    """Limit on handler output: two token buckets, for lines and bytes. A line that does not fit into both is dropped.

    Args:
        lines: lines per second; also the capacity of the bucket, without `slack_lines`.
        size: bytes per second; the capacity is this or one block, whichever is more, and `slack_bytes`.
        clock: returns seconds, monotonic.
        slack_lines: additional lines, for output that was delayed on its way.
        slack_bytes: additional bytes, for output that was delayed on its way.
    """

    def __init__(
        self, lines: int, size: int, clock: Callable[[], float], slack_lines: int = 0, slack_bytes: int = 0
    ) -> None:
        self._rates = lines, size
        self._capacity = float(lines + slack_lines), float(max(size, MAX_BLOCK) + slack_bytes)
        self._clock = clock
        self._lines, self._bytes = self._capacity
        self._last = clock()

    def take(self, size: int) -> bool:
        """Count a line of `size` bytes; return whether there is room for it. A line without room is not counted."""
        now = self._clock()
        passed, self._last = now - self._last, now
        self._lines = min(self._lines + passed * self._rates[0], self._capacity[0])
        self._bytes = min(self._bytes + passed * self._rates[1], self._capacity[1])
        if self._lines < 1 or self._bytes < size:
            return False
        self._lines -= 1
        self._bytes -= size
        return True
