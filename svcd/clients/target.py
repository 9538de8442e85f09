"""Whom to talk to, and how, as values."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from svcd.errors import UsageError

if TYPE_CHECKING:
    from socket import AddressFamily

__all__ = ["Reactor", "Target", "TrustSettings", "port_number"]

#: Provides IReactorTCP, IReactorUNIX, IReactorUDP, IReactorTime and IReactorFromThreads.
Reactor: TypeAlias = Any

_MOST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """What TLS is to do.

    Attributes:
        name: whose certificate the server must have: a host name or an address.
        ca: certificates in PEM that are trusted instead of the machine's; empty for those.
        certificate: our own in PEM, with those between it and the server's trust behind it; empty for none.
        key: its private key in PEM.
        lenient: whether a certificate that can't be trusted is only remembered.
        protocols: what is offered by ALPN (RFC 7301).
    """

    name: str
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    lenient: bool = False
    protocols: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A server.

    Attributes:
        host: its name or address, or the absolute path of its UNIX socket.
        port: 0 for a UNIX socket.
        timeout: how long it may take to accept, and then to say something, in seconds.
        family: AF_INET or AF_INET6 where no other will do; else AF_UNSPEC.
        trust: of TLS; None without.
    """

    host: str
    port: int
    timeout: float
    family: AddressFamily = socket.AF_UNSPEC
    trust: TrustSettings | None = None

    @property
    def local(self) -> bool:
        """Whether it is a UNIX socket."""
        return self.host.startswith("/")

    def __str__(self) -> str:
        return self.host if self.local else f"{self.host} port {self.port}"


def port_number(text: str, protocol: str) -> int:
    """A port from its number or from its name in /etc/services.

    Args:
        text: the number or the name.
        protocol: tcp or udp: a name may mean two ports.

    Raises:
        UsageError: there is none.
    """
    if text.isascii() and text.isdigit():
        if len(text) > len(str(_MOST_PORT)) or not 1 <= int(text) <= _MOST_PORT:
            raise UsageError(f"{text} is no port: they go from 1 to {_MOST_PORT}")
        return int(text)
    try:
        return socket.getservbyname(text, protocol)
    except (OSError, ValueError):
        raise UsageError(f"/etc/services has no {text}/{protocol}; say the port by its number") from None
