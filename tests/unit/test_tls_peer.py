"""Names in client certificates, and their comparison with tls_client_names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.config.tls_options import CLIENT_NAMES
from svcd.tls.peer import matches_names, subject_alt_names
from svcd.wire.certificates import ClientName, NameKind
from tests.certificates import Authority

if TYPE_CHECKING:
    import ipaddress

CA = Authority()


@pytest.mark.parametrize(
    ("wanted", "name", "matches"),
    [
        ("a.example.org", "a.example.org", True),
        ("A.example.org", "a.EXAMPLE.org", True),
        ("a.example.org", "b.example.org", False),
        ("a.example.org", "x.a.example.org", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "b.a.example.org", False),
        ("*.example.org", "*.example.org", False),
        ("a.example.org", "*.example.org", False),
        ("*.example.org", "xn--bcher-kva.example.org", False),
        ("*.build.example.org", ".build.example.org", False),
        ("*.build.example.org", "-.build.example.org", False),
        ("*.build.example.org", "a..build.example.org", False),
        ("*.build.example.org", "a.build.example.org.", False),
        ("*.build.example.org", " .build.example.org", False),
        ("a.example.org", " a.example.org", False),
        ("*.build.example.org", "a_1.build.example.org", True),
        ("anna@example.org", "anna@EXAMPLE.org", True),
        ("anna@example.org", "Anna@example.org", False),
        ("anna@example.org", "example.org", False),
        ("spiffe://example.org/a", "spiffe://example.org/a", True),
        ("spiffe://example.org/a", "spiffe://example.org/b", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8:0::1", True),
        ("x.example,anna@example.org,*.example.org", "a.example.org", True),
    ],
)
def test_name_matches(wanted: str, name: str, matches: bool) -> None:
    """A name matches one of the same kind; an asterisk stands for one label, and only in tls_client_names."""
    assert matches_names(subject_alt_names(CA.sign(name).certificate), CLIENT_NAMES.read(wanted)) is matches


_LABEL = st.from_regex(r"\A[a-z]([a-z0-9-]{0,8}[a-z0-9])?\Z").filter(lambda label: not label.startswith("xn--"))
_HOST = st.lists(_LABEL, min_size=3, max_size=5)


@given(_HOST, _LABEL)
def test_asterisk_is_one_label(labels: list[str], other: str) -> None:
    """An asterisk matches exactly one label; without it a name matches only itself, in upper or lower case."""
    host = ".".join(labels)
    star = CLIENT_NAMES.read(".".join(["*", *labels[1:]]))
    dns = NameKind.DNS
    assert matches_names([ClientName(dns, host)], star)
    assert matches_names([ClientName(dns, ".".join([other, *labels[1:]]).upper())], star)
    assert not matches_names([ClientName(dns, f"{other}.{host}")], star)
    assert not matches_names([ClientName(dns, ".".join(labels[1:]))], star)
    assert matches_names([ClientName(dns, host.upper())], CLIENT_NAMES.read(host))
    assert matches_names([ClientName(dns, ".".join([other, *labels[1:]]))], CLIENT_NAMES.read(host)) is (
        other == labels[0]
    )


@given(st.ip_addresses(), st.ip_addresses())
def test_addresses_are_compared_as_numbers(one: ipaddress.IPv4Address, other: ipaddress.IPv4Address) -> None:
    """IP addresses match by value, not by their text."""
    names = [ClientName(NameKind.IP, str(one))]
    assert matches_names(names, CLIENT_NAMES.read(one.exploded))
    assert matches_names(names, CLIENT_NAMES.read(str(other))) is (one == other)


@given(st.text(max_size=20), st.sampled_from(NameKind))
def test_random_names(text: str, kind: NameKind) -> None:
    """The comparison of any text in a certificate raises no exception."""
    if kind is not NameKind.IP:
        assert not matches_names(
            [ClientName(kind, text)], CLIENT_NAMES.read("*.no.example,no@no.example,urn:no,192.0.2.1")
        )
