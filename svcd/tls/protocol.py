"""TLS between a transport and a protocol: the handshake, and input. Output is in svcd.tls.records.

In contrast to twisted.protocols.tls, the inner protocol gets its transport after the handshake, a closure alert is a
half-close, and back-pressure works in both directions. Buffers are small: 32 KB of input and of output in OpenSSL, and,
while the inner protocol has paused reading, the bytes of one read of the transport.

Input ends with the client's closure alert (RFC 8446, 6.1) or, since many clients send none, with the transport's input.
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

#: The answer to plain HTTP, for which OpenSSL sends no alert.
_NOT_HTTPS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nThis port speaks HTTPS, or another protocol in TLS.\n"
)
_LOST = Failure(ConnectionLost())


def _no_op() -> None:
    """Do nothing."""


@implementer(IProtocol, IHalfCloseableProtocol, INegotiated, IConsumer, IPushProducer)
class TlsProtocol(TlsOutput):
    """Server side of TLS on one connection.

    It is the protocol of the transport below and the transport of the inner protocol, which it provides with Twisted's
    interface of TLS (twisted.internet.interfaces.ISSLTransport) and with `tls_identity`. Attributes that it lacks are
    those of the transport below.

    Args:
        handshakes: the handshakes of the service.
        build: builds the inner protocol after the handshake; None closes the connection.

    Attributes:
        inner: the inner protocol; None before the handshake is done.
        on_handshake: called when the handshake is done, before the inner protocol gets its transport.
        version: the version of TLS, as `TLSv1.3`; empty before the handshake is done.
        received_any: whether the client has sent anything.
        received_data: whether the client has sent application data.
        input_ended: whether the client has ended its input, by a closure alert or by closing the transport.
        inner_raised: whether the inner protocol raised an exception in a call that the transport does not see.
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
    )

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
        # Whether the inner protocol accepts input, whether input is closed, and whether the transport is paused.
        self._wants_input, self._input_closed, self._transport_paused = True, False, False
        # Input not delivered yet: whether OpenSSL may have plaintext, whether the transport's input has ended since,
        # and the bytes that were not passed to OpenSSL.
        self._pending_plaintext = self._transport_ended = False
        self._undecrypted: list[memoryview] = []
        self._discarded_bytes = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a transport
        if name.startswith("__") or name in ("startTLS", "send_file"):
            # Special methods are not forwarded, startTLS() is impossible, since the connection already has TLS, and a
            # file would be sent without encryption.
            raise AttributeError(name)
        return getattr(self.transport, name)

    # Called by the transport below.

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Start the handshake on a new connection."""
        self.transport = transport
        self._connection = self._handshakes.begin(self)

    def connectionMade(self) -> None:
        """Do nothing: IProtocol requires this method, which makeConnection() does not call."""

    def readConnectionLost(self) -> None:
        """Handle the end of the transport's input."""
        if self._pending_plaintext or self._undecrypted:
            self._transport_ended = True
        elif not self._input_closed:
            self._end_input()
        elif self._linger_timer is not None:
            # The client has closed after the alert of its failed handshake.
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Pass the end of output on to the inner protocol."""
        if IHalfCloseableProtocol.providedBy(self.inner):
            self.inner.writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection."""
        if self.received_any and not (self.version or self._failure or reason.check(ConnectionAborted)):
            self._handshake_failed(failure_reason(reason), "closed")
        self._handshakes.remove(self)
        if self._linger_timer is not None and self._linger_timer.active():
            self._linger_timer.cancel()
        self._stop_input()
        self._output_closed = True
        self._small_writes.clear()
        self._ready.clear()
        inner = self.inner
        try:
            if inner is not None:
                # After a failure of TLS the transport closes cleanly, but for the inner protocol input is incomplete.
                inner.connectionLost(_LOST if self._failure else reason)
        finally:
            # Breaks reference cycles.
            self._failure, self._end_reason = self.failure_text, self.end_reason
            self._connection = self.inner = None
            self.on_handshake = _no_op

    # Input.

    def dataReceived(self, data: bytes) -> None:
        """Decrypt bytes from the client, or keep them while the inner protocol has paused."""
        if self._input_closed:
            # Discards input after its end, or after loseConnection().
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
        """Deliver the plaintext in OpenSSL to the inner protocol until that pauses."""
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
        """Deliver pending input; pass it to OpenSSL one slice at a time."""
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
        """Flush small writes and continue with pending input, in the iteration of the reactor after a request."""
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
            # Ctrl-C stops the daemon; it is not an error of this service.
            raise
        except BaseException:  # noqa: BLE001 - an error in a service ends one connection only
            self._log.failure("a protocol raised", Failure())
            self.inner_raised = True
            self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Pause input of the inner protocol."""
        self._transport_paused = True
        if not self._input_closed:
            self._wants_input = False
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume input of the inner protocol; pending input follows in the next iteration of the reactor."""
        self._wants_input = not self._input_closed
        if not (self._pending_plaintext or self._undecrypted or self._transport_ended):
            self._transport_paused = False
            self.transport.resumeProducing()
        elif not self._scheduled:
            self._scheduled = True
            self._call_soon(self._run_scheduled)

    def stopProducing(self) -> None:
        """Close the connection, as IPushProducer requires."""
        self.loseConnection()

    def _stop_input(self) -> None:
        self._input_closed = True
        self._wants_input = self._pending_plaintext = self._transport_ended = False
        self._undecrypted.clear()

    # The handshake.

    def _continue_handshake(self) -> bool:
        """Continue the handshake; return whether it is done and there is an inner protocol."""
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
        # The session tickets that follow hold the client's certificate; they do not count as unsolicited records.
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
        """Build the inner protocol; return None if that fails, with the reason in `failure_text`."""
        try:
            inner = self._build_inner()
        except KeyboardInterrupt:
            # Ctrl-C stops the daemon; it is not an error of this service.
            raise
        except BaseException as error:  # noqa: BLE001 - an error in a service ends one connection only
            self._failure = reason_of(error)
            return None
        if inner is None:
            self._failure = "the service declines the connection"
        return inner

    def _reject(self, failure: str, word: str) -> None:
        """Fail the handshake, and close so that the alert arrives (as in svcd.connections.lingering_close)."""
        self._handshake_failed(failure, word)
        self._send_close_notify()
        self._stop_input()
        self.transport.loseWriteConnection()
        self._linger_timer = self._handshakes.reactor.callLater(LINGER_SECONDS, self.transport.loseConnection)

    def _handshake_failed(self, failure: str, word: str) -> None:
        self._failure = failure
        self._handshakes.failed(self, word)

    def evict(self) -> None:
        """Abort a connection in its handshake to make room for another one."""
        self._end_reason = "evicted"
        self._handshake_failed("the handshake was not complete when descriptors or connections ran out", "timeout")
        self.transport.abortConnection()

    def handshake_timed_out(self) -> None:
        """Abort the connection: the handshake has reached its time limit."""
        self._handshake_failed(f"the handshake was not complete within {HANDSHAKE_SECONDS:g} seconds", "timeout")
        self.transport.abortConnection()

    def _end_input(self) -> None:
        """Handle the end of input, by a closure alert or by the end of the transport's input."""
        self.input_ended = True
        self._stop_input()
        if self.inner is None:
            if self.received_any:
                self._handshake_failed("the client has closed", "closed")
            self.transport.loseConnection()
        elif IHalfCloseableProtocol.providedBy(self.inner):
            self.inner.readConnectionLost()
        else:
            # Written data is still sent, but the producer is stopped.
            self.disconnecting = True
            self._stop_producer()
            self._finish()

    def _openssl_failed(self, error: SSL.Error) -> None:
        """Close the connection after an error of OpenSSL."""
        self._failure = f"TLS: {failure_reason(error)}"
        # OpenSSL encrypts nothing after an error.
        self._small_writes.clear()
        self._send_close_notify()
        self._stop_input()
        self.disconnecting = True
        self._stop_producer()
        self.transport.loseConnection()

    def _too_many_key_updates(self) -> None:
        """Abort the connection: its client makes OpenSSL send too many records of its own."""
        if not self.version:
            # OpenSSL limits the size of a handshake itself.
            return
        self._failure = "TLS: too many key updates"
        self.abortConnection()

    # Information about the connection.

    def getHandle(self) -> ServerConnection:
        """Return the OpenSSL connection, as Twisted's TLS transports do."""
        return self._connection

    def getPeerCertificate(self) -> Any:  # noqa: ANN401 - an X509 of pyOpenSSL, or None
        """Return the verified certificate of the client; None if it has not sent a certificate."""
        return self._connection.get_peer_certificate()

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The negotiated application protocol (ALPN), as of Twisted's TLS transports."""
        return self._connection.get_alpn_proto_negotiated() or None

    @property
    def tls_identity(self) -> PeerIdentity:
        """The client's identity and the connection's parameters; available after the handshake."""
        if self._identity is None:
            self._identity = peer_identity(self._connection)
        return self._identity

    def info(self, *, subject: bool) -> dict[str, object]:
        """Return fields of the connection for svcctl and the status page.

        Args:
            subject: whether to include the subject of the client's certificate.
        """
        if not self.version:
            return {"tls": "handshake", "state": "handshake"}
        identity = self.tls_identity
        found: dict[str, object] = {"tls": identity.protocol, "cipher": identity.cipher}
        # Values of the environment have no control characters, which a terminal would interpret.
        variables = identity.environment()
        if "SSL_TLS_SNI" in variables:
            found["sni"] = variables["SSL_TLS_SNI"]
        if subject and "SSL_CLIENT_S_DN" in variables:
            found["subject"] = variables["SSL_CLIENT_S_DN"]
        return found

    @property
    def failure_text(self) -> str:
        """The reason why the client was not served; empty if there is none."""
        return self._failure or getattr(self.inner, "failure_text", "")

    @property
    def end_reason(self) -> str:
        """The reason for which the inner protocol has closed the connection; empty without a reason."""
        return self._end_reason or getattr(self.inner, "end_reason", "")

    def drain(self) -> None:
        """Close the connection as soon as the answers of the inner protocol are sent."""
        drain = getattr(self.inner, "drain", None)
        if drain is not None:
            drain()

    def logPrefix(self) -> str:
        """Return the log prefix: the name of the inner protocol's class."""
        return type(self.inner or self).__name__


# Some of its methods are those of the transport below, so implementer() can't check it.
classImplements(TlsProtocol, ISSLTransport)
