"""Dry run of an admission, step by step."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from svcd.access.admission import Admission, ConnectionSlot, GlobalLimit
from svcd.access.datagrams import DatagramFilter
from svcd.access.explain import ExplainQuery, Step, StepOutcome, explain
from svcd.access.rules import AccessRules
from svcd.access.types import Rate
from svcd.config.access_options import HOURS, SOURCES
from svcd.model import SourceLocation

NOON = 43_200.0
_FULL = AccessRules(
    only_from=SOURCES.read("10.0.0.0/8,.example"),
    no_access=SOURCES.read("10.6.0.0/16"),
    access_times=HOURS.read("8:00-18:00"),
    zone=UTC,
    max_load=2.0,
    instances=2,
    per_source=1,
    rate=Rate(10, 1),
    per_source_rate=Rate(1, 60),
    locations={"no_access": SourceLocation("services", 4, 7)},
)


def _step_texts(steps: list[Step]) -> list[str]:
    return [f"{step.check} {step.outcome}: {step.text} [{step.rule}]" for step in steps]


def _query(peer: str = "10.0.0.1", **values: Any) -> ExplainQuery:
    return ExplainQuery(peer=peer, moment=values.pop("moment", NOON), **values)


def test_from_the_file_alone() -> None:
    """Each step has its rule and location; steps on the current state have the outcome "depends"."""
    assert _step_texts(explain(_FULL, _query())) == [
        "address passes: only_from=10.0.0.0/8 admits it [only_from=10.0.0.0/8 (the default)]",
        "time passes: the local time is 12:00 [access_times=8:00-18:00 (the default)]",
        "load depends: the load average is not known [max_load=2.0 (the default)]",
        "instances depends: on the number of open connections [instances=2 (the default)]",
        "per_source depends: on the number of open connections [per_source=1 (the default)]",
        "rate depends: on the number of recent connections [rate=10/s (the default)]",
        "per_source_rate depends: on the number of recent connections [per_source_rate=1/m (the default)]",
    ]


def test_steps_end_with_the_refusal() -> None:
    """No check after the refusal is explained."""
    assert _step_texts(explain(_FULL, _query("11.0.0.1", looked_up=True, name="x.test", load=9.0)))[-1:] == [
        "load refuses: the load average is 9.00 [max_load=2.0 (the default)]"
    ]
    assert [step.check for step in explain(_FULL, _query(moment=0.0))] == ["address", "time"]
    rules = AccessRules(no_access=_FULL.no_access, locations=_FULL.locations)
    assert _step_texts(explain(rules, _query("10.6.0.1"))) == [
        "address refuses: no_access=10.6.0.0/16 refuses it [no_access=10.6.0.0/16 (services:4:7)]"
    ]
    assert _step_texts(explain(rules, _query())) == ["address passes: no rule restricts addresses [None]"]


def test_host_name_decides_last() -> None:
    """The step of the name is present if the name can change the verdict of the address; the name may be unknown."""
    rules = AccessRules(only_from=_FULL.only_from, no_access=SOURCES.read("bad.example"))
    ends: dict[str, dict[str, Any]] = {
        "name depends: on the host name, which has not been resolved": {},
        "name passes: x.example: only_from=.example admits it": {"looked_up": True, "name": "x.example"},
        "name refuses: no_access=bad.example refuses it": {"looked_up": True, "name": "bad.example"},
        "address refuses: only_from does not match it": {"looked_up": True, "name": "x.test"},
        "name refuses: it has no confirmed host name, and only_from=.example needs one": {"looked_up": True},
    }
    for end, values in ends.items():
        first, last = _step_texts(explain(rules, _query("192.0.2.1", **values)))
        assert first.startswith("address depends: on the host name [only_from=.example")
        assert last.startswith(end)
    open_to_all = AccessRules(no_access=SOURCES.read("bad.example"))
    assert _step_texts(explain(open_to_all, _query(looked_up=True, name="x.test")))[-1] == (
        "name passes: no rule refuses x.test [None]"
    )


def test_datagrams_have_no_counts_and_no_lookup() -> None:
    """Senders without a unicast address are refused."""
    steps = explain(_FULL, _query(datagram=True, load=0.5))
    assert [step.check for step in steps] == ["address", "time", "load", "rate", "per_source_rate"]
    assert _step_texts(explain(_FULL, _query("11.0.0.1", datagram=True)))[0].startswith(
        "address refuses: only_from does not match it"
    )
    assert _step_texts(explain(AccessRules(), _query("224.0.0.1", datagram=True))) == [
        "address refuses: it is not a unicast address [None]"
    ]


_LISTS = st.sampled_from(["10.0.0.0/8", "10.0.0.1", "10.0.0.0/24,.example", "a.example", "10.0.0.0/8,b.example"])
_RULES = st.builds(
    AccessRules,
    only_from=st.none() | _LISTS.map(SOURCES.read),
    no_access=st.just(()) | _LISTS.map(SOURCES.read),
    access_times=st.sampled_from([(), HOURS.read("8:00-18:00"), HOURS.read("22:00-6:00")]),
    zone=st.just(UTC),
    max_load=st.none() | st.just(1.0),
    instances=st.none() | st.just(1),
    rate=st.none() | st.just(Rate(1, 1)),
)


@given(
    _RULES,
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.1.0.1", "192.0.2.1"]),
    st.sampled_from(["a.example", "b.example", "x.test", None]),
    st.integers(0, 86_399),
    st.sampled_from([0.5, 1.5]),
)
def test_explanation_agrees_with_the_admission(
    rules: AccessRules, peer: str, name: str | None, moment: int, load: float
) -> None:
    """The last step refuses if and only if the admission does, for the same reason and by the same rule."""
    admission = Admission(rules, GlobalLimit(), wall_clock=lambda: moment, load=lambda: load)
    query = ExplainQuery(peer=peer, moment=moment, name=name, looked_up=True, load=load)
    last = explain(rules, query)[-1]
    found = admission.admit(peer, 0.0)
    refusal = found.check_host_name(name) if isinstance(found, ConnectionSlot) else found
    assert (last.outcome is StepOutcome.REFUSES) is (refusal is not None)
    if refusal is not None:
        assert (last.check, last.rule) == (refusal.reason, refusal.rule)
    answered = DatagramFilter(rules, wall_clock=lambda: moment, load=lambda: load).refusal(peer, 40_000, 0.0)
    steps = explain(rules, ExplainQuery(peer=peer, moment=moment, load=load, datagram=True))
    assert (steps[-1].outcome is StepOutcome.REFUSES) is (answered is not None)
