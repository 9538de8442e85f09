"""The door: tickets, refusals and counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.admission import Admission, ConnectionSlot
from svcd.access.global_limit import GlobalLimit
from svcd.access.refusals import Refusal, RefusalReason
from svcd.access.rules import AccessRules
from svcd.access.types import PrefixLengths, Rate
from svcd.config.access_types import HOURS, SOURCES
from svcd.model import SourceLocation

if TYPE_CHECKING:
    from collections.abc import Callable

NOON = 43_200.0


def _door(rules: AccessRules, hall: GlobalLimit | None = None, *, wall: float = NOON, load: float = 0.5) -> Admission:
    return Admission(rules, hall or GlobalLimit(), wall=lambda: wall, load=lambda: load)


def _let_in(door: Admission, peer: str = "192.0.2.1", now: float = 0.0) -> ConnectionSlot:
    found = door.admit(peer, now)
    assert isinstance(found, ConnectionSlot), found
    return found


def _refused(door: Admission, peer: str = "192.0.2.1", now: float = 0.0) -> Refusal:
    found = door.admit(peer, now)
    assert isinstance(found, Refusal)
    return found


def _reason(door: Admission, peer: str = "192.0.2.1", now: float = 0.0) -> RefusalReason:
    return _refused(door, peer, now).reason


def test_without_rules_everybody_comes_in() -> None:
    """Peers without an address too; all are counted."""
    hall = GlobalLimit()
    door = _door(AccessRules(), hall)
    tickets = [_let_in(door, peer) for peer in ("192.0.2.1", "::1", "", "192.0.2.1")]
    assert (door.open, hall.open, door.full) == (4, 4, False)
    for ticket in tickets:
        assert not ticket.needs_host_name
        ticket.release()
    assert (door.open, hall.open) == (0, 0)


def test_a_ticket_is_released_once() -> None:
    """A second release changes nothing: connections may end in two ways at a time."""
    hall = GlobalLimit()
    door = _door(AccessRules(per_source=2), hall)
    first, second = _let_in(door), _let_in(door)
    first.release()
    first.release()
    assert (door.open, hall.open, door.open_from("192.0.2.1")) == (1, 1, 1)
    second.release()
    assert (door.open, hall.open, door.open_from("192.0.2.1")) == (0, 0, 0)


_STRICT = AccessRules(
    only_from=SOURCES.read("192.0.2.0/24"),
    access_times=HOURS.read("8:00-18:00"),
    zone=UTC,
    max_load=2.0,
    instances=2,
    per_source=1,
    rate=Rate(3, 1),
    per_source_rate=Rate(1, 1),
    places={"instances": SourceLocation("services", 7, 40)},
)


@pytest.mark.parametrize(
    ("peer", "wall", "load", "reason"),
    [
        ("198.51.100.1", 0.0, 9.0, RefusalReason.ADDRESS),
        ("192.0.2.1", 0.0, 9.0, RefusalReason.TIME),
        ("192.0.2.1", NOON, 2.0, RefusalReason.LOAD),
        ("192.0.2.1", NOON, 1.9, RefusalReason.GLOBAL),
    ],
)
def test_what_is_asked_comes_in_order(peer: str, wall: float, load: float, reason: RefusalReason) -> None:
    """Address, time, load, then the daemon's limit: the first that refuses is told."""
    assert _reason(_door(_STRICT, GlobalLimit(most=0), wall=wall, load=load), peer) is reason


def test_limits_and_rates_in_order() -> None:
    """A service's own limit goes before a source's, that before the rates."""
    door = _door(_STRICT)
    one = _let_in(door, "192.0.2.1")
    assert _reason(door, "192.0.2.1") is RefusalReason.PER_SOURCE
    two = _let_in(door, "192.0.2.2")
    assert _reason(door, "192.0.2.1") is RefusalReason.INSTANCES
    one.release()
    assert _reason(door, "192.0.2.1") is RefusalReason.PER_SOURCE_RATE
    two.release()
    _let_in(door, "192.0.2.3").release()
    assert _reason(door, "192.0.2.4") is RefusalReason.RATE
    _let_in(door, "192.0.2.4", now=0.5)


def test_who_is_refused_by_a_limit_takes_no_token() -> None:
    """However often he tries."""
    door = _door(AccessRules(instances=1, rate=Rate(2, 60)))
    ticket = _let_in(door)
    assert {_reason(door) for _ in range(10)} == {RefusalReason.INSTANCES}
    ticket.release()
    _let_in(door)


def test_a_refusal_names_its_rule_and_place() -> None:
    """The option as it would be written, and where it stands; a default stands nowhere."""
    rules = replace(_STRICT, instances=1)
    door = _door(rules)
    _let_in(door)
    refusal = _refused(door, "192.0.2.2")
    assert (refusal.text, str(refusal.rule)) == ("1 connections are open", "instances=1 (services:7:40)")
    refusal = _refused(_door(rules, wall=0.0))
    assert str(refusal.rule) == "access_times=8:00-18:00 (the default)"


def test_a_prefix_counts_as_one_source() -> None:
    """A /24 or a /64; an IPv4-mapped client counts as its IPv4 address."""
    door = _door(AccessRules(per_source=1, per_source_prefix=PrefixLengths(24, 64)))
    for one, other in (("192.0.2.1", "::ffff:192.0.2.9"), ("fd00::1", "fd00::ffff:0:0:9%eth0")):
        ticket = _let_in(door, one)
        assert _reason(door, other) is RefusalReason.PER_SOURCE
        assert door.open_from(other) == 1
        ticket.release()
        _let_in(door, other)


def test_the_daemons_limit_holds_for_all_services() -> None:
    """Whichever they come by; a reload may change it."""
    hall = GlobalLimit(2)
    one, other = _door(AccessRules(), hall), _door(AccessRules(instances=9), hall)
    tickets = [_let_in(one), _let_in(other)]
    assert [_reason(one), _reason(other)] == [RefusalReason.GLOBAL] * 2
    assert one.full
    assert str(hall.refusal.rule) == "--max-connections 2 (the command line)"
    hall.retune()
    tickets.append(_let_in(one))
    assert hall.open == 3


class TestNames:
    """A name that may have the last word."""

    rules = AccessRules(
        only_from=SOURCES.read("10.0.0.0/8,.example"), no_access=SOURCES.read("bad.example"), instances=1
    )

    def test_the_ticket_says_that_it_waits(self) -> None:
        """And counts meanwhile."""
        door = _door(self.rules)
        ticket = _let_in(door)
        assert (ticket.needs_host_name, door.open) == (True, 1)
        assert _reason(door) is RefusalReason.INSTANCES

    @pytest.mark.parametrize(
        ("peer", "name", "reason"),
        [
            ("192.0.2.1", "good.example", None),
            ("192.0.2.1", "bad.example", RefusalReason.NAME),
            ("192.0.2.1", "elsewhere.test", RefusalReason.ADDRESS),
            ("192.0.2.1", None, RefusalReason.NAME),
            ("10.0.0.1", "elsewhere.test", None),
            ("10.0.0.1", "bad.example", RefusalReason.NAME),
            ("10.0.0.1", None, None),
        ],
    )
    def test_the_name_decides(self, peer: str, name: str | None, reason: RefusalReason | None) -> None:
        """With a refusal the ticket is released, otherwise it is as any other."""
        door = _door(self.rules)
        ticket = _let_in(door, peer)
        refusal = ticket.check_host_name(name)
        assert (refusal and refusal.reason) is reason
        assert (ticket.needs_host_name, door.open) == (False, 0 if reason else 1)
        ticket.release()
        assert door.open == 0

    def test_rules_that_came_meanwhile_decide(self) -> None:
        """A reload during the lookup counts."""
        door = _door(self.rules)
        ticket = _let_in(door)
        door.retune(AccessRules())
        assert ticket.check_host_name(None) is None
        other = _let_in(door)
        door.retune(AccessRules(only_from=()))
        assert other.check_host_name("good.example") is not None
        assert door.open == 1


class TestRoom:
    """For a listener that rests at the limit."""

    def test_it_is_told_once_when_somebody_leaves(self) -> None:
        """And at once where there is room already."""
        door = _door(AccessRules(instances=1))
        calls: list[str] = []
        door.when_room(lambda: calls.append("at once"))
        ticket = _let_in(door)
        assert door.full
        door.when_room(lambda: calls.append("later"))
        assert calls == ["at once"]
        ticket.release()
        assert calls == ["at once", "later"]
        _let_in(door).release()
        assert calls == ["at once", "later"]

    def test_room_in_the_hall_is_room_for_all(self) -> None:
        """One that fills it again leaves the others waiting."""
        hall = GlobalLimit(1)
        doors = [_door(AccessRules(), hall) for _ in range(3)]
        tickets = [_let_in(doors[0])]

        def comes(door: Admission) -> Callable[[], None]:
            return lambda: tickets.append(_let_in(door))

        for door in doors[1:]:
            door.when_room(comes(door))
        tickets.pop().release()
        assert [door.open for door in doors] == [0, 1, 0]
        tickets.pop().release()
        assert [door.open for door in doors] == [0, 0, 1]

    def test_a_greater_limit_makes_room(self) -> None:
        """Of the service or of the daemon; who left the queue is not told."""
        hall = GlobalLimit(1)
        door, gone = _door(AccessRules(instances=1), hall), _door(AccessRules(), hall)
        calls: list[str] = []
        _let_in(door)
        door.when_room(lambda: calls.append("room"))
        gone.when_room(lambda: calls.append("never"))
        gone.when_room(None)
        door.retune(AccessRules())
        assert calls == []
        hall.retune(2)
        assert calls == ["room"]
        door.retune(AccessRules(instances=1))
        door.when_room(lambda: calls.append("again"))
        door.retune(AccessRules(instances=2))
        assert calls == ["room", "again"]


_LIMITS = st.none() | st.integers(1, 4)
_RULES = st.builds(
    AccessRules,
    instances=_LIMITS,
    per_source=_LIMITS,
    per_source_prefix=st.sampled_from([PrefixLengths(32, 64), PrefixLengths(30, 64)]),
    rate=st.none() | st.just(Rate(5, 1)),
    per_source_rate=st.none() | st.just(Rate(2, 1)),
    only_from=st.none() | st.just(SOURCES.read("10.0.0.0/29,.example")),
)
_COMES = st.tuples(st.just("comes"), st.integers(0, 1), st.integers(0, 9))
_LEAVES = st.tuples(st.just("leaves"), st.integers(0, 30), st.booleans())
_NAMED = st.tuples(st.just("named"), st.integers(0, 30), st.sampled_from([None, "a.example", "a.test"]))
_CLOCK = st.tuples(st.just("clock"), st.floats(-10, 10), st.none())
_TUNED = st.tuples(st.just("tuned"), st.integers(0, 1), _RULES)
_HALL = st.tuples(st.just("hall"), _LIMITS, _LIMITS)


class _World:
    """Two doors and a hall, and what a plain count of all tickets says of them."""

    def __init__(self, rules: list[AccessRules], most: int | None) -> None:
        self.hall = GlobalLimit(most)
        self.most = most
        self.doors = [_door(each, self.hall) for each in rules]
        self.tickets: list[tuple[int, int, ConnectionSlot]] = []
        self.now = 0.0

    def comes(self, which: int, host: int) -> None:
        """Somebody comes; a limit that was reached before must hold."""
        door, rules = self.doors[which], self.doors[which].rules
        before = [number for index, number, _ in self.tickets if index == which]
        here = sum(self.source(rules, number) == self.source(rules, host) for number in before)
        found = door.admit(f"10.0.0.{host}", self.now)
        if isinstance(found, ConnectionSlot):
            assert self.most is None or len(self.tickets) < self.most
            assert rules.instances is None or len(before) < rules.instances
            assert rules.per_source is None or here < rules.per_source
            self.tickets.append((which, host, found))
        else:
            assert rules != AccessRules() or self.hall.open >= self.hall.limit

    @staticmethod
    def source(rules: AccessRules, host: int) -> int:
        return host >> (32 - rules.per_source_prefix.v4)

    def leaves(self, which: int, twice: bool) -> None:
        """Somebody leaves, perhaps in two ways at once."""
        if self.tickets:
            _, _, ticket = self.tickets.pop(which % len(self.tickets))
            ticket.release()
            if twice:
                ticket.release()

    def named(self, which: int, name: str | None) -> None:
        """A lookup ends."""
        if self.tickets:
            index = which % len(self.tickets)
            if self.tickets[index][2].needs_host_name and self.tickets[index][2].check_host_name(name) is not None:
                self.tickets.pop(index)[2].release()

    def clock(self, step: float, _: None) -> None:
        """Time goes on, or back."""
        self.now += step

    def tuned(self, which: int, rules: AccessRules) -> None:
        """A reload."""
        self.doors[which].retune(rules)

    def hall_(self, most: int | None, _: None) -> None:
        """A reload of the daemon's limit."""
        self.most = most
        self.hall.retune(most)

    def check(self) -> None:
        """All counts are what counting says."""
        assert self.hall.open == len(self.tickets)
        for which, door in enumerate(self.doors):
            inside = [host for index, host, _ in self.tickets if index == which]
            assert door.open == len(inside)
            limit = door.rules.instances
            assert door.full is ((limit is not None and len(inside) >= limit) or self.hall.open >= self.hall.limit)
            if door.rules.per_source is not None:
                for host in range(10):
                    same = [each for each in inside if self.source(door.rules, each) == self.source(door.rules, host)]
                    assert door.open_from(f"10.0.0.{host}") == len(same)


@given(
    st.lists(_RULES, min_size=2, max_size=2), _LIMITS,
    st.lists(st.one_of(_COMES, _COMES, _COMES, _LEAVES, _NAMED, _CLOCK, _TUNED, _HALL), max_size=60),
)  # fmt: skip
def test_counts_are_right_whatever_happens(rules: list[AccessRules], most: int | None, events: list[Any]) -> None:
    """Never negative, never above a limit by admitting, through reloads and clock steps; zero when all is over."""
    world = _World(rules, most)
    for kind, one, other in events:
        getattr(world, "hall_" if kind == "hall" else kind)(one, other)
        world.check()
    while world.tickets:
        world.leaves(0, twice=True)
        world.check()
    assert world.hall.open == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2)), max_size=60))
def test_no_more_are_admitted_than_the_rates_allow(visits: list[tuple[int, float]]) -> None:
    """Of the service and of each source: at most burst + rate x the time that went by, whatever the clock does."""
    door = _door(AccessRules(rate=Rate(4, 1), per_source_rate=Rate(2, 1), rate_burst=3))
    now = elapsed = 0.0
    admitted = dict.fromkeys(range(4), 0)
    for host, step in visits:
        now += step
        elapsed += max(0.0, step)
        if isinstance(door.admit(f"10.0.0.{host}", now), ConnectionSlot):
            admitted[host] += 1
        assert sum(admitted.values()) <= 3 + 4 * elapsed + 1e-6
        assert max(admitted.values()) <= 3 + 2 * elapsed + 1e-6


def test_users_at_a_unix_socket_are_sources() -> None:
    """Each counts for itself, whatever the prefixes are, and no user is an IPv4 address."""
    door = _door(AccessRules(per_source=1, per_source_prefix=PrefixLengths(1, 1)))
    tickets = [door.admit(peer, 0.0) for peer in ("uid:0", "uid:0", "uid:1", "uid:4294967295", "", "255.255.255.255")]
    assert [isinstance(each, ConnectionSlot) for each in tickets] == [True, False, True, True, True, True]
    assert (door.open_from("uid:1"), door.open_from("uid:2"), door.open_from("")) == (1, 0, 1)
    first = tickets[0]
    assert isinstance(first, ConnectionSlot)
    first.release()
    assert isinstance(door.admit("uid:0", 0.0), ConnectionSlot)


def test_no_list_of_addresses_names_a_user() -> None:
    """only_from refuses each, no_access none."""
    for peer in ("uid:0", "uid:4294967294", ""):
        assert isinstance(_door(AccessRules(only_from=SOURCES.read("0.0.0.0/0,::/0"))).admit(peer, 0.0), Refusal)
        assert isinstance(_door(AccessRules(no_access=SOURCES.read("0.0.0.0/0,::/0"))).admit(peer, 0.0), ConnectionSlot)
