"""The values that travel between the floors: frozen, slotted, without behaviour of their own."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache

__all__ = [
    "ConfigProblem",
    "FileOwner",
    "NetProtocol",
    "RunAs",
    "Severity",
    "SocketType",
    "SourceLocation",
    "ip_literal",
]


class SocketType(enum.Enum):
    """The type of a service's sockets: a stream of bytes, or datagrams."""

    STREAM = "stream"
    DATAGRAM = "datagram"


class NetProtocol(enum.StrEnum):
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
    def shape(self) -> SocketType:
        """Stream or datagram."""
        return SocketType.STREAM if self in _STREAMS else SocketType.DATAGRAM

    @property
    def local(self) -> bool:
        """Whether its address is a path of the file system, not a port."""
        return self in (NetProtocol.UNIX, NetProtocol.UNIXGRAM)

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of IP it listens on: 4, 6, both, or none for a local one."""
        if self.local:
            return ()
        return (int(self[-1]),) if self[-1].isdigit() else (4, 6)


_STREAMS = frozenset({NetProtocol.TCP, NetProtocol.TCP4, NetProtocol.TCP6, NetProtocol.UNIX})


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
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
class ConfigProblem:
    """Problem of a services file, with its location and its remedy: `services:12:7: unknown option ...`.

    Attributes:
        service: the id of the service that it is about; empty where it is about none.
        path: the file that the option names; empty where it names none.
        pending: whether it goes away by itself soon, such as an import that takes long.
    """

    location: SourceLocation
    text: str
    severity: Severity = Severity.MISTAKE
    service: str = field(default="", compare=False)
    path: str = field(default="", compare=False)
    pending: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        kind = "warning: " if self.severity is Severity.WARNING else ""
        return f"{self.location}: {kind}{self.text}"


@dataclass(frozen=True, slots=True)
class FileOwner:
    """The owner of a file, by names or numbers; empty for the user that made it."""

    user: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class RunAs:
    """The account of a process.

    Attributes:
        user: by name or number; empty for the daemon's user.
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
