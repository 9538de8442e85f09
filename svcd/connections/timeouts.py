"""Ends the connections of a service that take too long, without a timer for any of them.

A sweep compares counts that are kept anyway, by the kernel or by the transports, every sixteenth of the shortest
deadline. So nothing is early. What is late is so by the time to the next two sweeps: an eighth of the shortest
deadline at most, or an eighth of a second if that is more; from a deadline of 80 seconds on it is 10 seconds.

A sweep goes in slices, with the reactor's other work between them: 64 connections take about 0.3 ms, or 2 if all of
them are to be ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from svcd.config.options import ServiceOptions

__all__ = ["SLICE", "Timed", "TimeoutSweeper", "Timeouts"]

#: Connections looked at in one go before the reactor has its turn.
SLICE = 64
#: Sweeps in the time of the shortest deadline.
_SWEEPS = 16
#: Between two sweeps, in seconds: at least, and at most.
_SHORTEST, _LONGEST = 0.05, 5.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long connections may take, in seconds; None for as long as they like.

    Attributes:
        session: in all.
        idle: without a byte in either direction.
        first_byte: until the client's first byte.
    """

    session: float | None = None
    idle: float | None = None
    first_byte: float | None = None

    @classmethod
    def of(cls, options: ServiceOptions) -> Timeouts:
        """Those of a service."""
        return cls(options.session_timeout, options.idle_timeout, options.first_byte_timeout)

    @property
    def interval(self) -> float:
        """The seconds between two sweeps; 0 if there is nothing to look for."""
        chosen = [seconds for seconds in (self.session, self.idle, self.first_byte) if seconds is not None]
        return min(max(min(chosen) / _SWEEPS, _SHORTEST), _LONGEST) if chosen else 0.0

    @property
    def looks(self) -> bool:
        """Whether it matters what moves."""
        return self.idle is not None or self.first_byte is not None


class Timed(Protocol):
    """A connection, as far as deadlines are concerned."""

    @property
    def number(self) -> int:
        """The later it began, the greater."""

    @property
    def started(self) -> float:
        """When it began, in seconds of the clock."""

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that were taken on its side; None if that can't be seen."""

    def abort(self, cause: str) -> None:
        """End it now, because of a deadline: `session`, `idle` or `first_byte`."""


class TimeoutSweeper:
    """Watches the connections of one service.

    Args:
        times: how long they may take.
        sessions: the open ones by number, in the order in which they began; read anew at each sweep.
        now: seconds, monotonic.
        call_later: the reactor's.

    Attributes:
        times: as they are now.
    """

    _log = Logger()
    times: Timeouts

    def __init__(
        self,
        times: Timeouts,
        sessions: Mapping[int, Timed],
        now: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._sessions = sessions
        self._now = now
        self._call_later = call_later
        self._waiting = False
        self._began = 0.0
        self._todo: Iterator[Timed] = iter(())
        # By number: the traffic when it was last seen to change, and when that was.
        self._known: dict[int, tuple[tuple[int, int], float]] = {}
        self._still: dict[int, tuple[tuple[int, int], float]] = {}
        # The greatest number whose first byte was there in time.
        self._spoken = 0
        self.retune(times)

    def retune(self, times: Timeouts) -> None:
        """Take other times; they hold for the connections that are open, too."""
        self.times = times
        self._interval = times.interval
        self._spoken = 0
        if self._sessions:
            self.wake()

    def wake(self) -> None:
        """A connection has begun. While there is none nothing is done at all."""
        if self._interval and not self._waiting:
            self._waiting = True
            self._call_later(self._interval, self._sweep)

    def _sweep(self) -> None:
        self._began = self._now()
        self._known, self._still = self._still, {}
        self._todo = iter(list(self._sessions.values()))
        self._slice()

    def _slice(self) -> None:
        now = self._now()
        looked = 0
        for session in islice(self._todo, SLICE):
            looked += 1
            try:
                cause = self._overdue(session, now)
                if cause and self._sessions.get(session.number) is session:
                    session.abort(cause)
            except Exception:  # noqa: BLE001 - the others have deadlines too
                self._log.failure("a deadline could not be kept")
        if looked == SLICE:
            self._call_later(0, self._slice)
            return
        self._known = {}
        self._waiting = False
        if self._sessions and self._interval:
            self._waiting = True
            self._call_later(max(0.0, self._began + self._interval - self._now()), self._sweep)

    def _overdue(self, session: Timed, now: float) -> str:
        """Which deadline has passed; an empty text if none has."""
        times, number = self.times, session.number
        age = now - session.started
        if times.session is not None and age >= times.session:
            return "session"
        is_due = times.first_byte is not None and age >= times.first_byte and number > self._spoken
        if times.idle is None and not is_due:
            return ""
        traffic = session.traffic()
        if traffic is None:
            return ""
        if is_due:
            if not traffic[0]:
                return "first_byte"
            # Who began before was looked at before.
            self._spoken = number
        if times.idle is None:
            return ""
        known = self._known.get(number)
        if known is None or known[0] != traffic:
            # It may have changed just now: to count from before would be early.
            known = traffic, self._now()
        self._still[number] = known
        return "idle" if now - known[1] >= times.idle else ""
