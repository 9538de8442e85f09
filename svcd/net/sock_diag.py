"""Looks at TCP connections that other processes have, by asking the kernel (sock_diag(7)).

Once a connection is its handler's, the daemon has no descriptor of it, and keeping one would change it: the client
would not see its end when the handler closes it. The kernel tells its counts to whoever knows its addresses, without
privilege.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from svcd.net.sock_diag_messages import COOKIE_BYTES, LARGEST, NO_COOKIE, answer, question, trace
from svcd.net.tcp_info import traffic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GONE", "SocketView"]

#: The traffic of a connection that is over: its handler has closed it.
GONE = (-1, -1)
# Of linux/netlink.h and asm-generic/socket.h, which the socket module lacks.
_NETLINK_SOCK_DIAG = 4
_SO_COOKIE = 57
_LARGEST_NUMBER = 0xFFFF_FFFF
#: So many connections in a row that are not there are too many to be believed.
_MOST_MISSES = 100


class SocketView:
    """Asks the kernel for the traffic of connections.

    Args:
        blind: told once why nothing can be seen, if that is so.
    """

    def __init__(self, blind: Callable[[str], None] = lambda _why: None) -> None:
        self._blind = blind
        self._socket: socket.socket | None = None
        self._works = True
        self._number = 0
        # How many were not found before the first was; None from then on. Where the kernel can't look for them at all
        # it gives the same answer.
        self._misses: int | None = 0

    def trace(self, descriptor: int, family: int, near: Any, name: Any) -> bytes:  # noqa: ANN401 - socket addresses
        """What a connection will be found by, when its descriptor is gone.

        Args:
            descriptor: the connection's, accepted over TCP.
            family: of the socket.
            near: its own socket address.
            name: the client's.
        """
        sock = socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor)
        try:
            cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, COOKIE_BYTES)
        except OSError:
            # Before Linux 4.12.
            cookie = NO_COOKIE
        finally:
            sock.detach()
        # The interface is part of a link-local address only.
        interface = name[3] if len(name) == 4 else 0
        traced = trace(family, _packed(family, near), _packed(family, name), interface, cookie)
        if self._misses is not None:
            # While it is open it has to be found, unless nothing ever is.
            self.traffic(traced)
        return traced

    def traffic(self, traced: bytes) -> tuple[int, int] | None:
        """Bytes that came from a client, and bytes that its system has taken.

        Returns:
            GONE for a connection that is over, None if that can't be seen here.
        """
        if not self._works:
            return None
        try:
            info = self._ask(traced)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
                # This time only.
                return None
            self._give_up(error.strerror or str(error))
            return None
        except ValueError as error:
            self._give_up(str(error))
            return None
        if info:
            self._misses = None
            return traffic(info)
        if self._misses is None:
            return GONE
        self._misses += 1
        if self._misses == _MOST_MISSES:
            self._give_up("it finds no connection; perhaps it lacks the module tcp_diag")
        return None

    def rest(self) -> None:
        """Keep nothing open until there is something to look at."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, traced: bytes) -> bytes:
        if self._socket is None:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._number = self._number % _LARGEST_NUMBER + 1
        self._socket.send(question(self._number, traced))
        while True:
            # The kernel has answered when send() returns (netlink(7)).
            number, info = answer(self._socket.recv(LARGEST))
            if number == self._number:
                return info

    def _give_up(self, why: str) -> None:
        self.rest()
        self._works = False
        self._blind(why)


def _packed(family: int, name: Any) -> tuple[bytes, int]:  # noqa: ANN401 - a socket address
    return socket.inet_pton(family, name[0].partition("%")[0]), name[1]
