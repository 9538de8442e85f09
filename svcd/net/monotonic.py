"""The time of reactors: monotonic, so that a step of the wall clock moves no timer."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["seconds", "use_monotonic_time"]

_OFFSET = time.time() - time.monotonic()


def seconds() -> float:
    """Seconds since 1970, as if the wall clock had only ticked since this module was imported.

    Twisted's reactors have time.time as their clock, and some programs take IReactorTime.seconds for a date, as
    twisted.web does in its log. After a step of the wall clock such dates are wrong; intervals are right.
    """
    return time.monotonic() + _OFFSET


def use_monotonic_time(reactor: Any) -> None:  # noqa: ANN401 - any reactor of Twisted
    """Let a reactor of Twisted keep its timers by this clock.

    ReactorBase asks self.seconds() when a timed call is made and when calls are due. Calls that exist stay right,
    since both clocks have the same epoch.
    """
    reactor.seconds = seconds
