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
from svcd.tls.peer import failure_reason, peer_identity
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


def _no_op() -> None:
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

    __slots__ = (
        "_build_inner",
        "_discarded_bytes",
        "_end_reason",
        "_failure",
        "_handshakes",
        "_identity",
        "_input_closed",
        "_linger_timer",
        "_pending_plaintext",
        "_transport_ended",
        "_transport_paused",
        "_undecrypted",
        "_wants_input",
        "inner",
        "inner_raised",
        "input_ended",
        "on_handshake",
        "received_any",
        "received_data",
        "version",
    )  # fmt: skip

    _log = Logger()

    TLS = True

    def __init__(self, handshakes: HandshakeTracker, build: Callable[[], Any]) -> None:
        super().__init__(handshakes.call_soon)
        self._handshakes = handshakes
        self._build_inner = build
        self.on_handshake: Callable[[], None] = _no_op
        self.version = self._failure = self._end_reason = ""
        self.received_any = self.input_ended = False
        self._identity: PeerIdentity | None = None
        self._linger_timer: IDelayedCall | None = None
        self.inner: Any = None
        self.received_data = self.inner_raised = False
        # Whether the inner protocol wants input, whether there is none any more, and whether the transport was stopped.
        self._wants_input, self._input_closed, self._transport_paused = True, False, False
        # Input that nobody wanted yet: whether OpenSSL may have some, what it was not given, and whether the transport
        # said meanwhile that it was all.
        self._pending_plaintext = self._transport_ended = False
        self._undecrypted: list[memoryview] = []
        self._discarded_bytes = 0

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
        if self._pending_plaintext or self._undecrypted:
            self._transport_ended = True
        elif not self._input_closed:
            self._end_input()
        elif self._linger_timer is not None:
            # It knows why its handshake failed.
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed."""
        if IHalfCloseableProtocol.providedBy(self.inner):
            self.inner.writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        if self.received_any and not (self.version or self._failure or reason.check(ConnectionAborted)):
            self._handshake_failed(failure_reason(reason), "closed")
        self._handshakes.forget(self)
        if self._linger_timer is not None and self._linger_timer.active():
            self._linger_timer.cancel()
        self._stop_input()
        self._output_closed = True
        self._small_writes.clear()
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
            self.on_handshake = _no_op

    # Input.

    def dataReceived(self, data: bytes) -> None:
        """Something came from the client."""
        if self._input_closed:
            # After its end, or ours.
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self.transport.pauseProducing()
        elif self._receiving or not self._wants_input or len(data) > SLICE:
            self._undecrypted.append(memoryview(data))
            if self._wants_input and not self._receiving:
                self._process_pending()
        else:
            self._receiving = True
            try:
                self._feed(data)
            finally:
                self._receiving = False
            self._flush()

    def _feed(self, data: bytes | memoryview) -> None:
        self._connection.feed(data)
        if self.inner is not None or self._continue_handshake():
            self._deliver()

    def _deliver(self) -> None:
        """Hand the inner protocol what OpenSSL has, as far as it wants it."""
        decrypt = self._connection.decrypt
        self._pending_plaintext = True
        while self._wants_input:
            try:
                data = decrypt()
            except SSL.Error as error:
                self._openssl_failed(error)
                return
            if not data:
                self._pending_plaintext = False
                if data is not None:
                    self._end_input()
                return
            self.received_data = True
            self.inner.dataReceived(data)

    def _process_pending(self) -> None:
        """The same for what was kept, and for more than a slice."""
        self._receiving = True
        try:
            while self._wants_input:
                if self._pending_plaintext:
                    self._deliver()
                elif self._undecrypted:
                    view = self._undecrypted[0]
                    if len(view) > SLICE:
                        self._undecrypted[0] = view[SLICE:]
                        view = view[:SLICE]
                    else:
                        del self._undecrypted[0]
                    self._feed(view)
                elif self._transport_ended:
                    self._end_input()
                else:
                    break
        finally:
            self._receiving = False
        self._flush()

    def _run_scheduled(self) -> None:
        self._scheduled = False
        if self._connection is None:
            return
        try:
            if self._wants_input and (self._pending_plaintext or self._undecrypted or self._transport_ended):
                self._process_pending()
            else:
                self._flush()
            if self._transport_paused and (self._wants_input or self._input_closed):
                self._transport_paused = False
                self.transport.resumeProducing()
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one connection
            self._log.failure("a protocol raised", Failure())
            self.inner_raised = True
            self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._transport_paused = True
        if not self._input_closed:
            self._wants_input = False
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._wants_input = not self._input_closed
        if not (self._pending_plaintext or self._undecrypted or self._transport_ended):
            self._transport_paused = False
            self.transport.resumeProducing()
        elif not self._scheduled:
            self._scheduled = True
            self._call_soon(self._run_scheduled)

    def stopProducing(self) -> None:
        """End, as a producer."""
        self.loseConnection()

    def _stop_input(self) -> None:
        self._input_closed = True
        self._wants_input = self._pending_plaintext = self._transport_ended = False
        self._undecrypted.clear()

    # The handshake.

    def _continue_handshake(self) -> bool:
        """Go on with it; whether there is an inner protocol now."""
        self.received_any = True
        try:
            if not self._connection.continue_handshake():
                return False
        except SSL.ZeroReturnError:
            self._end_input()
            return False
        except SSL.Error as error:
            failure = failure_reason(error, self._connection)
            if failure == "http request":
                self.transport.write(_NOT_HTTPS)
            self._reject(failure, "tls")
            return False
        refusal = self._handshakes.server.refusal(self._connection)
        if refusal is not None:
            self._reject(refusal, "client")
            return False
        self.version = self._connection.get_protocol_version_name()
        self._handshakes.done(self, self.version)
        # With its end come session tickets, which have the client's certificate in them: they are not its fault.
        self._unsolicited_bytes, self._encrypted_bytes = 0, 1
        inner = self._build_checked()
        if inner is None:
            self._finish()
            return False
        self.on_handshake()
        self.inner = inner
        inner.makeConnection(self)
        if IHandshakeListener.providedBy(inner):
            inner.handshakeCompleted()
        return True

    def _build_checked(self) -> Any:  # noqa: ANN401 - a protocol
        """Return the service's protocol; without one the reason is kept for the log."""
        try:
            inner = self._build_inner()
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException as error:  # noqa: BLE001 - a mistake in the service's code ends this connection
            self._failure = reason_of(error)
            return None
        if inner is None:
            self._failure = "the service wants no connection"
        return inner

    def _reject(self, failure: str, word: str) -> None:
        """The handshake has failed. The alert that says why is to arrive: see svcd.connections.lingering_close."""
        self._handshake_failed(failure, word)
        self._send_close_notify()
        self._stop_input()
        self.transport.loseWriteConnection()
        self._linger_timer = self._handshakes.reactor.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def _handshake_failed(self, failure: str, word: str) -> None:
        self._failure = failure
        self._handshakes.failed(self, word)

    def evict(self) -> None:
        """The handshake is not done, and another connection needs the place."""
        self._end_reason = "evicted"
        self._handshake_failed("it was not done when descriptors or connections ran out", "timeout")
        self.transport.abortConnection()

    def handshake_timed_out(self) -> None:
        """The handshake has taken too long."""
        self._handshake_failed(f"it was not done in {HANDSHAKE_SECONDS:g} seconds", "timeout")
        self.transport.abortConnection()

    def _end_input(self) -> None:
        """The client has no more to say, by an alert or by the end of its side of the transport."""
        self.input_ended = True
        self._stop_input()
        if self.inner is None:
            if self.received_any:
                self._handshake_failed("the client has closed", "closed")
            self.transport.loseConnection()
        elif IHalfCloseableProtocol.providedBy(self.inner):
            self.inner.readConnectionLost()
        else:
            # What was written is still sent, but no more produced for it.
            self.disconnecting = True
            self._stop_producer()
            self._finish()

    def _openssl_failed(self, error: SSL.Error) -> None:
        self._failure = f"TLS: {failure_reason(error)}"
        # Nothing can be encrypted any more.
        self._small_writes.clear()
        self._send_close_notify()
        self._stop_input()
        self.disconnecting = True
        self._stop_producer()
        self.transport.loseConnection()

    def _too_many_key_updates(self) -> None:
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
            self._identity = peer_identity(self._connection)
        return self._identity

    def info(self, *, subject: bool) -> dict[str, object]:
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
