"""TLS between a transport and a protocol: one object is the protocol of the one and the transport of the other.

Twisted has such a thing (twisted.protocols.tls). This one begins the inner protocol after the handshake, takes TLS's
half-close for one, and lets back-pressure through both ways. It keeps little: a slice of input and one of output in
OpenSSL's buffers, and while the inner protocol wants no input what one read of the transport has brought.

The end of input is the client's closure alert (RFC 8446, 6.1) or, since many clients send none, that of the transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IHandshakeListener,
    INegotiated,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements, implementer

from svcd.errors import reason_of
from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.tls.handshakes import HANDSHAKE_SECONDS
from svcd.tls.peer import identity_of, why
from svcd.tls.records import SLICE, TlsOutput

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.tls.handshakes import HandshakeTracker
    from svcd.tls.openssl import ServerConnection
    from svcd.tls.peer import PeerIdentity

__all__ = ["TlsProtocol"]

#: For who forgot the s of https. OpenSSL says nothing to them.
_NOT_HTTPS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nThis port speaks HTTPS, or another protocol in TLS.\n"
)
_LOST = Failure(ConnectionLost())


def _nothing() -> None:
    """Nobody wants to know."""


@implementer(IProtocol, IHalfCloseableProtocol, INegotiated, IConsumer, IPushProducer)
class TlsProtocol(TlsOutput):
    """The server's side of TLS on one connection.

    For the inner protocol it is a transport as any other, with what TLS has besides as Twisted names it
    (twisted.internet.interfaces.ISSLTransport), and `tls_identity`. What it has not itself it has from below.

    Args:
        handshakes: those of the service.
        build: makes the inner protocol, once the handshake is over; or None to end the connection.

    Attributes:
        inner: the protocol inside; None before the handshake is over.
        secured: called when it is over, before the inner protocol has its transport.
        version: of TLS, as `TLSv1.3`; empty before.
        touched: whether anything came from the client.
        ended: whether the client has said, in one way or the other, that there is no more.
        heard: whether anything came for it.
        raised: whether it made a mistake that the transport does not know of.
    """

    __slots__ = ("_build", "_deaf", "_end_reason", "_failure", "_halted", "_handshakes", "_hears", "_identity",
                 "_ignored", "_kept", "_last_call", "_rest", "_saw_end", "ended", "heard", "inner", "raised", "secured",
                 "touched", "version")  # fmt: skip

    _log = Logger()

    TLS = True

    def __init__(self, handshakes: HandshakeTracker, build: Callable[[], Any]) -> None:
        super().__init__(handshakes.soon)
        self._handshakes = handshakes
        self._build = build
        self.secured: Callable[[], None] = _nothing
        self.version = self._failure = self._end_reason = ""
        self.touched = self.ended = False
        self._identity: PeerIdentity | None = None
        self._last_call: IDelayedCall | None = None
        self.inner: Any = None
        self.heard = self.raised = False
        # Whether the inner protocol wants input, whether there is none any more, and whether the transport was stopped.
        self._hears, self._deaf, self._halted = True, False, False
        # Input that nobody wanted yet: whether OpenSSL may have some, what it was not given, and whether the transport
        # said meanwhile that it was all.
        self._kept = self._saw_end = False
        self._rest: list[memoryview] = []
        self._ignored = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a transport has
        if name.startswith("__") or name == "startTLS":
            # What Python and zope.interface look for is this object's alone; and TLS has begun.
            raise AttributeError(name)
        return getattr(self.transport, name)

    # What the transport below calls.

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """The connection is there."""
        self.transport = transport
        self._connection = self._handshakes.begin(self)

    def connectionMade(self) -> None:
        """Never called: makeConnection does it all."""

    def readConnectionLost(self) -> None:
        """The transport says that the client will send no more."""
        if self._kept or self._rest:
            self._saw_end = True
        elif not self._deaf:
            self._heard_all()
        elif self._last_call is not None:
            # It knows why its handshake failed.
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed."""
        if IHalfCloseableProtocol.providedBy(self.inner):
            self.inner.writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        if self.touched and not (self.version or self._failure or reason.check(ConnectionAborted)):
            self._not_shaken(why(reason), "closed")
        self._handshakes.forget(self)
        if self._last_call is not None and self._last_call.active():
            self._last_call.cancel()
        self._hear_no_more()
        self._mute = True
        self._pieces.clear()
        self._ready.clear()
        inner = self.inner
        try:
            if inner is not None:
                # OpenSSL's failure ends the transport in good order, but not what the inner protocol is about.
                inner.connectionLost(_LOST if self._failure else reason)
        finally:
            # These know each other.
            self._failure, self._end_reason = self.failure_text, self.end_reason
            self._connection = self.inner = None
            self.secured = _nothing

    # Input.

    def dataReceived(self, data: bytes) -> None:
        """Something came from the client."""
        if self._deaf:
            # After its end, or ours.
            self._ignored += len(data)
            if self._ignored > LINGER_BYTES:
                self.transport.pauseProducing()
        elif self._inside or not self._hears or len(data) > SLICE:
            self._rest.append(memoryview(data))
            if self._hears and not self._inside:
                self._work_off()
        else:
            self._inside = True
            try:
                self._take(data)
            finally:
                self._inside = False
            self._flush()

    def _take(self, data: bytes | memoryview) -> None:
        self._connection.feed(data)
        if self.inner is not None or self._shake():
            self._pull()

    def _pull(self) -> None:
        """Hand the inner protocol what OpenSSL has, as far as it wants it."""
        receive = self._connection.receive
        self._kept = True
        while self._hears:
            try:
                data = receive()
            except SSL.Error as error:
                self._broken(error)
                return
            if not data:
                self._kept = False
                if data is not None:
                    self._heard_all()
                return
            self.heard = True
            self.inner.dataReceived(data)

    def _work_off(self) -> None:
        """The same for what was kept, and for more than a slice."""
        self._inside = True
        try:
            while self._hears:
                if self._kept:
                    self._pull()
                elif self._rest:
                    view = self._rest[0]
                    if len(view) > SLICE:
                        self._rest[0] = view[SLICE:]
                        view = view[:SLICE]
                    else:
                        del self._rest[0]
                    self._take(view)
                elif self._saw_end:
                    self._heard_all()
                else:
                    break
        finally:
            self._inside = False
        self._flush()

    def _go_on(self) -> None:
        self._again = False
        if self._connection is None:
            return
        try:
            if self._hears and (self._kept or self._rest or self._saw_end):
                self._work_off()
            else:
                self._flush()
            if self._halted and (self._hears or self._deaf):
                self._halted = False
                self.transport.resumeProducing()
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one connection
            self._log.failure("a protocol raised", Failure())
            self.raised = True
            self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._halted = True
        if not self._deaf:
            self._hears = False
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._hears = not self._deaf
        if not (self._kept or self._rest or self._saw_end):
            self._halted = False
            self.transport.resumeProducing()
        elif not self._again:
            self._again = True
            self._soon(self._go_on)

    def stopProducing(self) -> None:
        """End, as a producer."""
        self.loseConnection()

    def _hear_no_more(self) -> None:
        self._deaf = True
        self._hears = self._kept = self._saw_end = False
        self._rest.clear()

    # The handshake.

    def _shake(self) -> bool:
        """Go on with it; whether there is an inner protocol now."""
        self.touched = True
        try:
            if not self._connection.shake():
                return False
        except SSL.ZeroReturnError:
            self._heard_all()
            return False
        except SSL.Error as error:
            failure = why(error, self._connection)
            if failure == "http request":
                self.transport.write(_NOT_HTTPS)
            self._refuse(failure, "tls")
            return False
        refusal = self._handshakes.server.refusal(self._connection)
        if refusal is not None:
            self._refuse(refusal, "client")
            return False
        self.version = self._connection.get_protocol_version_name()
        self._handshakes.done(self, self.version)
        # With its end come session tickets, which have the client's certificate in them: they are not its fault.
        self._own, self._encrypted = 0, 1
        inner = self._make_inner()
        if inner is None:
            self._finish()
            return False
        self.secured()
        self.inner = inner
        inner.makeConnection(self)
        if IHandshakeListener.providedBy(inner):
            inner.handshakeCompleted()
        return True

    def _make_inner(self) -> Any:  # noqa: ANN401 - a protocol
        """Return the service's protocol; without one the reason is kept for the log."""
        try:
            inner = self._build()
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException as error:  # noqa: BLE001 - a mistake in the service's code ends this connection
            self._failure = reason_of(error)
            return None
        if inner is None:
            self._failure = "the service wants no connection"
        return inner

    def _refuse(self, failure: str, word: str) -> None:
        """The handshake has failed. The alert that says why is to arrive: see svcd.connections.lingering_close."""
        self._not_shaken(failure, word)
        self._say_end()
        self._hear_no_more()
        self.transport.loseWriteConnection()
        self._last_call = self._handshakes.reactor.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def _not_shaken(self, failure: str, word: str) -> None:
        self._failure = failure
        self._handshakes.failed(self, word)

    def evict(self) -> None:
        """The handshake is not done, and another connection needs the place."""
        self._end_reason = "evicted"
        self._not_shaken("it was not done when descriptors or connections ran out", "timeout")
        self.transport.abortConnection()

    def late(self) -> None:
        """The handshake has taken too long."""
        self._not_shaken(f"it was not done in {HANDSHAKE_SECONDS:g} seconds", "timeout")
        self.transport.abortConnection()

    def _heard_all(self) -> None:
        """The client has no more to say, by an alert or by the end of its side of the transport."""
        self.ended = True
        self._hear_no_more()
        if self.inner is None:
            if self.touched:
                self._not_shaken("the client has closed", "closed")
            self.transport.loseConnection()
        elif IHalfCloseableProtocol.providedBy(self.inner):
            self.inner.readConnectionLost()
        else:
            # What was written is still sent, but no more produced for it.
            self.disconnecting = True
            self._drop_producer()
            self._finish()

    def _broken(self, error: SSL.Error) -> None:
        self._failure = f"TLS: {why(error)}"
        # Nothing can be encrypted any more.
        self._pieces.clear()
        self._say_end()
        self._hear_no_more()
        self.disconnecting = True
        self._drop_producer()
        self.transport.loseConnection()

    def _flooded(self) -> None:
        if not self.version:
            # How much a handshake may say has bounds of its own.
            return
        self._failure = "TLS: too many key updates"
        self.abortConnection()

    # For the inner protocol, and for those who tell of the connection.

    def getHandle(self) -> ServerConnection:
        """The TLS connection, as of Twisted's transports for TLS."""
        return self._connection

    def getPeerCertificate(self) -> Any:  # noqa: ANN401 - an X509 of pyOpenSSL, or None
        """The client's certificate, which holds; None if it has shown none."""
        return self._connection.get_peer_certificate()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """What was agreed on in the handshake (ALPN), as of Twisted's transports for TLS."""
        return self._connection.get_alpn_proto_negotiated() or None

    @property
    def tls_identity(self) -> PeerIdentity:
        """Who the client is, and how the connection is encrypted; once the handshake is over."""
        if self._identity is None:
            self._identity = identity_of(self._connection)
        return self._identity

    def facts(self, *, subject: bool) -> dict[str, object]:
        """What is known of the connection, as plain data.

        Args:
            subject: whether to say who the client is.
        """
        if not self.version:
            return {"tls": "handshake", "state": "handshake"}
        identity = self.tls_identity
        found: dict[str, object] = {"tls": identity.protocol, "cipher": identity.cipher}
        # As processes are told it: without characters that a terminal would obey.
        told = identity.environment()
        if "SSL_TLS_SNI" in told:
            found["sni"] = told["SSL_TLS_SNI"]
        if subject and "SSL_CLIENT_S_DN" in told:
            found["subject"] = told["SSL_CLIENT_S_DN"]
        return found

    @property
    def failure_text(self) -> str:
        """Why the client could not be served, if that is so."""
        return self._failure or getattr(self.inner, "failure_text", "")

    @property
    def end_reason(self) -> str:
        """Why the inner protocol has ended the connection itself, if it has and says so."""
        return self._end_reason or getattr(self.inner, "end_reason", "")

    def drain(self) -> None:
        """Ask the service to end the connection as soon as nothing is owed to the client."""
        drain = getattr(self.inner, "drain", None)
        if drain is not None:
            drain()

    def logPrefix(self) -> str:
        """What lines in the log begin with that are about the connection."""
        return type(self.inner or self).__name__


# Much of that is from below, which only this says.
classImplements(TlsProtocol, ISSLTransport)
