"""Reactors use monotonic time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from svcd.net.monotonic import seconds
from tests.real.daemon import PATIENCE, environment

#: A program with two timed calls: one is made before the wall clock and Twisted's time stop, one after it.
STEP = """
import time
from {module} import install
install()
from twisted.internet import base, reactor
calls = []
reactor.callLater(0.01, calls.append, 1)
if {patched}:
    from svcd.net.monotonic import use_monotonic_time
    use_monotonic_time(reactor)
base.ReactorBase.seconds = staticmethod(lambda: 0.0)
time.time = lambda: 0.0
reactor.callLater(0.02, reactor.stop)
reactor.run()
assert calls == [1]
"""


def test_the_time_is_close_to_the_wall_clock() -> None:
    """seconds() is close to the wall clock, for programs that take a reactor's seconds for a date."""
    assert abs(seconds() - time.time()) < 60


@pytest.mark.parametrize(
    ("module", "patched"),
    [("svcd.reactor", False), ("twisted.internet.epollreactor", True), ("twisted.internet.asyncioreactor", True)],
)
def test_a_timer_does_not_use_the_wall_clock(module: str, patched: bool) -> None:
    """A timed call is made in time on each reactor while the wall clock stands still."""
    words = [sys.executable, "-c", STEP.format(module=module, patched=patched)]
    subprocess.run(words, env=environment(), check=True, timeout=PATIENCE)
