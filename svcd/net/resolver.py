"""Addresses of host names from the system's resolver, without the reactor's thread pool, which is joined at a stop."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from zope.interface import implementer

from svcd.net.lookups import LookupPool
from svcd.net.twisted_addresses import inet_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IReactorFromThreads, IResolutionReceiver

__all__ = ["Name", "PooledResolver", "system_addresses", "twisted_address"]

#: An address family and a socket address.
Name: TypeAlias = "tuple[int, tuple[str, int] | tuple[str, int, int, int]]"

_FAMILIES: dict[frozenset[type], socket.AddressFamily] = {
    frozenset({IPv4Address}): socket.AF_INET,
    frozenset({IPv6Address}): socket.AF_INET6,
}
_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


def system_addresses(host: str, family: int = socket.AF_UNSPEC, kind: str = "TCP") -> list[Name]:
    """Return the addresses of a name, in the order of RFC 6724; blocks.

    Raises:
        OSError: the name has no address.
        UnicodeError: the text can't be a host name.
    """
    rows = socket.getaddrinfo(host, 0, family, _KINDS[kind])
    return [(row[0], row[4]) for row in rows if row[0] in (socket.AF_INET, socket.AF_INET6)]  # type: ignore[misc]


def twisted_address(name: Name, port: int, kind: str = "TCP") -> IPv4Address | IPv6Address:
    """Return an address of system_addresses() as a Twisted address with a port, for `TCP` or `UDP`."""
    _family, (host, _port, *scope) = name
    return inet_address(kind, (host, port, *scope))


@implementer(IHostnameResolver)
class PooledResolver:
    """Name resolver of the reactor, for services with factory=.

    Args:
        reactor: calls the receivers of addresses in its thread.
    """

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._pool: LookupPool[list[Name]] = LookupPool("svcd-resolver", active=10, threads=32, queued=1000)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803 - Twisted's callers name these arguments
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Sequence[type[IAddress]] | None = None,  # noqa: N803
        transportSemantics: str = "TCP",  # noqa: N803
    ) -> IHostResolution:
        """Resolve a name (twisted.internet.interfaces.IHostnameResolver); a failed lookup has no addresses."""
        family = _FAMILIES.get(frozenset(addressTypes or ()), socket.AF_UNSPEC)
        question = (hostName, family, transportSemantics)
        answer = self._pool.deferred(self._reactor, question, partial(system_addresses, *question))
        resolution = _Resolution(hostName, answer)
        resolutionReceiver.resolutionBegan(resolution)

        def complete(names: list[Name] | None) -> None:
            for name in names or ():
                resolutionReceiver.addressResolved(twisted_address(name, portNumber, transportSemantics))
            resolutionReceiver.resolutionComplete()

        answer.addErrback(lambda _failure: None).addCallback(complete)
        return resolution


@implementer(IHostResolution)
class _Resolution:
    """A lookup that runs.

    Args:
        name: of the host.
        answer: fires at the end of the lookup.
    """

    def __init__(self, name: str, answer: Deferred[list[Name]]) -> None:
        self.name = name
        self._answer = answer

    def cancel(self) -> None:
        """Cancel the lookup."""
        self._answer.cancel()
