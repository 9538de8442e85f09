"""Socket addresses of the socket module as Twisted addresses.

A link-local IPv6 address keeps its interface, such as fe80::1%eth0: without it the address is ambiguous (RFC 4007).
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

__all__ = ["inet_address", "scoped_host", "socket_host", "stream_address", "tcp_address"]


def scoped_host(host: str, scope: int) -> str:
    """Return an IPv6 address as text with its interface, if it has one.

    Args:
        host: the address.
        scope: the index of the interface; 0 for no interface.

    Raises:
        OSError: the interface does not exist any more.
    """
    return f"{host}%{socket.if_indextoname(scope)}" if scope and "%" not in host else host


def inet_address(kind: Any, sockaddr: Any) -> IPv4Address | IPv6Address:  # noqa: ANN401 - a socket address
    """Return the address of an IPv4 or IPv6 socket.

    Args:
        kind: `TCP` or `UDP`.
        sockaddr: the socket address.

    Raises:
        OSError: there is no such interface any more.
    """
    if len(sockaddr) == 2:
        return IPv4Address(kind, *sockaddr)
    host, port, flow, scope = sockaddr
    return IPv6Address(kind, scoped_host(host, scope) if scope else host, port, flow, scope)


def tcp_address(sockaddr: Any) -> IPv4Address | IPv6Address:  # noqa: ANN401 - a socket address
    """Return the address of a TCP socket.

    Raises:
        OSError: there is no such interface any more.
    """
    if len(sockaddr) == 2:
        # This avoids the call of inet_address() for each connection.
        return IPv4Address("TCP", *sockaddr)
    return inet_address("TCP", sockaddr)


def stream_address(sockaddr: Any) -> IPv4Address | IPv6Address | UNIXAddress:  # noqa: ANN401 - a socket address
    """Return the address of a TCP or UNIX stream socket.

    Raises:
        OSError: there is no such interface any more.
    """
    return tcp_address(sockaddr) if isinstance(sockaddr, tuple) else UNIXAddress(sockaddr or None)


def socket_host(sock: socket.socket) -> IPv4Address | IPv6Address | UNIXAddress:
    """Return the local address of a socket, as for getHost() of a port."""
    sockaddr = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UNIXAddress(sockaddr)
    return inet_address("TCP" if sock.type == socket.SOCK_STREAM else "UDP", sockaddr)
