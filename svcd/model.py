"""The values that travel between the floors: frozen, slotted, without behaviour of their own."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from socket import AF_INET6, inet_ntop, inet_pton

__all__ = [
    "HostPort",
    "Net",
    "Owner",
    "Place",
    "Problem",
    "Runner",
    "Severity",
    "Shape",
    "address_text",
    "ip_literal",
    "short_address",
    "unmapped",
]


class Shape(enum.Enum):
    """How a service talks: a stream of bytes, or one datagram at a time."""

    STREAM = "stream"
    DATAGRAM = "datagram"


class Net(enum.StrEnum):
    """The protocol field of a services line, after the port and the slash."""

    TCP = "tcp"
    TCP4 = "tcp4"
    TCP6 = "tcp6"
    UDP = "udp"
    UDP4 = "udp4"
    UDP6 = "udp6"
    UNIX = "unix"
    UNIXGRAM = "unixgram"

    @property
    def shape(self) -> Shape:
        """Stream or datagram."""
        return Shape.STREAM if self in _STREAMS else Shape.DATAGRAM

    @property
    def local(self) -> bool:
        """Whether its address is a path of the file system, not a port."""
        return self in (Net.UNIX, Net.UNIXGRAM)

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of IP it listens on: 4, 6, both, or none for a local one."""
        if self.local:
            return ()
        return (int(self[-1]),) if self[-1].isdigit() else (4, 6)


_STREAMS = frozenset({Net.TCP, Net.TCP4, Net.TCP6, Net.UNIX})


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands in a file. Lines and columns count from 1; line 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Severity(enum.IntEnum):
    """Effect of a Problem.

    MISTAKE is an error in the text of the services file: the file as a whole is not used. FAULT is something that the
    machine lacks at the moment, such as a program, a user or an address: its service is broken, the others serve.
    WARNING changes nothing.
    """

    MISTAKE = 0
    FAULT = 1
    WARNING = 2


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Problem of a services file, with its place and its remedy: `services:12:7: unknown option ...`.

    Attributes:
        service: the id of the service that it is about; empty where it is about none.
        path: the file that the option names; empty where it names none.
        pending: whether it goes away by itself soon, such as an import that takes long.
    """

    place: Place
    text: str
    severity: Severity = Severity.MISTAKE
    service: str = field(default="", compare=False)
    path: str = field(default="", compare=False)
    pending: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        kind = "warning: " if self.severity is Severity.WARNING else ""
        return f"{self.place}: {kind}{self.text}"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a file, by names or numbers; empty for whoever made it."""

    user: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class HostPort:
    """A server to connect to: its name or address, without brackets, and its port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Runner:
    """As whom a process runs.

    Attributes:
        user: by name or number; empty for whoever runs the daemon.
        group: by name or number; empty for the user's.
        groups: whether it has the supplementary groups of its user.
        root: its root directory; empty for the machine's.
    """

    user: str = ""
    group: str = ""
    groups: bool = False
    root: str = ""


@lru_cache(maxsize=1024)
def ip_literal(text: str) -> str:
    """Return an IP address in its one spelling; empty for anything else, such as the name of an interface or a host.

    Two spellings of an address are equal then. The address of IPv6 may have a scope (`fe80::1%eth0`).
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


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
