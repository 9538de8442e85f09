"""The open connections of an HTTP service by what they wait for: how long they may, and which give way to others.

A connection waits for the rest of a request, for the next request, or for its client to take an answer. There is no
timer for any of them: each group is in the order in which its connections began to wait, and one look twice a second
ends those that have waited too long.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["EVICTED", "LOOK_SECONDS", "LOWEST_RATE", "SLICE", "HttpConnections", "HttpTimeouts", "HttpWait"]

#: Bytes a second below which a client does not send a request's body, or take an answer, at a reasonable speed.
LOWEST_RATE = 500
#: Between two looks, in seconds.
LOOK_SECONDS = 0.5
#: Connections looked at in one go before the reactor has its turn.
SLICE = 256
#: Why a connection ended that gave way to another.
EVICTED = "evicted"
#: How long a connection has to wait before it may be closed for another, in seconds: for a request, whole or in part;
#: and for a client that takes its answer at less than the lowest rate, which may be one that is far away: its system
#: says what it has taken a round trip later.
_GRACE, _SLOW_GRACE = 0.5, 0.75
#: What a client takes in the first moment says little: its system has a buffer. How long that is, in seconds.
_FIRST_MOMENT = 0.25
#: A client that takes its answer at the lowest rate on the whole may pause so long: systems acknowledge in pieces.
_LONGEST_PAUSE = 3.0
#: Bodies that come fast enough, passed over in the search for the slowest request.
_PASSED_OVER = 8


@dataclass(frozen=True, slots=True)
class HttpTimeouts:
    """How long connections may wait, in seconds; None for as long as they like.

    Attributes:
        request: for a whole request; of a body each LOWEST_RATE bytes are a second more.
        keepalive: for the next request.
        send: for a client to take LOWEST_RATE bytes a second of an answer again.
    """

    request: float | None = 30.0
    keepalive: float | None = 75.0
    send: float | None = 60.0


class HttpWait(Protocol):
    """A connection.

    Attributes:
        group: the group that it is in.
    """

    group: Group | None

    @property
    def body_bytes(self) -> int:
        """How many bytes of the body of an incomplete request have come."""

    @property
    def taken(self) -> int:
        """How many bytes the client has taken so far."""

    def time_out(self, reason: str, /) -> None:
        """End, because it has waited too long: `request`, `keepalive` or `send`."""

    def evict(self) -> None:
        """End, because another one needs its place."""


class _Pace:
    """How fast a client takes its answer.

    Args:
        now: the time of the first look.
        taken: how many bytes it had taken then.

    Attributes:
        first: the time of the first look.
    """

    __slots__ = ("_at_first", "_at_last", "_last", "_moved", "_taken", "first")

    def __init__(self, now: float, taken: int) -> None:
        self.first = self._last = self._moved = now
        self._at_first = self._at_last = self._taken = taken

    def suffices(self, now: float, taken: int) -> bool:
        """Whether it took enough, since the last look or on the whole."""
        if taken > self._taken:
            self._taken, self._moved = taken, now
        # A byte or two just after a look say nothing.
        if taken - self._at_last >= LOWEST_RATE * max(now - self._last, LOOK_SECONDS):
            return True
        on_the_whole = taken - self._at_first >= LOWEST_RATE * (now - self.first)
        return on_the_whole and now - self._moved < _LONGEST_PAUSE

    def look(self, now: float) -> None:
        """Begin to count anew; what it has taken is as suffices() was told."""
        self._last, self._at_last = now, self._taken


#: Connections that wait for the same, each with the time at which it began to.
Group: TypeAlias = "dict[HttpWait, float]"


class HttpConnections:
    """Those of one service.

    Args:
        timeouts: how long they may wait.
        clock: the reactor.

    Attributes:
        reading: those that wait for the rest of a request, or for the first one.
        idle: those that wait for another request.
        writing: those whose clients are to take an answer, or the end of the connection.
    """

    def __init__(self, timeouts: HttpTimeouts, clock: IReactorTime) -> None:
        self.timeouts = timeouts
        self._clock = clock
        self._seconds = clock.seconds
        self.reading: Group = {}
        self.idle: Group = {}
        self.writing: Group = {}
        # Of those that write, from the first look on, which is the first time that the kernel is asked. The others have
        # not been looked at yet.
        self._paces: dict[HttpWait, _Pace] = {}
        self._unpaced: dict[HttpWait, None] = {}
        self._todo: Iterator[HttpWait] = iter(())
        self._call: IDelayedCall | None = None

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self.reading) + len(self.idle) + len(self.writing)

    def move(self, connection: HttpWait, group: Group | None) -> None:
        """Put a connection into a group, unless it is there; None for none."""
        if connection.group is not group:
            self.renew(connection, group)

    def renew(self, connection: HttpWait, group: Group | None) -> None:
        """The same, as one that begins to wait now in any case."""
        before = connection.group
        if before is not None:
            del before[connection]
            if before is self.writing:
                self._paces.pop(connection, None)
                self._unpaced.pop(connection, None)
        connection.group = group
        if group is None:
            return
        group[connection] = self._seconds()
        if group is self.writing:
            self._unpaced[connection] = None
        if self._call is None:
            self._call = self._clock.callLater(LOOK_SECONDS, self._look)

    def evict(self) -> bool:
        """Close a connection for another one: the one idle longest, else the slowest; returns whether there is one."""
        now = self._seconds()
        found = self._idle_longest(now) or self._slowest(now)
        if found is None:
            return False
        found.evict()
        return True

    def _idle_longest(self, now: float) -> HttpWait | None:
        for connection, since in self.idle.items():
            return connection if now - since >= _GRACE else None
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
        """The connection that has written longest, at least so long, and whose client takes less than the lowest rate.

        All that were not looked at are looked at: so it is known of each what its client takes, soon after there was
        no room for the first time. It takes two looks with half a second between them.
        """
        while self._unpaced:
            connection = next(iter(self._unpaced))
            if not self._begin_pace(connection, now):
                break
        while self.writing:
            connection, since = next(iter(self.writing.items()))
            pace = self._paces.get(connection)
            if pace is None or now - since < longest or now - pace.first < _GRACE:
                break
            if not self._is_paced(connection, now):
                return connection
        return None

    def _look(self) -> None:
        self._todo = iter(list(self.writing))
        self._slice()

    def _slice(self) -> None:
        """End those that are late, and look at some of those that write; the rest in the reactor's next turn."""
        now = self._seconds()
        late = [*self._late_idle(now), *islice(self._late_requests(now), SLICE)]
        looked = list(islice(self._todo, SLICE))
        late += [(each, "send") for each in looked if self._is_late_writer(each, now)]
        for connection, reason in late:
            connection.time_out(reason)
        if max(len(late), len(looked)) >= SLICE:
            self._call = self._clock.callLater(0, self._slice)
        elif self.reading or self.idle or self.writing:
            self._call = self._clock.callLater(LOOK_SECONDS, self._look)
        else:
            self._call = None

    def _late_idle(self, now: float) -> Iterator[tuple[HttpWait, str]]:
        limit = self.timeouts.keepalive
        if limit is not None:
            for connection, since in islice(self.idle.items(), SLICE):
                if now - since < limit:
                    return
                yield connection, "keepalive"

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
        if connection in self._unpaced:
            self._begin_pace(connection, now)
        elif self._is_paced(connection, now):
            return False
        else:
            self._paces[connection].look(now)
        limit = self.timeouts.send
        return limit is not None and now - self.writing[connection] >= limit

    def _begin_pace(self, connection: HttpWait, now: float) -> bool:
        """Look at a connection for the first time, unless it has just begun to write; returns whether it was."""
        if now - self.writing[connection] < _FIRST_MOMENT:
            return False
        del self._unpaced[connection]
        self._paces[connection] = _Pace(now, connection.taken)
        return True

    def _is_paced(self, connection: HttpWait, now: float) -> bool:
        """Whether a client takes enough; if so, its connection goes to the end of the group."""
        pace = self._paces[connection]
        if not pace.suffices(now, connection.taken):
            return False
        pace.look(now)
        del self.writing[connection]
        self.writing[connection] = now
        return True
