"""Types of the values of access options."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.access.types import NO_RATE, PrefixLengths, Rate, SourcePattern, TimeRange
from svcd.addresses import LOCAL, V6, address_number
from svcd.config.access_options import HOURS, LIMIT, LOAD, PREFIXES, PROXIES, RATE, SOURCES, ZONE
from svcd.config.value_types import UNLIMITED

if TYPE_CHECKING:
    from svcd.config.value_types import ValueType


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (SOURCES, "", ()),
        (SOURCES, "10.0.0.1", (SourcePattern("10.0.0.1", 0x0A000001, 0x0A000001),)),
        (SOURCES, "10.1.2.3/8", (SourcePattern("10.1.2.3/8", 0x0A000000, 0x0AFFFFFF),)),
        (SOURCES, "::/0", (SourcePattern("::/0", V6, V6 + (1 << 128) - 1),)),
        (SOURCES, "Host.Example.", (SourcePattern("Host.Example.", name="host.example"),)),
        (
            SOURCES,
            ".example,a_b-c.x1",
            (SourcePattern(".example", name=".example"), SourcePattern("a_b-c.x1", name="a_b-c.x1")),
        ),
        (
            PROXIES,
            "local,10.0.0.1",
            (SourcePattern("local", LOCAL, LOCAL), SourcePattern("10.0.0.1", 0x0A000001, 0x0A000001)),
        ),
        (PROXIES, "none", ()),
        (HOURS, "8:00-18:00", (TimeRange(480, 1080),)),
        (HOURS, "08:05-9:00,22:00-6:00", (TimeRange(485, 540), TimeRange(1320, 360))),
        (HOURS, "0:00-24:00", (TimeRange(0, 1440),)),
        (RATE, "10/s", Rate(10, 1)),
        (RATE, "100/m", Rate(100, 60)),
        (RATE, "9999999/h", Rate(9_999_999, 3600)),
        (RATE, "none", NO_RATE),
        (PREFIXES, "/24,/64", PrefixLengths(24, 64)),
        (PREFIXES, "/1,/128", PrefixLengths(1, 128)),
        (LIMIT, "64", 64),
        (LIMIT, "none", UNLIMITED),
        (LOAD, "2.5", 2.5),
        (LOAD, "9999.99", 9999.99),
        (LOAD, "none", None),
        (ZONE, "UTC", "UTC"),
        (ZONE, "America/Argentina/Buenos_Aires", "America/Argentina/Buenos_Aires"),
        (ZONE, "Etc/GMT+5", "Etc/GMT+5"),
    ],
)
def test_values_are_written_as_they_are_read(kind: ValueType[Any], word: str, value: object) -> None:
    """A word reads as its value, and the value's own spelling reads as the same value."""
    assert kind.read(word) == value
    assert kind.read(kind.write(value)) == value


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (SOURCES, [
            ",", "a,", ".", "..", "a..b", "-a", "a-", "10.0.0", "10.0.0.300", "1.2.3.4/33", "1/2", "10.0.0.1-20",
            "10.0.0.{1,2}", "fe80::1%eth0", "[::1]", "::1/129", "a b", "ü.example", "x" * 64, "a." * 127 + "ab",
            "1.2.3.4.5",
        ]),
        (PROXIES, ["", ",", "proxy.example", ".example", "10.0.0.1,none", "LOCAL", "10.0.0.300"]),
        (HOURS, ["", "8-18", "8:00", "8:00-8:00",
            "24:00-6:00", "8:60-9:00", "8:00-24:01", "8:0-9:00", "8:00-18:00,", "٨:00-9:00"]),
        (RATE, ["", "10", "0/s", "10/d", "-1/s", "1.5/s", "10000000/s", "10/S", "None"]),
        (PREFIXES, ["", "/24", "24,64", "/0,/64", "/33,/64", "/32,/129", "/32,/64,"]),
        (LIMIT, ["", "0", "-1", "None", "1.5"]),
        (ZONE, ["", "/UTC", "Europe//Berlin", "../zone", "Europe/", "a b", "."]),
        (LOAD, ["", "0", "0.00", "-1", "1e3", "nan", "inf", "10000", "1.234"]),
    ],
)  # fmt: skip
def test_invalid_words_are_refused(kind: ValueType[Any], words: list[str]) -> None:
    """A word that may be a mistake is not read as a value."""
    for word in words:
        with pytest.raises(ValueError):
            kind.read(word)


@pytest.mark.parametrize(
    ("word", "prefix"),
    [("10.0.0.0", 8), ("10.1.0.0", 16), ("10.0.1.0", 24), ("10.0.0.1", 32), ("0.0.0.0", 0), ("10.0.0.10", 32)],
)
def test_zeros_at_the_end_of_an_address_mean_its_network(word: str, prefix: int) -> None:
    """Trailing zeros are wildcards, as in xinetd; an address with a prefix length is not changed."""
    (source,) = SOURCES.read(word)
    assert source.last - source.first + 1 == 1 << (32 - prefix)
    (single,) = SOURCES.read(f"{word}/32")
    assert single.first == single.last


def test_two_colons_mean_all_ipv6_addresses() -> None:
    """`::` is all of IPv6, as 0.0.0.0 is all of IPv4."""
    assert [(each.first, each.last) for each in SOURCES.read("::")] == [
        (each.first, each.last) for each in SOURCES.read("::/0")
    ]


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_mapped_address_is_the_ipv4_address(number: int) -> None:
    """An IPv4-mapped peer or network has the numbers of the IPv4 address."""
    text = str(IPv4Address(number))
    assert address_number(text) == address_number(f"::ffff:{text}") == number
    (source,) = SOURCES.read(f"::ffff:{text}/120")
    assert (source.first, source.last) == (number & ~0xFF, number | 0xFF)


@given(st.integers(0, 2**128 - 1).filter(lambda number: number >> 32 != 0xFFFF))
def test_ipv6_comes_after_ipv4(number: int) -> None:
    """Every IPv6 address has a number above those of IPv4; its scope is ignored."""
    text = str(IPv6Address(number))
    assert address_number(text) == address_number(f"{text}%eth0") == number + V6


def test_a_peer_without_address_is_local() -> None:
    """An empty peer has the number of a local client; text that is not an address is an error."""
    assert address_number("") == LOCAL
    for text in ("localhost", "1.2.3", "1.2.3.4.5", ":", "::g"):
        with pytest.raises(ValueError):
            address_number(text)
