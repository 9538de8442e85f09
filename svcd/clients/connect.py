"""Connections to the first address of a server that answers, optionally with TLS."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as PatienceError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from svcd.clients.happy_eyeballs import HappyEyeballs
from svcd.clients.lookup import lookup
from svcd.clients.stream import Stream, cause
from svcd.errors import ServerError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime

    from svcd.clients.lookup import Address
    from svcd.clients.target import Reactor, Target, TrustSettings

    _T = TypeVar("_T")
    _Attempt: TypeAlias = Callable[[IProtocolFactory], Deferred[IProtocol]]

__all__ = ["connect", "within"]


async def within(reactor: IReactorTime, seconds: float, deferred: Deferred[_T], what: str) -> _T:
    """Wait for a Deferred with a time limit, and return its result.

    Args:
        reactor: the clock.
        seconds: the time limit.
        deferred: the Deferred; it is cancelled at the time limit.
        what: the beginning of the error text.

    Raises:
        UnavailableError: the time limit has passed.
    """
    try:
        # A cancelled Deferred may fail with any exception.
        return await deferred.addTimeout(seconds, reactor, lambda _, __: Failure(PatienceError()))
    except PatienceError:
        raise UnavailableError(f"{what} within {seconds:g} s") from None


async def connect(reactor: Reactor, target: Target) -> Stream:
    """Connect to a server; attempts at its addresses overlap (RFC 8305).

    Args:
        reactor: makes the connections.
        target: the server.

    Raises:
        UnavailableError: the server can't be reached.
        ServerError: the handshake has failed.
        UsageError: certificates or the key of the target's trust can't be used.
    """
    start = reactor.seconds()
    addresses: list[Address] = []
    if not target.local:
        looked_up = lookup(reactor, target.host, target.port, target.family)
        addresses = await within(reactor, target.timeout, looked_up, f"{target.host} was not looked up")
    looked_up_at = reactor.seconds()

    def attempt(factory: IProtocolFactory) -> Deferred[IProtocol]:
        if target.local:
            local: Deferred[IProtocol] = UNIXClientEndpoint(reactor, target.host, target.timeout).connect(factory)
            return local
        return HappyEyeballs(reactor, factory, addresses, target.timeout).run()

    if target.trust is None:
        stream = await _plain(reactor, target, attempt)
    else:
        stream = await _secure(reactor, target, attempt, target.trust)
    stream.seconds = {"lookup": looked_up_at - start, **stream.seconds}
    return stream


async def _plain(reactor: Reactor, target: Target, attempt: _Attempt) -> Stream:
    start = reactor.seconds()
    stream: Any = await _await_connection(reactor, target, attempt(_factory(Stream)))
    stream.seconds["connect"] = reactor.seconds() - start
    return stream  # type: ignore[no-any-return]


async def _secure(reactor: Reactor, target: Target, attempt: _Attempt, trust: TrustSettings) -> Stream:
    # The import of this module takes as long as all other imports together.
    from svcd.clients.certificate_check import CertificateVerifier

    verifier = CertificateVerifier(trust)
    factory = _factory(partial(Stream, secure=True))
    start = reactor.seconds()
    wrapper: Any = await _await_connection(
        reactor, target, attempt(TLSMemoryBIOFactory(verifier, True, factory, reactor))
    )
    connected = reactor.seconds()
    stream: Stream = wrapper.wrappedProtocol
    await within(reactor, target.timeout, stream.ready, f"{target} has not finished the TLS handshake")
    stream.seconds |= {"connect": connected - start, "handshake": reactor.seconds() - connected}
    stream.problems = verifier.problems
    if stream.lost is not None:
        problems = ", ".join(verifier.problems)
        reason = f"its certificate is not trusted: {problems}" if problems else cause(stream.lost)
        raise ServerError(f"no TLS with {target}: {reason}")
    return stream


def _factory(make: Callable[[], Stream]) -> IProtocolFactory:
    factory = Factory.forProtocol(make)
    factory.noisy = False
    return factory


async def _await_connection(reactor: Reactor, target: Target, attempt: Deferred[_T]) -> _T:
    try:
        return await within(reactor, target.timeout, attempt, f"{target} does not answer")
    except error.TimeoutError:
        raise UnavailableError(f"{target} does not answer within {target.timeout:g} s") from None
    except error.ConnectError as problem:
        raise UnavailableError(f"can't connect to {target}: {cause(problem)}") from None
