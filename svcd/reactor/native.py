"""Interface of the reactor for transports and ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["NativeReactor"]


class NativeReactor(Protocol):
    """Reactor on a uvloop loop.

    Attributes:
        loop: the loop.
        natives: the connections and UDP ports that uvloop serves, as keys of a dict, which is three times as fast as a
            set.
    """

    loop: AbstractEventLoop
    natives: dict[Any, None]

    def addReader(self, reader: Any) -> None:  # noqa: ANN401 - an IReadDescriptor
        """Watch a descriptor for input."""

    def removeReader(self, reader: Any) -> None:  # noqa: ANN401 - an IReadDescriptor
        """Stop watching a descriptor."""
