"""Byte counters of TCP connections that other processes have open, from the kernel (sock_diag(7)).

The daemon has no descriptor of a connection that its handler has. A duplicate would keep the connection open when the
handler closes it. The kernel returns the counters of a connection for its addresses, without any privilege.

`request_message` makes a netlink message; `parse_reply` turns a reply into the sequence number of its request and the
tcp_info of the connection, which is empty if there is no such connection. A message has at most a few hundred bytes.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any

from svcd.net.stream_sockets import traffic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "COOKIE_BYTES",
    "GONE",
    "MAX_REPLY_BYTES",
    "NO_COOKIE",
    "SocketView",
    "diag_request",
    "parse_reply",
    "request_message",
]

#: The result of SocketView.traffic() for a connection that its handler has closed.
GONE = (-1, -1)
# From linux/netlink.h and asm-generic/socket.h; the socket module lacks them.
_NETLINK_SOCK_DIAG = 4
_SO_COOKIE = 57
_MAX_NUMBER = 0xFFFF_FFFF
#: The number of connections that are not found, without any that is found, at which sock_diag counts as not working.
_MAX_MISSES = 100

#: The size of the receive buffer for a reply.
MAX_REPLY_BYTES = 4096
#: The size of a socket's cookie, in bytes. A later connection with the same addresses and ports has another cookie
#: (socket(7), SO_COOKIE).
COOKIE_BYTES = 8
#: The cookie for a kernel without cookies (linux/inet_diag.h, INET_DIAG_NOCOOKIE).
NO_COOKIE = b"\xff" * COOKIE_BYTES

# struct nlmsghdr (linux/netlink.h): length, type, flags, sequence number, port.
_HEADER = struct.Struct("=IHHII")
_ERROR, _SOCK_DIAG_BY_FAMILY, _REQUEST = 2, 20, 1
# struct inet_diag_req_v2 (linux/inet_diag.h) up to the connection: family, protocol, attributes, padding, states.
_REQUEST_HEAD = struct.Struct("=BBBxI")
_TCP, _ALL_STATES = 6, 0xFFFF_FFFF
# INET_DIAG_INFO, and the bit that requests it.
_INFO = 2
_WANT_INFO = 1 << _INFO - 1
# struct inet_diag_sockid: ports in network order, addresses of 16 bytes, interface, cookie.
_PORTS = struct.Struct("!HH")
_INTERFACE = struct.Struct("=I")
# The size of struct inet_diag_msg; attributes follow, each with its length and kind.
_MESSAGE_BYTES = 72
_ATTRIBUTE = struct.Struct("=HH")


def diag_request(
    family: int, local: tuple[bytes, int], remote: tuple[bytes, int], interface: int = 0, cookie: bytes = NO_COOKIE
) -> bytes:
    """Return the struct inet_diag_req_v2 that identifies a connection.

    Args:
        family: AF_INET or AF_INET6.
        local: the local address, in its 4 or 16 bytes, and port.
        remote: the client's address and port.
        interface: the index of the interface of link-local addresses, otherwise 0.
        cookie: the socket's cookie.
    """
    addresses = local[0].ljust(16, b"\0") + remote[0].ljust(16, b"\0")
    head = _REQUEST_HEAD.pack(family, _TCP, _WANT_INFO, _ALL_STATES)
    return head + _PORTS.pack(local[1], remote[1]) + addresses + _INTERFACE.pack(interface) + cookie


def request_message(number: int, request: bytes) -> bytes:
    """Return the netlink message that requests the tcp_info of a connection.

    Args:
        number: the sequence number, below 2**32; the reply has the same number.
        request: from `diag_request`.
    """
    return _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST, number, 0) + request


def parse_reply(data: bytes) -> tuple[int, bytes]:
    """Return the sequence number and the tcp_info of the connection, which is empty if there is no such connection.

    Raises:
        ValueError: the data is no reply of sock_diag.
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
            # Each attribute begins at a multiple of four bytes (netlink(3)). A size below that of its header must not
            # cause an endless loop.
            offset += max(size + 3 & ~3, _ATTRIBUTE.size)
    except struct.error as error:
        raise ValueError("no answer of sock_diag") from error
    return number, b""


class SocketView:
    """Reader of the traffic of connections from the kernel.

    Args:
        on_failure: called once with the reason, if sock_diag does not work.

    Attributes:
        is_open: whether it has a netlink socket.
    """

    def __init__(self, on_failure: Callable[[str], None] = lambda _reason: None) -> None:
        self._on_failure = on_failure
        self._socket: socket.socket | None = None
        self.is_open = False
        self._works = True
        self._number = 0
        # The number of connections that were not found; None after the first that was found. A kernel without the
        # module for TCP gives the same reply as for a missing connection.
        self._misses: int | None = 0

    def trace(self, fd: int, family: int, local: Any, remote: Any) -> bytes:  # noqa: ANN401 - socket addresses
        """Return the request for a connection, for traffic() after its descriptor is closed.

        Args:
            fd: the accepted TCP connection.
            family: the address family of the socket.
            local: the local socket address.
            remote: the client's socket address.
        """
        sock = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
        try:
            cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, COOKIE_BYTES)
        except OSError:
            # There are no cookies before Linux 4.12.
            cookie = NO_COOKIE
        finally:
            sock.detach()
        # Only a link-local address has an interface.
        interface = remote[3] if len(remote) == 4 else 0
        request = diag_request(family, _packed(family, local), _packed(family, remote), interface, cookie)
        if self._misses is not None:
            # An open connection is found if sock_diag works.
            self.traffic(request)
        return request

    def traffic(self, request: bytes) -> tuple[int, int] | None:
        """Return the bytes received from a client, and the bytes that its system has acknowledged.

        Args:
            request: from trace().

        Returns:
            GONE if the connection has ended, None if sock_diag does not work or fails temporarily.
        """
        if not self._works:
            return None
        try:
            info = self._query(request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
                # A later call may work.
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
        if self._misses == _MAX_MISSES:
            self._give_up("it finds no connection; perhaps it lacks the module tcp_diag")
        return None

    def close(self) -> None:
        """Close the netlink socket until the next call of traffic()."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.is_open = False

    def _query(self, request: bytes) -> bytes:
        if self._socket is None:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
            self.is_open = True
        self._number = self._number % _MAX_NUMBER + 1
        self._socket.send(request_message(self._number, request))
        while True:
            # The reply is available when send() returns (netlink(7)).
            number, info = parse_reply(self._socket.recv(MAX_REPLY_BYTES))
            if number == self._number:
                return info

    def _give_up(self, reason: str) -> None:
        self.close()
        self._works = False
        self._on_failure(reason)


def _packed(family: int, sockaddr: Any) -> tuple[bytes, int]:  # noqa: ANN401 - a socket address
    return socket.inet_pton(family, sockaddr[0].partition("%")[0]), sockaddr[1]
