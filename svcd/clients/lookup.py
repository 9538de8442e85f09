"""The addresses of a name, looked up without making anybody wait longer than they want.

getaddrinfo(3) can't be interrupted. It is called in a daemon thread, so that a program whose patience ends does not
have to wait for it; the threads of a reactor's pool are waited for.
"""

from __future__ import annotations

import socket
from threading import Thread
from typing import TYPE_CHECKING, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from svcd.errors import UnavailableError
from svcd.net.twisted_addresses import inet_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import AddressFamily

    from twisted.internet.interfaces import IReactorFromThreads

__all__ = ["Address", "lookup"]

Address: TypeAlias = IPv4Address | IPv6Address

_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


def lookup(
    reactor: IReactorFromThreads,
    host: str,
    port: int,
    family: AddressFamily,
    protocol: str = "TCP",
    getaddrinfo: Callable[..., Sequence[tuple[object, ...]]] = socket.getaddrinfo,
) -> Deferred[list[Address]]:
    """The addresses of a host, in the order in which they should be tried (RFC 6724), never none.

    Args:
        reactor: where the answer is wanted.
        host: a name or an address, an IPv6 one perhaps with its interface: `fe80::1%eth0`.
        port: is put into the addresses.
        family: which are wanted.
        protocol: TCP or UDP.
        getaddrinfo: as socket's; it may block.

    Fails with UnavailableError if there is none.
    """

    def ask(flags: int) -> list[Address]:
        rows = getaddrinfo(host, port, family, _KINDS[protocol], 0, flags)
        # /etc/hosts may have one twice.
        return [_address(protocol, each) for each in dict.fromkeys(row[-1] for row in rows)]  # type: ignore[arg-type]

    # Without a canceller: whoever does not want it any more is not told.
    answer: Deferred[list[Address]] = Deferred()
    try:
        # What is an address already needs no thread.
        answer.callback(ask(socket.AI_NUMERICHOST))
    except OSError:
        Thread(target=_ask, args=(reactor, host, ask, answer), name="lookup", daemon=True).start()
    except UnicodeError:
        answer.errback(UnavailableError(f"{host!r} can't be the name of a host"))
    return answer


def _ask(
    reactor: IReactorFromThreads, host: str, ask: Callable[[int], list[Address]], answer: Deferred[list[Address]]
) -> None:
    try:
        found = ask(0)
    except OSError as error:
        reactor.callFromThread(answer.errback, UnavailableError(f"{host} has no address: {error.strerror or error}"))
    else:
        reactor.callFromThread(answer.callback, found)


def _address(protocol: str, sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return inet_address(protocol, sockaddr)
