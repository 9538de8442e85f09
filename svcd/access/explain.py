"""Dry run of an admission, step by step, in the order of Admission.admit()."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from svcd.access.acl import Acl
from svcd.access.conditions import Timetable
from svcd.access.datagrams import NOT_UNICAST, is_not_unicast
from svcd.access.rules import RefusalReason
from svcd.addresses import address_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.access.rules import AccessRule, AccessRules

__all__ = ["ExplainQuery", "Step", "StepOutcome", "explain"]


class StepOutcome(enum.StrEnum):
    """Result of a step."""

    PASSES = "passes"
    REFUSES = "refuses"
    #: On something unknown: the connections or the load at that moment, or the client's name.
    DEPENDS = "depends"


@dataclass(frozen=True, slots=True)
class Step:
    """One check of an admission.

    Attributes:
        check: the reason that a Refusal by this check has.
        outcome: its result.
        text: an explanation in a few words.
        rule: the rule that decides; None if there is none.
    """

    check: RefusalReason
    outcome: StepOutcome
    text: str
    rule: AccessRule | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainQuery:
    """A client and a moment to explain.

    Attributes:
        peer: the client's address.
        moment: seconds since 1970.
        name: the confirmed host name; None if there is none.
        looked_up: whether `name` is the result of a lookup.
        load: the load average; None if it is not known.
        datagram: whether the client sends a datagram instead of a connection.
    """

    peer: str
    moment: float
    name: str | None = None
    looked_up: bool = False
    load: float | None = None
    datagram: bool = False


def explain(rules: AccessRules, query: ExplainQuery) -> list[Step]:
    """Return the steps of an admission, up to the step that refuses.

    Args:
        rules: the rules of the service.
        query: the client and the moment.

    Raises:
        ValueError: the peer of the query is not an address.
    """
    steps = []
    for step in _steps(rules, query):
        steps.append(step)
        if step.outcome is StepOutcome.REFUSES:
            break
    return steps


def _steps(rules: AccessRules, query: ExplainQuery) -> Iterator[Step]:
    yield from _proxy(rules, query)
    # The name of a datagram's sender is not looked up.
    acl = Acl(replace(rules, resolved={}) if query.datagram and rules.resolved is None else rules)
    yield _address(acl, query)
    if rules.access_times:
        timetable = Timetable(rules.access_times, rules.zone)
        text = f"the local time is {timetable.local_time(query.moment):%H:%M}"
        yield Step(RefusalReason.TIME, _outcome(timetable.is_open(query.moment)), text, rules.rule("access_times"))
    if rules.max_load is not None:
        passes = None if query.load is None else query.load < rules.max_load
        text = "the load average is not known" if query.load is None else f"the load average is {query.load:.2f}"
        yield Step(RefusalReason.LOAD, _outcome(passes), text, rules.rule("max_load"))
    if not query.datagram:
        yield from _counts(rules)
    for reason in (RefusalReason.RATE, RefusalReason.PER_SOURCE_RATE):
        if getattr(rules, reason) is not None:
            yield Step(
                reason,
                StepOutcome.DEPENDS,
                f"on the number of recent {'datagrams' if query.datagram else 'connections'}",
                rules.rule(reason),
            )
    if acl.by_address(address_number(query.peer)).by_name:
        yield _name(acl, query)


def _proxy(rules: AccessRules, query: ExplainQuery) -> Iterator[Step]:
    number = address_number(query.peer)
    for source, rule in rules.entries("proxy_protocol"):
        if source.first <= number <= source.last:
            text = "on the client in its PROXY header; without one, on the proxy itself"
            yield Step(RefusalReason.PROXY, StepOutcome.DEPENDS, text, rule)
            return


def _outcome(passes: bool | None) -> StepOutcome:
    return StepOutcome.DEPENDS if passes is None else StepOutcome.PASSES if passes else StepOutcome.REFUSES


def _address(acl: Acl, query: ExplainQuery) -> Step:
    number = address_number(query.peer)
    if query.datagram and is_not_unicast(number):
        return Step(NOT_UNICAST.reason, StepOutcome.REFUSES, NOT_UNICAST.text, NOT_UNICAST.rule)
    verdict = acl.by_address(number)
    if verdict.by_name:
        rule = verdict.rule if verdict.if_no_host_name is None else verdict.if_no_host_name.rule
        return Step(RefusalReason.ADDRESS, StepOutcome.DEPENDS, "on the host name", rule)
    if verdict.refusal is not None:
        return Step(verdict.refusal.reason, StepOutcome.REFUSES, verdict.refusal.text, verdict.rule)
    text = "no rule restricts addresses" if verdict.rule is None else f"{verdict.rule.text} admits it"
    return Step(RefusalReason.ADDRESS, StepOutcome.PASSES, text, verdict.rule)


def _counts(rules: AccessRules) -> Iterator[Step]:
    for reason, limit in ((RefusalReason.INSTANCES, rules.instances), (RefusalReason.PER_SOURCE, rules.per_source)):
        if limit is not None:
            yield Step(reason, StepOutcome.DEPENDS, "on the number of open connections", rules.rule(reason))


def _name(acl: Acl, query: ExplainQuery) -> Step:
    verdict = acl.by_name(address_number(query.peer), query.name)
    if not query.looked_up:
        return Step(
            RefusalReason.NAME, StepOutcome.DEPENDS, "on the host name, which has not been resolved", verdict.rule
        )
    if verdict.refusal is not None:
        # If no entry matches the name, the refusal is by address.
        return Step(verdict.refusal.reason, StepOutcome.REFUSES, verdict.refusal.text, verdict.rule)
    if not query.name:
        text = "it has no confirmed host name, so its address decides"
    else:
        text = f"{query.name}: {verdict.rule.text} admits it" if verdict.rule else f"no rule refuses {query.name}"
    return Step(RefusalReason.NAME, StepOutcome.PASSES, text, verdict.rule)
