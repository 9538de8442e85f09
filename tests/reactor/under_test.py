"""The reactor as Twisted's ReactorBuilder wants it: made afresh for each test, and its loop closed after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.reactor.core import UvReactor as Reactor

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase

__all__ = ["UvReactor"]


def UvReactor(case: SynchronousTestCase) -> Reactor:
    """A new reactor for one test."""
    reactor = Reactor()
    case.addCleanup(reactor.loop.close)
    return reactor
