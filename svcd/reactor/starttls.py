"""startTLS(): a connection switches to TLS, with Twisted's own TLS protocol."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.internet.interfaces import ISSLTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from svcd.reactor.transport import UvTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["StartTLS"]


class StartTLS(UvTransport):
    """Transport that can switch to TLS."""

    __slots__ = ()

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:  # noqa: ANN401 - IOpenSSLContextFactory
        """Switch to TLS.

        Args:
            contextFactory: the TLS parameters.
            normal: whether this end, the server of the connection, is also the TLS server.
        """
        producer, streaming = self.producer, self.streamingProducer
        if producer is not None:
            self.unregisterProducer()
        factory = TLSMemoryBIOFactory(contextFactory, not normal, None, clock=self.reactor)  # type: ignore[arg-type]
        tls: Any = factory.protocol(factory, self._protocol, False)
        # The new class has the same attributes and other methods, so connections without TLS have no overhead.
        self.__class__ = _secure(type(self))  # type: ignore[arg-type]
        self.protocol = tls
        self.write = tls.write
        tls.makeConnection(_Clear(self))
        if producer is not None:
            self.registerProducer(producer, streaming)


class _Secure(StartTLS):
    """Transport of the application after startTLS(); the transport of the TLS protocol is a _Clear."""

    __slots__ = ()

    TLS = True

    @property
    def send_file(self) -> NoReturn:
        """Not an attribute: a file would be sent without encryption."""
        raise AttributeError("send_file")

    def _send_by(self, out: Callable[[bytes], None]) -> None:
        self._out = out

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def loseConnection(self, _reason: object = None) -> None:
        if self.connected and not self.disconnecting:
            self._tls.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - as in OutputMixin
        self._tls.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self.connected:
            self._tls.unregisterProducer()

    def getHandle(self) -> Any:  # noqa: ANN401 - a Connection of pyOpenSSL
        """Return the TLS connection."""
        return self._tls.getHandle()

    def getPeerCertificate(self) -> Any:  # noqa: ANN401 - an X509 of pyOpenSSL, or None
        """Return the client's certificate."""
        return self._tls.getPeerCertificate()

    @property
    def _tls(self) -> Any:  # noqa: ANN401 - the TLS protocol, or a replacement
        return self._protocol


@cache
def _secure(kind: type[StartTLS]) -> type[StartTLS]:
    """Return the class of a transport after startTLS(), by its class before."""
    secure = type(f"Secure{kind.__name__}", (_Secure, kind), {"__slots__": ()})
    return implementer(ISSLTransport)(secure)  # type: ignore[no-any-return]


class _Clear:
    """Transport of the TLS protocol: it writes to the connection without TLS.

    Args:
        secure: the connection.
    """

    def __init__(self, secure: UvTransport) -> None:
        self._secure = secure

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a transport
        return getattr(self._secure, name)

    def write(self, data: bytes) -> None:
        self._secure._out(data)  # noqa: SLF001 - the two classes are one transport

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def loseConnection(self, _reason: object = None) -> None:
        UvTransport.loseConnection(self._secure)

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - as in OutputMixin
        UvTransport.registerProducer(self._secure, producer, streaming)

    def unregisterProducer(self) -> None:
        UvTransport.unregisterProducer(self._secure)
