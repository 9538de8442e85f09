"""What connections and datagrams are asked alike before anything is counted: who it is, what time, what load."""

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
    """The spans of the day of one service. To ask again within the same minute costs next to nothing.

    Args:
        hours: the spans; any of them is enough.
        zone: whose wall clock; None for the machine's own.
    """

    __slots__ = ("_hours", "_minute", "_open", "_zone")

    def __init__(self, hours: Sequence[TimeRange], zone: tzinfo | None = None) -> None:
        self._hours = tuple(hours)
        self._zone = zone
        # The last answer, and the minute since 1970 that it is good for: in all zones of today the minutes of the
        # wall clock are those of universal time.
        self._minute = float("nan")
        self._open = False

    def local_time(self, moment: float) -> datetime:
        """What the wall clock shows at a moment, in seconds since 1970."""
        return datetime.fromtimestamp(moment, self._zone)

    def is_open(self, moment: float) -> bool:
        """Whether somebody may come in at a moment, in seconds since 1970."""
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
    """The rules of a service that hold for everybody who comes, compiled.

    Args:
        rules: the service's.
        wall_clock: the time of day, in seconds since 1970; asked only where there are access_times.
        load: the load average of a minute; asked only where there is a max_load.

    Attributes:
        acl: None where it does not matter who comes.
    """

    __slots__ = ("_load", "_load_refusal", "_max_load", "_time_refusal", "_timetable", "_wall_clock", "acl")

    def __init__(self, rules: AccessRules, wall_clock: Callable[[], float], load: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._load = load
        self._timetable = Timetable(rules.access_times, rules.zone) if rules.access_times else None
        self._max_load = rules.max_load
        self._time_refusal = rules.refusal(RefusalReason.TIME, "it is not the time for it", "access_times")
        self._load_refusal = rules.refusal(RefusalReason.LOAD, f"the load has reached {rules.max_load}", "max_load")
        self.acl = Acl(rules) if rules.has_address_lists else None

    @property
    def unconditional(self) -> bool:
        """Whether neither time nor load matters."""
        return self._timetable is None and self._max_load is None

    def check(self) -> Refusal | None:
        """Why nobody may come in now, or None."""
        if self._timetable is not None and not self._timetable.is_open(self._wall_clock()):
            return self._time_refusal
        if self._max_load is not None and self._load() >= self._max_load:
            return self._load_refusal
        return None
