"""What a handshake has found out: how the connection is encrypted, and who the client is. And why one failed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from svcd.tls.peer_names import names_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.tls.memory_bio import ServerConnection
    from svcd.wire.certificates import ClientName

__all__ = ["PeerIdentity", "identity_of", "why"]

#: Words of OpenSSL that say too little.
_WRITER = {
    "callback failed": "there is no certificate for the name that was asked for",
    "wrong version number": "what the client speaks is no TLS",
}
#: What no value of an environment variable, and no line, should have.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: And what no name in a list should, lest one look like two.
_IN_LIST = re.compile(r"[\x00-\x1f\x7f,\\]")


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
        verify=f"FAILED:{connection.reason}" if connection.reason else "NONE" if certificate is None else "SUCCESS",
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
    detail = connection.reason if connection is not None else ""
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
