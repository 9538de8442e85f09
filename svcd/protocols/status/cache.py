"""Answers that many clients may ask for often, and that take a while to make."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OLDEST", "WORTH", "RenderCache"]

#: An answer is given again for so many times as long as it took to make: however many clients ask, making it takes
#: a percent of the time.
WORTH = 100
#: But not when it is older than this, in seconds, whatever it cost.
OLDEST = 1.0
#: zlib's level. A higher one takes twice the time for metrics a fifth smaller.
_LEVEL = 1


class RenderCache:
    """Makes an answer anew when the last one is too old, and compresses each once.

    So an answer is at most OLDEST seconds old, and with few services a few milliseconds: what happened before is in
    it. One that is asked for less often than that is always new.

    Args:
        make: makes it.
        clock: seconds, monotonic.
    """

    def __init__(self, make: Callable[[], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._plain = self._packed = b""
        self._made_at = self._cost = 0.0

    def answer(self, *, packed: bool) -> bytes:
        """The answer, compressed by gzip or not; the same object as long as it is the same answer."""
        started = self._clock()
        if not self._plain or started - self._made_at >= min(WORTH * self._cost, OLDEST):
            self._packed = b""
            # It is as old as the moment before it was made.
            self._made_at = started
            self._plain = self._make()
            self._cost = self._clock() - started
        if not packed:
            return self._plain
        if not self._packed:
            started = self._clock()
            self._packed = gzip.compress(self._plain, _LEVEL, mtime=0)
            self._cost += self._clock() - started
        return self._packed
