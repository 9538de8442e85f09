"""Questions for the kernel about TCP connections that other processes have, and its answers (sock_diag(7)).

`question` gives a netlink message; `answer` turns one into the number of its question and the tcp_info of the
connection, which is empty when there is none any more, and raises ValueError for what is no such message. A message
has at most a few hundred bytes.
"""

from __future__ import annotations

import struct

__all__ = ["COOKIE_BYTES", "LARGEST", "NO_COOKIE", "answer", "question", "trace"]

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
