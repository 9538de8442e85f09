"""Value types that all packages share: frozen and slotted."""

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
    """Type of a service's sockets: a stream of bytes, or datagrams."""

    STREAM = "stream"
    DATAGRAM = "datagram"


class NetProtocol(enum.StrEnum):
    """Protocol of a services line, after the port and the slash."""

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
        """The type of its sockets."""
        return SocketType.STREAM if self in _STREAMS else SocketType.DATAGRAM

    @property
    def local(self) -> bool:
        """Whether its address is that of a UNIX socket, not a port."""
        return self in (NetProtocol.UNIX, NetProtocol.UNIXGRAM)

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions to listen on: 4, 6 or both; none for UNIX sockets."""
        if self.local:
            return ()
        return (int(self[-1]),) if self[-1].isdigit() else (4, 6)


_STREAMS = frozenset({NetProtocol.TCP, NetProtocol.TCP4, NetProtocol.TCP6, NetProtocol.UNIX})


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """Location in a file. Lines and columns count from 1; line 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def document(self) -> dict[str, object]:
        """Return the location as in the JSON documents of svcctl."""
        return {"file": self.file, "line": self.line or None, "column": self.column or None}

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Severity(enum.IntEnum):
    """Effect of a ConfigProblem.

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
        service: the id of the service concerned; empty if there is none.
        path: the file that the option names; empty if there is none.
        pending: whether the problem will probably end by itself soon, such as an import in progress.
    """

    location: SourceLocation
    text: str
    severity: Severity = Severity.MISTAKE
    service: str = field(default="", compare=False)
    path: str = field(default="", compare=False)
    pending: bool = field(default=False, compare=False)

    def document(self) -> dict[str, object]:
        """Return the problem as in the JSON documents of svcctl."""
        return {
            "severity": self.severity.name.lower(),
            "service": self.service or None,
            **self.location.document(),
            "text": self.text,
        }

    def __str__(self) -> str:
        kind = "warning: " if self.severity is Severity.WARNING else ""
        return f"{self.location}: {kind}{self.text}"


@dataclass(frozen=True, slots=True)
class FileOwner:
    """Owner of a file, by names or numbers; empty for the user that created it."""

    user: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class RunAs:
    """Account and root directory of a process.

    Attributes:
        user: the name or number; empty for the daemon's user.
        group: the name or number; empty for the primary group of the user.
        groups: whether the process has the supplementary groups of the user.
        root: the root directory; empty for the machine's.
    """

    user: str = ""
    group: str = ""
    groups: bool = False
    root: str = ""


@lru_cache(maxsize=1024)
def ip_literal(text: str) -> str:
    """Return an IP address in canonical form; empty for any other text, such as the name of an interface or a host.

    An IPv6 address may have a scope (`fe80::1%eth0`).
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
