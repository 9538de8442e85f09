"""Monotonic clock for reactors, so that a step of the wall clock does not shift timers."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["seconds", "use_monotonic_time"]

_OFFSET = time.time() - time.monotonic()


def seconds() -> float:
    """Return the seconds since 1970, without the steps of the wall clock since this module was imported.

    The clock of Twisted's reactors is time.time, and some programs use IReactorTime.seconds as a date, such as
    twisted.web in its log. After a step of the wall clock such dates are wrong; intervals are correct.
    """
    return time.monotonic() + _OFFSET


def use_monotonic_time(reactor: Any) -> None:  # noqa: ANN401 - any reactor of Twisted
    """Make a Twisted reactor use this clock for its timers.

    ReactorBase calls self.seconds() to schedule a call and to find the calls that are due. Calls that are already
    scheduled stay correct, since both clocks have the same epoch.
    """
    reactor.seconds = seconds
