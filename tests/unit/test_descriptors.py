"""The budget of descriptors: resting at the limit, and going on."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from svcd.transport.descriptors import RETRY_SECONDS, DescriptorBudget
from tests.doubles import LogCatcher


class _Listener:
    """Rests and goes on as it is told, and counts."""

    def __init__(self, budget: DescriptorBudget) -> None:
        self.resting = False
        self.resumed = 0
        self.leave = budget.listen(self.pause, self.resume)

    def pause(self) -> None:
        """Rest."""
        self.resting = True

    def resume(self) -> None:
        """Go on."""
        self.resting = False
        self.resumed += 1


@pytest.fixture
def clock() -> Clock:
    """The reactor's time."""
    return Clock()


def _full(clock: Clock, limit: int = 2) -> DescriptorBudget:
    budget = DescriptorBudget(limit, clock)
    for _ in range(limit):
        budget.acquire()
    return budget


def test_all_listeners_rest_at_the_limit(clock: Clock) -> None:
    """The connection that reaches the limit makes every service rest; below it none does."""
    budget = DescriptorBudget(2, clock)
    listeners = [_Listener(budget), _Listener(budget)]
    budget.acquire()
    assert not any(listener.resting for listener in listeners)
    budget.acquire()
    assert all(listener.resting for listener in listeners)
    assert budget.exhausted


def test_they_go_on_when_descriptors_are_free(clock: Clock) -> None:
    """After a connection ended, the next look lets everyone accept again."""
    budget = _full(clock)
    listener = _Listener(budget)
    budget.release()
    assert listener.resting
    clock.advance(RETRY_SECONDS)
    assert not listener.resting
    assert not budget.exhausted


def test_at_the_limit_nothing_spins(clock: Clock) -> None:
    """While the limit holds, there is one look for each interval, and listeners stay at rest."""
    budget = _full(clock)
    listener = _Listener(budget)
    for _ in range(50):
        assert len(clock.getDelayedCalls()) == 1
        assert clock.getDelayedCalls()[0].getTime() == pytest.approx(clock.seconds() + RETRY_SECONDS)
        clock.advance(RETRY_SECONDS)
    assert listener.resumed == 0


def test_connections_that_come_and_go_at_the_limit_cost_one_round_an_interval(clock: Clock) -> None:
    """However often the limit is reached, listeners go on at most once an interval."""
    budget = _full(clock)
    listener = _Listener(budget)
    for _ in range(100):
        budget.release()
        clock.advance(RETRY_SECONDS)
        budget.acquire()
        budget.rest()
    assert listener.resumed == 100


def test_the_system_may_say_that_it_is_short(clock: Clock) -> None:
    """EMFILE below the limit makes everyone rest for one interval."""
    budget = DescriptorBudget(10, clock)
    listener = _Listener(budget)
    budget.rest()
    budget.rest()
    assert listener.resting
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(RETRY_SECONDS)
    assert not listener.resting


def test_a_listener_that_joins_at_the_limit_rests(clock: Clock) -> None:
    """It goes on with the others."""
    budget = _full(clock)
    listener = _Listener(budget)
    assert listener.resting
    budget.release()
    clock.advance(RETRY_SECONDS)
    assert not listener.resting


def test_a_listener_that_left_is_not_woken(clock: Clock) -> None:
    """A port that is closed stays closed; leaving twice is no mistake."""
    budget = _full(clock)
    listener = _Listener(budget)
    listener.leave()
    listener.leave()
    budget.release()
    clock.advance(RETRY_SECONDS)
    assert listener.resumed == 0


def test_it_is_told_once_until_it_is_over(clock: Clock) -> None:
    """Many short rounds at the limit are one pause and one resume in the log."""
    with LogCatcher() as log:
        budget = _full(clock)
        for _ in range(10):
            budget.release()
            clock.advance(RETRY_SECONDS)
            budget.acquire()
        assert (len(log.named("pause")), len(log.named("resume"))) == (1, 0)
        budget.release()
        clock.advance(RETRY_SECONDS)
        clock.advance(RETRY_SECONDS)
        assert (len(log.named("pause")), len(log.named("resume"))) == (1, 1)
        budget.acquire()
        assert (len(log.named("pause")), len(log.named("resume"))) == (2, 1)
    first = log.named("pause")[0]
    assert (first["reason"], first["connections"], first["limit"]) == ("descriptors", 2, 2)
