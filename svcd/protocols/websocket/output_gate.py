"""OutputGate: the producer of a transport for a protocol that writes itself and passes on the output of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OutputGate"]


@implementer(IPushProducer)
class OutputGate:
    """Producer that tells a protocol when its transport has too much output.

    Args:
        output_full: called with whether the transport has too much output.
    """

    __slots__ = ("_output_full",)

    def __init__(self, output_full: Callable[[bool], None]) -> None:
        self._output_full = output_full

    def pauseProducing(self) -> None:
        """Handle that the transport has too much output."""
        self._output_full(True)

    def resumeProducing(self) -> None:
        """Handle that the transport takes output again."""
        self._output_full(False)

    def stopProducing(self) -> None:
        """Do nothing: connectionLost() follows."""
