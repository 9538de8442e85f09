"""The time of reactors does not step."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from svcd.net.monotonic import seconds
from tests.real.daemon import PATIENCE, environment

#: Two timed calls, one from before the wall clock stands still, and so does whatever Twisted has as time.
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


def test_it_looks_like_a_date() -> None:
    """Programs that take a reactor's seconds for a date are right as long as the wall clock does not step."""
    assert abs(seconds() - time.time()) < 60


@pytest.mark.parametrize(
    ("module", "patched"),
    [("svcd.reactor", False), ("twisted.internet.epollreactor", True), ("twisted.internet.asyncioreactor", True)],
)
def test_a_timer_does_not_wait_for_the_wall_clock(module: str, patched: bool) -> None:
    """A timed call is made in time on each reactor, whatever the wall clock does."""
    words = [sys.executable, "-c", STEP.format(module=module, patched=patched)]
    subprocess.run(words, env=environment(), check=True, timeout=PATIENCE)
