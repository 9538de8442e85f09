"""Daytime (RFC 867): the date and the time as a line of text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from svcd.protocols.base import OneShotDatagramProtocol, OneShotFactory, OneShotProtocol
from svcd.wire.daytime import daytime

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

__all__ = ["DaytimeDatagrams", "DaytimeFactory", "DaytimeProtocol"]


def _answer(now: Callable[[], float], *, utc: bool, iso8601: bool) -> Callable[[], bytes]:
    return lambda: daytime(now(), utc=utc, iso8601=iso8601)


class DaytimeProtocol(OneShotProtocol):
    """A protocol that sends the date and time and closes the connection."""


class DaytimeFactory(OneShotFactory):
    """A factory of DaytimeProtocols.

    Args:
        clock: the reactor.
        utc, iso8601: as for svcd.wire.daytime.daytime.
        now: returns the time, in seconds since 1970.
    """

    protocol = DaytimeProtocol

    def __init__(
        self,
        clock: IReactorTime,
        *,
        utc: bool = False,
        iso8601: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(_answer(now, utc=utc, iso8601=iso8601), clock)


class DaytimeDatagrams(OneShotDatagramProtocol):
    """A datagram protocol that answers each datagram with the date and time."""

    def __init__(self, *, utc: bool = False, iso8601: bool = False, now: Callable[[], float] = time.time) -> None:
        super().__init__(_answer(now, utc=utc, iso8601=iso8601))
