"""The options of TLS, and the types of their values."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from svcd.config.option_info import option
from svcd.config.value_types import PATH, ValueType, choice, or_none, require
from svcd.wire.certificates import ClientName, NameKind

__all__ = ["ALPN", "CLIENT_NAMES", "DAYS", "TlsOptions"]


_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
#: A host name, whose first label may be a star that stands for any one label, as in certificates (RFC 6125, 6.4.3);
#: at least two labels follow the star.
_DNS = re.compile(rf"(?:\*\.{_LABEL}\.)?(?:{_LABEL}\.)*(?=[^.]*[a-z]){_LABEL}")
_EMAIL = re.compile(r"[^@\s,]+@[^@\s,]+")
#: A URI: a scheme and the rest (RFC 3986, 3).
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\s,]+")
_MAX_DNS_NAME = 253
#: The longest name of an ALPN protocol, in bytes: its length is sent as one byte (RFC 7301, 3.1).
_MAX_ALPN_NAME = 255


def _read_client_name(word: str) -> ClientName:
    try:
        return ClientName(NameKind.IP, str(ipaddress.ip_address(word)))
    except ValueError:
        pass
    if _URI.fullmatch(word):
        return ClientName(NameKind.URI, word)
    if _EMAIL.fullmatch(word):
        # Only the part after the @ is case-insensitive (RFC 5280, 7.5).
        local, _, host = word.rpartition("@")
        return ClientName(NameKind.EMAIL, f"{local}@{host.lower()}")
    name = word.lower()
    require(len(name) <= _MAX_DNS_NAME and _DNS.fullmatch(name))
    return ClientName(NameKind.DNS, name)


CLIENT_NAMES: ValueType[tuple[ClientName, ...]] = ValueType(
    "client names",
    "host names (or *.example.org for any one label), e-mail addresses, URIs and IP addresses with commas between them",
    lambda word: tuple(map(_read_client_name, word.split(","))),
    lambda names: ",".join(name.text for name in names),
)


def _read_alpn(word: str) -> tuple[str, ...]:
    if word == "none":
        return ()
    names = tuple(word.split(","))
    for name in names:
        require(re.fullmatch("[!-~]+", name) and len(name) <= _MAX_ALPN_NAME)
    return names


ALPN: ValueType[tuple[str, ...]] = ValueType(
    "protocols",
    "names of protocols as http/1.1 with commas between them, or none",
    _read_alpn,
    lambda names: ",".join(names) or "none",
)


def _read_days(word: str) -> int:
    match = re.fullmatch("([0-9]{1,4})d", word)
    require(match)
    assert match is not None  # noqa: S101 - for the type checker
    return int(match[1])


DAYS: ValueType[int] = ValueType("days", "a number of days as 14d", _read_days, lambda days: f"{days}d")


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """The TLS options, a base class of ServiceOptions, which has the slots.

    A service uses TLS if tls_cert or tls_sni is set (Service.tls); the value none on a line unsets a default.
    """

    __slots__ = ()

    tls_cert: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "File with the certificate, and behind it those that lead to a root, as PEM; the service speaks TLS then. It "
        "is read again when it changes.",
    )  # fmt: skip
    tls_key: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "File with the certificate's private key, as PEM without a passphrase; default: it stands in tls_cert.",
    )  # fmt: skip
    tls_min: str = option(
        choice("1.2", "1.3"), "1.2", "tls", "tls",
        "The oldest version of TLS that clients may speak.",
    )  # fmt: skip
    tls_sni: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "Directory with certificates for host names that clients ask for (SNI): in NAME.pem the certificate, those "
        "that lead to a root and the key; in _.example.org.pem those for any one label before .example.org.",
    )  # fmt: skip
    tls_unknown_name: str = option(
        choice("default", "refuse"), "default", "tls", "tls",
        "Whether clients that ask for a name which is not in tls_sni, or for none, get tls_cert or are refused.",
    )  # fmt: skip
    tls_alpn: tuple[str, ...] | None = option(
        ALPN, None, "tls", "tls",
        "Protocols that clients may choose from (ALPN), the preferred one first; who offers others alone is refused. "
        "Default: http/1.1 for http and status, else there is no choice.",
    )  # fmt: skip
    tls_client_ca: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "File with the certificates, as PEM, of those who may vouch for clients; clients are asked for certificates "
        "then.",
    )  # fmt: skip
    tls_client: str = option(
        choice("required", "optional"), "required", "tls", "tls",
        "With tls_client_ca, whether a client must have a certificate; one that is shown must hold in either case.",
    )  # fmt: skip
    tls_client_names: tuple[ClientName, ...] = option(
        CLIENT_NAMES, (), "tls", "tls",
        "Whom clients' certificates may be for, by their subject alternative names; default: anybody of whom "
        "tls_client_ca vouches.",
    )  # fmt: skip
    tls_crl: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "File with the certificate revocation lists, as PEM, of all in tls_client_ca; it is read again when it "
        "changes.",
    )  # fmt: skip
    tls_warn: int = option(
        DAYS, 21, "tls", "tls",
        "So long before a certificate or a revocation list expires the log warns; of a list that lives shorter than "
        "three times that, in the last third of its life.",
    )  # fmt: skip
