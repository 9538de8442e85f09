"""The server of a client and the settings of its connection, as values."""

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
    """Settings of TLS.

    Attributes:
        name: the host name or address that the certificate of the server must have.
        ca: trusted certificates in PEM; empty for those of the machine.
        certificate: the client's certificate in PEM, followed by intermediate certificates; empty if there is none.
        key: the private key of the client's certificate in PEM.
        lenient: whether problems of a certificate are recorded without failing the handshake.
        protocols: the protocols that ALPN offers (RFC 7301).
    """

    name: str
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    lenient: bool = False
    protocols: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Server of a client, and the settings of the connection.

    Attributes:
        host: the name or address, or the absolute path of a UNIX socket.
        port: the port; 0 for a UNIX socket.
        timeout: the time limit for the connect, and then for each answer, in seconds.
        family: AF_INET or AF_INET6 to restrict the addresses; AF_UNSPEC for both.
        trust: the settings of TLS; None without TLS.
    """

    host: str
    port: int
    timeout: float
    family: AddressFamily = socket.AF_UNSPEC
    trust: TrustSettings | None = None

    @property
    def local(self) -> bool:
        """Whether the server listens on a UNIX socket."""
        return self.host.startswith("/")

    def __str__(self) -> str:
        return self.host if self.local else f"{self.host} port {self.port}"


def port_number(text: str, protocol: str) -> int:
    """Return a port, given as a number or as a name in /etc/services.

    Args:
        text: the number or the name.
        protocol: tcp or udp: the port of a name may differ between them.

    Raises:
        UsageError: there is no such port.
    """
    if text.isascii() and text.isdigit():
        if len(text) > len(str(_MOST_PORT)) or not 1 <= int(text) <= _MOST_PORT:
            raise UsageError(f"{text} is not a port from 1 to {_MOST_PORT}")
        return int(text)
    try:
        return socket.getservbyname(text, protocol)
    except (OSError, ValueError):
        raise UsageError(f"/etc/services has no {text}/{protocol}; use the port number") from None
