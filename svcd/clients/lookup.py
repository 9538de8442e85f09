"""Address lookups that can be abandoned after a timeout.

getaddrinfo(3) can't be interrupted. It is called in a daemon thread, so that a program can exit without its result; a
program would wait for a thread of the reactor's pool.
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
    """Return a Deferred with the addresses of a host, at least one, in the order of preference (RFC 6724).

    Args:
        reactor: gets the result from the thread.
        host: a name or an address; an IPv6 address may have a scope: `fe80::1%eth0`.
        port: the port of the addresses.
        family: the family of the addresses.
        protocol: TCP or UDP.
        getaddrinfo: the function of the socket module, or a replacement; it may block.

    The Deferred fails with UnavailableError if there is no address.
    """

    def query(flags: int) -> list[Address]:
        rows = getaddrinfo(host, port, family, _KINDS[protocol], 0, flags)
        # /etc/hosts may have an address twice.
        return [_address(protocol, each) for each in dict.fromkeys(row[-1] for row in rows)]  # type: ignore[arg-type]

    # Without a canceller: a Deferred drops the result that follows a cancellation.
    answer: Deferred[list[Address]] = Deferred()
    try:
        # An address needs no thread.
        answer.callback(query(socket.AI_NUMERICHOST))
    except OSError:
        Thread(target=_look_up, args=(reactor, host, query, answer), name="lookup", daemon=True).start()
    except UnicodeError:
        answer.errback(UnavailableError(f"{host!r} can't be the name of a host"))
    return answer


def _look_up(
    reactor: IReactorFromThreads, host: str, query: Callable[[int], list[Address]], answer: Deferred[list[Address]]
) -> None:
    try:
        found = query(0)
    except OSError as error:
        reactor.callFromThread(answer.errback, UnavailableError(f"{host} has no address: {error.strerror or error}"))
    else:
        reactor.callFromThread(answer.callback, found)


def _address(protocol: str, sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return inet_address(protocol, sockaddr)
