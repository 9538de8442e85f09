"""Quote of the day (RFC 865): one short message, picked at random."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from svcd.protocols.base import OneShotDatagramProtocol, OneShotFactory, OneShotProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IReactorTime

__all__ = ["QotdDatagrams", "QotdFactory", "QotdProtocol"]

# Whose quotation it is matters to nobody: no secret hangs on the choice.
_pick: Callable[[Sequence[bytes]], bytes] = random.choice


class QotdProtocol(OneShotProtocol):
    """Says a quotation and closes."""


class QotdFactory(OneShotFactory):
    """Makes QotdProtocols.

    Args:
        quotes: what to pick from, each as it goes to the client; not empty.
        clock: the reactor.
        pick: chooses one.
    """

    protocol = QotdProtocol

    def __init__(
        self, quotes: Sequence[bytes], clock: IReactorTime, pick: Callable[[Sequence[bytes]], bytes] = _pick
    ) -> None:
        super().__init__(lambda: pick(quotes), clock)


class QotdDatagrams(OneShotDatagramProtocol):
    """Answers each datagram by a quotation."""

    def __init__(self, quotes: Sequence[bytes], pick: Callable[[Sequence[bytes]], bytes] = _pick) -> None:
        super().__init__(lambda: pick(quotes))
