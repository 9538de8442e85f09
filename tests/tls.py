"""TLS client, and the server side of a TLS connection, in memory."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.protocol import Protocol

from svcd.config.parser import parse_text
from svcd.metrics.counters import ServiceCounters
from svcd.metrics.snapshot import ServiceInfo
from svcd.protocols.catalog import BUILTINS
from svcd.tls.certificates import ServerTls
from svcd.tls.handshakes import HandshakeTracker
from svcd.tls.protocol import TlsProtocol
from tests.certificates import Authority
from tests.doubles import FakeFiles, FakeReactor, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.config.service import Service
    from tests.certificates import Signed

__all__ = ["ANNA", "CA", "CLIENTS", "FILES", "SERVER", "TlsClient", "TlsPair", "tls_service"]

CA = Authority()
SERVER = CA.sign("localhost", "127.0.0.1")
CLIENTS = Authority("Clients")
ANNA = CLIENTS.sign("anna.example.org", "anna@example.org")
FILES = {"/c/server": SERVER.bundle, "/c/clients": CLIENTS.pem}


def tls_service(line: str = "echo 7/tcp", **options: str) -> Service:
    """Return a service with TLS."""
    words = [line, "tls_cert=/c/server", *(f"{name}={value}" for name, value in options.items())]
    config, problems = parse_text(" ".join(words), "services", FakeFiles(FILES), BUILTINS)
    assert not problems, problems
    return config.services[0]


@cache
def _server(**options: str) -> ServerTls:
    return ServerTls(tls_service(**options), FakeFiles(FILES))


class TlsClient:
    """TLS client in memory.

    Args:
        certificate: the certificate of the client.
        trusts: whether it trusts the server's authority.
        setup: changes its context.

    Attributes:
        received: the plaintext received.
        got_close_notify: whether the server has sent a closure alert.
    """

    def __init__(
        self,
        certificate: Signed | None = None,
        *,
        trusts: bool = True,
        setup: Callable[[SSL.Context], object] | None = None,
    ) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        store = context.get_cert_store()
        assert store is not None
        if trusts:
            store.add_cert(X509.from_cryptography(CA.own.certificate))
        context.set_verify(SSL.VERIFY_PEER)
        if certificate is not None:
            context.use_certificate(certificate.certificate)
            context.use_privatekey(certificate.key)
        if setup is not None:
            setup(context)
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        self.tls.set_tlsext_host_name(b"localhost")
        self.received = b""
        self.got_close_notify = False
        self._handshake_done = False

    def send(self, data: bytes = b"", *, ends: bool = False) -> bytes:
        """Return bytes for the wire: the next step of the handshake, data, and the closure alert."""
        if not self._handshake_done:
            try:
                self.tls.do_handshake()
                self._handshake_done = True
            except SSL.WantReadError:
                pass
        while data:
            data = data[self.tls.send(data) :]
        if ends:
            self.tls.shutdown()
        wire = b""
        try:
            while True:
                wire += self.tls.bio_read(65_536)
        except SSL.WantReadError:
            return wire

    def receive(self, wire: bytes) -> None:
        """Receive bytes from the wire.

        Raises:
            SSL.Error: the handshake has failed.
        """
        if wire:
            self.tls.bio_write(wire)
        if not self._handshake_done:
            return
        try:
            while True:
                self.received += self.tls.recv(65_536)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.got_close_notify = True


class TlsPair:
    """TLS client, connected in memory to a TlsProtocol of a service.

    Args:
        inner: the protocol inside TLS; by default one that ignores its input.
        client: the client; by default one that trusts the server's authority.
        room: as of StreamDouble.
        options: options of the service.

    Attributes:
        below: the transport below the TlsProtocol.
    """

    def __init__(
        self, inner: Any = None, client: TlsClient | None = None, *, room: float = float("inf"), **options: str
    ) -> None:
        self.clock = FakeReactor()
        self.client = client or TlsClient()
        self.inner = Protocol() if inner is None else inner
        self.counters = ServiceCounters(ServiceInfo("echo/tcp", "echo"), lambda _ended: None, self.clock.seconds)
        handshakes = HandshakeTracker(_server(**options), self.counters, self.clock, partial(self.clock.callLater, 0))
        self.tls = TlsProtocol(handshakes, lambda: self.inner)
        self.below = StreamDouble(self.tls, room=room)
        self.tls.makeConnection(self.below)
        self._delivered = 0

    def exchange(self, data: bytes = b"", *, ends: bool = False, piece: int = 0) -> None:
        """Send data from the client, and deliver the answers to it.

        Args:
            data: the plaintext to send.
            ends: whether the client sends a closure alert after it.
            piece: the size of the pieces in which the bytes arrive; 0 for all at once.
        """
        self.feed(self.client.send(data, ends=ends), piece)
        self.deliver()

    def feed(self, wire: bytes, piece: int = 0) -> None:
        """Pass bytes from the wire to the server.

        Args:
            wire: the bytes.
            piece: as of exchange().
        """
        for start in range(0, len(wire), piece or len(wire) or 1):
            if not self.below.lost:
                self.tls.dataReceived(wire[start : start + (piece or len(wire))])

    def deliver(self) -> None:
        """Pass what the server has sent since the last call to the client."""
        wire, self._delivered = self.below.sent[self._delivered :], len(self.below.sent)
        self.client.receive(wire)

    def handshake(self, piece: int = 0) -> TlsPair:
        """Complete the handshake."""
        for _ in range(3):
            self.exchange(piece=piece)
        return self

    def turn(self) -> None:
        """Run one iteration of the reactor, and deliver the answers to the client."""
        self.clock.advance(0)
        self.deliver()
