"""IP addresses as numbers and as text, and the addresses of local sockets."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

__all__ = ["LOCAL", "LOCAL_CLIENT", "V6", "HostPort", "address_number", "address_text", "short_address", "unmapped"]


@dataclass(frozen=True, slots=True)
class HostPort:
    """Server to connect to: its name or address, without brackets, and its port."""

    host: str
    port: int


def unmapped(host: str) -> str:
    """Return an IPv4-mapped address (RFC 4291, 2.5.5.2) as an IPv4 address, any other unchanged."""
    if not host.startswith("::ffff:"):
        return host
    mapped = ipaddress.IPv6Address(host).ipv4_mapped
    return host if mapped is None else str(mapped)


def address_text(host: str, port: int) -> str:
    """Return an address and a port as text: `192.0.2.1:7`, `[::1]:7`; an IPv4-mapped address as IPv4."""
    if ":" in host:
        host = unmapped(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def short_address(host: str) -> str:
    """Return the network of an address, for logs without personal data: `192.0.2.0`, `2001:db8:1::`.

    It keeps 24 bits of an IPv4 address and 48 of an IPv6 address, the prefix of a site (RFC 6177). An IPv4-mapped
    address counts as IPv4; the scope of a link-local address (`fe80::1%eth0`) is removed.
    """
    if ":" in host:
        host = unmapped(host)
    if ":" not in host:
        return host.rpartition(".")[0] + ".0"
    return inet_ntop(AF_INET6, inet_pton(AF_INET6, host.partition("%")[0])[:6] + bytes(10))


#: Added to the number of every IPv6 address, so that these follow all IPv4 addresses.
V6 = 1 << 128


#: The number of a peer without an address: a client of a UNIX socket.
LOCAL = -1


#: The prefix of a uid, which stands for the address of a client of a UNIX socket.
_USER = "uid:"


#: The text in place of the address of a client of a UNIX socket.
LOCAL_CLIENT = "local"


#: The upper bits of the IPv4-mapped addresses, ::ffff:0:0/96 (RFC 4291, section 2.5.5.2).
_MAPPED = 0xFFFF


_LOWER_32 = 0xFFFF_FFFF


def address_number(text: str) -> int:
    """Return the number of an address: its 32 bits for IPv4, its 128 bits plus V6 for IPv6.

    An IPv4-mapped address has the number of the IPv4 address: a tcp6 socket that accepts IPv4 clients, too, has such
    peer addresses. The scope of a link-local address (`fe80::1%eth0`) is ignored.

    Args:
        text: an address in the system's form; `uid:1000` for a client of a UNIX socket, empty for LOCAL. The numbers of
            these are negative, those of users below LOCAL.

    Raises:
        ValueError: the text is no address.
    """
    try:
        if ":" in text:
            if text.startswith(_USER):
                return LOCAL - 1 - int(text[len(_USER) :])
            number = int.from_bytes(inet_pton(AF_INET6, text.partition("%")[0]), "big")
            return number & _LOWER_32 if number >> 32 == _MAPPED else number | V6
        return int.from_bytes(inet_pton(AF_INET, text), "big") if text else LOCAL
    except OSError:
        raise ValueError(f"{text!r} is not an address") from None
