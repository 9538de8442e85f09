"""Client endpoints: connections to the servers of redirect=."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IReactorPluggableNameResolver, IStreamClientEndpoint
from zope.interface import implementer

from svcd.errors import UnavailableError
from svcd.model import ip_literal
from svcd.net.lookups import LookupPool
from svcd.net.resolver import system_addresses, twisted_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IResolutionReceiver
    from twisted.python.failure import Failure

    from svcd.addresses import HostPort
    from svcd.interfaces import DescriptorCounter
    from svcd.net.resolver import Name

__all__ = ["NameEndpoint", "client_endpoint", "redirect_lookups"]

_LOOPBACK: list[Name] = [(socket.AF_INET6, ("::1", 0)), (socket.AF_INET, ("127.0.0.1", 0))]


def redirect_lookups() -> LookupPool[list[Name]]:
    """Make the pool of lookups for the servers of redirect=.

    Concurrent lookups of the same name share a thread, so up to 64 names are looked up at the same time.
    """
    return LookupPool("svcd-redirect", active=64, threads=64, queued=1000)


def client_endpoint(
    reactor: Any,  # noqa: ANN401 - several interfaces
    lookups: LookupPool[list[Name]],
    server: HostPort,
    timeout: float,
    descriptors: DescriptorCounter,
) -> IStreamClientEndpoint:
    """Make the endpoint of a server. It looks up a name for each connect, and races the addresses (RFC 8305).

    Args:
        reactor: provides IReactorTCP, IReactorTime and IReactorFromThreads.
        lookups: runs the lookups of names.
        server: the server.
        timeout: the timeout of an attempt at one address, in seconds.
        descriptors: counts the attempts at the addresses of a name; the caller counts the connection itself.
    """
    host, port = server.host, server.port
    # An address needs no lookup, and no thread.
    literal = ip_literal(host)
    if ":" in literal:
        return TCP6ClientEndpoint(reactor, host, port, timeout)
    if literal:
        return TCP4ClientEndpoint(reactor, host, port, timeout)
    return NameEndpoint(reactor, lookups, server, timeout, descriptors)


@implementer(IStreamClientEndpoint)
class NameEndpoint:
    """The endpoint of a server given by a host name. Cancelling a connect cancels its lookup.

    Args:
        reactor: provides IReactorTCP, IReactorTime and IReactorFromThreads.
        lookups: runs the lookups.
        server: the server; its host is a name.
        timeout: the timeout of an attempt at one address, in seconds.
        descriptors: counts the attempts: several addresses are tried at the same time.
    """

    def __init__(
        self,
        reactor: Any,  # noqa: ANN401
        lookups: LookupPool[list[Name]],
        server: HostPort,
        timeout: float,
        descriptors: DescriptorCounter,
    ) -> None:
        self._reactor = reactor
        self._descriptors = descriptors
        self._lookups = lookups
        self._server = server
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - Twisted's name
        """Connect (twisted.internet.interfaces.IStreamClientEndpoint).

        The Deferred fails with a DNSLookupError if the name does not exist, and with an UnavailableError if it can't be
        looked up.
        """
        host = self._server.host
        found = self._lookups.deferred(self._reactor, host, partial(system_addresses, host))
        return found.addErrback(self._no_address).addCallback(self._connect, protocolFactory)

    def _no_address(self, failure: Failure) -> list[Name]:
        failure.trap(OSError, UnicodeError)
        host, error = self._server.host, failure.value
        if isinstance(error, BlockingIOError) and host.rstrip(".").lower() == "localhost":
            # No thread is free, but localhost needs no lookup (RFC 6761, section 6.3).
            return _LOOPBACK
        if isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise DNSLookupError(error.strerror)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnavailableError(f"its name can't be looked up: {reason}")

    def _connect(self, names: list[Name], factory: IProtocolFactory) -> Deferred[IProtocol]:
        reactor: Any = _Resolved(self._reactor, names, self._descriptors)
        return HostnameEndpoint(reactor, self._server.host, self._server.port, self._timeout).connect(factory)


@implementer(IReactorPluggableNameResolver)
class _Resolved:  # type: ignore[misc] # HostnameEndpoint installs no resolver
    """A reactor for HostnameEndpoint that resolves to given addresses, and counts the attempts to connect.

    Args:
        reactor: the real reactor.
        names: the addresses.
        descriptors: counts the attempts.
    """

    def __init__(self, reactor: Any, names: list[Name], descriptors: DescriptorCounter) -> None:  # noqa: ANN401
        self._reactor = reactor
        self._names = names
        self._descriptors = descriptors
        self.nameResolver = self
        self.callLater: Callable[..., Any] = reactor.callLater
        self.seconds: Callable[[], float] = reactor.seconds

    def connectTCP(self, host: str, port: int, factory: Any, *more: Any, **named: Any) -> Any:  # noqa: ANN401
        """Count an attempt and connect (twisted.internet.interfaces.IReactorTCP)."""
        self._descriptors.acquire()
        return self._reactor.connectTCP(host, port, _Attempt(factory, self._descriptors.release), *more, **named)

    def resolveHostName(self, receiver: IResolutionReceiver, _name: str, portNumber: int = 0) -> None:  # noqa: N803
        """Pass the addresses to a receiver at once (twisted.internet.interfaces.IHostnameResolver)."""
        for name in self._names:
            receiver.addressResolved(twisted_address(name, portNumber))
        receiver.resolutionComplete()


class _Attempt:
    """The factory of an attempt to connect, which is counted until it succeeds or fails.

    Args:
        factory: the real factory.
        release: called when the attempt ends.
    """

    def __init__(self, factory: Any, release: Callable[[], None]) -> None:  # noqa: ANN401 - a ClientFactory
        self._factory = factory
        self._release = release

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a ClientFactory
        return getattr(self._factory, name)

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """Handle success: stop counting the attempt."""
        self._release()
        found: IProtocol | None = self._factory.buildProtocol(addr)
        return found

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """Handle failure or cancellation: stop counting the attempt."""
        self._release()
        self._factory.clientConnectionFailed(connector, reason)
