"""Whether a client's certificate is for somebody whom a service takes (tls_client_names)."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from cryptography import x509
from service_identity.hazmat import DNS_ID, DNSPattern

from svcd.wire.certificates import UNREADABLE, ClientName, NameKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["is_named", "names_in"]

#: A host name in a certificate (RFC 5280, 4.2.1.6): labels of letters, digits, hyphens and underscores, none empty.
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.(?!$)|$))+", re.IGNORECASE | re.ASCII)


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
