"""The budget of descriptors: who may take how many, and what happens when they run out.

At the limit accept(2) fails while the client stays in the queue, so a server that only reports the error spins. Here
the listeners rest instead: the kernel keeps the clients in its queue, and nobody is turned away.

Each service has a share. A part of the budget, half at most, is guaranteed to the services in equal parts; the rest is
common to all. A service accepts as long as its guaranteed part or the common one has room for all the descriptors that
a connection of it takes. So no service can keep another one from accepting, and a connection that waits for another
service of the same daemon (redirect=) waits for one that can accept.

A service may name connections that can be closed: idle and slow ones of HTTP. They give way when there is no room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from twisted.logger import Logger

from svcd.access.rules import Refusal, RefusalReason
from svcd.log.events import PAUSE, RESUME, log_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["RELIEF_SECONDS", "RESERVE", "RETRY_SECONDS", "SHORT", "SLACK", "DescriptorBudget", "Share"]

#: Descriptors kept for what is no connection: log files, name lookups, control, reload and upgrade.
RESERVE = 64
#: Of these, how many the connections may take that were accepted before the listeners could rest.
SLACK = 16
#: How long listeners rest before they look again, in seconds. It bounds what resting costs when connections
#: come and go at the limit: twenty rounds a second, however many services there are.
RETRY_SECONDS = 0.05
#: After so many seconds in which no listener rested the log says that accepting goes on: clients that come and go at
#: the limit are one pause.
RELIEF_SECONDS = 1.0
#: The most that is guaranteed to one service, in descriptors.
_MOST_GUARANTEED = 128
#: What one round of accepting may take of the common part, since other services may do the same meanwhile.
_ROUND_SHARE = 4
#: How many connections give way at once.
_EVICTIONS = 4
#: For those whom the listeners had accepted already when they began to rest, if they are very many.
SHORT = Refusal(RefusalReason.DESCRIPTORS, "the process has no more descriptors to give")


class Share:
    """The descriptors of one service.

    Args:
        budget: what it is a share of.
        name: of the service.

    Attributes:
        name: as given.
        open: how many descriptors the connections of the service have.
        guaranteed: how many they can have, whatever other services do.
        cost: how many descriptors a new connection takes.
        resting: whether the listeners of the service rest.
    """

    __slots__ = ("__weakref__", "_budget", "_evict", "_leaving", "_listeners", "cost", "guaranteed", "name", "open",
                 "resting")  # fmt: skip

    def __init__(self, budget: DescriptorBudget, name: str) -> None:
        self._budget = budget
        self._listeners: dict[Callable[[], None], Callable[[], None]] = {}
        self._evict: Callable[[], bool] | None = None
        # Connections that were told to give way, and are not gone yet.
        self._leaving = 0
        self.name = name
        self.open = self.guaranteed = 0
        self.cost = 1
        self.resting = False

    def listen(self, pause: Callable[[], None], resume: Callable[[], None]) -> Callable[[], None]:
        """Add a listener, by what pauses and resumes it; returns what takes it out again."""
        self._listeners[pause] = resume
        self._budget.divide_soon()
        if self.resting:
            pause()

        def leave() -> None:
            if self._listeners.pop(pause, None) is not None:
                self._budget.divide_soon()

        return leave

    @property
    def limit(self) -> int:
        """How many descriptors the connections of all services may have."""
        return self._budget.limit

    @property
    def evicts(self) -> bool:
        """Whether the service has connections that may be closed for others."""
        return self._evict is not None

    @property
    def listens(self) -> bool:
        """Whether the service has a listener."""
        return bool(self._listeners)

    def evict_by(self, evict: Callable[[], bool] | None) -> None:
        """Set what closes a connection of the service that can be closed, and tells whether there was one."""
        self._evict = evict

    def acquire(self) -> None:
        """Count a descriptor that was opened."""
        budget = self._budget
        self.open += 1
        budget.open += 1
        if self.open > self.guaranteed:
            budget.common_open += 1

    def release(self) -> None:
        """Count a descriptor that was closed."""
        budget = self._budget
        if self.open > self.guaranteed:
            budget.common_open -= 1
        self.open -= 1
        budget.open -= 1
        if self._leaving:
            self._leaving -= 1
            budget.look_soon()

    def try_acquire(self) -> bool:
        """Count one more descriptor for a connection that is open, if there is one; returns whether there is.

        Where there is none, a connection gives way; the descriptor is lent until it has.
        """
        budget = self._budget
        free = self.open < self.guaranteed or budget.common_open < budget.common
        if not free and (self.crowded or not self.evict_another()):
            return False
        self.acquire()
        return True

    @property
    def crowded(self) -> bool:
        """Whether the service has more than it may have, and the slack is used up."""
        budget = self._budget
        return self.open >= self.guaranteed and budget.common_open >= budget.common + SLACK

    @property
    def available(self) -> int:
        """How many connections of the service there is room for in this round."""
        budget = self._budget
        common = budget.common - budget.common_open
        part = max(common // _ROUND_SHARE, min(common, self.cost), 0)
        return (max(self.guaranteed - self.open, 0) + part) // self.cost

    def room(self) -> int:
        """Tell how many connections may be accepted now; without room the listeners rest until there is some."""
        if self.resting:
            return 0
        found = self.available
        if not found:
            self.rest()
        return found

    def rest(self) -> None:
        """Let the listeners of the service rest: its share is used up, or the system is short of descriptors."""
        if self.resting:
            return
        self.resting = True
        for pause in list(self._listeners):
            pause()
        self._budget.rests(self)

    def resume(self) -> None:
        """Let them go on."""
        self.resting = False
        for resume in list(self._listeners.values()):
            resume()

    def evict(self, most: int) -> bool:
        """Close connections that can be closed, until so many are about to leave; returns whether any is."""
        while self._leaving < most and self.evict_another():
            pass
        return self._leaving > 0

    def evict_another(self) -> bool:
        """Close a connection of the service that can be closed; returns whether there was one."""
        if self._evict is None:
            return False
        # Before it: the connection may be gone at once.
        self._leaving += 1
        if self._evict():
            return True
        self._leaving -= 1
        return False

    def forget_leaving(self) -> None:
        """Await no longer that connections leave which were told to."""
        self._leaving = 0


class DescriptorBudget:
    """Counts the descriptors of connections against what the process may have.

    A connection that was handed to a process has none here any more. How many connections there may be in all,
    wherever their descriptors are, is svcd.access.admission.GlobalLimit's to count.

    Args:
        limit: how many descriptors connections may have.
        clock: the reactor.

    Attributes:
        limit: as given, without those that are held.
        open: how many connections have.
        common: how many of the limit are guaranteed to no service.
        common_open: how many of these are taken.
    """

    _log = Logger()

    def __init__(self, limit: int, clock: IReactorTime) -> None:
        self.limit = self.common = limit
        self.open = self.common_open = 0
        self._clock = clock
        # Those that somebody has: a service that is paused keeps its share.
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()
        # What belongs to no service: connections that are refused, or whose service is not known yet.
        self._own = Share(self, "")
        self._resting: dict[Share, None] = {}
        self._told = self._divides = self._looks = self._ticks = False
        self._relief: IDelayedCall | None = None

    def share(self, name: str) -> Share:
        """The share of a service."""
        found = self._shares.get(name)
        if found is None:
            found = self._shares[name] = Share(self, name)
        return found

    def acquire(self) -> None:
        """Count a descriptor of a connection that belongs to no service."""
        self._own.acquire()

    def release(self) -> None:
        """Count it as closed."""
        self._own.release()

    def try_acquire(self) -> bool:
        """Count one, if the common part has one left; returns whether it has."""
        return self._own.try_acquire()

    def hold(self, count: int) -> None:
        """Keep so many descriptors for what is no connection, as listening sockets; less than none gives them back."""
        self.limit -= count
        self.common -= count
        self.divide_soon()

    @property
    def full(self) -> bool:
        """Whether the common part is used up."""
        return self.common_open >= self.common

    @property
    def exhausted(self) -> bool:
        """Whether the listeners of any service rest."""
        return bool(self._resting)

    def pause_all(self) -> None:
        """Let all listeners rest: the system has just said that it is short of descriptors (EMFILE)."""
        for share in list(self._shares.values()):
            share.rest()

    # What shares call.

    def divide_soon(self) -> None:
        """Divide the budget anew, once for all services that come and go together."""
        if not self._divides:
            self._divides = True
            self._clock.callLater(0, self._divide)

    def _divide(self) -> None:
        self._divides = False
        services = sum(share.listens for share in self._shares.values())
        part = max(0, min(_MOST_GUARANTEED, self.limit // 2 // services)) if services else 0
        self.common_open = self._own.open
        for share in self._shares.values():
            share.guaranteed = part if share.listens else 0
            self.common_open += max(share.open - share.guaranteed, 0)
        self.common = self.limit - part * services

    def rests(self, share: Share) -> None:
        """The listeners of a service rest now."""
        self._resting[share] = None
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None
        if not self._told:
            self._told = True
            values = {"connections": self.open, "limit": self.limit, "service": share.name}
            log_event(self._log, PAUSE, reason="descriptors", **values)
        self._give_way(share)
        if not self._ticks:
            self._ticks = True
            self._clock.callLater(RETRY_SECONDS, self._look)

    def _give_way(self, share: Share) -> None:
        """Let connections give way to those of a service that has no room: its own, else of whoever has more."""
        if share.evict(_EVICTIONS):
            return
        others = [each for each in self._shares.values() if each is not share and each.open > each.guaranteed]
        for each in sorted(others, key=lambda other: other.guaranteed - other.open):
            if each.evict(_EVICTIONS):
                return

    def look_soon(self) -> None:
        """Look in the reactor's next turn: a connection has given way."""
        if self._resting and not self._looks:
            self._looks = True
            self._clock.callLater(0, self._look_now)

    def _look_now(self) -> None:
        self._looks = False
        self._resume()

    def _look(self) -> None:
        """The listeners have rested for a while."""
        for share in self._shares.values():
            share.forget_leaving()
        self._resume()
        for share in self._resting:
            self._give_way(share)
        self._ticks = bool(self._resting)
        if self._ticks:
            self._clock.callLater(RETRY_SECONDS, self._look)
        elif self._told and self._relief is None:
            self._relief = self._clock.callLater(RELIEF_SECONDS, self._tell_relief)

    def _resume(self) -> None:
        for share in [each for each in self._resting if each.available]:
            del self._resting[share]
            share.resume()

    def _tell_relief(self) -> None:
        """Say that accepting goes on, once it really did: not in each of many short rounds at the limit."""
        self._relief = None
        self._told = False
        log_event(self._log, RESUME, reason="descriptors", connections=self.open, limit=self.limit)
