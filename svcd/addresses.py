"""IP addresses as numbers and as text, and the addresses of local sockets."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

__all__ = ["LOCAL", "LOCAL_CLIENT", "V6", "HostPort", "address_number", "address_text", "short_address", "unmapped"]


@dataclass(frozen=True, slots=True)
class HostPort:
    """A server to connect to: its name or address, without brackets, and its port."""

    host: str
    port: int


def unmapped(host: str) -> str:
    """An IPv4-mapped address as IPv4 (RFC 4291, 2.5.5.2), any other as it is."""
    if not host.startswith("::ffff:"):
        return host
    mapped = ipaddress.IPv6Address(host).ipv4_mapped
    return host if mapped is None else str(mapped)


def address_text(host: str, port: int) -> str:
    """An address as people write it: `192.0.2.1:7`, `[::1]:7`; an IPv4-mapped one as IPv4."""
    if ":" in host:
        host = unmapped(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def short_address(host: str) -> str:
    """The network that an address is in, as for the log of who does not want to know more: `192.0.2.0`, `2001:db8:1::`.

    Of IPv4 24 bits are kept, of IPv6 48: what a site has, of which a household or a host is a part (RFC 6177). An
    IPv4-mapped address is IPv4; the interface of a link-local one (`fe80::1%eth0`) goes.
    """
    if ":" in host:
        host = unmapped(host)
    if ":" not in host:
        return host.rpartition(".")[0] + ".0"
    return inet_ntop(AF_INET6, inet_pton(AF_INET6, host.partition("%")[0])[:6] + bytes(10))


#: Added to the number of every IPv6 address: they come after all of IPv4.
V6 = 1 << 128


#: The number of a peer that has no address: at the other end of a UNIX socket.
LOCAL = -1


#: Before the number of a user, whom clients at a UNIX socket are told apart by.
_USER = "uid:"


#: What is said for the address of such a peer, which has none.
LOCAL_CLIENT = "local"


#: The upper bits of the IPv4-mapped addresses, ::ffff:0:0/96 (RFC 4291, section 2.5.5.2).
_MAPPED = 0xFFFF


_LOWER_32 = 0xFFFF_FFFF


def address_number(text: str) -> int:
    """The number of an address: its own 32 bits, or its own 128 and V6.

    An IPv4-mapped one is the IPv4 address: a tcp6 socket that takes IPv4 clients as well shows them so. The interface
    of a link-local address (`fe80::1%eth0`) does not count.

    Args:
        text: an address as the system writes it; `uid:1000` for a client at a UNIX socket, empty for LOCAL. Their
            numbers are below zero, of users below LOCAL.

    Raises:
        ValueError: it is no address.
    """
    try:
        if ":" in text:
            if text.startswith(_USER):
                return LOCAL - 1 - int(text[len(_USER) :])
            number = int.from_bytes(inet_pton(AF_INET6, text.partition("%")[0]), "big")
            return number & _LOWER_32 if number >> 32 == _MAPPED else number | V6
        return int.from_bytes(inet_pton(AF_INET, text), "big") if text else LOCAL
    except OSError:
        raise ValueError(f"{text!r} is no address") from None
