"""Tests of UNIX sockets, with descriptors and counts, and of startTLS()."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IFileDescriptorReceiver, ISSLTransport
from twisted.internet.ssl import CertificateOptions
from zope.interface import implementer

from tests.reactor.conftest import Recorder, Recorders
from tests.reactor.test_streams import Echo, listen, read_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.reactor.conftest import ReactorHarness

_HOUR = datetime.timedelta(hours=1)


def connect(path: Path) -> socket.socket:
    """Connect to a UNIX socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.fspath(path))
    return sock


def test_unix_echo(harness: ReactorHarness, tmp_path: Path) -> None:
    """A UNIX socket is served like TCP, and its bytes are counted."""
    path = tmp_path / "echo"
    factory = Recorders(Echo)
    port: Any = harness.reactor.listenUNIX(os.fspath(path), factory)
    assert port.getHost().name == os.fsencode(path)
    question = bytes(range(256)) * 2000

    def client() -> bytes:
        with connect(path) as sock:
            answer = b""
            for at in range(0, len(question), 50_000):
                piece = question[at : at + 50_000]
                sock.sendall(piece)
                answer += sock.recv(len(piece), socket.MSG_WAITALL)
            sock.shutdown(socket.SHUT_WR)
            return answer + read_all(sock)

    assert harness.run(client, factory) == question
    assert factory.made[0].counted == (len(question), len(question))


def test_descriptors_are_sent(harness: ReactorHarness, tmp_path: Path) -> None:
    """Descriptors arrive with the bytes written after them, in order, even if the client reads late."""
    path = tmp_path / "send"
    count = 40

    class Sending(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            transport: Any = self.transport
            # This is more than the kernel takes, so descriptors have to wait.
            transport.write(b"x" * 1_000_000)
            for _ in range(count):
                transport.sendFileDescriptor(self.factory.descriptor)  # type: ignore[attr-defined]
                transport.write(b"d")
            transport.write(b"end")
            transport.loseConnection()

    factory = Recorders(Sending)
    factory.descriptor = os.open(os.devnull, os.O_RDONLY)  # type: ignore[attr-defined]
    harness.reactor.listenUNIX(os.fspath(path), factory)

    def client() -> tuple[bytes, int]:
        data, received = b"", 0
        with connect(path) as sock:
            while True:
                piece, descriptors, _flags, _name = socket.recv_fds(sock, 65536, count)
                received += len(descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                if not piece:
                    return data, received
                data += piece

    data, received = harness.run(client, factory)
    os.close(factory.descriptor)  # type: ignore[attr-defined]
    assert data == b"x" * 1_000_000 + b"d" * count + b"end"
    assert received == count
    assert factory.made[0].events == ["ConnectionDone"]


def test_descriptors_are_received(harness: ReactorHarness, tmp_path: Path) -> None:
    """A protocol that accepts descriptors gets them."""
    path = tmp_path / "receive"

    @implementer(IFileDescriptorReceiver)
    class Receiving(Recorder):
        def fileDescriptorReceived(self, descriptor: int) -> None:
            os.close(descriptor)
            self.events.append("descriptor")

    factory = Recorders(Receiving)
    harness.reactor.listenUNIX(os.fspath(path), factory)

    def client() -> None:
        with connect(path) as sock:
            socket.send_fds(sock, [b"x"], [0])

    harness.run(client, factory)
    assert factory.made[0].events == ["descriptor", "ConnectionDone"]
    assert bytes(factory.made[0].received) == b"x"


@pytest.fixture(scope="module")
def options() -> CertificateOptions:
    """Return TLS options with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + _HOUR)
    certificate = builder.sign(key, hashes.SHA256())
    return CertificateOptions(privateKey=key, certificate=certificate)  # type: ignore[arg-type]


def test_start_tls(harness: ReactorHarness, options: CertificateOptions) -> None:
    """After startTLS() data is sent over TLS, the transport provides ISSLTransport, and it is closed in good order."""

    class Starting(Recorder):
        def dataReceived(self, data: bytes) -> None:
            transport: Any = self.transport
            if data == b"STARTTLS":
                transport.write(b"go")
                transport.startTLS(options)
                assert ISSLTransport.providedBy(transport)
                assert transport.getPeerCertificate() is None
            else:
                transport.writeSequence([data, b"!"])
                transport.loseConnection()

    factory = Recorders(Starting)
    address = listen(harness, factory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"STARTTLS")
            assert sock.recv(2) == b"go"
            with context.wrap_socket(sock) as secure:
                secure.sendall(b"hello")
                answer = read_all(secure)
                secure.unwrap()
                return answer

    assert harness.run(client, factory) == b"hello!"
    assert factory.made[0].events == ["ConnectionDone"]
