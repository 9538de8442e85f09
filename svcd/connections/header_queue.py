"""The lobby: where connections of proxies wait for their headers, all of the daemon together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.interfaces import FdReactor

__all__ = ["HeaderQueue"]

#: How many connections may wait, and the share of the daemon's descriptors.
_MOST = 1024
_SHARE = 4


class _Waiting(Protocol):
    def refuse(self, text: str, /) -> None:
        """Leave, and be closed."""


class HeaderQueue:
    """All connections that wait for their headers.

    They are bounded, so that proxies that say nothing take no room from the services. Where there are too many the one
    that has waited longest has to go: the header of a proxy in order is not late.

    Args:
        reactor: watches descriptors and time.
        budget: counts them, since each has a descriptor.

    Attributes:
        reactor: as given.
        most: how many there may be.
    """

    def __init__(self, reactor: FdReactor, budget: DescriptorBudget) -> None:
        self.reactor = reactor
        self.most = max(1, min(_MOST, budget.limit // _SHARE))
        self._budget = budget
        self._waiting: dict[_Waiting, None] = {}

    def enter(self, who: _Waiting) -> None:
        """One more."""
        if self._waiting and (len(self._waiting) >= self.most or self._budget.full):
            next(iter(self._waiting)).refuse("too many connections wait for theirs")
        self._waiting[who] = None
        self._budget.acquire()

    def leave(self, who: _Waiting) -> None:
        """One less."""
        del self._waiting[who]
        self._budget.release()
