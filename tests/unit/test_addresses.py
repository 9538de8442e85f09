"""Addresses as text."""

from __future__ import annotations

import pytest

from svcd.addresses import address_text, short_address


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("192.0.2.1", "192.0.2.1:7"),
        ("::1", "[::1]:7"),
        ("fe80::1%eth0", "[fe80::1%eth0]:7"),
        ("::ffff:192.0.2.1", "192.0.2.1:7"),
    ],
)
def test_an_address_with_its_port(host: str, text: str) -> None:
    """An IPv6 address is put in brackets before the port; an IPv4-mapped one is written as IPv4."""
    assert address_text(host, 7) == text


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("192.0.2.1", "192.0.2.0"),
        ("255.255.255.255", "255.255.255.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("2001:db8::1", "2001:db8::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.1", "192.0.2.0"),
        ("::ffff:c000:0201", "192.0.2.0"),
    ],
)
def test_a_shortened_address_is_a_network(host: str, text: str) -> None:
    """A shortened address is a network: /24 of IPv4 (mapped or not), /48 of IPv6, without scope."""
    assert short_address(host) == text
