"""Admission: slots, refusals and counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.admission import Admission, ConnectionSlot, GlobalLimit
from svcd.access.rules import AccessRules, Refusal, RefusalReason
from svcd.access.types import PrefixLengths, Rate
from svcd.config.access_options import HOURS, SOURCES
from svcd.model import SourceLocation

if TYPE_CHECKING:
    from collections.abc import Callable

NOON = 43_200.0


def _admission(
    rules: AccessRules, global_limit: GlobalLimit | None = None, *, wall: float = NOON, load: float = 0.5
) -> Admission:
    return Admission(rules, global_limit or GlobalLimit(), wall_clock=lambda: wall, load=lambda: load)


def _admitted(admission: Admission, peer: str = "192.0.2.1", now: float = 0.0) -> ConnectionSlot:
    found = admission.admit(peer, now)
    assert isinstance(found, ConnectionSlot), found
    return found


def _refused(admission: Admission, peer: str = "192.0.2.1", now: float = 0.0) -> Refusal:
    found = admission.admit(peer, now)
    assert isinstance(found, Refusal)
    return found


def _reason(admission: Admission, peer: str = "192.0.2.1", now: float = 0.0) -> RefusalReason:
    return _refused(admission, peer, now).reason


def _room(admission: Admission, peer: str) -> tuple[int, RefusalReason]:
    """Return how many more connections a peer may open, and the reason of the refusal that follows."""
    slots = []
    while isinstance(found := admission.admit(peer, 0.0), ConnectionSlot):
        slots.append(found)
    for slot in slots:
        slot.release()
    return len(slots), found.reason


def test_every_client_is_admitted_without_rules() -> None:
    """Peers without an address are admitted, too; all are counted."""
    global_limit = GlobalLimit()
    admission = _admission(AccessRules(), global_limit)
    slots = [_admitted(admission, peer) for peer in ("192.0.2.1", "::1", "", "192.0.2.1")]
    assert (admission.open, global_limit.open, admission.full) == (4, 4, False)
    for slot in slots:
        assert not slot.needs_host_name
        slot.release()
    assert (admission.open, global_limit.open) == (0, 0)


def test_a_slot_is_released_once() -> None:
    """A second release changes nothing: a connection may end in two ways at once."""
    global_limit = GlobalLimit()
    admission = _admission(AccessRules(per_source=2), global_limit)
    first, second = _admitted(admission), _admitted(admission)
    first.release()
    first.release()
    assert (admission.open, global_limit.open) == (1, 1)
    assert _room(admission, "192.0.2.1") == (1, RefusalReason.PER_SOURCE)
    second.release()
    assert (admission.open, global_limit.open) == (0, 0)
    assert _room(admission, "192.0.2.1") == (2, RefusalReason.PER_SOURCE)


_STRICT = AccessRules(
    only_from=SOURCES.read("192.0.2.0/24"),
    access_times=HOURS.read("8:00-18:00"),
    zone=UTC,
    max_load=2.0,
    instances=2,
    per_source=1,
    rate=Rate(3, 1),
    per_source_rate=Rate(1, 1),
    locations={"instances": SourceLocation("services", 7, 40)},
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
def test_checks_run_in_order(peer: str, wall: float, load: float, reason: RefusalReason) -> None:
    """Address, time, load, then the global limit: the first check that fails gives the refusal."""
    assert _reason(_admission(_STRICT, GlobalLimit(max_connections=0), wall=wall, load=load), peer) is reason


def test_limits_and_rates_in_order() -> None:
    """The limit of the service is checked before that of the source, and limits before rates."""
    admission = _admission(_STRICT)
    one = _admitted(admission, "192.0.2.1")
    assert _reason(admission, "192.0.2.1") is RefusalReason.PER_SOURCE
    two = _admitted(admission, "192.0.2.2")
    assert _reason(admission, "192.0.2.1") is RefusalReason.INSTANCES
    one.release()
    assert _reason(admission, "192.0.2.1") is RefusalReason.PER_SOURCE_RATE
    two.release()
    _admitted(admission, "192.0.2.3").release()
    assert _reason(admission, "192.0.2.4") is RefusalReason.RATE
    _admitted(admission, "192.0.2.4", now=0.5)


def test_refusal_by_a_limit_takes_no_token() -> None:
    """Further attempts take no token either."""
    admission = _admission(AccessRules(instances=1, rate=Rate(2, 60)))
    slot = _admitted(admission)
    assert {_reason(admission) for _ in range(10)} == {RefusalReason.INSTANCES}
    slot.release()
    _admitted(admission)


def test_refusal_has_its_rule_and_location() -> None:
    """The rule is written as in a services file; a default has no location."""
    rules = replace(_STRICT, instances=1)
    admission = _admission(rules)
    _admitted(admission)
    refusal = _refused(admission, "192.0.2.2")
    assert (refusal.text, str(refusal.rule)) == ("1 connections are open", "instances=1 (services:7:40)")
    refusal = _refused(_admission(rules, wall=0.0))
    assert str(refusal.rule) == "access_times=8:00-18:00 (the default)"


def test_a_prefix_counts_as_one_source() -> None:
    """A /24 or a /64 is one source; an IPv4-mapped address is the IPv4 address."""
    admission = _admission(AccessRules(per_source=1, per_source_prefix=PrefixLengths(24, 64)))
    for one, other in (("192.0.2.1", "::ffff:192.0.2.9"), ("fd00::1", "fd00::ffff:0:0:9%eth0")):
        slot = _admitted(admission, one)
        assert _room(admission, other) == (0, RefusalReason.PER_SOURCE)
        slot.release()
        assert _room(admission, other) == (1, RefusalReason.PER_SOURCE)
        _admitted(admission, other)


def test_global_limit_counts_all_services() -> None:
    """The limit counts the connections of all services, and a reload may change it."""
    global_limit = GlobalLimit(2)
    one, other = _admission(AccessRules(), global_limit), _admission(AccessRules(instances=9), global_limit)
    slots = [_admitted(one), _admitted(other)]
    assert [_reason(one), _reason(other)] == [RefusalReason.GLOBAL] * 2
    assert one.full
    assert str(global_limit.refusal.rule) == "--max-connections 2 (the command line)"
    global_limit.retune()
    slots.append(_admitted(one))
    assert global_limit.open == 3


class TestNames:
    """Host names that decide after the admission by address."""

    rules = AccessRules(
        only_from=SOURCES.read("10.0.0.0/8,.example"), no_access=SOURCES.read("bad.example"), instances=1
    )

    def test_slot_needs_the_host_name(self) -> None:
        """The connection is counted during the lookup."""
        admission = _admission(self.rules)
        slot = _admitted(admission)
        assert (slot.needs_host_name, admission.open) == (True, 1)
        assert _reason(admission) is RefusalReason.INSTANCES

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
    def test_host_name_decides(self, peer: str, name: str | None, reason: RefusalReason | None) -> None:
        """A refusal releases the slot; otherwise the slot is like any other."""
        admission = _admission(self.rules)
        slot = _admitted(admission, peer)
        refusal = slot.check_host_name(name)
        assert (refusal and refusal.reason) is reason
        assert (slot.needs_host_name, admission.open) == (False, 0 if reason else 1)
        slot.release()
        assert admission.open == 0

    def test_rules_of_a_reload_during_the_lookup_decide(self) -> None:
        """The lists in effect at the end of the lookup decide."""
        admission = _admission(self.rules)
        slot = _admitted(admission)
        admission.retune(AccessRules())
        assert slot.check_host_name(None) is None
        other = _admitted(admission)
        admission.retune(AccessRules(only_from=()))
        assert other.check_host_name("good.example") is not None
        assert admission.open == 1


class TestRoom:
    """Callbacks of a listener that pauses at a limit."""

    def test_callback_is_called_once_when_a_connection_ends(self) -> None:
        """It is called at once if there is room already."""
        admission = _admission(AccessRules(instances=1))
        calls: list[str] = []
        admission.call_when_not_full(lambda: calls.append("at once"))
        slot = _admitted(admission)
        assert admission.full
        admission.call_when_not_full(lambda: calls.append("later"))
        assert calls == ["at once"]
        slot.release()
        assert calls == ["at once", "later"]
        _admitted(admission).release()
        assert calls == ["at once", "later"]

    def test_room_below_the_global_limit_wakes_all(self) -> None:
        """A callback that fills the room again leaves the others waiting."""
        global_limit = GlobalLimit(1)
        admissions = [_admission(AccessRules(), global_limit) for _ in range(3)]
        slots = [_admitted(admissions[0])]

        def admit(admission: Admission) -> Callable[[], None]:
            return lambda: slots.append(_admitted(admission))

        for admission in admissions[1:]:
            admission.call_when_not_full(admit(admission))
        slots.pop().release()
        assert [admission.open for admission in admissions] == [0, 1, 0]
        slots.pop().release()
        assert [admission.open for admission in admissions] == [0, 0, 1]

    def test_higher_limit_wakes_callbacks(self) -> None:
        """The limit may be that of the service or the global one; a removed callback is not called."""
        global_limit = GlobalLimit(1)
        admission, gone = _admission(AccessRules(instances=1), global_limit), _admission(AccessRules(), global_limit)
        calls: list[str] = []
        _admitted(admission)
        admission.call_when_not_full(lambda: calls.append("room"))
        gone.call_when_not_full(lambda: calls.append("never"))
        gone.call_when_not_full(None)
        admission.retune(AccessRules())
        assert calls == []
        global_limit.retune(2)
        assert calls == ["room"]
        admission.retune(AccessRules(instances=1))
        admission.call_when_not_full(lambda: calls.append("again"))
        admission.retune(AccessRules(instances=2))
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
_ADMIT = st.tuples(st.just("admit"), st.integers(0, 1), st.integers(0, 9))
_RELEASE = st.tuples(st.just("release"), st.integers(0, 30), st.booleans())
_LOOKUP = st.tuples(st.just("complete_lookup"), st.integers(0, 30), st.sampled_from([None, "a.example", "a.test"]))
_STEP = st.tuples(st.just("step_clock"), st.floats(-10, 10), st.none())
_RELOAD = st.tuples(st.just("reload"), st.integers(0, 1), _RULES)
_GLOBAL_LIMIT = st.tuples(st.just("reload_global_limit"), _LIMITS, _LIMITS)


class _AdmissionModel:
    """Two admissions and a global limit, compared with a plain count of all slots."""

    def __init__(self, rules: list[AccessRules], most: int | None) -> None:
        self.global_limit = GlobalLimit(most)
        self.most = most
        self.admissions = [_admission(each, self.global_limit) for each in rules]
        self.slots: list[tuple[int, int, ConnectionSlot]] = []
        self.now = 0.0

    def admit(self, which: int, host: int) -> None:
        """Admit a connection; a limit that was reached before must hold."""
        admission, rules = self.admissions[which], self.admissions[which].rules
        before = [number for index, number, _ in self.slots if index == which]
        here = sum(self.source(rules, number) == self.source(rules, host) for number in before)
        found = admission.admit(f"10.0.0.{host}", self.now)
        if isinstance(found, ConnectionSlot):
            assert self.most is None or len(self.slots) < self.most
            assert rules.instances is None or len(before) < rules.instances
            assert rules.per_source is None or here < rules.per_source
            self.slots.append((which, host, found))
        else:
            assert rules != AccessRules() or self.global_limit.open >= self.global_limit.limit
            if found.reason is RefusalReason.PER_SOURCE:
                assert rules.per_source is not None
                assert here >= rules.per_source

    @staticmethod
    def source(rules: AccessRules, host: int) -> int:
        return host >> (32 - rules.per_source_prefix.v4)

    def release(self, which: int, twice: bool) -> None:
        """End a connection, perhaps in two ways at once."""
        if self.slots:
            _, _, slot = self.slots.pop(which % len(self.slots))
            slot.release()
            if twice:
                slot.release()

    def complete_lookup(self, which: int, name: str | None) -> None:
        """End a lookup."""
        if self.slots:
            index = which % len(self.slots)
            if self.slots[index][2].needs_host_name and self.slots[index][2].check_host_name(name) is not None:
                self.slots.pop(index)[2].release()

    def step_clock(self, step: float, _: None) -> None:
        """Move the clock forward or back."""
        self.now += step

    def reload(self, which: int, rules: AccessRules) -> None:
        """Replace the rules of an admission."""
        self.admissions[which].retune(rules)

    def reload_global_limit(self, most: int | None, _: None) -> None:
        """Replace the global limit."""
        self.most = most
        self.global_limit.retune(most)

    def check(self) -> None:
        """Compare all counts with a plain count."""
        assert self.global_limit.open == len(self.slots)
        for which, admission in enumerate(self.admissions):
            inside = [host for index, host, _ in self.slots if index == which]
            assert admission.open == len(inside)
            limit = admission.rules.instances
            assert admission.full is (
                (limit is not None and len(inside) >= limit) or self.global_limit.open >= self.global_limit.limit
            )
            rules = admission.rules
            if rules.per_source is None or rules.rate is not None or rules.per_source_rate is not None:
                # There is no limit, or the attempts would use up the rates.
                continue
            for host in range(10):
                here = sum(self.source(rules, each) == self.source(rules, host) for each in inside)
                room, reason = _room(admission, f"10.0.0.{host}")
                assert room <= max(rules.per_source - here, 0)
                if reason is RefusalReason.PER_SOURCE:
                    assert room == max(rules.per_source - here, 0)


@given(
    st.lists(_RULES, min_size=2, max_size=2), _LIMITS,
    st.lists(st.one_of(_ADMIT, _ADMIT, _ADMIT, _RELEASE, _LOOKUP, _STEP, _RELOAD, _GLOBAL_LIMIT), max_size=60),
)  # fmt: skip
def test_counts_agree_with_a_plain_count(rules: list[AccessRules], most: int | None, events: list[Any]) -> None:
    """Counts are never negative nor above a limit, through reloads and clock steps, and zero at the end."""
    model = _AdmissionModel(rules, most)
    for kind, first, second in events:
        getattr(model, kind)(first, second)
        model.check()
    while model.slots:
        model.release(0, twice=True)
        model.check()
    assert model.global_limit.open == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2)), max_size=60))
def test_no_more_are_admitted_than_the_rates_allow(visits: list[tuple[int, float]]) -> None:
    """A service and a source admit at most burst + rate x elapsed time, whatever the clock does."""
    admission = _admission(AccessRules(rate=Rate(4, 1), per_source_rate=Rate(2, 1), rate_burst=3))
    now = elapsed = 0.0
    admitted = dict.fromkeys(range(4), 0)
    for host, step in visits:
        now += step
        elapsed += max(0.0, step)
        if isinstance(admission.admit(f"10.0.0.{host}", now), ConnectionSlot):
            admitted[host] += 1
        assert sum(admitted.values()) <= 3 + 4 * elapsed + 1e-6
        assert max(admitted.values()) <= 3 + 2 * elapsed + 1e-6


def test_users_at_a_unix_socket_are_sources() -> None:
    """Each user is a source of its own, whatever the prefix lengths, and no user has the number of an IPv4 address."""
    admission = _admission(AccessRules(per_source=1, per_source_prefix=PrefixLengths(1, 1)))
    slots = [
        admission.admit(peer, 0.0) for peer in ("uid:0", "uid:0", "uid:1", "uid:4294967295", "", "255.255.255.255")
    ]
    assert [isinstance(each, ConnectionSlot) for each in slots] == [True, False, True, True, True, True]
    assert [_room(admission, peer)[0] for peer in ("uid:1", "uid:2", "")] == [0, 1, 0]
    first = slots[0]
    assert isinstance(first, ConnectionSlot)
    first.release()
    assert isinstance(admission.admit("uid:0", 0.0), ConnectionSlot)


def test_address_lists_match_no_user() -> None:
    """only_from refuses every user, no_access none."""
    for peer in ("uid:0", "uid:4294967294", ""):
        assert isinstance(_admission(AccessRules(only_from=SOURCES.read("0.0.0.0/0,::/0"))).admit(peer, 0.0), Refusal)
        assert isinstance(
            _admission(AccessRules(no_access=SOURCES.read("0.0.0.0/0,::/0"))).admit(peer, 0.0), ConnectionSlot
        )
