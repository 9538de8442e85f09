"""The two ends of a connection that is handed over: as its process is told of them, and as the kernel knows them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svcd.net.peer_credentials import credentials
from svcd.process.environment import local_proxy_environment, proxy_environment, tcp_environment, unix_environment

if TYPE_CHECKING:
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["ConnectionAddresses"]


@dataclass(slots=True)
class ConnectionAddresses:
    """Both ends of a connection.

    Attributes:
        near, far: our socket address and the client's, over TCP or by a proxy's header; None without one.
        real: the socket addresses that the connection itself has over TCP, ours first; None at a UNIX socket.
        process: the one at the other end of a UNIX socket, with its user and group (unix(7)).
        more: variables that a process gets besides, of a proxy; each behind a NUL.
        family: of the socket.
        relay: a proxy's header.
    """

    near: Any
    far: Any
    real: tuple[Any, Any] | None = None
    process: tuple[int, int, int] = (0, 0, 0)
    more: bytes = b""
    family: int = socket.AF_INET
    relay: ProxyHeader | None = None

    @classmethod
    def of(cls, descriptor: int, name: Any, family: int, relay: ProxyHeader | None = None) -> ConnectionAddresses:  # noqa: ANN401 - a socket address
        """Those of a connection.

        Args:
            descriptor: the connection's.
            name: the client's socket address.
            family: of the socket.
            relay: a proxy's header, which the client's address may be from.

        Raises:
            OSError: the client is gone already.
        """
        near = None if relay is None else relay.destination
        sock = socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor)
        try:
            if family == socket.AF_UNIX:
                process = credentials(sock)
                more = b"" if near is None else b"\0" + local_proxy_environment(*process)
                return cls(near, name, None, process, more, family, relay)
            own = sock.getsockname()
            if near is None:
                return cls(own, name, (own, name), family=family, relay=relay)
            proxy = sock.getpeername()
            more = b"\0" + proxy_environment(proxy[0], proxy[1])
            return cls(near, name, (own, proxy), more=more, family=family, relay=relay)
        finally:
            sock.detach()

    def environment(self, count: int, host: str | None = None, near: str | None = None) -> bytes:
        """The variables of the connection.

        Args:
            count: the open connections of the service, this one included.
            host: the client's name, if it was looked up.
            near: the name of our own address, the same.
        """
        if self.near is None:
            return unix_environment(*self.process)
        return tcp_environment(self.near[0], self.near[1], self.far[0], self.far[1], count, host, near) + self.more
