"""A TLS client and a service's side of TLS, in memory."""

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

__all__ = ["ANNA", "CA", "CLIENTS", "FILES", "SERVER", "TlsClient", "TlsPair", "secured"]

CA = Authority()
SERVER = CA.sign("localhost", "127.0.0.1")
CLIENTS = Authority("Clients")
ANNA = CLIENTS.sign("anna.example.org", "anna@example.org")
FILES = {"/c/server": SERVER.both, "/c/clients": CLIENTS.pem}


def secured(line: str = "echo 7/tcp", **options: str) -> Service:
    """A service with TLS."""
    words = [line, "tls_cert=/c/server", *(f"{name}={value}" for name, value in options.items())]
    config, problems = parse_text(" ".join(words), "services", FakeFiles(FILES), BUILTINS)
    assert not problems, problems
    return config.services[0]


@cache
def _server(**options: str) -> ServerTls:
    return ServerTls(secured(**options), FakeFiles(FILES))


class TlsClient:
    """A client's side.

    Args:
        certificate: its own.
        trusts: whether it trusts who vouches for the server.
        setup: changes its context.

    Attributes:
        received: what the server said.
        told_end: whether the server has said that there is no more.
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
        """What goes over the wire: the handshake as far as it is, data, and the closure alert."""
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
        """Take what came over the wire.

        Raises:
            SSL.Error: the server has failed it.
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
    """A client, and the service's side of its connection.

    Args:
        inner: the service's protocol; by default one that does nothing.
        client: by default one that trusts the server.
        room: as of StreamDouble.
        options: of the service.

    Attributes:
        below: the transport.
        heard: how much of what was sent the client has heard.
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
        """Let the client say something, and hear what comes back.

        Args:
            data: what it says.
            ends: whether it says that this is all.
            piece: bytes that arrive at a time; 0 for all at once.
        """
        self.feed(self.client.send(data, ends=ends), piece)
        self.deliver()

    def feed(self, wire: bytes, piece: int = 0) -> None:
        """Bytes arrive at the server."""
        for start in range(0, len(wire), piece or len(wire) or 1):
            if not self.below.lost:
                self.tls.dataReceived(wire[start : start + (piece or len(wire))])

    def deliver(self) -> None:
        """The client hears what was sent since."""
        wire, self._delivered = self.below.sent[self._delivered :], len(self.below.sent)
        self.client.receive(wire)

    def handshake(self, piece: int = 0) -> TlsPair:
        """The handshake."""
        for _ in range(3):
            self.exchange(piece=piece)
        return self

    def turn(self) -> None:
        """The reactor has its next turn."""
        self.clock.advance(0)
        self.deliver()
