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
from svcd.reactor.proxied import RELAYED
from svcd.reactor.tcp import TCP6Transport, TCPTransport
from svcd.reactor.unix import UNIXTransport

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Coroutine, Iterable

    from twisted.internet.interfaces import IProtocol, IProtocolFactory

    from svcd.reactor.native import NativeReactor
    from svcd.reactor.proxied import Relay
    from svcd.reactor.transport import UvTransport

__all__ = ["SingleProtocolFactory", "adopt_connection", "finish_coroutines", "start_coroutine", "start_transport"]


def start_coroutine(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
    """Take the first step now, and the second when connection_made() was called.

    Raises:
        OSError: the socket is of no use.
    """
    coroutine.send(None)
    loop.call_soon(finish_coroutines, [coroutine])


def finish_coroutines(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Take the second step. Each coroutine's connection_made() was called."""
    for coroutine in coroutines:
        try:
            coroutine.send(None)
        except (StopIteration, RuntimeError):
            # It has ended, or its transport was closed before it was of any use, which its protocol knows.
            continue


_KINDS: dict[int, type[UvTransport]] = {
    socket.AF_INET: TCPTransport,
    socket.AF_INET6: TCP6Transport,
    socket.AF_UNIX: UNIXTransport,
}


class _Connected:
    """A connected descriptor, as much of a socket as uvloop asks of it; uvloop closes the descriptor.

    The family is AF_UNIX for all, by which uvloop takes libuv's stream for any descriptor (uv_pipe_open). The one for
    TCP sets TCP_NODELAY, whatever the listening socket says and the connection inherits (tcp(7)), and asks the kernel
    for both addresses: three system calls for each connection that nobody has asked for.
    """

    __slots__ = ("_descriptor",)

    type = int(socket.SOCK_STREAM)
    family = int(socket.AF_UNIX)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Uvloop has closed it."""


class SingleProtocolFactory:
    """The factory of a protocol that is there already."""

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, _addr: object) -> IProtocol:
        """That one."""
        return self._protocol


def start_transport(
    reactor: NativeReactor,
    descriptor: int,
    name: Any,  # noqa: ANN401 - a socket address
    family: int,
    factory: IProtocolFactory,
    relay: Relay | None,
    server: object,
    number: int,
) -> Coroutine[Any, Any, Any]:
    """Put a connection on uvloop, which has its descriptor from now on.

    Args:
        reactor: whose loop serves it.
        descriptor: the connection's.
        name: the client's socket address.
        family: of the socket; the client's may be another with a relay.
        factory: builds the protocol.
        relay: what was said before, by whom the client came.
        server: as UvTransport takes it.
        number: the same.

    Returns:
        What svcd.reactor.coroutines.finish_coroutines() is to be called with soon.

    Raises:
        OSError: it is gone; the descriptor is still the caller's.
    """
    peer = tcp_address(name) if isinstance(name, tuple) else unix_peer(descriptor, name)
    kind: Any = _KINDS[family] if relay is None else RELAYED[family]
    transport = kind(reactor, descriptor, factory, peer, server, number)
    if relay is not None:
        transport.relay = relay
    coroutine = reactor.loop.connect_accepted_socket(
        lambda: transport,
        _Connected(descriptor),  # type: ignore[arg-type]
    )
    coroutine.send(None)
    return coroutine


def adopt_connection(
    reactor: NativeReactor,
    descriptor: int,
    name: Any,  # noqa: ANN401 - a socket address
    family: int,
    factory: IProtocolFactory,
    relay: Relay | None,
    server: object,
    number: int,
) -> None:
    """The same for one that somebody else accepted or made, to the end: its descriptor is closed in any case.

    Raises:
        OSError: it is gone.
    """
    try:
        coroutine = start_transport(reactor, descriptor, name, family, factory, relay, server, number)
    except OSError:
        os.close(descriptor)
        raise
    reactor.loop.call_soon(finish_coroutines, [coroutine])
