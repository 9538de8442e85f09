"""The budget of descriptors: shares, resting without room, giving way, and going on."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from svcd.connections.descriptor_budget import RELIEF_SECONDS, RETRY_SECONDS, SLACK, DescriptorBudget, Share
from tests.doubles import LogCatcher


class _Listener:
    """Rests and goes on as it is told, and counts."""

    def __init__(self, share: Share) -> None:
        self.resting = False
        self.resumed = 0
        self.leave = share.listen(self.pause, self.resume)

    def pause(self) -> None:
        """Rest."""
        self.resting = True

    def resume(self) -> None:
        """Go on."""
        self.resting = False
        self.resumed += 1


class _Services:
    """Services with a listener each, on one budget."""

    def __init__(self, limit: int, *names: str) -> None:
        self.clock = Clock()
        self.budget = DescriptorBudget(limit, self.clock)
        self.shares = [self.budget.share(name) for name in names]
        self.listeners = [_Listener(share) for share in self.shares]
        self.clock.advance(0)

    def fill(self, share: Share) -> int:
        """Let a service accept as long as it has room; how many connections that were."""
        count = 0
        while share.room():
            for _ in range(share.cost):
                share.acquire()
            count += 1
        return count

    @property
    def resting(self) -> list[bool]:
        """Whose listeners rest."""
        return [listener.resting for listener in self.listeners]

    def wait(self) -> None:
        """Let them look again."""
        self.clock.advance(RETRY_SECONDS)


def test_a_service_alone_may_have_all() -> None:
    """The guaranteed part and the common one of a single service are the whole budget."""
    services = _Services(100, "a")
    assert services.fill(services.shares[0]) == 100
    assert services.resting == [True]
    assert services.shares[0].paused


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_a_greedy_service_leaves_the_others_their_part(count: int) -> None:
    """When one has taken all it can get, each of the others still can accept, and none gets beyond the limit."""
    services = _Services(200, *map(str, range(count)))
    greedy, *others = services.shares
    services.fill(greedy)
    assert services.resting == [True] + [False] * len(others)
    part = min(128, 100 // count)
    assert [services.fill(share) for share in others] == [part] * len(others)
    assert services.budget.open <= services.budget.limit == 200


def test_no_service_is_guaranteed_more_than_it_is_likely_to_need() -> None:
    """With many descriptors nearly all are common."""
    services = _Services(10_000, "a", "b")
    assert [share.guaranteed for share in services.shares] == [128, 128]
    assert services.fill(services.shares[0]) == 10_000 - 128


@pytest.mark.parametrize(("cost", "left"), [(1, 0), (2, 1), (3, 2)])
def test_a_connection_is_accepted_with_all_that_it_takes(cost: int, left: int) -> None:
    """Where a connection takes several descriptors there is no room with one less."""
    services = _Services(11 + left, "a")
    services.shares[0].cost = cost
    for _ in range(11):
        services.shares[0].acquire()
    assert services.shares[0].available == 0
    services.shares[0].release()
    assert services.shares[0].available == 1


def test_what_belongs_to_no_service_is_taken_from_the_common_part() -> None:
    """Refused clients and those whose service is not known cost no service its guaranteed part."""
    services = _Services(100, "a", "b")
    while not services.budget.full:
        services.budget.acquire()
    assert [services.fill(share) for share in services.shares] == [25, 25]
    assert services.budget.open == 100


def test_what_is_held_is_nobody_elses() -> None:
    """Listening sockets and launchers make the budget smaller as long as they are there."""
    services = _Services(100, "a")
    services.budget.hold(20)
    services.clock.advance(0)
    assert services.fill(services.shares[0]) == 80
    services.budget.hold(-20)
    services.clock.advance(0)
    services.wait()
    assert services.fill(services.shares[0]) == 20


def test_services_come_and_go() -> None:
    """The parts are divided anew when a service gets its first listener and when one loses its last."""
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
    # Nobody is sent away for it: it comes when somebody leaves.
    assert second.room() == 25
    assert not again.resting
    assert services.budget.common_open == 75


def test_they_go_on_when_descriptors_are_free() -> None:
    """After a connection ended, the next look lets the service accept again."""
    services = _Services(2, "a")
    services.fill(services.shares[0])
    services.shares[0].release()
    assert services.resting == [True]
    assert services.shares[0].room() == 0
    services.wait()
    assert services.resting == [False]
    assert services.shares[0].room() == 1
    assert not services.shares[0].paused


def test_at_the_limit_nothing_spins() -> None:
    """While there is no room, there is one look for each interval, and listeners stay at rest."""
    services = _Services(2, "a", "b")
    for share in services.shares:
        services.fill(share)
    for _ in range(50):
        (call,) = services.clock.getDelayedCalls()
        assert call.getTime() == pytest.approx(services.clock.seconds() + RETRY_SECONDS)
        services.wait()
    assert [listener.resumed for listener in services.listeners] == [0, 0]


def test_connections_that_come_and_go_at_the_limit_cost_one_round_an_interval() -> None:
    """However often the limit is reached, listeners go on at most once an interval."""
    services = _Services(2, "a")
    (share,) = services.shares
    services.fill(share)
    for _ in range(100):
        share.release()
        services.wait()
        services.fill(share)
    assert services.listeners[0].resumed == 100


def test_the_system_may_say_that_it_is_short() -> None:
    """EMFILE below the limit makes everyone rest for one interval."""
    services = _Services(10, "a", "b")
    services.budget.pause_all()
    services.budget.pause_all()
    assert services.resting == [True, True]
    assert len(services.clock.getDelayedCalls()) == 1
    services.wait()
    assert services.resting == [False, False]


def test_a_listener_that_joins_at_the_limit_rests() -> None:
    """It goes on with the others of its service."""
    services = _Services(2, "a")
    services.fill(services.shares[0])
    listener = _Listener(services.shares[0])
    assert listener.resting
    services.shares[0].release()
    services.wait()
    assert not listener.resting


def test_a_listener_that_left_is_not_woken() -> None:
    """A port that is closed stays closed."""
    services = _Services(2, "a")
    services.fill(services.shares[0])
    services.listeners[0].leave()
    services.shares[0].release()
    services.wait()
    assert services.listeners[0].resumed == 0


def test_it_is_told_once_until_it_is_over() -> None:
    """Many short rounds at the limit are one pause and one resume in the log."""
    with LogCatcher() as log:
        services = _Services(2, "a")
        (share,) = services.shares
        services.fill(share)
        for _ in range(10):
            share.release()
            services.wait()
            services.fill(share)
        assert (len(log.named("pause")), len(log.named("resume"))) == (1, 0)
        # Nor are rounds with a short rest between them.
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


# Connections that give way.


class _Idle:
    """Connections that can be closed; each leaves in the reactor's next turn."""

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


def test_connections_give_way_to_new_ones() -> None:
    """A service without room closes a few connections of its own, and accepts again as soon as they are gone."""
    services = _Services(100, "a", "b")
    share = services.shares[0]
    services.fill(share)
    idle = _Idle(services, share, 10)
    services.wait()
    assert idle.count == 6
    services.clock.advance(0)
    services.clock.advance(0)
    assert services.resting == [False, False]
    assert services.fill(share) == 4


def test_who_has_more_than_its_part_gives_way_to_others() -> None:
    """A service that has none to close gets room from the one that has most beyond its guaranteed part."""
    services = _Services(100, "a", "b", "c")
    first, second, third = services.shares
    for _ in range(30):
        first.acquire()
    for _ in range(40):
        second.acquire()
    idle = [_Idle(services, first, 30), _Idle(services, second, 40)]
    services.fill(third)
    assert [each.count for each in idle] == [30, 36]


def test_nobody_gives_way_within_its_guaranteed_part() -> None:
    """What is guaranteed to a service is not taken from it."""
    services = _Services(100, "a", "b")
    first, second = services.shares
    for _ in range(25):
        first.acquire()
    idle = _Idle(services, first, 25)
    services.fill(second)
    assert idle.count == 25


def test_connections_that_do_not_leave_cost_no_more_than_a_few() -> None:
    """While those that were told to go are not gone, no others are told, until the next look."""
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


def test_a_descriptor_more_for_a_connection() -> None:
    """A file gets one while there is room; then as many as connections give way for, within the slack."""
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
