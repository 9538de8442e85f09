"""Conditions that are checked before anything is counted: address lists, access_times and max_load."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from svcd.access.acl import Acl
from svcd.access.rules import RefusalReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import tzinfo

    from svcd.access.rules import AccessRules, Refusal
    from svcd.access.types import TimeRange

__all__ = ["AccessConditions", "Timetable"]


class Timetable:
    """The access_times of one service.

    An instant is converted to the local time of the zone, never the other way, so a day on which clocks change needs no
    rule of its own: an hour that is skipped never comes, an hour that repeats counts twice. A range ends exactly at its
    end, 8:00-18:00 at 18:00 sharp; xinetd still admits clients during that minute. The result is cached for a minute.

    Args:
        hours: the ranges; a time is allowed if any range contains it.
        zone: the time zone; None for the machine's own.
    """

    __slots__ = ("_hours", "_minute", "_open", "_zone")

    def __init__(self, hours: Sequence[TimeRange], zone: tzinfo | None = None) -> None:
        self._hours = tuple(hours)
        self._zone = zone
        # The last result, and the minute since 1970 that it is valid for: in all zones of today the minutes of
        # local time are those of universal time.
        self._minute = float("nan")
        self._open = False

    def local_time(self, moment: float) -> datetime:
        """Return the local time of a moment given in seconds since 1970."""
        return datetime.fromtimestamp(moment, self._zone)

    def is_open(self, moment: float) -> bool:
        """Return whether access is allowed at a moment given in seconds since 1970."""
        if moment // 60 != self._minute:
            self._minute = moment // 60
            wall_clock = self.local_time(moment)
            now = wall_clock.hour * 60 + wall_clock.minute
            self._open = any(
                span.start <= now < span.end if span.start < span.end else now >= span.start or now < span.end
                for span in self._hours
            )
        return self._open


class AccessConditions:
    """The conditions of a service that do not depend on counts, compiled.

    Args:
        rules: the rules of the service.
        wall_clock: returns the time of day in seconds since 1970; called only if there are access_times.
        load: returns the load average of a minute; called only if there is a max_load.

    Attributes:
        acl: the address lists; None if the service has none.
        unconditional: whether neither time nor load matters.
    """

    __slots__ = (
        "_load", "_load_refusal", "_max_load", "_time_refusal", "_timetable", "_wall_clock", "acl", "unconditional",
    )  # fmt: skip

    def __init__(self, rules: AccessRules, wall_clock: Callable[[], float], load: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._load = load
        self._timetable = Timetable(rules.access_times, rules.zone) if rules.access_times else None
        self._max_load = rules.max_load
        self._time_refusal = rules.refusal(RefusalReason.TIME, "the time is outside access_times", "access_times")
        self._load_refusal = rules.refusal(
            RefusalReason.LOAD, f"the load average has reached {rules.max_load}", "max_load"
        )
        self.acl = Acl(rules) if rules.has_address_lists else None
        self.unconditional = self._timetable is None and self._max_load is None

    def check(self) -> Refusal | None:
        """Return the refusal of every client at this time or load, or None."""
        if self._timetable is not None and not self._timetable.is_open(self._wall_clock()):
            return self._time_refusal
        if self._max_load is not None and self._load() >= self._max_load:
            return self._load_refusal
        return None
