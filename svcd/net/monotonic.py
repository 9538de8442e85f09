"""The time of reactors: monotonic, so that a step of the wall clock moves no timer."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["seconds", "use_monotonic_time"]

_OFFSET = time.time() - time.monotonic()


def seconds() -> float:
    """Return the seconds since 1970, without the steps of the wall clock since this module was imported.

    Twisted's reactors have time.time as their clock, and some programs take IReactorTime.seconds for a date, as
    twisted.web does in its log. After a step of the wall clock such dates are wrong; intervals are right.
    """
    return time.monotonic() + _OFFSET


def use_monotonic_time(reactor: Any) -> None:  # noqa: ANN401 - any reactor of Twisted
    """Make a Twisted reactor use this clock for its timers.

    ReactorBase calls self.seconds() when a timed call is made and to see which are due. Calls that are scheduled
    already stay right, since both clocks have the same epoch.
    """
    reactor.seconds = seconds
