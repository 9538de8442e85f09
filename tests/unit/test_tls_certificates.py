"""ServerTls: handshakes with clients over memory BIOs."""

from __future__ import annotations

import gc
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from OpenSSL import SSL
from OpenSSL._util import lib
from OpenSSL.crypto import X509
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from svcd.config.parser import parse_text
from svcd.errors import ConfigError
from svcd.protocols.catalog import BUILTINS
from svcd.tls.certificates import ServerTls
from svcd.tls.openssl import ServerConnection, ServerContext
from svcd.tls.peer import PeerIdentity, failure_reason, peer_identity
from svcd.wire.certificates import ClientName, NameKind
from tests.certificates import Authority, Signed
from tests.doubles import FakeFiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.config.service import Service

CA = Authority()
SERVER = CA.sign("localhost", "127.0.0.1")
OTHERS = Authority("Others")
CLIENTS = Authority("Clients")
ANNA = CLIENTS.sign("anna.example.org", "anna@example.org")


def service_of(options: str, line: str = "echo 7/tcp") -> Service:
    """Return the service of a line with options."""
    config, problems = parse_text(f"{line} {options}\n", "services", FakeFiles(), BUILTINS)
    assert problems == []
    return config.services[0]


def server_of(options: str, folders: tuple[str, ...] = (), **contents: bytes) -> ServerTls:
    """Return the TLS of a service with files below /c."""
    files = FakeFiles({f"/c/{name}": content for name, content in contents.items()}, folders)
    return ServerTls(service_of(options), files)


def client(
    sni: str = "localhost", certificate: Signed | None = None, setup: Callable[[SSL.Context], object] | None = None
) -> SSL.Connection:
    """Return a client that trusts CA."""
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


def handshake(server: ServerTls, other: SSL.Connection) -> tuple[ServerConnection, Any]:
    """Do the handshake; return the server's side and its error, or None."""
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


def test_client_verifies_the_certificate() -> None:
    """A current client negotiates TLS 1.3 and verifies the certificate."""
    other = client()
    here, error = handshake(server_of("tls_cert=/c/a", a=SERVER.bundle), other)
    assert error is None
    shown = other.get_peer_certificate(as_cryptography=True)
    assert shown == SERVER.certificate
    identity = peer_identity(here)
    assert (identity.protocol, identity.sni, identity.verify) == ("TLSv1.3", "localhost", "NONE")
    assert identity.environment() == {
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CIPHER": identity.cipher,
        "SSL_TLS_SNI": "localhost",
        "SSL_CLIENT_VERIFY": "NONE",
    }


def test_client_certificates() -> None:
    """With tls_client=required a client with a certificate is accepted and identified; one without is refused."""
    server = server_of("tls_cert=/c/a tls_client_ca=/c/ca", a=SERVER.bundle, ca=CLIENTS.pem)
    here, error = handshake(server, client(certificate=ANNA))
    assert error is None
    assert server.refusal(here) is None
    identity = peer_identity(here)
    assert (identity.verify, identity.subject, identity.issuer) == ("SUCCESS", "CN=anna.example.org", "CN=Clients")
    assert identity.sans == (
        ClientName(NameKind.DNS, "anna.example.org"),
        ClientName(NameKind.EMAIL, "anna@example.org"),
    )
    assert identity.environment()["SSL_CLIENT_SAN"] == "DNS:anna.example.org,email:anna@example.org"
    here, error = handshake(server, client())
    assert failure_reason(error, here) == "peer did not return a certificate"
    here, error = handshake(server, client(certificate=OTHERS.sign("eve.example.org")))
    assert failure_reason(error, here) == "certificate verify failed: unable to get local issuer certificate"
    assert peer_identity(here).verify == "FAILED:unable to get local issuer certificate"


def test_optional_client_certificates() -> None:
    """With tls_client=optional a client without a certificate is accepted; an invalid certificate is refused."""
    options = "tls_cert=/c/a tls_client_ca=/c/ca tls_client=optional tls_client_names=*.example.org"
    server = server_of(options, a=SERVER.bundle, ca=CLIENTS.pem)
    here, error = handshake(server, client())
    assert error is None
    assert server.refusal(here) is None
    here, error = handshake(server, client(certificate=CLIENTS.sign("a.example.net")))
    assert error is None
    assert server.refusal(here) == "its certificate has no name of tls_client_names"
    assert handshake(server, client(certificate=ANNA))[1] is None
    expired = CLIENTS.sign("a.example.org", expires=CLIENTS.now - timedelta(hours=1))
    here, error = handshake(server, client(certificate=expired))
    assert failure_reason(error, here) == "certificate verify failed: certificate has expired"


def test_client_names() -> None:
    """Of the clients with a valid certificate only those in tls_client_names are accepted."""
    options = "tls_cert=/c/a tls_client_ca=/c/ca tls_client_names=bob@example.org,anna@example.org"
    server = server_of(options, a=SERVER.bundle, ca=CLIENTS.pem)
    here, _ = handshake(server, client(certificate=ANNA))
    assert server.refusal(here) is None
    here, _ = handshake(server, client(certificate=CLIENTS.sign("anna.example.org")))
    assert server.refusal(here) == "its certificate has no name of tls_client_names"


def test_client_without_a_required_certificate_is_refused() -> None:
    """A client without a required certificate is refused even if OpenSSL accepts it."""
    here, _ = handshake(server_of("tls_cert=/c/a", a=SERVER.bundle), client())
    strict = server_of("tls_cert=/c/a tls_client_ca=/c/ca", a=SERVER.bundle, ca=CLIENTS.pem)
    assert strict.refusal(here) == "it has no certificate"


def test_session_with_an_expired_certificate_is_refused() -> None:
    """OpenSSL does not verify the certificate of a resumed session again: an expired one is refused."""
    now = CLIENTS.now.timestamp()
    files = FakeFiles({"/c/a": SERVER.bundle, "/c/ca": CLIENTS.pem})
    server = ServerTls(service_of("tls_cert=/c/a tls_client_ca=/c/ca"), files, lambda: now)
    anna = CLIENTS.sign("anna.example.org", expires=CLIENTS.now + timedelta(hours=1))
    for later, refusal in [(3599, None), (1, "its certificate has expired")]:
        first = client(certificate=anna)
        _connect(server, first)
        now += later
        here = _resume(server, first, "localhost")
        assert here is not None
        assert server.refusal(here) == refusal


def test_certificate_that_can_not_be_parsed_is_refused() -> None:
    """A client certificate that OpenSSL accepts and cryptography can't parse is refused without an exception."""

    class Odd(ServerConnection):
        def get_peer_certificate(self, **_arguments: object) -> Any:
            raise x509.InvalidVersion("48 is not a valid X509 version", 48)

    server = server_of("tls_cert=/c/a tls_client_ca=/c/ca tls_client=optional", a=SERVER.bundle, ca=CLIENTS.pem)
    assert server.refusal(Odd(SSL.Context(SSL.TLS_METHOD), None)) == "its certificate can't be read"


def test_intermediate_authority_is_trusted() -> None:
    """An intermediate authority is trusted alone, without other authorities of the same root."""
    root = Authority("Root")
    below, beside = Authority("Below", issuer=root), Authority("Beside", issuer=root)
    server = server_of("tls_cert=/c/a tls_client_ca=/c/ca", a=SERVER.bundle, ca=below.pem)
    assert handshake(server, client(certificate=below.sign("anna.example.org")))[1] is None
    here, error = handshake(server, client(certificate=beside.sign("anna.example.org")))
    assert failure_reason(error, here) == "certificate verify failed: unable to get local issuer certificate"


def test_revoked_certificates() -> None:
    """Certificates in a revocation list are refused: of clients, and of intermediate authorities."""
    root = Authority("Root")
    below = Authority("Below", issuer=root)
    good, bad = below.sign("good.example"), below.sign("bad.example")
    below.revoke(bad)

    def server(revocations: bytes) -> ServerTls:
        options = "tls_cert=/c/a tls_client_ca=/c/ca tls_crl=/c/crl"
        return server_of(options, a=SERVER.bundle, ca=root.pem + below.pem, crl=revocations)

    lists = root.crl() + below.crl()
    assert handshake(server(lists), client(certificate=good))[1] is None
    here, error = handshake(server(lists), client(certificate=bad))
    assert failure_reason(error, here) == "certificate verify failed: certificate revoked"
    root.revoke(below.own)
    here, error = handshake(server(root.crl() + below.crl()), client(certificate=good))
    assert failure_reason(error, here) == "certificate verify failed: certificate revoked"


def _versions(least: int, most: int) -> Callable[[SSL.Context], None]:
    def setup(context: SSL.Context) -> None:
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_min_proto_version(least)
        context.set_max_proto_version(most)

    return setup


@pytest.mark.parametrize(
    ("options", "version", "spoken"),
    [
        ("", SSL.TLS1_1_VERSION, ""),
        ("", SSL.TLS1_2_VERSION, "TLSv1.2"),
        ("", SSL.TLS1_3_VERSION, "TLSv1.3"),
        ("tls_min=1.3", SSL.TLS1_2_VERSION, ""),
        ("tls_min=1.3", SSL.TLS1_3_VERSION, "TLSv1.3"),
    ],
)
def test_versions(options: str, version: int, spoken: str) -> None:
    """TLS 1.2 and 1.3 are accepted, or 1.3 only."""
    server = server_of(f"tls_cert=/c/a {options}", a=SERVER.bundle)
    here, error = handshake(server, client(setup=_versions(version, version)))
    if spoken:
        assert error is None
        assert peer_identity(here).protocol == spoken
    else:
        assert failure_reason(error, here) == "unsupported protocol"


def test_client_without_tls() -> None:
    """The reason of the failure has the other protocol, if it is known, or the lost connection."""
    server = server_of("tls_cert=/c/a", a=SERVER.bundle)
    here = server.serverConnectionForTLS(None)
    here.bio_write(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(SSL.Error) as caught:
        here.do_handshake()
    assert failure_reason(caught.value, here) == failure_reason(Failure(caught.value)) == "http request"
    assert failure_reason(SSL.Error([("SSL routines", "", "wrong version number")])) == "the client does not use TLS"
    assert (
        failure_reason(SSL.SysCallError(-1, "Unexpected EOF")) == failure_reason(ConnectionDone()) == "unexpected eof"
    )
    assert failure_reason(ConnectionLost()) == "connection lost"
    assert failure_reason(SSL.Error()) == "Error"


@pytest.mark.parametrize(
    ("line", "options", "offered", "agreed"),
    [
        ("echo 7/tcp", "", [b"h2"], ""),
        ("http 80/tcp", "", [b"h2", b"http/1.1"], "http/1.1"),
        ("status 80/tcp", "", [b"http/1.1"], "http/1.1"),
        ("http 80/tcp", "", [], ""),
        ("http 80/tcp", "", [b"h2"], None),
        ("http 80/tcp", "tls_alpn=none", [b"h2"], ""),
        ("echo 7/tcp", "tls_alpn=b,a", [b"a", b"b"], "b"),
    ],
)
def test_alpn(line: str, options: str, offered: list[bytes], agreed: str | None) -> None:
    """The first protocol of the service that the client offers is selected; without one the handshake fails."""
    server = ServerTls(service_of(f"tls_cert=/c/a {options}", line), FakeFiles({"/c/a": SERVER.bundle}))
    here, error = handshake(server, client(setup=lambda context: offered and context.set_alpn_protos(offered)))
    if agreed is None:
        assert isinstance(error, SSL.Error)
    else:
        assert error is None
        assert peer_identity(here).alpn == agreed


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65_537, 2048),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_key_types(make: Callable[[], Any], version: int) -> None:
    """Keys of RSA, elliptic curves and EdDSA work with both versions."""
    both = CA.sign("localhost", key=make()).bundle
    assert handshake(server_of("tls_cert=/c/a", a=both), client(setup=_versions(version, version)))[1] is None


def test_chain_is_sent() -> None:
    """A client that trusts only the root gets the intermediate certificates."""
    leaf = Authority("Between", issuer=CA).sign("localhost")
    other = client()
    assert handshake(server_of("tls_cert=/c/a", a=leaf.bundle), other)[1] is None
    assert len(other.get_peer_cert_chain(as_cryptography=True) or []) == 2


def _resume(server: ServerTls, first: SSL.Connection, name: str) -> ServerConnection | None:
    """Try to resume a session; return the server's side, None after a full handshake."""
    session = first.get_session()
    assert session is not None
    again = SSL.Connection(first.get_context(), None)
    again.set_connect_state()
    again.set_tlsext_host_name(name.encode())
    again.set_session(session)
    here, error = handshake(server, again)
    assert error is None
    return here if lib.SSL_session_reused(again._ssl) else None


def _connect(server: ServerTls, first: SSL.Connection) -> None:
    """Do a handshake and receive the session tickets that follow in TLS 1.3."""
    here, error = handshake(server, first)
    assert error is None
    here.send(b"x")
    _carry(here, first)
    assert first.recv(1) == b"x"


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_sessions_are_resumed(version: int) -> None:
    """Sessions are resumed by tickets, at any name of the service, but not after new ticket keys."""
    server = server_of(
        "tls_cert=/c/a tls_sni=/c", ("/c",), a=SERVER.bundle, **{"one.example.pem": CA.sign("one.example").bundle}
    )
    for name in ("localhost", "one.example"):
        first = client(name, setup=_versions(version, version))
        _connect(server, first)
        assert _resume(server, first, name)
        server.renew_ticket_keys()
        assert not _resume(server, first, name)


def test_resumed_session_keeps_the_client_certificate() -> None:
    """A resumed session has the client's certificate, by which it is identified and refused as before."""
    for name, refusal in {"anna.example.org": None, "x": "its certificate has no name of tls_client_names"}.items():
        options = f"tls_cert=/c/a tls_client_ca=/c/ca tls_client_names={name}"
        server = server_of(options, a=SERVER.bundle, ca=CLIENTS.pem)
        first = client(certificate=ANNA)
        _connect(server, first)
        here = _resume(server, first, "localhost")
        assert here is not None
        assert peer_identity(here).subject == "CN=anna.example.org"
        assert peer_identity(here).verify == "SUCCESS"
        assert server.refusal(here) == refusal


def test_unchanged_contexts_are_reused() -> None:
    """Only the contexts of changed certificates are created again, unless the options have changed."""
    contents = {f"/c/{name}.example.pem": CA.sign(f"{name}.example").bundle for name in "abc"}
    files = FakeFiles(contents, ["/c"])
    service = service_of("tls_sni=/c tls_unknown_name=refuse")
    server = ServerTls(service, files)

    def contexts() -> dict[str, SSL.Context]:
        return dict(server._state.contexts.named)

    before = contexts()
    server.renew_ticket_keys()
    assert contexts() == before
    files.put("/c/b.example.pem", CA.sign("b.example").bundle)
    server.prepare(service)()
    after = contexts()
    assert [name for name in after if after[name] is not before[name]] == ["b.example"]
    server.prepare(service_of("tls_sni=/c tls_unknown_name=refuse tls_min=1.3"))()
    assert not set(contexts().values()) & set(after.values())


def test_replaced_contexts_are_freed() -> None:
    """Replaced contexts are freed with their last connection, without the garbage collector."""
    options = "tls_cert=/c/a tls_sni=/c tls_alpn=x tls_client_ca=/c/ca tls_client=optional"
    contents = {"a": SERVER.bundle, "ca": CLIENTS.pem, "localhost.pem": SERVER.bundle}
    server = server_of(options, ("/c",), **contents)
    here = server.serverConnectionForTLS(None)
    contexts = server._state.contexts
    old = [weakref.ref(contexts.first), weakref.ref(contexts.named["localhost"])]
    del contexts
    gc.disable()
    try:
        server.prepare(service_of(f"{options} tls_min=1.3"))()
        assert all(each() is not None for each in old)
        del here
        assert all(each() is None for each in old)
    finally:
        gc.enable()


_NO_CALLBACKS = "this Python's libffi is older than 3.4 and needs memory that is written and executed"


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("use_privatekey", SSL.Error([("", "", "too small")]), "OpenSSL rejects the certificate: too small"),
        ("choose_protocol", MemoryError(), _NO_CALLBACKS),
        ("choose_by_name", MemoryError(), _NO_CALLBACKS),
    ],
)
def test_openssl_errors_are_problems(monkeypatch: pytest.MonkeyPatch, what: str, error: Exception, text: str) -> None:
    """An error of OpenSSL, and a lack of memory for callbacks, is a ConfigProblem of the option."""

    def fail(*_arguments: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(ServerContext, what, fail)
    with pytest.raises(ConfigError, match=rf"services:1:\d+: tls_(cert|sni): {text}"):
        server_of(
            "tls_cert=/c/a tls_alpn=x tls_sni=/c", ("/c",), **{"a": SERVER.bundle, "localhost.pem": SERVER.bundle}
        )


def test_environment() -> None:
    """The environment has the variables of Apache's mod_ssl, with control characters of names escaped."""
    name = ClientName(NameKind.DNS, "a\n.example")
    identity = PeerIdentity("TLSv1.3", "X", "s.example", "", "SUCCESS", "CN=a\nb", "CN=c", (name,))
    assert identity.environment() == {
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CIPHER": "X",
        "SSL_TLS_SNI": "s.example",
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": "CN=a\\0Ab",
        "SSL_CLIENT_I_DN": "CN=c",
        "SSL_CLIENT_SAN": "DNS:a\\0A.example",
    }


def test_names_in_a_list_are_escaped() -> None:
    """Commas and backslashes in a name are escaped, so that it can't look like two names."""
    odd = ClientName(NameKind.URI, "x:y,email:root@example.org\\")
    identity = PeerIdentity("TLSv1.3", "c", sans=(odd, ClientName(NameKind.DNS, "a.example")))
    assert identity.environment()["SSL_CLIENT_SAN"] == "URI:x:y\\2Cemail:root@example.org\\5C,DNS:a.example"


def test_sni() -> None:
    """The certificate is chosen by the requested host name: its own, a wildcard's, or the default."""
    one, many = CA.sign("one.example"), CA.sign("*.many.example")
    server = server_of(
        "tls_cert=/c/a tls_sni=/c", ("/c",), a=SERVER.bundle,
        **{"one.example.pem": one.bundle, "_.many.example.pem": many.bundle},
    )  # fmt: skip
    for name, wanted in {
        "one.example": one,
        "ONE.example": one,
        "x.many.example": many,
        "y.x.many.example": SERVER,
        "many.example": SERVER,
        ".many.example": SERVER,
        "": SERVER,
    }.items():
        other = client(name)
        assert handshake(server, other)[1] is None
        assert other.get_peer_certificate(as_cryptography=True) == wanted.certificate


def test_unknown_name_is_refused() -> None:
    """With tls_unknown_name=refuse the handshake of a client that requests another name fails, with a reason."""
    server = server_of(
        "tls_sni=/c tls_unknown_name=refuse", ("/c",), **{"one.example.pem": CA.sign("one.example").bundle}
    )
    assert handshake(server, client("one.example"))[1] is None
    here, error = handshake(server, client("two.example"))
    assert failure_reason(error, here) == "there is no certificate for the requested name"


def test_change_applies_to_later_connections() -> None:
    """The files read by prepare() apply after its commit; an error changes nothing."""
    files = FakeFiles({"/c/a": SERVER.bundle})
    service = service_of("tls_cert=/c/a")
    server = ServerTls(service, files)
    newer = CA.sign("localhost")
    files.put("/c/a", newer.bundle)
    commit = server.prepare(service)

    def shown() -> object:
        other = client()
        assert handshake(server, other)[1] is None
        return other.get_peer_certificate(as_cryptography=True)

    assert shown() == SERVER.certificate
    commit()
    assert shown() == newer.certificate
    files.put("/c/a", newer.pem + SERVER.key_pem)
    problem = r"services:1:21: tls_cert: can't use /c/a: the key does not belong to the certificate"
    with pytest.raises(ConfigError, match=problem):
        server.prepare(service)
    assert shown() == newer.certificate
    assert [each.file for each in server.certificates] == ["/c/a"]
    assert server.certificates[0].expires == newer.certificate.not_valid_after_utc.timestamp()
