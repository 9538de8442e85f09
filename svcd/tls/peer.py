"""Result of a handshake: parameters of the connection, the client's identity, or the reason of a failure."""

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

__all__ = ["PeerIdentity", "failure_reason", "matches_names", "peer_identity", "subject_alt_names"]

#: Clearer texts for some reasons of OpenSSL.
_CLEARER = {
    "callback failed": "there is no certificate for the requested name",
    "wrong version number": "the client does not use TLS",
}
#: Control characters, which are escaped in environment variables and log lines.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: The same for names in a list, where commas separate them.
_IN_LIST = re.compile(r"[\x00-\x1f\x7f,\\]")
#: A host name in a certificate (RFC 5280, 4.2.1.6): labels of letters, digits, hyphens and underscores, none empty.
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.(?!$)|$))+", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Parameters of a TLS connection and identity of its client.

    Attributes:
        protocol: `TLSv1.2` or `TLSv1.3`.
        cipher: OpenSSL's name of the cipher.
        sni: the host name that the client requested; empty without SNI.
        alpn: the negotiated application protocol; empty without ALPN.
        verify: `SUCCESS` with a valid client certificate, `NONE` without a certificate, `FAILED:reason` with an invalid
            one, which a failed handshake has.
        subject, issuer: distinguished names of the client certificate as of RFC 4514; empty without a certificate.
        sans: subject alternative names of the client certificate.
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
        r"""Return the environment variables for handler processes, with the names of Apache's mod_ssl.

        SSL_CLIENT_SAN is svcd's own and has all names, as in
        `DNS:a.example,email:b@example,URI:spiffe://c/d,IP:192.0.2.1`. Empty variables are left out. Control characters
        are escaped as in RFC 4514 (`\0A`); in SSL_CLIENT_SAN also the commas and backslashes of a name.
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


def peer_identity(connection: ServerConnection) -> PeerIdentity:
    """Return the identity of the client of a connection whose handshake is done."""
    certificate = connection.get_peer_certificate(as_cryptography=True)
    found = PeerIdentity(
        protocol=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "",
        sni=(connection.get_servername() or b"").decode("ascii", "replace"),
        alpn=connection.get_alpn_proto_negotiated().decode("ascii", "replace"),
        verify=_verify_result(connection.verify_error, present=certificate is not None),
    )
    if certificate is None:
        return found
    subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    return replace(found, subject=subject, issuer=issuer, sans=subject_alt_names(certificate))


def _verify_result(error: str, *, present: bool) -> str:
    if error:
        return f"FAILED:{error}"
    return "SUCCESS" if present else "NONE"


def failure_reason(error: object, connection: ServerConnection | None = None) -> str:
    """Return the reason why a handshake failed, in OpenSSL's terms, such as `no shared cipher` or `http request`.

    Args:
        error: an exception, or a Failure with one.
        connection: the connection; adds the verification error of the client's certificate.
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
        # Of several errors the first is the cause.
        text = str(error.args[0][0][-1])
        return _CLEARER.get(text, text)
    return type(error).__name__


def subject_alt_names(certificate: x509.Certificate) -> tuple[ClientName, ...]:
    """Return the subject alternative names of a certificate (RFC 5280, 4.2.1.6) of the kinds in NameKind."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        # An extension that can't be parsed counts as missing.
        return ()
    return tuple(_client_names(found))


def _client_names(names: x509.SubjectAlternativeName) -> Iterator[ClientName]:
    for name in names:
        if isinstance(name, x509.DNSName):
            yield ClientName(NameKind.DNS, name.value)
        elif isinstance(name, x509.RFC822Name):
            yield ClientName(NameKind.EMAIL, name.value)
        elif isinstance(name, x509.UniformResourceIdentifier):
            yield ClientName(NameKind.URI, name.value)
        elif isinstance(name, x509.IPAddress) and not hasattr(name.value, "prefixlen"):
            yield ClientName(NameKind.IP, str(name.value))


def matches_names(names: Sequence[ClientName], wanted: Sequence[ClientName]) -> bool:
    """Return whether at least one name of a client certificate matches one of tls_client_names.

    A wanted host name may begin with an asterisk, which stands for one whole label as in RFC 6125, 6.4.3. A wildcard in
    the certificate matches nothing, since it identifies no single client. Host names and the host part of e-mail
    addresses are compared without regard to case, everything else exactly.
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
    # The library accepts some texts that are not host names, such as those with an empty label.
    if not _HOST.fullmatch(name):
        return False
    # The roles are reversed compared with server certificates: the wildcard is in the option, not in the certificate.
    try:
        return DNS_ID(name).verify(DNSPattern(wanted.encode()))
    except (ValueError, ImportError):
        # Not a host name, or one with characters beyond ASCII, which certificates encode (RFC 5280, 7.2).
        return False
