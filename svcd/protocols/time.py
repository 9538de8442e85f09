"""Time (RFC 868): the seconds since 1900 in four bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from svcd.protocols.base import OneShotDatagramProtocol, OneShotFactory, OneShotProtocol
from svcd.wire.daytime import time_1900

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

__all__ = ["TimeDatagrams", "TimeFactory", "TimeProtocol"]


class TimeProtocol(OneShotProtocol):
    """A protocol that sends the time and closes the connection."""


class TimeFactory(OneShotFactory):
    """A factory of TimeProtocols.

    Args:
        clock: the reactor.
        now: returns the time, in seconds since 1970.
    """

    protocol = TimeProtocol

    def __init__(self, clock: IReactorTime, now: Callable[[], float] = time.time) -> None:
        super().__init__(lambda: time_1900(now()), clock)


class TimeDatagrams(OneShotDatagramProtocol):
    """A datagram protocol that answers each datagram with the time."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__(lambda: time_1900(now()))
