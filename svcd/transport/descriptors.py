"""The budget of descriptors: accepting pauses before they run out, and goes on when some are free again.

At the limit accept(2) fails while the client stays in the queue, so a server that only reports the error spins. Here
the listeners rest instead: the kernel keeps the clients in its queue, and nobody is turned away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.events import PAUSE, RESUME, tell
from svcd.policy.answers import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

__all__ = ["RESERVE", "RETRY_SECONDS", "SHORT", "DescriptorBudget"]

#: Descriptors kept for what is not a connection: log files, files served, name lookups, control.
RESERVE = 64
#: How long listeners rest before they look again, in seconds. It bounds what resting costs when connections
#: come and go at the limit: twenty rounds a second, however many services there are.
RETRY_SECONDS = 0.05
#: For those whom the listeners had accepted already when they began to rest, if they are very many.
SHORT = Refusal(Reason.DESCRIPTORS, "the process has no more descriptors to give")


class DescriptorBudget:
    """Counts open connections against what the process may have.

    What it counts are descriptors: a connection that was handed to a process has none here any more. How many
    connections there may be in all, wherever their descriptors are, is svcd.policy.limits.Hall's to count.

    Args:
        limit: how many connections may be open at once.
        clock: the reactor.

    Attributes:
        most: from so many on who was accepted is refused (SHORT), so that at least half of the reserve is left.
        open: how many there are.
        exhausted: whether the listeners rest.
    """

    _log = Logger()

    def __init__(self, limit: int, clock: IReactorTime) -> None:
        self.limit = limit
        self.most = limit + RESERVE // 2
        self.open = 0
        self.exhausted = False
        self._clock = clock
        self._listeners: dict[Callable[[], None], Callable[[], None]] = {}
        self._told = False

    def listen(self, pause: Callable[[], None], resume: Callable[[], None]) -> Callable[[], None]:
        """Take a listener in, by what makes it rest and go on; returns what takes it out again."""
        self._listeners[pause] = resume
        if self.exhausted:
            pause()
        return lambda: self._listeners.pop(pause, None) and None

    def acquire(self) -> None:
        """A connection was accepted."""
        self.open += 1
        if self.open >= self.limit:
            self.rest()

    def release(self) -> None:
        """A connection is gone."""
        self.open -= 1

    def rest(self) -> None:
        """Let all listeners rest: the budget is used up, or the system has just said so (EMFILE)."""
        if self.exhausted:
            return
        self.exhausted = True
        if not self._told:
            self._told = True
            tell(self._log, PAUSE, reason="descriptors", connections=self.open, limit=self.limit)
        for pause in list(self._listeners):
            pause()
        self._clock.callLater(RETRY_SECONDS, self._look)

    def _look(self) -> None:
        if self.open >= self.limit:
            self._clock.callLater(RETRY_SECONDS, self._look)
            return
        self.exhausted = False
        for resume in list(self._listeners.values()):
            resume()
        self._clock.callLater(RETRY_SECONDS, self._tell_relief)

    def _tell_relief(self) -> None:
        """Say that accepting goes on, once it really did: not in each of many short rounds at the limit."""
        if self._told and not self.exhausted:
            self._told = False
            tell(self._log, RESUME, reason="descriptors", connections=self.open, limit=self.limit)
