"""Timeouts and eviction of the open connections of an HTTP service, grouped by the event for which they wait.

A connection waits for the rest of a request, for the next request, or for its client to take a response. There are no
timers for single connections: each group is in the order in which its connections began to wait, and a check twice a
second ends those that have waited too long.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = [
    "CHECK_SECONDS",
    "EVICTED",
    "GONE_SECONDS",
    "LOWEST_RATE",
    "SLICE",
    "HttpConnections",
    "HttpTimeouts",
    "HttpWait",
]

#: The lowest rate at which a client may send the body of a request or take a response, in bytes a second.
LOWEST_RATE = 500
#: The time after which a client that has closed its side of the connection counts as gone, unless it gets data, in
#: seconds. The close of the whole connection looks the same to the server until it sends something.
GONE_SECONDS = 2.0
#: The interval of the checks, in seconds.
CHECK_SECONDS = 0.5
#: The number of connections checked before the reactor runs other callbacks.
SLICE = 256
#: The end reason of a connection that was closed to free its descriptor for another connection.
EVICTED = "evicted"
#: The time that a connection has to wait before it may be evicted, in seconds: the first for a connection that waits
#: for a request or the rest of it, the second for one whose client takes the response below LOWEST_RATE. The second is
#: longer because the acknowledgements of a distant client arrive a round trip later.
_GRACE, _SLOW_GRACE = 0.5, 0.75
#: The time in which the rate of a client is not yet measured, in seconds: its system fills a receive buffer first.
_FIRST_MOMENT = 0.25
#: The longest pause of a client that takes its response at LOWEST_RATE on average, in seconds: TCP acknowledges in
#: bursts.
_LONGEST_PAUSE = 3.0
#: The maximum number of requests with a sufficient rate that are skipped in the search for the slowest request.
_PASSED_OVER = 8


@dataclass(frozen=True, slots=True)
class HttpTimeouts:
    """The timeouts of connections, in seconds; None for no timeout.

    Attributes:
        request: for a whole request, extended by a second for each LOWEST_RATE bytes of the body.
        keepalive: for the next request.
        send: for a client that takes less than LOWEST_RATE bytes a second of a response.
    """

    request: float | None = 30.0
    keepalive: float | None = 75.0
    send: float | None = 60.0


class HttpWait(Protocol):
    """Interface of a connection for HttpConnections.

    Attributes:
        group: the group of the connection; None for no group.
        tick: the tick of HttpConnections in which it was put into its group.
        was_active: whether it got and answered a request after that, in the same tick.
    """

    group: Group | None
    tick: int
    was_active: bool

    @property
    def body_bytes(self) -> int:
        """Number of received bytes of the body of an incomplete request."""

    @property
    def taken(self) -> int:
        """Number of bytes that the client has taken so far."""

    def time_out(self, reason: str, /) -> None:
        """End the connection after a timeout: `request`, `keepalive` or `send`; or `lost` if its client is gone."""

    def evict(self) -> None:
        """End the connection to free its descriptor for another connection."""


class _Pace:
    """The rate at which a client takes its response.

    Args:
        now: the time of the first check.
        taken: the number of bytes that the client had taken then.

    Attributes:
        first: the time of the first check.
    """

    __slots__ = ("_at_first", "_at_last", "_last", "_moved", "_taken", "first")

    def __init__(self, now: float, taken: int) -> None:
        self.first = self._last = self._moved = now
        self._at_first = self._at_last = self._taken = taken

    def suffices(self, now: float, taken: int) -> bool:
        """Return whether the client took enough, since the last check or since the first one."""
        if taken > self._taken:
            self._taken, self._moved = taken, now
        # A few bytes just after a check are no rate.
        if taken - self._at_last >= LOWEST_RATE * max(now - self._last, CHECK_SECONDS):
            return True
        on_the_whole = taken - self._at_first >= LOWEST_RATE * (now - self.first)
        return on_the_whole and now - self._moved < _LONGEST_PAUSE

    def restart(self, now: float) -> None:
        """Start a new interval, with the number of bytes that suffices() was given."""
        self._last, self._at_last = now, self._taken


#: Connections that wait for the same event, each with the time at which it began to wait.
Group: TypeAlias = "dict[HttpWait, float]"


class HttpConnections:
    """The connections of a service.

    Args:
        timeouts: the timeouts of the connections.
        clock: the reactor.

    Attributes:
        reading: the connections that wait for the first request, or for the rest of a request.
        idle: the connections that wait for another request.
        writing: the connections whose clients have to take a response, or the end of the connection.
        leaving: the connections whose clients send no more, and wait for a program that has no output.
        tick: the number of the interval between two checks. A connection that is active several times in an interval
            is put into its group only once in it.
    """

    def __init__(self, timeouts: HttpTimeouts, clock: IReactorTime) -> None:
        self.timeouts = timeouts
        self._clock = clock
        self._seconds = clock.seconds
        self.reading: Group = {}
        self.idle: Group = {}
        self.writing: Group = {}
        self.leaving: Group = {}
        self.tick = 0
        # The connections in `writing` that were checked, and those that were not. The check needs a system call for
        # the number of bytes taken.
        self._paces: dict[HttpWait, _Pace] = {}
        self._unchecked: dict[HttpWait, None] = {}
        self._todo: Iterator[HttpWait] = iter(())
        self._call: IDelayedCall | None = None

    @property
    def open(self) -> int:
        """Number of connections in a group."""
        return len(self.reading) + len(self.idle) + len(self.writing) + len(self.leaving)

    def move(self, connection: HttpWait, group: Group | None) -> None:
        """Put a connection into a group, unless it is in this group already; None for no group."""
        if connection.group is not group:
            self.renew(connection, group)

    def renew(self, connection: HttpWait, group: Group | None) -> None:
        """Put a connection at the end of a group, with the current time as the start of its wait; None for no group."""
        before = connection.group
        if before is not None:
            del before[connection]
            if before is self.writing:
                self._paces.pop(connection, None)
                self._unchecked.pop(connection, None)
        connection.group = group
        connection.tick = self.tick
        connection.was_active = False
        if group is None:
            return
        group[connection] = self._seconds()
        if group is self.writing:
            self._unchecked[connection] = None
        if self._call is None:
            self._call = self._clock.callLater(CHECK_SECONDS, self._check)

    def evict(self) -> bool:
        """Evict the connection that was idle longest, or else the slowest; return whether there was one to evict."""
        now = self._seconds()
        found = self._idle_longest(now) or self._slowest(now)
        if found is None:
            return False
        found.evict()
        return True

    def _idle_longest(self, now: float) -> HttpWait | None:
        for connection, since in self.idle.items():
            if now - since < _GRACE:
                break
            if not connection.was_active or now - since >= _GRACE + CHECK_SECONDS:
                return connection
        return None

    def _slowest(self, now: float) -> HttpWait | None:
        found: HttpWait | None = None
        longest = _GRACE
        for connection, since in islice(self.reading.items(), _PASSED_OVER):
            waited = now - since - connection.body_bytes / LOWEST_RATE
            if waited >= longest:
                found, longest = connection, waited
        return self._slowest_writer(now, max(longest, _SLOW_GRACE)) or found

    def _slowest_writer(self, now: float, longest: float) -> HttpWait | None:
        """Return the connection that has been writing longest and whose client takes less than LOWEST_RATE.

        All unchecked connections are checked, so that the rates of all clients are known soon after the first eviction.
        A rate requires two checks, half a second apart.

        Args:
            now: the time.
            longest: the time for which the connection must have been writing, in seconds.
        """
        while self._unchecked:
            connection = next(iter(self._unchecked))
            if not self._begin_pace(connection, now):
                break
        while self.writing:
            connection, since = next(iter(self.writing.items()))
            pace = self._paces.get(connection)
            if pace is None or now - since < longest or now - pace.first < _GRACE:
                break
            if not self._takes_enough(connection, now):
                return connection
        return None

    def _check(self) -> None:
        self.tick += 1
        self._todo = iter(list(self.writing))
        self._slice()

    def _slice(self) -> None:
        """End late connections, and check SLICE of those in `writing`; continue in the reactor's next iteration."""
        now = self._seconds()
        late = [*self._late_idle(now), *self._gone(now), *islice(self._late_requests(now), SLICE)]
        checked = list(islice(self._todo, SLICE))
        late += [(each, "send") for each in checked if self._is_late_writer(each, now)]
        for connection, reason in late:
            connection.time_out(reason)
        if max(len(late), len(checked)) >= SLICE:
            self._call = self._clock.callLater(0, self._slice)
        elif self.open:
            self._call = self._clock.callLater(CHECK_SECONDS, self._check)
        else:
            self._call = None

    def _late_idle(self, now: float) -> Iterator[tuple[HttpWait, str]]:
        limit = self.timeouts.keepalive
        if limit is not None:
            for connection, since in islice(self.idle.items(), SLICE):
                if now - since < limit:
                    return
                if not connection.was_active or now - since >= limit + CHECK_SECONDS:
                    yield connection, "keepalive"

    def _gone(self, now: float) -> Iterator[tuple[HttpWait, str]]:
        for connection, since in islice(self.leaving.items(), SLICE):
            if now - since < GONE_SECONDS:
                return
            yield connection, "lost"

    def _late_requests(self, now: float) -> Iterator[tuple[HttpWait, str]]:
        limit = self.timeouts.request
        if limit is not None:
            for connection, since in self.reading.items():
                if now - since < limit:
                    return
                if now - since - connection.body_bytes / LOWEST_RATE >= limit:
                    yield connection, "request"

    def _is_late_writer(self, connection: HttpWait, now: float) -> bool:
        if connection.group is not self.writing:
            return False
        if connection in self._unchecked:
            self._begin_pace(connection, now)
        elif self._takes_enough(connection, now):
            return False
        else:
            self._paces[connection].restart(now)
        limit = self.timeouts.send
        return limit is not None and now - self.writing[connection] >= limit

    def _begin_pace(self, connection: HttpWait, now: float) -> bool:
        """Check a connection for the first time, unless it has just begun to write; return whether it was checked."""
        if now - self.writing[connection] < _FIRST_MOMENT:
            return False
        del self._unchecked[connection]
        self._paces[connection] = _Pace(now, connection.taken)
        return True

    def _takes_enough(self, connection: HttpWait, now: float) -> bool:
        """Return whether a client takes enough; if so, move its connection to the end of the group."""
        pace = self._paces[connection]
        if not pace.suffices(now, connection.taken):
            return False
        pace.restart(now)
        del self.writing[connection]
        self.writing[connection] = now
        return True
