"""Connecting to a server, by whatever of its addresses answers first, and with TLS if that is wanted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as PatienceError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from svcd.clients.lookup import Found, lookup
from svcd.clients.stream import Stream, cause
from svcd.errors import ServerError, UnavailableError

if TYPE_CHECKING:
    from typing import TypeVar

    from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

    from svcd.clients.target import Target, Trust

    _T = TypeVar("_T")

__all__ = ["Reactor", "connect", "within"]

#: Provides IReactorTCP, IReactorUNIX, IReactorUDP, IReactorTime, IReactorFromThreads and IReactorPluggableNameResolver.
Reactor: TypeAlias = Any


async def within(reactor: IReactorTime, seconds: float, waited_for: Deferred[_T], what: str) -> _T:
    """What comes within a time.

    Args:
        reactor: the clock.
        seconds: how long it may take.
        waited_for: is cancelled when it takes longer.
        what: what is said then.

    Raises:
        UnavailableError: it did not come.
    """
    try:
        # Whatever a cancelled Deferred fails with.
        return await waited_for.addTimeout(seconds, reactor, lambda _, __: Failure(PatienceError()))
    except PatienceError:
        raise UnavailableError(f"{what} within {seconds:g} s") from None


async def connect(reactor: Reactor, target: Target) -> Stream:
    """Connect to a server: its addresses are raced (RFC 8305).

    Args:
        reactor: where.
        target: the server.

    Raises:
        UnavailableError: it can't be reached.
        ServerError: the handshake has failed.
        UsageError: certificates or the key of the target's trust can't be used.
    """
    start = reactor.seconds()
    endpoint: IStreamClientEndpoint
    if target.local:
        endpoint = UNIXClientEndpoint(reactor, target.host, target.timeout)
    else:
        looked_up = lookup(reactor, target.host, target.port, target.family)
        addresses = await within(reactor, target.timeout, looked_up, f"{target.host} was not looked up")
        reactor.installNameResolver(Found(addresses))
        # What it is told as a name goes nowhere: an address suits it, whatever the name is.
        endpoint = HostnameEndpoint(reactor, addresses[0].host.partition("%")[0], target.port, target.timeout)
    found = reactor.seconds()
    if target.trust is None:
        stream = await _plain(reactor, target, endpoint)
    else:
        stream = await _secure(reactor, target, endpoint, target.trust)
    stream.seconds = {"lookup": found - start, **stream.seconds}
    return stream


async def _plain(reactor: Reactor, target: Target, endpoint: IStreamClientEndpoint) -> Stream:
    factory = Factory.forProtocol(Stream)
    factory.noisy = False
    start = reactor.seconds()
    stream: Any = await _reached(reactor, target, endpoint.connect(factory))
    stream.seconds["connect"] = reactor.seconds() - start
    return stream  # type: ignore[no-any-return]


async def _secure(reactor: Reactor, target: Target, endpoint: IStreamClientEndpoint, trust: Trust) -> Stream:
    # It takes as long to import as all the rest.
    from svcd.clients.security import Verifier

    verifier = Verifier(trust)
    factory = Factory.forProtocol(partial(Stream, secure=True))
    factory.noisy = False
    start = reactor.seconds()
    wrapper: Any = await _reached(
        reactor, target, endpoint.connect(TLSMemoryBIOFactory(verifier, True, factory, reactor))
    )
    stream: Stream = wrapper.wrappedProtocol
    connected = reactor.seconds()
    await within(reactor, target.timeout, stream.ready, f"{target} has not finished the TLS handshake")
    stream.seconds |= {"connect": connected - start, "handshake": reactor.seconds() - connected}
    stream.problems = verifier.problems
    if stream.lost is not None:
        problems = ", ".join(verifier.problems)
        reason = f"its certificate is not trusted: {problems}" if problems else cause(stream.lost)
        raise ServerError(f"no TLS with {target}: {reason}")
    return stream


async def _reached(reactor: Reactor, target: Target, attempt: Deferred[_T]) -> _T:
    try:
        return await within(reactor, target.timeout, attempt, f"{target} does not answer")
    except error.TimeoutError:
        raise UnavailableError(f"{target} does not answer within {target.timeout:g} s") from None
    except error.ConnectError as problem:
        raise UnavailableError(f"can't connect to {target}: {cause(problem)}") from None
