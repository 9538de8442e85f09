"""Redirection: data of connections is relayed to and from another server (redirect=)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.protocol import Factory

from svcd.protocols.base import BuiltinFactory
from svcd.protocols.pipe import BufferedPipeEnd, PipeEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
    from twisted.python.failure import Failure

    from svcd.interfaces import DescriptorCounter
    from svcd.wire.proxy_header import End

__all__ = ["RedirectFactory", "RedirectProtocol"]


class _ServerEnd(PipeEnd):
    """The connection to the other server."""

    release: Callable[[], None] | None = None

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Release the descriptor, and close the client's connection."""
        if self.release is not None:
            self.release()
        super().connectionLost(reason)


class _ServerEndFactory(Factory):
    protocol = _ServerEnd
    noisy = False


class RedirectProtocol(BufferedPipeEnd):
    """The client's connection of a redirection.

    Reading from the client starts when the other server has accepted; its data waits in the kernel until then.

    Attributes:
        failure_text: why no connection to the other server was made; the connection wrapper logs it.
    """

    factory: RedirectFactory
    failure_text = ""

    def connectionMade(self) -> None:
        """Connect to the other server."""
        self._timed_out = False
        self.transport.pauseProducing()
        factory = self.factory
        factory.descriptors.acquire()
        self._attempt: Deferred[Any] = factory.endpoint.connect(_ServerEndFactory())
        self._timeout_call = factory.clock.callLater(factory.timeout, self._cancel_attempt)
        self._attempt.addCallbacks(self._connected, self._failed)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Cancel the attempt to connect, and close the connection to the other server."""
        self.closed = True
        self._attempt.cancel()
        super().connectionLost(reason)

    def _cancel_attempt(self) -> None:
        self._timed_out = True
        self._attempt.cancel()

    def _stop_timeout(self) -> None:
        if self._timeout_call.active():
            self._timeout_call.cancel()

    def _connected(self, server: _ServerEnd) -> None:
        self._stop_timeout()
        server.release = self.factory.descriptors.release
        set_no_delay = getattr(server.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            # Nagle's algorithm would delay small pieces that the client has sent without delay.
            set_no_delay(True)
        proxy_header = self.factory.proxy_header
        if proxy_header is not None:
            server.transport.write(proxy_header(_end(self.transport.getPeer()), _end(self.transport.getHost())))
        self.join(server)

    def _failed(self, failure: Failure) -> None:
        self._stop_timeout()
        self.factory.descriptors.release()
        if not self.closed:
            timed_out = self._timed_out or failure.check(error.TimeoutError)
            reason = "it does not answer" if timed_out else _reason(failure.value)
            self.failure_text = f"can't connect to {self.factory.name}: {reason}"
            self.closed = True
            self.transport.loseConnection()


def _end(address: IAddress) -> End:
    return (address.host, address.port) if isinstance(address, (IPv4Address, IPv6Address)) else None


def _reason(cause: BaseException | None) -> str:
    if isinstance(cause, error.DNSLookupError):
        return "its name is not known"
    if isinstance(cause, error.ConnectError) and cause.osError:
        return os.strerror(cause.osError)
    return str(cause)


class RedirectFactory(BuiltinFactory):
    """A factory of RedirectProtocols.

    Args:
        endpoint: connects to the other server; it looks up a name for each attempt.
        name: the name of the other server, for the log.
        timeout: the time limit of connecting, in seconds.
        clock: the reactor.
        descriptors: counts the connections to the other server.
        proxy_header: makes the PROXY protocol header that is sent to the other server first, from the client's address
            and the address that the client connected to; None for no header.
    """

    protocol = RedirectProtocol  # type: ignore[assignment]

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        name: str,
        timeout: float,
        clock: IReactorTime,
        descriptors: DescriptorCounter,
        proxy_header: Callable[[End, End], bytes] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        self.timeout = timeout
        self.clock = clock
        self.descriptors = descriptors
        self.proxy_header = proxy_header
