"""What connections and datagrams are asked alike before anything is counted: who it is, what time, what load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.access.acl import Acl
from svcd.access.refusals import RefusalReason
from svcd.access.times import Timetable

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.access.refusals import Refusal
    from svcd.access.rules import AccessRules

__all__ = ["AccessConditions"]


class AccessConditions:
    """The rules of a service that hold for everybody who comes, compiled.

    Args:
        rules: the service's.
        wall: the time of day, in seconds since 1970; asked only where there are access_times.
        load: the load average of a minute; asked only where there is a max_load.

    Attributes:
        acl: None where it does not matter who comes.
    """

    __slots__ = ("_late", "_load", "_loaded", "_max_load", "_timetable", "_wall", "acl")

    def __init__(self, rules: AccessRules, wall: Callable[[], float], load: Callable[[], float]) -> None:
        self._wall = wall
        self._load = load
        self._timetable = Timetable(rules.access_times, rules.zone) if rules.access_times else None
        self._max_load = rules.max_load
        self._late = rules.refusal(RefusalReason.TIME, "it is not the time for it", "access_times")
        self._loaded = rules.refusal(RefusalReason.LOAD, f"the load has reached {rules.max_load}", "max_load")
        self.acl = Acl(rules) if rules.listed else None

    @property
    def always(self) -> bool:
        """Whether neither time nor load matters."""
        return self._timetable is None and self._max_load is None

    def closed(self) -> Refusal | None:
        """Why nobody may come in now, or None."""
        if self._timetable is not None and not self._timetable.is_open(self._wall()):
            return self._late
        if self._max_load is not None and self._load() >= self._max_load:
            return self._loaded
        return None
