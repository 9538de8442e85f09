"""What a handshake has found out: how the connection is encrypted, and who the client is. And why one failed."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cryptography import x509
from OpenSSL import SSL
from service_identity.hazmat import DNS_ID, DNSPattern
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from svcd.wire.certificates import UNREADABLE, ClientName, NameKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from svcd.tls.openssl import ServerConnection

__all__ = ["PeerIdentity", "identity_of", "is_named", "names_in", "why"]

#: Words of OpenSSL that say too little.
_WRITER = {
    "callback failed": "there is no certificate for the name that was asked for",
    "wrong version number": "what the client speaks is no TLS",
}
#: What no value of an environment variable, and no line, should have.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: And what no name in a list should, lest one look like two.
_IN_LIST = re.compile(r"[\x00-\x1f\x7f,\\]")
#: A host name in a certificate (RFC 5280, 4.2.1.6): labels of letters, digits, hyphens and underscores, none empty.
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.(?!$)|$))+", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A TLS connection after its handshake.

    Attributes:
        protocol: TLSv1.2 or TLSv1.3.
        cipher: by OpenSSL's name.
        sni: the host name that the client asked for; perhaps empty.
        alpn: the protocol that was agreed on; perhaps empty.
        verify: SUCCESS for a client with a certificate that holds, NONE for one without, FAILED:reason for one whose
            certificate does not: of a handshake that failed.
        subject, issuer: who the certificate is for and from, as RFC 4514 has it; empty without one.
        sans: its subject alternative names.
    """

    protocol: str
    cipher: str
    sni: str = ""
    alpn: str = ""
    verify: str = "NONE"
    subject: str = ""
    issuer: str = ""
    sans: tuple[ClientName, ...] = ()

    def environment(self) -> Mapping[str, str]:
        r"""The variables of a handler's process, named as Apache's mod_ssl does, but for SSL_CLIENT_SAN.

        SSL_CLIENT_SAN has all names, as in `DNS:a.example,email:b@example,URI:spiffe://c/d,IP:192.0.2.1`. What would be
        empty is left out. Control characters stand there as RFC 4514 has them, `\0A`; in SSL_CLIENT_SAN the commas and
        backslashes of a name as well.
        """
        values = {
            "SSL_PROTOCOL": self.protocol,
            "SSL_CIPHER": self.cipher,
            "SSL_TLS_SNI": self.sni,
            "SSL_CLIENT_VERIFY": self.verify,
            "SSL_CLIENT_S_DN": self.subject,
            "SSL_CLIENT_I_DN": self.issuer,
            "SSL_CLIENT_SAN": ",".join(f"{name.kind.value}:{_escaped(name.text, _IN_LIST)}" for name in self.sans),
        }
        return {name: _escaped(value, _CONTROL) for name, value in values.items() if value}


def _escaped(text: str, what: re.Pattern[str]) -> str:
    return what.sub(lambda found: f"\\{ord(found[0]):02X}", text)


def identity_of(connection: ServerConnection) -> PeerIdentity:
    """What is known of a connection whose handshake is over."""
    certificate = connection.get_peer_certificate(as_cryptography=True)
    found = PeerIdentity(
        protocol=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        sni=(connection.get_servername() or b"").decode("ascii", "replace"),
        alpn=connection.get_alpn_proto_negotiated().decode("ascii", "replace"),
        verify=f"FAILED:{connection.verify_error}"
        if connection.verify_error
        else "NONE"
        if certificate is None
        else "SUCCESS",
    )
    if certificate is None:
        return found
    subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    return replace(found, subject=subject, issuer=issuer, sans=names_in(certificate))


def why(error: object, connection: ServerConnection | None = None) -> str:
    """Why a handshake failed, in OpenSSL's words: `no shared cipher`, `http request`, `unexpected eof`.

    Args:
        error: an exception, or a Failure with one.
        connection: whose it was; says what was wrong with a client's certificate.
    """
    if isinstance(error, Failure):
        error = error.value
    text = _text(error)
    detail = connection.verify_error if connection is not None else ""
    return f"{text}: {detail}" if detail else text


def _text(error: object) -> str:
    if isinstance(error, SSL.SysCallError | ConnectionDone):
        return "unexpected eof"
    if isinstance(error, ConnectionLost):
        return "connection lost"
    if isinstance(error, SSL.Error) and error.args and error.args[0]:
        # Of several the first is what happened, and the others what came of it.
        text = str(error.args[0][0][-1])
        return _WRITER.get(text, text)
    return type(error).__name__


def names_in(certificate: x509.Certificate) -> tuple[ClientName, ...]:
    """The subject alternative names of a certificate (RFC 5280, 4.2.1.6); of kinds that can be asked for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        # None, or such as nobody should trust.
        return ()
    return tuple(_known(found))


def _known(names: x509.SubjectAlternativeName) -> Iterator[ClientName]:
    for name in names:
        if isinstance(name, x509.DNSName):
            yield ClientName(NameKind.DNS, name.value)
        elif isinstance(name, x509.RFC822Name):
            yield ClientName(NameKind.EMAIL, name.value)
        elif isinstance(name, x509.UniformResourceIdentifier):
            yield ClientName(NameKind.URI, name.value)
        elif isinstance(name, x509.IPAddress) and not hasattr(name.value, "prefixlen"):
            yield ClientName(NameKind.IP, str(name.value))


def is_named(names: Sequence[ClientName], wanted: Sequence[ClientName]) -> bool:
    """Whether one of a certificate's names is among those that are wanted.

    A wanted host name may begin with a star, which stands for one whole label as in RFC 6125, 6.4.3; a certificate
    for *.example.org is for no client in particular, and matches nothing. Host names and the hosts of e-mail addresses
    match in any case, the rest as it is written.
    """
    return any(_matches(name, each) for name in names for each in wanted)


def _matches(name: ClientName, wanted: ClientName) -> bool:
    if name.kind is not wanted.kind:
        return False
    if name.kind is NameKind.DNS:
        return _is_host(name.text, wanted.text)
    if name.kind is NameKind.IP:
        return ipaddress.ip_address(name.text) == ipaddress.ip_address(wanted.text)
    if name.kind is NameKind.EMAIL:
        local, _, host = name.text.rpartition("@")
        return f"{local}@{host.lower()}" == wanted.text
    return name.text == wanted.text


def _is_host(name: str, wanted: str) -> bool:
    # What is no host name, as one with an empty label, is nobody's: the library takes some for one.
    if not _HOST.fullmatch(name):
        return False
    # The parts are the other way round than for servers: here it is the certificate that has no star.
    try:
        return DNS_ID(name).verify(DNSPattern(wanted.encode()))
    except (ValueError, ImportError):
        # No host name; or one beyond ASCII, which has another form in certificates (RFC 5280, 7.2).
        return False
