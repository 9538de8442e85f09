"""Certificates, keys and revocation lists as PEM (RFC 7468), parsed from bytes. ValueErrors have the reason.

Each reader takes a whole file, with any text between the blocks. It also rejects content that a server can't use or
that current clients reject: weak keys, weak signatures, and a key that does not belong to the certificate.
"""

from __future__ import annotations

import enum
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "UNREADABLE",
    "ClientName",
    "Credentials",
    "KeyMistakeError",
    "NameKind",
    "holds_key",
    "issued",
    "read_authorities",
    "read_credentials",
    "read_revocations",
    "subject_names",
]

#: The exceptions of cryptography for a malformed certificate or list.
UNREADABLE = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
#: The first bytes of DER, and so of PKCS #12: a SEQUENCE whose length takes more than one byte.
_BINARY = re.compile(rb"\x30[\x80-\x84]")
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
_CERTIFICATE = re.compile(rb"-----BEGIN (X509 )?CERTIFICATE-----.*?-----END (X509 )?CERTIFICATE-----", re.DOTALL)
_REVOCATIONS = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
#: The minimum that Mozilla and the CA/Browser Forum (Baseline Requirements, 6.1.5) require.
_FEWEST_RSA_BITS = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
#: The curves with which a server of TLS 1.2 or 1.3 can sign (RFC 8446, 4.2.3).
_SIGNING = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)
#: Hash algorithms that must not be used for signatures (RFC 9155).
_BROKEN_HASHES = (hashes.MD5, hashes.SHA1)


class KeyMistakeError(ValueError):
    """Error: the file has no private key, or an unreadable one."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Kind of content of a file: its name, its PEM label, and the openssl(1) command that converts it to PEM."""

    name: str
    label: str
    command: str


_KEYS = _Kind("private key", "PRIVATE KEY", "pkey")
_CERTIFICATES = _Kind("certificate", "CERTIFICATE", "x509")
_LISTS = _Kind("revocation list", "X509 CRL", "crl")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Certificate chain of a server and its private key.

    Attributes:
        chain: the certificates that lead to a root, the server's own first.
        key: the private key of the server's certificate.
        begins, expires: the limits of its validity, in seconds since 1970.
        names: the host names and addresses of the certificate, in lower case.
        source: the file that holds certificate and key; empty if there are two files.
    """

    chain: tuple[x509.Certificate, ...]
    key: Any = field(repr=False)
    begins: float
    expires: float
    names: frozenset[str]
    source: bytes = field(default=b"", repr=False)

    def covers(self, name: str) -> bool:
        """Return whether the certificate covers a host name; `_` as the first label stands for any label."""
        first, _, rest = name.partition(".")
        return f"*.{rest}" in self.names or (first != "_" and name in self.names)


def read_credentials(certificates: bytes, key: bytes) -> Credentials:
    """Read the certificate chain and the private key of a server.

    Args:
        certificates: the content of the certificate file.
        key: the content of the key file, which may be the same file.

    Raises:
        KeyMistakeError: there is no readable key.
        ValueError: another mistake; the text has the reason and a remedy.
    """
    chain = tuple(_read_all(certificates, _CERTIFICATE, _read_certificate, _CERTIFICATES))
    private = _read_key(key)
    own = chain[0]
    of_key = _public_bytes(private.public_key())
    matching = [number for number, each in enumerate(chain) if _public_bytes(each.public_key()) == of_key]
    if not matching:
        raise ValueError("the key does not belong to the certificate; use the key that the certificate was made with")
    if matching[0]:
        raise ValueError("the key belongs to a later certificate in the file; put the server's own first")
    _check_strength(private, own)
    begins, expires = own.not_valid_before_utc.timestamp(), own.not_valid_after_utc.timestamp()
    names = frozenset(subject_names(own))
    return Credentials(chain, private, begins, expires, names, certificates if key == certificates else b"")


def _check_strength(key: Any, own: x509.Certificate) -> None:  # noqa: ANN401 - of any algorithm
    text = ""
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _FEWEST_RSA_BITS:
        text = f"the RSA key of {key.key_size} bits is too weak; use one of {_FEWEST_RSA_BITS} bits, or a P-256 key"
    elif isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, _CURVES):
        text = f"few clients support the curve {key.curve.name}; use a P-256 key"
    elif not isinstance(key, _SIGNING):
        text = "TLS does not support keys of this type; use a P-256 key"
    elif _is_signed_weakly(own):
        text = "the certificate is signed with MD5 or SHA-1, which clients refuse; renew it"
    if text:
        raise ValueError(text)


def _is_signed_weakly(certificate: x509.Certificate) -> bool:
    try:
        return isinstance(certificate.signature_hash_algorithm, _BROKEN_HASHES)
    except UnsupportedAlgorithm:
        return False


def _public_bytes(key: Any) -> bytes:  # noqa: ANN401 - of any algorithm
    return bytes(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _read_key(data: bytes) -> Any:  # noqa: ANN401 - of any algorithm
    found = _KEY.search(data)
    if found is None:
        raise KeyMistakeError(_nothing(data, _KEYS))
    if b"ENCRYPTED" in found[0]:
        raise KeyMistakeError("the key has a passphrase; remove it with openssl pkey")
    try:
        # The check of an RSA key takes milliseconds to test its primes; a wrong key does not match the certificate.
        return serialization.load_pem_private_key(found[0], None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        text = "the private key can't be read: it is damaged, or its type is not supported"
        raise KeyMistakeError(text) from None


def holds_key(data: bytes) -> bool:
    """Return whether a file may contain a private key, valid or not; True for all DER files."""
    return b"PRIVATE KEY-----" in data or _BINARY.match(data) is not None


def read_authorities(data: bytes) -> tuple[x509.Certificate, ...]:
    """Read the certificates of certificate authorities.

    Raises:
        ValueError: there is no certificate, or a certificate is unreadable or is not an authority's.
    """
    found = tuple(_read_all(data, _CERTIFICATE, _read_certificate, _CERTIFICATES))
    for each in found:
        try:
            constraints = each.extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            # X.509 version 1 has no extensions; only root certificates still use it.
            continue
        except UNREADABLE:
            raise ValueError(f"{each.subject.rfc4514_string()} has extensions that can't be read") from None
        if not constraints.ca:
            text = f"{each.subject.rfc4514_string()} is not a certificate authority (basicConstraints CA:FALSE)"
            raise ValueError(f"{text}; use the certificate of the authority")
    return found


def read_revocations(data: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    """Read the revocation lists of a file.

    Raises:
        ValueError: there is no list, or a list is unreadable.
    """
    return tuple(_read_all(data, _REVOCATIONS, _read_revocation_list, _LISTS))


def _nothing(data: bytes, kind: _Kind) -> str:
    """Return the message for a file that lacks the expected kind of content."""
    remedy = ""
    if _BINARY.match(data):
        remedy = (
            f"; the file is binary: convert it to PEM with openssl {kind.command} -inform der, or with openssl pkcs12"
        )
    return f"there is no {kind.name} in it (PEM: -----BEGIN {kind.label}-----){remedy}"


def _read_all(data: bytes, block: re.Pattern[bytes], read: Callable[[bytes], Any], kind: _Kind) -> list[Any]:
    blocks = [found[0] for found in block.finditer(data)]
    if not blocks:
        raise ValueError(_nothing(data, kind))
    what = kind.name
    values = []
    for number, each in enumerate(blocks, 1):
        try:
            with warnings.catch_warnings():
                # Warnings about unusual encodings concern the issuer.
                warnings.simplefilter("ignore")
                values.append(read(each))
        except UnsupportedAlgorithm:
            raise ValueError(f"{what} {number} of {len(blocks)} in it has an unsupported type of key") from None
        except UNREADABLE:
            raise ValueError(f"{what} {number} of {len(blocks)} in it can't be read: it is damaged") from None
    return values


def _read_certificate(block: bytes) -> x509.Certificate:
    """Read a certificate and all its parts, which cryptography parses only on access."""
    found = x509.load_pem_x509_certificate(block)
    _public_bytes(found.public_key())
    found.subject.rfc4514_string()
    found.not_valid_before_utc.timestamp()
    found.not_valid_after_utc.timestamp()
    return found


def _read_revocation_list(block: bytes) -> x509.CertificateRevocationList:
    """Read a revocation list and all its parts."""
    found = x509.load_pem_x509_crl(block)
    found.issuer.rfc4514_string()
    if found.next_update_utc is not None:
        found.next_update_utc.timestamp()
    return found


def subject_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the host names and addresses of a certificate (RFC 5280, 4.2.1.6), in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return ()
    hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return (*hosts, *map(str, names.get_values_for_type(x509.IPAddress)))


def issued(revocations: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Return whether an authority has issued and signed a revocation list."""
    if revocations.issuer != authority.subject:
        return False
    try:
        return revocations.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (TypeError, UnsupportedAlgorithm, *UNREADABLE):
        return False


class NameKind(enum.Enum):
    """Kind of a name in a certificate (RFC 5280, 4.2.1.6)."""

    DNS = "DNS"
    EMAIL = "email"
    URI = "URI"
    IP = "IP"


@dataclass(frozen=True, slots=True)
class ClientName:
    """Name that the certificate of a TLS client may have.

    Attributes:
        kind: the kind of the name.
        text: the name; a host name is in lower case, and its first label may be `*`.
    """

    kind: NameKind
    text: str
