"""The terms on which clients are taken in, as values: what the options of the services file say of them.

They are read from the file's words by config and applied by policy. Addresses are numbers here, IPv4 and IPv6 on one
line, so that a rule is a range and a comparison of two addresses one of two numbers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_pton

__all__ = [
    "LOCAL",
    "LOCAL_CLIENT",
    "NO_RATE",
    "V6",
    "ClientName",
    "Hours",
    "NameKind",
    "Prefixes",
    "Rate",
    "Source",
    "address_number",
]

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


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of only_from or no_access: a range of addresses, or a name.

    Attributes:
        text: as the file has it.
        first, last: the numbers of its addresses, both included; meaningless for a name.
        name: in small letters: `host.example.com`, or `.example.com` for all hosts below; empty for addresses.
    """

    text: str
    first: int = 0
    last: int = -1
    name: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Hours:
    """A span of the day, in minutes since midnight on the wall clock: from `start` to before `end`.

    `end` is at most 1440 and never `start`; where it is less the span goes across midnight.
    """

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start // 60}:{self.start % 60:02}-{self.end // 60}:{self.end % 60:02}"


_UNITS = {1: "s", 60: "m", 3600: "h"}


@dataclass(frozen=True, slots=True)
class OutputRate:
    """How much may be written for the log: so many lines, and so many bytes of them, a second."""

    lines: int
    size: int


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds: 1, 60 or 3600."""

    count: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.count}/{_UNITS[self.seconds]}" if self.count else "none"


#: As many as come, for an option that says so: with None it says nothing.
NO_RATE = Rate(0, 1)


@dataclass(frozen=True, slots=True)
class Prefixes:
    """How many leading bits of an address make a source, for IPv4 (1 to 32) and for IPv6 (1 to 128)."""

    v4: int = 32
    v6: int = 64

    def __str__(self) -> str:
        return f"/{self.v4},/{self.v6}"


class NameKind(enum.Enum):
    """What a name in a certificate is (RFC 5280, 4.2.1.6)."""

    DNS = "DNS"
    EMAIL = "email"
    URI = "URI"
    IP = "IP"


@dataclass(frozen=True, slots=True)
class ClientName:
    """Whom a TLS client's certificate may be for.

    Attributes:
        kind: what the name is.
        text: the name; of a host in small letters, and the first label may be a star.
    """

    kind: NameKind
    text: str
