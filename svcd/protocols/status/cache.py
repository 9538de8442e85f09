"""A cache for responses that many clients request often, and that take time to render."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LIFETIME_FACTOR", "MAX_AGE", "RenderCache"]

#: The lifetime of a response, as a multiple of the time that it took to render: so rendering takes at most a percent
#: of the processor time, however many clients there are.
LIFETIME_FACTOR = 100
#: The longest lifetime of a response, in seconds.
MAX_AGE = 1.0
#: The level of zlib. A higher level takes twice the time for metrics that are a fifth smaller.
_LEVEL = 1


class RenderCache:
    """A cached response: rendered again when it is too old, and compressed at most once.

    A response is at most MAX_AGE seconds old, and with few services a few milliseconds. With less frequent requests
    every response is new.

    Args:
        make: renders the response.
        clock: returns a monotonic time, in seconds.
    """

    def __init__(self, make: Callable[[], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._plain = self._compressed = b""
        self._made_at = self._cost = 0.0

    def answer(self, *, compressed: bool) -> bytes:
        """Return the response, compressed by gzip or not. It is the same object until it is rendered again."""
        started = self._clock()
        if not self._plain or started - self._made_at >= min(LIFETIME_FACTOR * self._cost, MAX_AGE):
            self._compressed = b""
            # The age counts from the start of rendering.
            self._made_at = started
            self._plain = self._make()
            self._cost = self._clock() - started
        if not compressed:
            return self._plain
        if not self._compressed:
            started = self._clock()
            self._compressed = gzip.compress(self._plain, _LEVEL, mtime=0)
            self._cost += self._clock() - started
        return self._compressed
