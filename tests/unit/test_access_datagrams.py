"""Filter of datagrams: answered questions, and the size of answers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.datagrams import DatagramFilter
from svcd.access.rules import AccessRules, RefusalReason
from svcd.access.types import Rate, TimeRange
from svcd.addresses import address_number
from svcd.config.access_options import HOURS, SOURCES
from svcd.model import SourceLocation


def _answering(rules: AccessRules, wall: float = 0.0, load: float = 0.0) -> DatagramFilter:
    return DatagramFilter(rules, wall_clock=lambda: wall, load=lambda: load)


def _reason(
    answering: DatagramFilter, host: str = "192.0.2.1", port: int = 40_000, now: float = 0.0
) -> RefusalReason | None:
    refusal = answering.refusal(host, port, now)
    return None if refusal is None else refusal.reason


@given(st.integers(0, 65_535))
def test_answer_is_at_most_as_large_as_its_question(question: int) -> None:
    """The minimum is 28 bytes, the question's own headers; with amplify=yes the limit is the largest datagram."""
    assert _answering(AccessRules()).max_answer(question) == max(question, 28)
    assert _answering(AccessRules(amplify=True)).max_answer(question) == 65_535


def test_service_ports_are_not_answered() -> None:
    """Ports below 1024 and those of the daemon are answered with answer_service_ports=yes only, port 0 never."""
    place = {"answer_service_ports": SourceLocation("services", 2, 9)}
    answering = _answering(AccessRules(locations=place))
    answering.set_local_addresses({7777}, ())
    assert [_reason(answering, port=port) for port in (0, 7, 1023, 7777)] == [RefusalReason.PORT] * 4
    assert [_reason(answering, port=port) for port in (1024, 7776, 65_535)] == [None] * 3
    refusal = answering.refusal("192.0.2.1", 7, 0.0)
    assert refusal is not None
    assert str(refusal.rule) == "answer_service_ports=no (services:2:9)"
    answering.retune(AccessRules(answer_service_ports=True))
    assert [_reason(answering, port=port) for port in (0, 7, 1023, 7777)] == [RefusalReason.PORT, None, None, None]


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("0.0.0.0", False),
        ("0.1.2.3", False),
        ("1.0.0.0", True),
        ("127.0.0.1", True),
        ("223.255.255.255", True),
        ("224.0.0.1", False),
        ("239.255.255.255", False),
        ("240.0.0.1", True),
        ("255.255.255.254", True),
        ("255.255.255.255", False),
        ("192.0.2.255", False),
        ("::ffff:192.0.2.255", False),
        ("::ffff:224.0.0.1", False),
        ("::", False),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("ff02::1%eth0", False),
        ("feff::", True),
    ],
)
def test_only_unicast_addresses_are_answered(host: str, answered: bool) -> None:
    """Multicast, broadcast and unspecified addresses are refused, also with answer_service_ports=yes."""
    answering = _answering(AccessRules(answer_service_ports=True))
    assert (_reason(answering, host) is None) is (answered or host.endswith(".2.255"))
    answering.set_local_addresses(frozenset(), {"192.0.2.255"})
    for _ in range(2):
        assert (_reason(answering, host) is None) is answered


def test_address_lists_apply_to_datagrams() -> None:
    """only_from and no_access decide by address."""
    answering = _answering(AccessRules(only_from=SOURCES.read("192.0.2.0/24"), no_access=SOURCES.read("192.0.2.66")))
    found = {host: _reason(answering, host) for host in ("192.0.2.1", "192.0.2.66", "198.51.100.1")}
    assert found == {"192.0.2.1": None, "192.0.2.66": RefusalReason.ADDRESS, "198.51.100.1": RefusalReason.ADDRESS}


def test_host_names_stand_for_their_addresses() -> None:
    """An unresolved name in no_access refuses every sender, an unresolved name in only_from admits none."""
    rules = AccessRules(
        only_from=SOURCES.read("192.0.2.0/24,good.example"), no_access=SOURCES.read("bad.example,192.0.2.7")
    )
    answering = _answering(rules)
    hosts = ("192.0.2.1", "192.0.2.66", "198.51.100.1", "192.0.2.7", "2001:db8::1")
    assert {_reason(answering, host) for host in hosts} == {RefusalReason.NAME}
    bad = {"bad.example": frozenset({address_number("192.0.2.66")})}
    answering.retune(replace(rules, resolved=bad))
    assert [_reason(answering, host) for host in hosts] == [
        None, RefusalReason.ADDRESS, RefusalReason.ADDRESS, RefusalReason.ADDRESS, RefusalReason.ADDRESS
    ]  # fmt: skip
    refusal = answering.refusal("192.0.2.66", 40_000, 0.0)
    assert refusal is not None
    assert refusal.rule is not None
    assert refusal.rule.text == "no_access=bad.example"
    good = ("198.51.100.1", "2001:db8::1", "192.0.2.7", "192.0.2.66")
    answering.retune(replace(rules, resolved=bad | {"good.example": frozenset(map(address_number, good))}))
    # An address that the file names goes before one of a name, and no_access before only_from.
    assert [_reason(answering, host) for host in hosts] == [
        None,
        RefusalReason.ADDRESS,
        None,
        RefusalReason.ADDRESS,
        None,
    ]
    answering.retune(replace(rules, resolved={"bad.example": frozenset()}))
    assert [_reason(answering, host) for host in hosts[:2]] == [None, None]


def test_time_and_load_apply_to_datagrams() -> None:
    """access_times and max_load refuse datagrams as they refuse connections."""
    assert _reason(_answering(AccessRules(access_times=(TimeRange(60, 120),), zone=UTC))) is RefusalReason.TIME
    assert _reason(_answering(AccessRules(access_times=HOURS.read("0:00-1:00"), zone=UTC))) is None
    assert _reason(_answering(AccessRules(max_load=2.0), load=2.5)) is RefusalReason.LOAD


def test_answers_of_a_source_are_limited() -> None:
    """The limit of one source bounds a loop and does not affect other sources."""
    answering = _answering(AccessRules(per_source_rate=Rate(2, 1)))
    found = [_reason(answering) for _ in range(3)]
    assert found == [None, None, RefusalReason.PER_SOURCE_RATE]
    assert _reason(answering, "192.0.2.2") is None
    assert _reason(answering, now=0.5) is None


def test_refused_question_takes_no_token() -> None:
    """Forged questions from a service port use up no answers of a source."""
    answering = _answering(AccessRules(per_source_rate=Rate(1, 1)))
    assert {_reason(answering, port=7) for _ in range(5)} == {RefusalReason.PORT}
    assert _reason(answering) is None


def test_more_senders_than_the_cache_holds() -> None:
    """The verdicts stay right when the cache of senders is cleared."""
    answering = _answering(AccessRules(only_from=SOURCES.read("10.0.0.0/9")))
    for number in range(20_000):
        host = f"10.{number >> 8 & 1 and 200}.{number >> 8}.{number & 255}"
        assert (_reason(answering, host) is None) is (number >> 8 & 1 == 0)
