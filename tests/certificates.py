"""X.509 certificates for tests: authorities, end-entity certificates and revocation lists."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority", "Signed", "key_pem"]

_SERIALS = itertools.count(1000)
#: keyUsage of an authority (RFC 5280, section 4.2.1.3).
_CA_USAGE = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


def key_pem(key: Any) -> bytes:
    """Return a private key as unencrypted PEM."""
    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    return x509.RFC822Name(name) if "@" in name else x509.DNSName(name)


@dataclass
class Signed:
    """Certificate, its private key, and the intermediate certificates above it as PEM."""

    certificate: x509.Certificate
    key: Any
    chain: bytes = b""

    @property
    def pem(self) -> bytes:
        """The certificate and the intermediate certificates, without the root, as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM) + self.chain

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM."""
        return key_pem(self.key)

    @property
    def bundle(self) -> bytes:
        """The certificates and the private key, as PEM in one file."""
        return self.pem + self.key_pem


@dataclass
class Authority:
    """Certificate authority; its certificate and those that it signs are valid from yesterday for a year by default.

    Attributes:
        name: the common name.
        issuer: the authority that signs it; None for a root.
        now: the time that validity is relative to.
        own: the certificate of the authority.
    """

    name: str = "Test CA"
    issuer: Authority | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    own: Signed = field(init=False)
    _revoked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the key and the certificate of the authority."""
        signer = self.issuer or self
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self.name, key, _name(signer.name), None, None).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(subject_key, critical=False).add_extension(_CA_USAGE, critical=True)
        chain = signer.own.pem if self.issuer is not None and self.issuer.issuer is not None else b""
        self.own = Signed(
            builder.sign(key if self.issuer is None else self.issuer.own.key, hashes.SHA256()), key, chain
        )

    def _builder(
        self, name: str, key: Any, issuer: x509.Name, not_before: datetime | None, expires: datetime | None
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(next(_SERIALS))
            .not_valid_before(not_before or self.now - timedelta(days=1))
            .not_valid_after(expires or self.now + timedelta(days=365))
        )

    @property
    def pem(self) -> bytes:
        """The certificate of the authority alone, as PEM."""
        return self.own.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        *names: str,
        key: Any = None,
        not_before: datetime | None = None,
        expires: datetime | None = None,
        algorithm: Any = None,
    ) -> Signed:
        """Sign a certificate for host names, addresses, mailboxes or URIs; the first one is the common name, too."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(names[0][:64], key, _name(self.name), not_before, expires)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general, names))), critical=False)
        issuer_key: Any = self.own.certificate.public_key()
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
        builder = builder.add_extension(authority_key, critical=False)
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(uses, critical=False)
        chain = self.own.pem if self.issuer is not None else b""
        return Signed(builder.sign(self.own.key, algorithm or hashes.SHA256()), key, chain)

    def revoke(self, *signed: Signed) -> None:
        """Revoke certificates."""
        self._revoked += [each.certificate.serial_number for each in signed]

    def crl(self, *, until: datetime | None = None, key: Any = None) -> bytes:
        """Return the revocation list (CRL) as PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.name))
            .last_update(self.now - timedelta(days=1))
            .next_update(until or self.now + timedelta(days=30))
        )
        for number in self._revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(self.now).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key or self.own.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
