"""Address lookup that a timeout can give up.

getaddrinfo(3) can't be interrupted. It is called in a daemon thread, so that a program can end without its result;
a program waits for the threads of a reactor's pool.
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
    """Return the addresses of a host, at least one, in the order in which to try them (RFC 6724).

    Args:
        reactor: gets the answer.
        host: a name or an address; an IPv6 address may have an interface: `fe80::1%eth0`.
        port: the port of the addresses.
        family: the family of the addresses.
        protocol: TCP or UDP.
        getaddrinfo: that of the socket module, or a replacement; it may block.

    Fails with UnavailableError if there is no address.
    """

    def ask(flags: int) -> list[Address]:
        rows = getaddrinfo(host, port, family, _KINDS[protocol], 0, flags)
        # /etc/hosts may have an address twice.
        return [_address(protocol, each) for each in dict.fromkeys(row[-1] for row in rows)]  # type: ignore[arg-type]

    # Without a canceller: the result after a cancellation is dropped.
    answer: Deferred[list[Address]] = Deferred()
    try:
        # An address needs no thread.
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
