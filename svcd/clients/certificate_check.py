"""TLS for clients: verification of a server's certificate against a name, with a text for each problem."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from OpenSSL.SSL import X509VerificationCodes as _Codes
from service_identity import VerificationError
from service_identity.exceptions import CertificateError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from svcd.errors import UsageError
from svcd.wire.certificates import KeyMistakeError, holds_key, read_authorities, read_credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from twisted.protocols.tls import TLSMemoryBIOProtocol

    from svcd.clients.target import TrustSettings
    from svcd.wire.certificates import Credentials

    _T = TypeVar("_T")

__all__ = ["CertificateVerifier"]

#: Descriptions of the most frequent results of X509_STORE_CTX_get_error(3).
_REASONS = {
    _Codes.ERR_CERT_NOT_YET_VALID: "it is not valid yet",
    _Codes.ERR_CERT_HAS_EXPIRED: "it has expired",
    _Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is self-signed",
    _Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN: "its root is not known",
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "its issuer is not known",
    _Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "its issuer is not known",
    _Codes.ERR_INVALID_PURPOSE: "it is not a server certificate",
}


@implementer(IOpenSSLClientConnectionCreator)
class CertificateVerifier:
    """Creator of TLS connections that verify the identity of the server (RFC 9525).

    Args:
        trust: the settings of the verification.

    Attributes:
        problems: the problems of the server's certificates; if there are none after the handshake, it is trusted.

    Raises:
        UsageError: certificates or the key can't be used.
    """

    def __init__(self, trust: TrustSettings) -> None:
        self._trust = trust
        self._id, self._server_name = _identity(trust.name)
        self._context = _context(trust)
        self.problems: list[str] = []

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: ARG002, N803
        """Return the OpenSSL connection for a new connection."""
        connection = SSL.Connection(self._context, None)
        if self._server_name:
            connection.set_tlsext_host_name(self._server_name)
        connection.set_verify(SSL.VERIFY_PEER, self._verify)
        return connection

    def _verify(self, _: SSL.Connection, certificate: X509, number: int, depth: int, ok: int) -> bool:
        """Record the result for a certificate of the chain. The server's own (depth 0) is last and may occur twice."""
        problem = ""
        if not ok:
            reason = _REASONS.get(number, f"OpenSSL's error {number}")
            problem = reason if depth == 0 else f"{_subject(certificate)}, above it: {reason}"
        elif depth == 0:
            problem = self._mismatch(certificate)
        if problem and problem not in self.problems:
            self.problems.append(problem)
        return self._trust.lenient or not problem

    def _mismatch(self, certificate: X509) -> str:
        try:
            verify_service_identity(extract_patterns(certificate), [self._id], [])
        except (VerificationError, CertificateError, ValueError):
            return f"it is not for {self._trust.name}"
        return ""


def _subject(certificate: X509) -> str:
    return certificate.to_cryptography().subject.rfc4514_string() or "a certificate without a name"


def _identity(name: str) -> tuple[DNS_ID | IPAddress_ID, bytes]:
    """Return the identity that the certificate must have, and the name for SNI: no address (RFC 6066, section 3)."""
    try:
        ip_address(name)
    except ValueError:
        pass
    else:
        return IPAddress_ID(name), b""
    try:
        encoded = name.rstrip(".").encode("ascii" if name.isascii() else "idna")
        return DNS_ID(encoded.decode("ascii")), encoded
    except (ValueError, UnicodeError):
        raise UsageError(f"{name!r} can't be a name in a certificate; set one with --name") from None


def _context(trust: TrustSettings) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    if trust.ca:
        store = context.get_cert_store()
        assert store is not None  # noqa: S101 - a new context has a store
        for authority in _read("--ca", read_authorities, trust.ca):
            store.add_cert(X509.from_cryptography(authority))
        # Each certificate of the file is trusted, root or not.
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    else:
        context.set_default_verify_paths()
    if trust.certificate:
        credentials = _credentials(trust)
        context.use_certificate(credentials.chain[0])
        for each in credentials.chain[1:]:
            context.add_extra_chain_cert(each)
        context.use_privatekey(credentials.key)
    if trust.protocols:
        context.set_alpn_protos(list(trust.protocols))
    return context


def _credentials(trust: TrustSettings) -> Credentials:
    try:
        return _read("--cert", read_credentials, trust.certificate, trust.key)
    except KeyMistakeError as error:
        option = "--cert" if trust.key == trust.certificate else "--key"
        remedy = "; set --key to the file that contains it" if option == "--cert" and not holds_key(trust.key) else ""
        raise UsageError(f"{option}: {error}{remedy}") from None


def _read(option: str, read: Callable[..., _T], *data: bytes) -> _T:
    try:
        return read(*data)
    except KeyMistakeError:
        raise
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
