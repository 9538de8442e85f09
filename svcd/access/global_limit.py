"""How many: the daemon's connections in all, those of a service, those of a source.

Nothing here waits or refuses by itself. A Hall is what all doors of the daemon lead to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from svcd.access.refusals import AccessRule, Refusal, RefusalReason
from svcd.model import SourceLocation

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["UNLIMITED", "GlobalLimit"]

#: More than there can be connections.
UNLIMITED = 1 << 62
_COMMAND_LINE = SourceLocation("the command line")


class _Door(Protocol):
    @property
    def full(self) -> bool:
        """Whether nobody can come in now, whoever it is."""
        ...


class GlobalLimit:
    """All connections of the daemon, and who waits until there is room for one more.

    They are people, not descriptors: a connection that was handed to a process costs the daemon none.

    Args:
        most: the global limit; None for none.

    Attributes:
        open: the connections that are let in.
        limit: how many may be.
        most: the same; None for no limit.
        refusal: for whoever comes at the limit.
    """

    __slots__ = ("_waiting", "limit", "most", "open", "refusal")

    def __init__(self, most: int | None = None) -> None:
        self.open = 0
        self._waiting: dict[_Door, Callable[[], None]] = {}
        self.retune(most)

    def retune(self, most: int | None = None) -> None:
        """Take another limit, as the constructor does; those who wait go on if there is room now."""
        self.most = most
        self.limit = UNLIMITED if most is None else most
        rule = AccessRule(f"--max-connections {'none' if most is None else most}", _COMMAND_LINE)
        self.refusal = Refusal(RefusalReason.GLOBAL, f"{most} connections are open in all", rule)
        self._wake(list(self._waiting))

    def wait(self, admission: _Door, go_on: Callable[[], None] | None) -> None:
        """Call `go_on` once as soon as a door is not full, perhaps at once; None to wait no longer."""
        if go_on is None:
            self._waiting.pop(admission, None)
        else:
            self._waiting[admission] = go_on
            self._wake([admission])

    def look(self, admission: _Door) -> None:
        """A door's own limit may have risen."""
        self._wake([admission])

    def leave(self, admission: _Door) -> None:
        """A connection that came by a door is gone."""
        self.open -= 1
        if self._waiting:
            # Room in the hall is room for everybody, room behind a door for those before it.
            self._wake(list(self._waiting) if self.open + 1 >= self.limit else [admission])

    def _wake(self, admissions: list[_Door]) -> None:
        for admission in admissions:
            if admission in self._waiting and not admission.full:
                self._waiting.pop(admission)()
