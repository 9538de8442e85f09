"""Timeouts of connections (session_timeout, idle_timeout, first_byte_timeout), without a timer for each of them.

A sweep compares byte counts that the kernel or the transports keep anyway, every sixteenth of the shortest timeout. So
no connection is closed early. It may be closed late by the time of two sweeps: an eighth of the shortest timeout at
most, or an eighth of a second if that is more; from a timeout of 80 seconds on it is 10 seconds.

A sweep is cut into slices, with other work of the reactor between them: 64 connections take about 0.3 ms, or 2 ms if
all of them are closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from svcd.config.options import ServiceOptions

__all__ = ["SLICE", "TimedConnection", "TimeoutSweeper", "Timeouts"]

#: Connections per slice of a sweep.
SLICE = 64
#: Sweeps in the time of the shortest timeout.
_SWEEPS = 16
#: Shortest and longest time between two sweeps, in seconds.
_SHORTEST, _LONGEST = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of a service in seconds; None for no limit.

    Attributes:
        session: for the whole connection.
        idle: without a byte in either direction.
        first_byte: until the first byte of the client.
    """

    session: float | None = None
    idle: float | None = None
    first_byte: float | None = None

    @classmethod
    def of(cls, options: ServiceOptions) -> Timeouts:
        """Return the timeouts in the options of a service."""
        return cls(options.session_timeout, options.idle_timeout, options.first_byte_timeout)

    @property
    def interval(self) -> float:
        """The time between two sweeps in seconds; 0 without timeouts."""
        chosen = [seconds for seconds in (self.session, self.idle, self.first_byte) if seconds is not None]
        return min(max(min(chosen) / _SWEEPS, _SHORTEST), _LONGEST) if chosen else 0.0

    @property
    def needs_traffic(self) -> bool:
        """Whether the byte counts of connections are needed."""
        return self.idle is not None or self.first_byte is not None


class TimedConnection(Protocol):
    """A connection with timeouts."""

    @property
    def connection_id(self) -> int:
        """The id of the connection; ids grow in the order of accept."""

    @property
    def started(self) -> float:
        """The time of accept in seconds, by the clock of the sweeper."""

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes received from the client, and those acknowledged by its system; None if they are unknown."""

    def abort(self, cause: str) -> None:
        """Close the connection because of a timeout: `session`, `idle` or `first_byte`."""


class TimeoutSweeper:
    """Closes the connections of one service for which a timeout has passed.

    Args:
        times: the timeouts.
        connections: the open connections by id, in the order of accept; read again by each sweep.
        now: returns the time in seconds, monotonic.
        call_later: callLater of the reactor.

    Attributes:
        times: the current timeouts.
    """

    _log = Logger()
    times: Timeouts

    def __init__(
        self,
        times: Timeouts,
        connections: Mapping[int, TimedConnection],
        now: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._connections = connections
        self._now = now
        self._call_later = call_later
        self._waiting = False
        self._began = 0.0
        self._todo: Iterator[TimedConnection] = iter(())
        # The byte counts and the time of their last change, by connection id: of the last sweep and of this one.
        self._known: dict[int, tuple[tuple[int, int], float]] = {}
        self._known_next: dict[int, tuple[tuple[int, int], float]] = {}
        # The greatest id of a connection whose first byte arrived in time.
        self._last_with_data = 0
        self.retune(times)

    def retune(self, times: Timeouts) -> None:
        """Apply new timeouts, also to open connections."""
        self.times = times
        self._interval = times.interval
        self._last_with_data = 0
        if self._connections:
            self.wake()

    def wake(self) -> None:
        """Start sweeping after a connection was accepted; sweeps stop when there is no connection."""
        if self._interval and not self._waiting:
            self._waiting = True
            self._call_later(self._interval, self._sweep)

    def _sweep(self) -> None:
        self._began = self._now()
        self._known, self._known_next = self._known_next, {}
        self._todo = iter(list(self._connections.values()))
        self._slice()

    def _slice(self) -> None:
        now = self._now()
        looked = 0
        for session in islice(self._todo, SLICE):
            looked += 1
            try:
                cause = self._overdue(session, now)
                if cause and self._connections.get(session.connection_id) is session:
                    session.abort(cause)
            except Exception:  # noqa: BLE001 - the timeouts of other connections must still apply
                self._log.failure("a deadline could not be kept")
        if looked == SLICE:
            self._call_later(0, self._slice)
            return
        self._known = {}
        self._waiting = False
        if self._connections and self._interval:
            self._waiting = True
            self._call_later(max(0.0, self._began + self._interval - self._now()), self._sweep)

    def _overdue(self, session: TimedConnection, now: float) -> str:
        """Return the name of the timeout that has passed; an empty text if none has."""
        times, connection_id = self.times, session.connection_id
        age = now - session.started
        if times.session is not None and age >= times.session:
            return "session"
        is_due = times.first_byte is not None and age >= times.first_byte and connection_id > self._last_with_data
        if times.idle is None and not is_due:
            return ""
        traffic = session.traffic()
        if traffic is None:
            return ""
        if is_due:
            if not traffic[0]:
                return "first_byte"
            # Connections accepted earlier have been checked earlier.
            self._last_with_data = connection_id
        if times.idle is None:
            return ""
        known = self._known.get(connection_id)
        if known is None or known[0] != traffic:
            # The counts may have changed just now: with an earlier time the connection would be closed early.
            known = traffic, self._now()
        self._known_next[connection_id] = known
        return "idle" if now - known[1] >= times.idle else ""
