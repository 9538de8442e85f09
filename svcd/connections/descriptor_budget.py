"""The budget of file descriptors: the share of each service, and pauses and evictions at the limit.

At the limit accept(2) fails while the client stays in the queue, so a server that only reports the error spins. Here
the listeners are paused instead: the kernel keeps the clients in its queue, and no client is refused.

Each service has a share. A part of the budget, half at most, is guaranteed to the services in equal parts; the rest is
common to all. A service accepts as long as its guaranteed part or the common part has room for all descriptors that a
connection of it takes. So no service can prevent another one from accepting, and a service that connects to another
service of the same daemon (redirect=) connects to one that can accept.

A service may have connections that can be evicted: idle and slow HTTP connections. They are closed to make room.
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

__all__ = ["DESCRIPTORS_EXHAUSTED", "RELIEF_SECONDS", "RESERVE", "RETRY_SECONDS", "SLACK", "DescriptorBudget", "Share"]

#: Descriptors reserved for uses other than connections: log files, name lookups, control, reload and upgrade.
RESERVE = 64
#: Number of these that may be used by connections accepted before the listeners could be paused.
SLACK = 16
#: Time for which listeners are paused, in seconds. It limits the cost of pauses when connections start and end at the
#: limit: twenty rounds a second, for any number of services.
RETRY_SECONDS = 0.05
#: Time without a paused listener after which the resume event is logged, in seconds: many short pauses at the limit are
#: logged as one.
RELIEF_SECONDS = 1.0
#: The largest guaranteed part of one service, in descriptors.
_MAX_GUARANTEED = 128
#: The divisor of the common part for one round of accepting, since other services may accept in the same round.
_ROUND_SHARE = 4
#: Number of connections that are evicted at once.
_EVICTIONS = 4
#: For connections accepted before their listener was paused, if they are more than SLACK.
DESCRIPTORS_EXHAUSTED = Refusal(RefusalReason.DESCRIPTORS, "the process has no free descriptors")


class Share:
    """Share of one service in the descriptors.

    Args:
        budget: the whole budget.
        name: name of the service.

    Attributes:
        name: as given.
        open: descriptors in use by connections of the service.
        guaranteed: descriptors that the service can always use.
        cost: descriptors that a new connection takes.
        paused: whether the listeners of the service are paused.
    """

    __slots__ = (
        "__weakref__",
        "_budget",
        "_closing",
        "_evict",
        "_listeners",
        "cost",
        "guaranteed",
        "name",
        "open",
        "paused",
    )  # fmt: skip

    def __init__(self, budget: DescriptorBudget, name: str) -> None:
        self._budget = budget
        self._listeners: dict[Callable[[], None], Callable[[], None]] = {}
        self._evict: Callable[[], bool] | None = None
        # Evicted connections that are not closed yet.
        self._closing = 0
        self.name = name
        self.open = self.guaranteed = 0
        self.cost = 1
        self.paused = False

    def listen(self, pause: Callable[[], None], resume: Callable[[], None]) -> Callable[[], None]:
        """Register the functions that pause and resume a listener; return a function that removes them."""
        self._listeners[pause] = resume
        self._budget.divide_soon()
        if self.paused:
            pause()

        def leave() -> None:
            if self._listeners.pop(pause, None) is not None:
                self._budget.divide_soon()

        return leave

    @property
    def limit(self) -> int:
        """The descriptors that connections of all services may use."""
        return self._budget.limit

    @property
    def evicts(self) -> bool:
        """Whether the service has connections that can be evicted."""
        return self._evict is not None

    @property
    def listens(self) -> bool:
        """Whether the service has a listener."""
        return bool(self._listeners)

    def evict_by(self, evict: Callable[[], bool] | None) -> None:
        """Set the function that evicts a connection of the service, and returns whether there was one."""
        self._evict = evict

    def acquire(self) -> None:
        """Count an opened descriptor."""
        budget = self._budget
        self.open += 1
        budget.open += 1
        if self.open > self.guaranteed:
            budget.common_open += 1

    def release(self) -> None:
        """Count a closed descriptor."""
        budget = self._budget
        if self.open > self.guaranteed:
            budget.common_open -= 1
        self.open -= 1
        budget.open -= 1
        if self._closing:
            self._closing -= 1
            budget.resume_soon()

    def try_acquire(self) -> bool:
        """Count another descriptor of an open connection if one is free or can be evicted; return whether it is.

        The descriptor of an evicted connection is counted before that connection is closed.
        """
        budget = self._budget
        free = self.open < self.guaranteed or budget.common_open < budget.common
        if not free and (self.crowded or not self.evict_another()):
            return False
        self.acquire()
        return True

    @property
    def crowded(self) -> bool:
        """Whether the service uses more than its share, and SLACK is used up."""
        budget = self._budget
        return self.open >= self.guaranteed and budget.common_open >= budget.common + SLACK

    @property
    def available(self) -> int:
        """The number of connections that the service may accept in this round."""
        budget = self._budget
        common = budget.common - budget.common_open
        part = max(common // _ROUND_SHARE, min(common, self.cost), 0)
        return (max(self.guaranteed - self.open, 0) + part) // self.cost

    def room(self) -> int:
        """Return how many connections may be accepted now; if none, pause the listeners until one may."""
        if self.paused:
            return 0
        found = self.available
        if not found:
            self.pause()
        return found

    def pause(self) -> None:
        """Pause the listeners of the service: its share is used up, or accept(2) failed for lack of descriptors."""
        if self.paused:
            return
        self.paused = True
        for pause in list(self._listeners):
            pause()
        self._budget.share_paused(self)

    def resume(self) -> None:
        """Resume the listeners of the service."""
        self.paused = False
        for resume in list(self._listeners.values()):
            resume()

    def evict(self, count: int) -> bool:
        """Evict connections until `count` of them are being closed; return whether any is being closed."""
        while self._closing < count and self.evict_another():
            pass
        return self._closing > 0

    def evict_another(self) -> bool:
        """Evict a connection of the service; return whether there was one."""
        if self._evict is None:
            return False
        # Counted first, since the connection may be closed at once.
        self._closing += 1
        if self._evict():
            return True
        self._closing -= 1
        return False

    def reset_evictions(self) -> None:
        """Stop waiting for the close of evicted connections."""
        self._closing = 0


class DescriptorBudget:
    """Counts the descriptors of connections against the limit of the process.

    A connection that was handed over to a process has no descriptor in the daemon any more. GlobalLimit of
    svcd.access.admission counts connections wherever their descriptors are.

    Args:
        limit: descriptors that connections may use.
        clock: the reactor.

    Attributes:
        limit: as given, without the held descriptors.
        open: descriptors in use by connections.
        common: the part of the limit that is guaranteed to no service.
        common_open: descriptors in use of that part.
    """

    _log = Logger()

    def __init__(self, limit: int, clock: IReactorTime) -> None:
        self.limit = self.common = limit
        self.open = self.common_open = 0
        self._clock = clock
        # A share exists as long as its service refers to it, also while the service is paused.
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()
        # For connections of no service: refused ones, and those whose service is not known yet.
        self._own = Share(self, "")
        self._paused_shares: dict[Share, None] = {}
        self._pause_logged = self._divides = self._resumes = self._retries = False
        self._resume_log_timer: IDelayedCall | None = None

    def share(self, name: str) -> Share:
        """Return the share of a service."""
        found = self._shares.get(name)
        if found is None:
            found = self._shares[name] = Share(self, name)
        return found

    def acquire(self) -> None:
        """Count an opened descriptor of a connection that belongs to no service."""
        self._own.acquire()

    def release(self) -> None:
        """Count a closed descriptor of a connection that belongs to no service."""
        self._own.release()

    def try_acquire(self) -> bool:
        """Count a descriptor of no service if the common part has one left; return whether it has."""
        return self._own.try_acquire()

    def hold(self, count: int) -> None:
        """Reserve descriptors for other uses, such as listening sockets; a negative count returns them."""
        self.limit -= count
        self.common -= count
        self.divide_soon()

    @property
    def full(self) -> bool:
        """Whether the common part is used up."""
        return self.common_open >= self.common

    def pause_all(self) -> None:
        """Pause all listeners: accept(2) failed for lack of descriptors (EMFILE, ENFILE)."""
        for share in list(self._shares.values()):
            share.pause()

    # Called by shares

    def divide_soon(self) -> None:
        """Divide the budget again in the next turn of the reactor, once for all services that are added or removed."""
        if not self._divides:
            self._divides = True
            self._clock.callLater(0, self._divide)

    def _divide(self) -> None:
        self._divides = False
        services = sum(share.listens for share in self._shares.values())
        part = max(0, min(_MAX_GUARANTEED, self.limit // 2 // services)) if services else 0
        self.common_open = self._own.open
        for share in self._shares.values():
            share.guaranteed = part if share.listens else 0
            self.common_open += max(share.open - share.guaranteed, 0)
        self.common = self.limit - part * services

    def share_paused(self, share: Share) -> None:
        """Record that the listeners of a service are paused, evict connections, and schedule _retry()."""
        self._paused_shares[share] = None
        if self._resume_log_timer is not None:
            self._resume_log_timer.cancel()
            self._resume_log_timer = None
        if not self._pause_logged:
            self._pause_logged = True
            values = {"connections": self.open, "limit": self.limit, "service": share.name}
            log_event(self._log, PAUSE, reason="descriptors", **values)
        self._evict_for(share)
        if not self._retries:
            self._retries = True
            self._clock.callLater(RETRY_SECONDS, self._retry)

    def _evict_for(self, share: Share) -> None:
        """Evict connections for a service without room: its own, or those of the service furthest over its share."""
        if share.evict(_EVICTIONS):
            return
        others = [each for each in self._shares.values() if each is not share and each.open > each.guaranteed]
        for each in sorted(others, key=lambda other: other.guaranteed - other.open):
            if each.evict(_EVICTIONS):
                return

    def resume_soon(self) -> None:
        """Resume listeners in the next turn of the reactor: an evicted connection is closed."""
        if self._paused_shares and not self._resumes:
            self._resumes = True
            self._clock.callLater(0, self._resume_now)

    def _resume_now(self) -> None:
        self._resumes = False
        self._resume()

    def _retry(self) -> None:
        """Resume the listeners that have room again, after RETRY_SECONDS; evict connections for the others."""
        for share in self._shares.values():
            share.reset_evictions()
        self._resume()
        for share in self._paused_shares:
            self._evict_for(share)
        self._retries = bool(self._paused_shares)
        if self._retries:
            self._clock.callLater(RETRY_SECONDS, self._retry)
        elif self._pause_logged and self._resume_log_timer is None:
            self._resume_log_timer = self._clock.callLater(RELIEF_SECONDS, self._log_resume)

    def _resume(self) -> None:
        for share in [each for each in self._paused_shares if each.available]:
            del self._paused_shares[share]
            share.resume()

    def _log_resume(self) -> None:
        """Log the end of a pause; many short pauses at the limit are logged as one."""
        self._resume_log_timer = None
        self._pause_logged = False
        log_event(self._log, RESUME, reason="descriptors", connections=self.open, limit=self.limit)
