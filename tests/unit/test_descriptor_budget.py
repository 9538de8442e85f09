"""DescriptorBudget: shares, pausing and resuming of listeners, and eviction."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from svcd.connections.descriptor_budget import RELIEF_SECONDS, RETRY_SECONDS, SLACK, DescriptorBudget, Share
from tests.doubles import LogCatcher


class _Listener:
    """Listener that records pauses and counts resumes."""

    def __init__(self, share: Share) -> None:
        self.paused = False
        self.resumed = 0
        self.leave = share.listen(self.pause, self.resume)

    def pause(self) -> None:
        """Record the call."""
        self.paused = True

    def resume(self) -> None:
        """Record the call."""
        self.paused = False
        self.resumed += 1


class _Services:
    """Services with one listener each, on one budget."""

    def __init__(self, limit: int, *names: str) -> None:
        self.clock = Clock()
        self.budget = DescriptorBudget(limit, self.clock)
        self.shares = [self.budget.share(name) for name in names]
        self.listeners = [_Listener(share) for share in self.shares]
        self.clock.advance(0)

    def fill(self, share: Share) -> int:
        """Accept connections of a service as long as it has room; return their number."""
        count = 0
        while share.room():
            for _ in range(share.cost):
                share.acquire()
            count += 1
        return count

    @property
    def paused(self) -> list[bool]:
        """Whether the listener of each service is paused."""
        return [listener.paused for listener in self.listeners]

    def wait(self) -> None:
        """Advance the clock to the next retry."""
        self.clock.advance(RETRY_SECONDS)


def test_single_service_may_use_the_whole_budget() -> None:
    """The guaranteed part and the common one of a single service are the whole budget."""
    services = _Services(100, "a")
    assert services.fill(services.shares[0]) == 100
    assert services.paused == [True]
    assert services.shares[0].paused


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_guaranteed_parts_stay_available(count: int) -> None:
    """When one service has used all it can get, each of the others can use its part, and no limit is exceeded."""
    services = _Services(200, *map(str, range(count)))
    greedy, *others = services.shares
    services.fill(greedy)
    assert services.paused == [True] + [False] * len(others)
    part = min(128, 100 // count)
    assert [services.fill(share) for share in others] == [part] * len(others)
    assert services.budget.open <= services.budget.limit == 200


def test_guaranteed_part_has_a_maximum() -> None:
    """With many descriptors most of them are common."""
    services = _Services(10_000, "a", "b")
    assert [share.guaranteed for share in services.shares] == [128, 128]
    assert services.fill(services.shares[0]) == 10_000 - 128


@pytest.mark.parametrize(("cost", "left"), [(1, 0), (2, 1), (3, 2)])
def test_connection_is_accepted_only_with_all_its_descriptors(cost: int, left: int) -> None:
    """If a connection takes several descriptors, one descriptor less means no room."""
    services = _Services(11 + left, "a")
    services.shares[0].cost = cost
    for _ in range(11):
        services.shares[0].acquire()
    assert services.shares[0].available == 0
    services.shares[0].release()
    assert services.shares[0].available == 1


def test_descriptors_of_no_service_are_common() -> None:
    """Refused clients and those without a known service take no descriptor of a guaranteed part."""
    services = _Services(100, "a", "b")
    while not services.budget.full:
        services.budget.acquire()
    assert [services.fill(share) for share in services.shares] == [25, 25]
    assert services.budget.open == 100


def test_held_descriptors_reduce_the_budget() -> None:
    """hold() makes the budget smaller until the descriptors are returned."""
    services = _Services(100, "a")
    services.budget.hold(20)
    services.clock.advance(0)
    assert services.fill(services.shares[0]) == 80
    services.budget.hold(-20)
    services.clock.advance(0)
    services.wait()
    assert services.fill(services.shares[0]) == 20


def test_budget_is_divided_again() -> None:
    """The parts are divided again when a service gets its first listener or loses its last one."""
    services = _Services(100, "a", "b")
    first, second = services.shares
    services.fill(first)
    services.listeners[1].leave()
    services.listeners[1].leave()
    services.clock.advance(0)
    assert second.guaranteed == 0
    services.wait()
    services.fill(first)
    assert first.open == 100
    again = _Listener(second)
    services.clock.advance(0)
    # No connection is closed for the new part: `first` keeps its descriptors until its connections end.
    assert second.room() == 25
    assert not again.paused
    assert services.budget.common_open == 75


def test_listeners_resume_when_descriptors_are_free() -> None:
    """After the end of a connection the next retry resumes the listeners of the service."""
    services = _Services(2, "a")
    services.fill(services.shares[0])
    services.shares[0].release()
    assert services.paused == [True]
    assert services.shares[0].room() == 0
    services.wait()
    assert services.paused == [False]
    assert services.shares[0].room() == 1
    assert not services.shares[0].paused


def test_one_retry_for_each_interval_at_the_limit() -> None:
    """Without room there is one retry for each interval, and listeners stay paused."""
    services = _Services(2, "a", "b")
    for share in services.shares:
        services.fill(share)
    for _ in range(50):
        (call,) = services.clock.getDelayedCalls()
        assert call.getTime() == pytest.approx(services.clock.seconds() + RETRY_SECONDS)
        services.wait()
    assert [listener.resumed for listener in services.listeners] == [0, 0]


def test_one_resume_for_each_interval_at_the_limit() -> None:
    """Listeners resume at most once in each interval, however often the limit is reached."""
    services = _Services(2, "a")
    (share,) = services.shares
    services.fill(share)
    for _ in range(100):
        share.release()
        services.wait()
        services.fill(share)
    assert services.listeners[0].resumed == 100


def test_pause_all() -> None:
    """pause_all(), called after EMFILE below the limit, pauses all listeners for one interval."""
    services = _Services(10, "a", "b")
    services.budget.pause_all()
    services.budget.pause_all()
    assert services.paused == [True, True]
    assert len(services.clock.getDelayedCalls()) == 1
    services.wait()
    assert services.paused == [False, False]


def test_listener_added_at_the_limit_is_paused() -> None:
    """It resumes with the other listeners of its service."""
    services = _Services(2, "a")
    services.fill(services.shares[0])
    listener = _Listener(services.shares[0])
    assert listener.paused
    services.shares[0].release()
    services.wait()
    assert not listener.paused


def test_removed_listener_is_not_resumed() -> None:
    """The resume function of a removed listener is not called."""
    services = _Services(2, "a")
    services.fill(services.shares[0])
    services.listeners[0].leave()
    services.shares[0].release()
    services.wait()
    assert services.listeners[0].resumed == 0


def test_pauses_are_logged_once() -> None:
    """Many short pauses at the limit are logged as one pause and one resume."""
    with LogCatcher() as log:
        services = _Services(2, "a")
        (share,) = services.shares
        services.fill(share)
        for _ in range(10):
            share.release()
            services.wait()
            services.fill(share)
        assert (len(log.named("pause")), len(log.named("resume"))) == (1, 0)
        # The same with short times without a pause between them.
        for _ in range(10):
            share.release()
            services.wait()
            services.clock.advance(RELIEF_SECONDS / 2)
            services.fill(share)
        assert (len(log.named("pause")), len(log.named("resume"))) == (1, 0)
        share.release()
        services.wait()
        services.clock.advance(RELIEF_SECONDS)
        assert (len(log.named("pause")), len(log.named("resume"))) == (1, 1)
        services.fill(share)
        assert (len(log.named("pause")), len(log.named("resume"))) == (2, 1)
    first = log.named("pause")[0]
    assert (first["reason"], first["connections"], first["limit"], first["service"]) == ("descriptors", 2, 2, "a")


# Eviction


class _Idle:
    """Idle connections that can be evicted; each is closed in the next turn of the reactor."""

    def __init__(self, services: _Services, share: Share, count: int) -> None:
        self.count = count
        self.stuck = False
        self._services = services
        self._share = share
        share.evict_by(self._evict)

    def _evict(self) -> bool:
        if not self.count:
            return False
        self.count -= 1
        if not self.stuck:
            self._services.clock.callLater(0, self._share.release)
        return True


def test_idle_connections_are_evicted() -> None:
    """A service without room evicts a few of its own connections, and accepts again once they are closed."""
    services = _Services(100, "a", "b")
    share = services.shares[0]
    services.fill(share)
    idle = _Idle(services, share, 10)
    services.wait()
    assert idle.count == 6
    services.clock.advance(0)
    services.clock.advance(0)
    assert services.paused == [False, False]
    assert services.fill(share) == 4


def test_eviction_in_another_service() -> None:
    """For a service without such connections those of the service furthest over its part are evicted."""
    services = _Services(100, "a", "b", "c")
    first, second, third = services.shares
    for _ in range(30):
        first.acquire()
    for _ in range(40):
        second.acquire()
    idle = [_Idle(services, first, 30), _Idle(services, second, 40)]
    services.fill(third)
    assert [each.count for each in idle] == [30, 36]


def test_no_eviction_within_the_guaranteed_part() -> None:
    """Connections within the guaranteed part of a service are not evicted for another service."""
    services = _Services(100, "a", "b")
    first, second = services.shares
    for _ in range(25):
        first.acquire()
    idle = _Idle(services, first, 25)
    services.fill(second)
    assert idle.count == 25


def test_eviction_waits_for_the_close_of_connections() -> None:
    """While evicted connections are not closed, no others are evicted until the next retry."""
    services = _Services(100, "a")
    share = services.shares[0]
    idle = _Idle(services, share, 50)
    idle.stuck = True
    services.fill(share)
    assert idle.count == 46
    for _ in range(10):
        services.clock.advance(0)
    assert idle.count == 46
    services.wait()
    assert idle.count == 42


def test_try_acquire() -> None:
    """try_acquire() succeeds while there is room, and then for each evicted connection, within SLACK."""
    services = _Services(100, "a", "b")
    share = services.shares[0]
    assert share.try_acquire()
    services.fill(share)
    assert not share.try_acquire()
    idle = _Idle(services, share, 200)
    idle.stuck = True
    count = 0
    while share.try_acquire():
        count += 1
    assert count == SLACK
    assert idle.count == 200 - SLACK
    assert share.crowded
