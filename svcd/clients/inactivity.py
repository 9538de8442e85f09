"""Concurrent coroutines until the first one ends, and a timeout for inactivity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredList, FirstError
from twisted.internet.task import deferLater

from svcd.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from twisted.internet.interfaces import IReactorTime

__all__ = ["InactivityTimeout", "first_of"]


async def first_of(*coroutines: Coroutine[Deferred[Any], Any, None]) -> None:
    """Run coroutines concurrently until the first one ends, and cancel the others.

    Raises:
        Exception: the exception of the first coroutine that ends.
    """
    running = [Deferred.fromCoroutine(each) for each in coroutines]
    first = DeferredList(running, fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True)
    try:
        await first
    except FirstError as error:
        error.subFailure.raiseException()
    finally:
        for each in running:
            each.cancel()


class InactivityTimeout:
    """Timeout for a server that is expected to send or read data and does neither.

    Args:
        clock: the reactor.
        seconds: the time limit.
        what: the beginning of the error text.
    """

    def __init__(self, clock: IReactorTime, seconds: float, what: str) -> None:
        self._clock = clock
        self._seconds = seconds
        self._what = what
        self._waiting = False
        self._since = clock.seconds()

    @property
    def waiting(self) -> bool:
        """Whether the server is expected to send or read data; setting it restarts the time."""
        return self._waiting

    @waiting.setter
    def waiting(self, value: bool) -> None:
        self._waiting = value
        self.renew()

    def renew(self) -> None:
        """Restart the time: the server was active, or the reader of the output has blocked this client."""
        self._since = self._clock.seconds()

    async def ends(self) -> None:
        """Wait until the time limit has passed.

        Raises:
            UnavailableError: always, at the time limit.
        """
        while True:
            left = self._since + self._seconds - self._clock.seconds() if self._waiting else self._seconds
            if left <= 0:
                raise UnavailableError(f"{self._what} within {self._seconds:g} s")
            await deferLater(self._clock, left, lambda: None)
