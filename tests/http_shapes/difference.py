"""A difference between svcd and another server, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Difference", "Peer"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that is meant.

    Attributes:
        reason: the reason.
        outcomes: what a client sees of the other server, by shape; tests/real/test_http_differential.py has the form.
    """

    reason: str
    outcomes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server.

    Attributes:
        version: its version of which the outcomes are.
        differences: its differences from svcd.
    """

    version: str
    differences: tuple[Difference, ...]

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcomes that differ, by shape."""
        return {shape: text for each in self.differences for shape, text in each.outcomes.items()}
