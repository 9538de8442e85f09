"""The TLS of a service: the handshake, between its side and a client's, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from OpenSSL import SSL
from OpenSSL.crypto import X509

from svcd.catalog import SHAPES
from svcd.config.parser import parse_text
from svcd.errors import ConfigError
from svcd.terms import ClientName, NameKind
from svcd.transport.tls.identity import identity_of, why
from svcd.transport.tls.server import TlsServer, tls_server
from tests.certificates import Authority, Signed
from tests.doubles import FakeFiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.config.service import Service
    from svcd.transport.tls.connection import ServerConnection

CA = Authority()
SERVER = CA.sign("localhost", "127.0.0.1")
OTHERS = Authority("Others")
CLIENTS = Authority("Clients")
ANNA = CLIENTS.sign("anna.example.org", "anna@example.org")


def service_of(options: str, line: str = "echo 7/tcp") -> Service:
    """The service of a line."""
    config, problems = parse_text(f"{line} {options}\n", "services", FakeFiles(), SHAPES)
    assert problems == []
    return config.services[0]


def server_of(options: str, folders: tuple[str, ...] = (), **contents: bytes) -> TlsServer:
    """A service's TLS over files below /c."""
    files = FakeFiles({f"/c/{name}": content for name, content in contents.items()}, folders)
    return tls_server(service_of(options), files)


def client(
    sni: str = "localhost", certificate: Signed | None = None, setup: Callable[[SSL.Context], object] | None = None
) -> SSL.Connection:
    """A client that trusts CA."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(X509.from_cryptography(CA.own.certificate))
    context.set_verify(SSL.VERIFY_PEER)
    if certificate is not None:
        context.use_certificate(certificate.certificate)
        context.use_privatekey(certificate.key)
    if setup is not None:
        setup(context)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    if sni:
        connection.set_tlsext_host_name(sni.encode())
    return connection


def _carry(source: SSL.Connection, sink: SSL.Connection) -> bool:
    try:
        sink.bio_write(source.bio_read(65_536))
    except SSL.WantReadError:
        return False
    return True


def handshake(server: TlsServer, other: SSL.Connection) -> tuple[ServerConnection, Any]:
    """Let the two meet; what the server's side fails with, or None."""
    here = server.serverConnectionForTLS(None)
    done = {here: False, other: False}
    for _ in range(20):
        for side in (other, here):
            if not done[side]:
                try:
                    side.do_handshake()
                    done[side] = True
                except SSL.WantReadError:
                    pass
                except SSL.Error as error:
                    if side is here:
                        return here, error
            _carry(side, here if side is other else other)
        if all(done.values()):
            return here, None
    return here, TimeoutError()


def test_a_client_gets_the_certificate() -> None:
    """A client of today speaks TLS 1.3 with the service, and knows its certificate."""
    other = client()
    here, error = handshake(server_of("tls_cert=/c/a", a=SERVER.both), other)
    assert error is None
    shown = other.get_peer_certificate(as_cryptography=True)
    assert shown == SERVER.certificate
    identity = identity_of(here)
    assert (identity.protocol, identity.sni, identity.verify) == ("TLSv1.3", "localhost", "NONE")
    assert identity.environment() == {
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CIPHER": identity.cipher,
        "SSL_TLS_SNI": "localhost",
        "SSL_CLIENT_VERIFY": "NONE",
    }


def test_client_certificates() -> None:
    """Who has to have a certificate gets in with one, whom the service then knows by name, and not without."""
    server = server_of("tls_cert=/c/a tls_client_ca=/c/ca", a=SERVER.both, ca=CLIENTS.pem)
    here, error = handshake(server, client(certificate=ANNA))
    assert error is None
    assert server.refusal(here) is None
    identity = identity_of(here)
    assert (identity.verify, identity.subject, identity.issuer) == ("SUCCESS", "CN=anna.example.org", "CN=Clients")
    assert identity.sans == (
        ClientName(NameKind.DNS, "anna.example.org"),
        ClientName(NameKind.EMAIL, "anna@example.org"),
    )
    assert identity.environment()["SSL_CLIENT_SAN"] == "DNS:anna.example.org,email:anna@example.org"
    here, error = handshake(server, client())
    assert why(error, here) == "peer did not return a certificate"
    here, error = handshake(server, client(certificate=OTHERS.sign("eve.example.org")))
    assert why(error, here) == "certificate verify failed: unable to get issuer cert locally"


def test_sni() -> None:
    """The certificate is chosen by the name that the client asks for: its own, any label's, or the default."""
    one, many = CA.sign("one.example"), CA.sign("*.many.example")
    server = server_of(
        "tls_cert=/c/a tls_sni=/c", ("/c",), a=SERVER.both,
        **{"one.example.pem": one.both, "_.many.example.pem": many.both},
    )  # fmt: skip
    for name, wanted in {
        "one.example": one,
        "ONE.example": one,
        "x.many.example": many,
        "y.x.many.example": SERVER,
        "many.example": SERVER,
        "": SERVER,
    }.items():
        other = client(name)
        assert handshake(server, other)[1] is None
        assert other.get_peer_certificate(as_cryptography=True) == wanted.certificate


def test_an_unknown_name_is_refused() -> None:
    """With tls_unknown_name=refuse who asks for another name gets no certificate, and the log can say why."""
    server = server_of(
        "tls_sni=/c tls_unknown_name=refuse", ("/c",), **{"one.example.pem": CA.sign("one.example").both}
    )
    assert handshake(server, client("one.example"))[1] is None
    here, error = handshake(server, client("two.example"))
    assert "there is no certificate for the name that it asks for" in why(error, here)


def test_a_change_holds_for_who_comes_after() -> None:
    """What prepare() read holds once it is committed; what it can't use changes nothing."""
    files = FakeFiles({"/c/a": SERVER.both})
    service = service_of("tls_cert=/c/a")
    server = tls_server(service, files)
    newer = CA.sign("localhost")
    files.put("/c/a", newer.both)
    commit = server.prepare(service)

    def shown() -> object:
        other = client()
        assert handshake(server, other)[1] is None
        return other.get_peer_certificate(as_cryptography=True)

    assert shown() == SERVER.certificate
    commit()
    assert shown() == newer.certificate
    files.put("/c/a", newer.pem + SERVER.key_pem)
    with pytest.raises(ConfigError, match=r"services:1:21: tls_cert: can't use /c/a: the key is not that"):
        server.prepare(service)
    assert shown() == newer.certificate
    assert [each.file for each in server.held] == ["/c/a"]
    assert server.held[0].expires == newer.certificate.not_valid_after_utc.timestamp()
