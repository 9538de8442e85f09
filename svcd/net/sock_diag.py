"""Looks at TCP connections that other processes have, by asking the kernel (sock_diag(7)).

Once a connection is its handler's, the daemon has no descriptor of it, and keeping one would change it: the client
would not see its end when the handler closes it. The kernel tells its counts to whoever knows its addresses, without
privilege.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any

from svcd.net.tcp_info import traffic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COOKIE_BYTES", "GONE", "LARGEST", "NO_COOKIE", "SocketView", "answer", "question", "trace"]

#: An answer fits in so many bytes.
LARGEST = 4096
#: What tells a connection from a later one of the same addresses and ports (socket(7), SO_COOKIE).
COOKIE_BYTES = 8
#: For a kernel that has none (linux/inet_diag.h, INET_DIAG_NOCOOKIE).
NO_COOKIE = b"\xff" * COOKIE_BYTES

# struct nlmsghdr (linux/netlink.h): length, type, flags, number, port.
_HEADER = struct.Struct("=IHHII")
_ERROR, _SOCK_DIAG_BY_FAMILY, _REQUEST = 2, 20, 1
# struct inet_diag_req_v2 (linux/inet_diag.h) up to the connection: family, protocol, attributes, padding, states.
_REQUEST_HEAD = struct.Struct("=BBBxI")
_TCP, _ALL_STATES = 6, 0xFFFF_FFFF
# INET_DIAG_INFO, and the bit that asks for it.
_INFO = 2
_WANT_INFO = 1 << _INFO - 1
# struct inet_diag_sockid: ports in network order, addresses of 16 bytes, interface, cookie.
_PORTS = struct.Struct("!HH")
_INTERFACE = struct.Struct("=I")
# struct inet_diag_msg has so many bytes; attributes follow, each with its length and kind.
_MESSAGE_BYTES = 72
_ATTRIBUTE = struct.Struct("=HH")


def trace(
    family: int, local: tuple[bytes, int], remote: tuple[bytes, int], interface: int = 0, cookie: bytes = NO_COOKIE
) -> bytes:
    """What a connection is found by.

    Args:
        family: AF_INET or AF_INET6, as the system numbers it.
        local: address, in its 4 or 16 bytes, and port.
        remote: the client's.
        interface: the number of the one that link-local addresses belong to, else 0.
        cookie: of COOKIE_BYTES.
    """
    addresses = local[0].ljust(16, b"\0") + remote[0].ljust(16, b"\0")
    head = _REQUEST_HEAD.pack(family, _TCP, _WANT_INFO, _ALL_STATES)
    return head + _PORTS.pack(local[1], remote[1]) + addresses + _INTERFACE.pack(interface) + cookie


def question(number: int, traced: bytes) -> bytes:
    """The message that asks for a connection.

    Args:
        number: below 2**32, for the answer.
        traced: from `trace`.
    """
    return _HEADER.pack(_HEADER.size + len(traced), _SOCK_DIAG_BY_FAMILY, _REQUEST, number, 0) + traced


def answer(data: bytes) -> tuple[int, bytes]:
    """The number of the question and the tcp_info of the connection; nothing of one that is over.

    Raises:
        ValueError: it is no answer.
    """
    try:
        length, kind, _, number, _ = _HEADER.unpack_from(data)
        if kind == _ERROR:
            return number, b""
        if kind != _SOCK_DIAG_BY_FAMILY or length > len(data):
            raise ValueError("no answer of sock_diag")
        offset = _HEADER.size + _MESSAGE_BYTES
        while offset + _ATTRIBUTE.size <= length:
            size, attribute = _ATTRIBUTE.unpack_from(data, offset)
            if attribute == _INFO:
                return number, data[offset + _ATTRIBUTE.size : offset + size]
            # Each begins at a multiple of four bytes (netlink(3)); one shorter than its own head would never end.
            offset += max(size + 3 & ~3, _ATTRIBUTE.size)
    except struct.error as error:
        raise ValueError("no answer of sock_diag") from error
    return number, b""


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
