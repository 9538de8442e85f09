"""Quote of the day (RFC 865): a short message, chosen at random."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from svcd.protocols.base import OneShotDatagramProtocol, OneShotFactory, OneShotProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IReactorTime

__all__ = ["QotdDatagrams", "QotdFactory", "QotdProtocol"]

# The choice protects no secret, so a predictable generator suffices.
_pick: Callable[[Sequence[bytes]], bytes] = random.choice


class QotdProtocol(OneShotProtocol):
    """A protocol that sends a quotation and closes the connection."""


class QotdFactory(OneShotFactory):
    """A factory of QotdProtocols.

    Args:
        quotes: the quotations, as they are sent; not empty.
        clock: the reactor.
        pick: chooses a quotation.
    """

    protocol = QotdProtocol

    def __init__(
        self, quotes: Sequence[bytes], clock: IReactorTime, pick: Callable[[Sequence[bytes]], bytes] = _pick
    ) -> None:
        super().__init__(lambda: pick(quotes), clock)


class QotdDatagrams(OneShotDatagramProtocol):
    """A datagram protocol that answers each datagram with a quotation."""

    def __init__(self, quotes: Sequence[bytes], pick: Callable[[Sequence[bytes]], bytes] = _pick) -> None:
        super().__init__(lambda: pick(quotes))
