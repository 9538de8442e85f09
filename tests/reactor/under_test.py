"""The reactor for Twisted's ReactorBuilder: a new one for each test, whose loop is closed afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.reactor.core import UvReactor as Reactor

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase

__all__ = ["UvReactor"]


def UvReactor(case: SynchronousTestCase) -> Reactor:
    """Return a new reactor for a test."""
    reactor = Reactor()
    case.addCleanup(reactor.loop.close)
    return reactor
