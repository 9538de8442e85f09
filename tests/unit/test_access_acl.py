"""Address lists: the most specific rule decides."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from svcd.access.acl import Acl
from svcd.access.rules import AccessRules, RefusalReason
from svcd.addresses import address_number
from svcd.config.access_options import SOURCES
from svcd.model import SourceLocation

_PLACES = {"only_from": SourceLocation("services", 3, 20), "no_access": SourceLocation("services", 4, 30)}


def _rules(only_from: str | None, no_access: str = "") -> AccessRules:
    return AccessRules(
        only_from=None if only_from is None else SOURCES.read(only_from),
        no_access=SOURCES.read(no_access),
        locations=_PLACES,
    )


def _admits(only_from: str | None, no_access: str, peer: str, name: str | None = None) -> bool:
    return Acl(_rules(only_from, no_access)).by_name(address_number(peer), name).refusal is None


@pytest.mark.parametrize(
    ("only_from", "no_access", "admitted", "refused"),
    [
        (None, "", ["192.0.2.1", "::1", ""], []),
        ("", "", [], ["192.0.2.1", "::1", ""]),
        (None, "10.0.0.0", ["11.0.0.1", "::1"], ["10.0.0.1", "10.255.255.255"]),
        ("10.0.0.0/8", "", ["10.0.0.1", "::ffff:10.0.0.1"], ["9.255.255.255", "11.0.0.0", "::1", "::10.0.0.1", ""]),
        ("10.0.0.0/8", "10.66.0.0/16", ["10.65.255.255", "10.67.0.0"], ["10.66.0.0", "10.66.255.255"]),
        ("10.66.6.6", "10.66.0.0/16", ["10.66.6.6"], ["10.66.6.5", "10.66.6.7", "10.0.0.1"]),
        ("10.0.0.0/8,10.66.6.0/24", "10.66.0.0/16,10.66.6.6", ["10.0.0.1", "10.66.6.5"], ["10.66.1.1", "10.66.6.6"]),
        ("10.0.0.0/8", "10.0.0.0/8", [], ["10.0.0.1"]),
        ("0.0.0.0", "", ["192.0.2.1", "255.255.255.255", "::ffff:1.2.3.4"], ["::1"]),
        ("::", "", ["::1", "ff02::1"], ["192.0.2.1", "::ffff:1.2.3.4"]),
        ("fd00::/8", "fd00:1::/32", ["fd00::1", "fdff::", "fd00::1%eth0"], ["fd00:1::1", "fe80::1"]),
        ("128.138.209.0", "128.138.209.10", ["128.138.209.9"], ["128.138.209.10"]),
    ],
)
def test_addresses(only_from: str | None, no_access: str, admitted: list[str], refused: list[str]) -> None:
    """The more specific of two rules decides, no_access of two equal rules; if none matches, only_from decides."""
    assert [peer for peer in admitted if not _admits(only_from, no_access, peer)] == []
    assert [peer for peer in refused if _admits(only_from, no_access, peer)] == []


@pytest.mark.parametrize(
    ("only_from", "no_access", "name", "admitted"),
    [
        ("host.example", "", "host.example", True),
        ("HOST.example.", "", "Host.Example.", True),
        ("host.example", "", "other.example", False),
        ("host.example", "", "a.host.example", False),
        (".example", "", "host.example", True),
        (".example", "", "a.b.example", True),
        (".example", "", "example", False),
        (".example", "", ".example", False),
        (".example", "", "badexample", False),
        (".example", ".b.example", "a.b.example", False),
        (".b.example", ".example", "a.b.example", True),
        ("a.b.example", ".b.example", "a.b.example", True),
        (".example", ".example", "a.example", False),
        ("10.0.0.0/8", ".guests.example", "x.guests.example", False),
        ("10.0.0.0/8", ".guests.example", "x.example", True),
        (".example", "10.0.0.0/8", "x.example", True),
        ("host.example", "0.0.0.0", "host.example", True),
        ("host.example", "10.0.0.1", "host.example", False),
        ("10.0.0.1", "host.example", "host.example", True),
        (None, "host.example", "host.example", False),
        (None, "host.example", "other.example", True),
        ("", "host.example", "other.example", False),
    ],
)
def test_names(only_from: str | None, no_access: str, name: str, admitted: bool) -> None:
    """The order is: single addresses, host names, longer domains, shorter domains, networks."""
    assert _admits(only_from, no_access, "10.0.0.1", name) is admitted


@pytest.mark.parametrize(
    ("only_from", "no_access", "peer", "asks"),
    [
        ("10.0.0.0/8", "", "10.0.0.1", False),
        (".example", "", "10.0.0.1", True),
        ("10.0.0.0/8,.example", "", "10.0.0.1", False),
        ("10.0.0.0/8,.example", "", "11.0.0.1", True),
        ("10.0.0.0/8", ".example", "10.0.0.1", True),
        ("10.0.0.0/8", ".example", "11.0.0.1", False),
        ("10.0.0.1", ".example", "10.0.0.1", False),
        (".example", "10.0.0.1", "10.0.0.1", False),
        (".example", "10.0.0.0/8", "10.0.0.1", True),
        (None, "10.0.0.0/8", "11.0.0.1", False),
        (None, "10.0.0.0/8,.example", "11.0.0.1", True),
        (None, "10.0.0.0/8,.example", "10.0.0.1", False),
    ],
)
def test_host_name_is_needed_only_if_it_can_change_the_verdict(
    only_from: str | None, no_access: str, peer: str, asks: bool
) -> None:
    """A client without a host name matches no entry by name: only_from refuses it, no_access does not."""
    acl = Acl(_rules(only_from, no_access))
    verdict = acl.by_address(address_number(peer))
    assert verdict.by_name is asks
    assert verdict.if_no_host_name is None or asks
    if asks:
        for name in (None, ""):
            found = acl.by_name(address_number(peer), name)
            assert (found.refusal is None) is (verdict.refusal is None)
            if found.refusal is not None:
                assert found.refusal.reason is RefusalReason.NAME
                assert found.refusal.rule is not None
                assert ".example" in found.refusal.rule.text


def test_verdict_has_the_rule_and_its_location() -> None:
    """The location is the file, line and column of the entry in an unquoted list."""
    acl = Acl(_rules("10.0.0.0/8,192.0.2.0/24", "10.66.0.0/16,10.0.0.1,bad.example"))
    verdict = acl.by_address(address_number("10.0.0.1"))
    assert verdict.refusal is not None
    assert verdict.refusal.rule == verdict.rule
    assert str(verdict.rule) == "no_access=10.0.0.1 (services:4:43)"
    assert str(acl.by_address(address_number("192.0.2.1")).rule) == "only_from=192.0.2.0/24 (services:3:31)"
    named = acl.by_name(address_number("192.0.2.1"), "bad.example")
    assert named.refusal is not None
    assert (named.refusal.reason, str(named.rule)) == (RefusalReason.NAME, "no_access=bad.example (services:4:52)")


def test_unlisted_client_is_refused_by_only_from() -> None:
    """The location of the rule is that of the option."""
    for text, rule in (("10.0.0.0/8", "only_from (services:3:20)"), ("", "only_from= (services:3:20)")):
        refusal = Acl(_rules(text)).by_address(address_number("192.0.2.1")).refusal
        assert refusal is not None
        assert (refusal.reason, str(refusal.rule)) == (RefusalReason.ADDRESS, rule)


_NETWORKS = st.one_of(
    # Few bits that differ, so that rules meet and lie inside one another.
    st.tuples(st.integers(0, 15), st.integers(0, 32)).map(lambda it: f"10.0.{it[0]}.{it[0] * 17}/{it[1]}"),
    st.tuples(st.integers(0, 15), st.integers(0, 128)).map(lambda it: f"fd00::{it[0]:x}:{it[0] * 17:x}/{it[1]}"),
    st.integers(90, 128).map(lambda bits: f"::ffff:10.0.3.51/{max(96, bits)}"),
)
_NAMES = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3).map(".".join)
_WORDS = st.lists(st.one_of(_NETWORKS, _NAMES, _NAMES.map(".{}".format)), max_size=8)
_PEERS = st.one_of(
    st.tuples(st.integers(0, 15), st.integers(0, 255)).map(lambda it: f"10.0.{it[0]}.{it[1]}"),
    st.tuples(st.integers(0, 15), st.integers(0, 255)).map(lambda it: f"fd00::{it[0]:x}:{it[1]:x}"),
    st.integers(0, 255).map("::ffff:10.0.3.{}".format),
    st.integers(0, 2**128 - 1).map(lambda number: str(ip_address(number))),
)


def _rank(word: str, peer: str, name: str) -> tuple[int, int] | None:
    """Return the specificity of a word's match, by the manual; None if it does not match."""
    address = ip_address(peer)
    address = getattr(address, "ipv4_mapped", None) or address
    if ":" in word or word[0].isdigit():
        network = ip_network(word, strict=False)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= 96:
            network = ip_network(f"{mapped}/{network.prefixlen - 96}")
        if address.version != network.version or address not in network:
            return None
        return (3, 0) if network.num_addresses == 1 else (0, network.prefixlen)
    if word.startswith("."):
        return (1, len(word)) if name.endswith(word) else None
    return (2, 0) if name == word else None


@given(st.none() | _WORDS, _WORDS, _PEERS, _NAMES)
@example(["10.0.0.0/32"], ["10.0.0.0/31"], "10.0.0.0", "a")
@example(["0.0.0.0/0", "::/0"], ["255.255.255.255/32"], "255.255.255.255", "a")
def test_the_most_specific_rule_agrees_with_trying_every_rule(
    only_from: list[str] | None, no_access: list[str], peer: str, name: str
) -> None:
    """The compiled lists agree with a search through all rules; if by_name is false, no name changes the verdict."""

    def best(words: list[str] | None) -> tuple[int, int]:
        ranks = (_rank(word, peer, name) for word in words or ())
        return max((rank for rank in ranks if rank is not None), default=(-1, 0))

    wanted = best(only_from) > best(no_access) or (only_from is None and best(no_access) == (-1, 0))
    acl = Acl(_rules(None if only_from is None else ",".join(only_from), ",".join(no_access)))
    found = acl.by_name(address_number(peer), name)
    assert (found.refusal is None) is wanted
    by_address = acl.by_address(address_number(peer))
    if not by_address.by_name:
        assert by_address == found
