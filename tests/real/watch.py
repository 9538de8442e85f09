"""Repeated requests to services while something happens to the daemon, with the longest response times."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from tests.real.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Watch"]


class Watch(Background):
    """Threads that send requests to services repeatedly and record the longest time of each.

    Args:
        asked: functions that send one request, by name.
        pause: time between two requests, in seconds.

    Attributes:
        worst: longest response time in seconds, by name.
    """

    def __init__(self, asked: dict[str, Callable[[], object]], pause: float = 0.02) -> None:
        super().__init__(pause)
        self.worst = dict.fromkeys(asked, 0.0)
        for name, ask in asked.items():
            self.repeat(partial(self._time, name, ask), name)

    def _time(self, name: str, ask: Callable[[], object]) -> None:
        began = time.monotonic()
        ask()
        self.worst[name] = max(self.worst[name], time.monotonic() - began)
