"""When somebody may come in: access_times.

An instant is turned into what the wall clock of the zone shows then, never the other way, so that a day on which
clocks are changed needs no rule of its own: an hour that is skipped never comes, one that comes twice counts twice.
A span is over as soon as its end comes, 8:00-18:00 at 18:00 sharp; xinetd still takes clients in during that minute.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from svcd.access.types import TimeRange

__all__ = ["Timetable"]


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

    def wall(self, moment: float) -> datetime:
        """What the wall clock shows at a moment, in seconds since 1970."""
        return datetime.fromtimestamp(moment, self._zone)

    def is_open(self, moment: float) -> bool:
        """Whether somebody may come in at a moment, in seconds since 1970."""
        if moment // 60 != self._minute:
            self._minute = moment // 60
            wall = self.wall(moment)
            now = wall.hour * 60 + wall.minute
            self._open = any(
                span.start <= now < span.end if span.start < span.end else now >= span.start or now < span.end
                for span in self._hours
            )
        return self._open
