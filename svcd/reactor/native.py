"""The part of the reactor that transports and ports use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["NativeReactor"]


class NativeReactor(Protocol):
    """A reactor on a uvloop loop.

    Attributes:
        loop: the loop.
        natives: connections and UDP ports that uvloop serves; keys of a dict, which costs a third of what a set does.
    """

    loop: AbstractEventLoop
    natives: dict[Any, None]

    def addReader(self, reader: Any) -> None:  # noqa: ANN401 - an IReadDescriptor
        """Watch a descriptor for input."""

    def removeReader(self, reader: Any) -> None:  # noqa: ANN401 - an IReadDescriptor
        """Stop watching a descriptor."""
