"""Connected sockets that become uvloop transports.

uvloop opens a transport for a socket in the first step of a coroutine. The second step waits for connection_made(),
which the loop calls next, and does nothing more. These coroutines are driven by hand, since Twisted's calls must have
their result at once, and a Task for each would cost more than the transport.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from svcd.net.peer_credentials import unix_peer
from svcd.net.twisted_addresses import tcp_address
from svcd.reactor.proxied import PROXIED_TRANSPORTS
from svcd.reactor.tcp import TCP6Transport, TCPTransport
from svcd.reactor.unix import UNIXTransport

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Coroutine, Iterable

    from twisted.internet.interfaces import IProtocol, IProtocolFactory

    from svcd.reactor.native import NativeReactor
    from svcd.reactor.proxied import ProxyInfo
    from svcd.reactor.transport import UvTransport

__all__ = ["SingleProtocolFactory", "adopt_connection", "finish_coroutines", "start_coroutine", "start_transport"]

_TRANSPORTS: dict[int, type[UvTransport]] = {
    socket.AF_INET: TCPTransport,
    socket.AF_INET6: TCP6Transport,
    socket.AF_UNIX: UNIXTransport,
}


def start_coroutine(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
    """Take a coroutine's first step now, and its second when connection_made() was called.

    Raises:
        OSError: the socket is of no use.
    """
    coroutine.send(None)
    loop.call_soon(finish_coroutines, [coroutine])


def finish_coroutines(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Take the second step of coroutines; connection_made() of each transport was called."""
    for coroutine in coroutines:
        try:
            coroutine.send(None)
        except (StopIteration, RuntimeError):
            # It has ended. Or its transport was closed during connection_made(), which its protocol knows.
            continue


class _ConnectedSocket:
    """A connected descriptor, with as much of a socket object as uvloop uses; uvloop closes the descriptor.

    The family is AF_UNIX for all, by which uvloop takes libuv's stream for any descriptor (uv_pipe_open). The one for
    TCP sets TCP_NODELAY, whatever the connection inherits from the listening socket (tcp(7)), and asks the kernel for
    both addresses: three system calls for each connection that are not needed.
    """

    __slots__ = ("_fd",)

    type = int(socket.SOCK_STREAM)
    family = int(socket.AF_UNIX)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Do nothing: uvloop has closed the descriptor."""


class SingleProtocolFactory:
    """A factory that returns a protocol that exists already.

    Args:
        protocol: the protocol.
    """

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, _addr: object) -> IProtocol:
        """Return the protocol."""
        return self._protocol


def start_transport(
    reactor: NativeReactor,
    fd: int,
    sockaddr: Any,  # noqa: ANN401 - a socket address
    family: int,
    factory: IProtocolFactory,
    proxy_header: ProxyInfo | None,
    server: object,
    sessionno: int,
) -> Coroutine[Any, Any, Any]:
    """Make a uvloop transport of a connection. Takes ownership of fd, unless this raises.

    Args:
        reactor: its loop runs the connection.
        fd: of the connection.
        sockaddr: the client's socket address.
        family: of the socket; with a PROXY header the client's may be another.
        factory: builds the protocol.
        proxy_header: the PROXY header of the connection, if it has one.
        server: as in UvTransport.
        sessionno: as in UvTransport.

    Returns:
        A coroutine for finish_coroutines(), in the next turn of the loop.

    Raises:
        OSError: the connection is gone.
    """
    peer = tcp_address(sockaddr) if isinstance(sockaddr, tuple) else unix_peer(fd, sockaddr)
    kind: Any = _TRANSPORTS[family] if proxy_header is None else PROXIED_TRANSPORTS[family]
    transport = kind(reactor, fd, factory, peer, server, sessionno)
    if proxy_header is not None:
        transport.proxy_header = proxy_header
    coroutine = reactor.loop.connect_accepted_socket(
        lambda: transport,
        _ConnectedSocket(fd),  # type: ignore[arg-type]
    )
    coroutine.send(None)
    return coroutine


def adopt_connection(
    reactor: NativeReactor,
    fd: int,
    sockaddr: Any,  # noqa: ANN401 - a socket address
    family: int,
    factory: IProtocolFactory,
    proxy_header: ProxyInfo | None,
    server: object,
    sessionno: int,
) -> None:
    """Start the transport of a single connection; see start_transport(). Takes ownership of fd, also if this raises.

    Raises:
        OSError: the connection is gone.
    """
    try:
        coroutine = start_transport(reactor, fd, sockaddr, family, factory, proxy_header, server, sessionno)
    except OSError:
        os.close(fd)
        raise
    reactor.loop.call_soon(finish_coroutines, [coroutine])
