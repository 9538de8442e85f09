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
    "a comma-separated list of host names (*.example.org for any first label), e-mail addresses, URIs and IP addresses",
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
    "a comma-separated list of protocol names such as http/1.1; or none",
    _read_alpn,
    lambda names: ",".join(names) or "none",
)


def _read_days(word: str) -> int:
    match = re.fullmatch("([0-9]{1,4})d", word)
    require(match)
    assert match is not None  # noqa: S101 - for the type checker
    return int(match[1])


DAYS: ValueType[int] = ValueType("days", "a number of days such as 14d", _read_days, lambda days: f"{days}d")


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """The TLS options, a base class of ServiceOptions, which has the slots.

    A service uses TLS if tls_cert or tls_sni is set (Service.tls); the value none on a line unsets a default.
    """

    __slots__ = ()

    tls_cert: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "PEM file with the certificate, followed by the intermediate certificates. Enables TLS. The file is read "
        "again when it changes.",
        example="https 443/tcp http tls_cert=/etc/svcd/tls/cert.pem tls_key=/etc/svcd/tls/key.pem",
    )  # fmt: skip
    tls_key: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "PEM file with the private key of the certificate, without a passphrase. Default: tls_cert contains the key.",
        systemd="LoadCredential=",
        example="https 443/tcp http tls_cert=/etc/svcd/tls/cert.pem tls_key=/etc/svcd/tls/key.pem",
    )  # fmt: skip
    tls_min: str = option(
        choice("1.2", "1.3"), "1.2", "tls", "tls",
        "Minimum TLS version.",
        example="https 443/tcp http tls_cert=/etc/svcd/tls/cert.pem tls_min=1.3",
    )  # fmt: skip
    tls_sni: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "Directory of certificates for the host names that clients request (SNI). NAME.pem contains the certificate, "
        "the intermediate certificates and the key; _.example.org.pem is for all names with one label before "
        ".example.org.",
        example="https 443/tcp http tls_cert=/etc/svcd/tls/cert.pem tls_sni=/etc/svcd/tls/sites",
    )  # fmt: skip
    tls_unknown_name: str = option(
        choice("default", "refuse"), "default", "tls", "tls",
        "Action for clients that request no host name, or one that is not in tls_sni: default sends them tls_cert, "
        "refuse ends the handshake.",
        example="https 443/tcp http tls_cert=/etc/svcd/tls/cert.pem tls_sni=/etc/svcd/tls/sites "
        "tls_unknown_name=refuse",
    )  # fmt: skip
    tls_alpn: tuple[str, ...] | None = option(
        ALPN, None, "tls", "tls",
        "Offered application protocols (ALPN), the preferred one first. Clients that offer only other protocols are "
        "refused. Default: http/1.1 for http and status; other services do not use ALPN.",
        example="chat 7010/tcp factory=chat:factory tls_cert=/etc/svcd/tls/cert.pem tls_alpn=chat",
    )  # fmt: skip
    tls_client_ca: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "PEM file with the certificate authorities of client certificates. Enables the request for a client "
        "certificate.",
        example="echo 7010/tcp tls_cert=/etc/svcd/tls/cert.pem tls_client_ca=/etc/svcd/tls/ca.pem",
    )  # fmt: skip
    tls_client: str = option(
        choice("required", "optional"), "required", "tls", "tls",
        "With tls_client_ca, whether clients must send a certificate. A certificate that a client sends must be valid "
        "in both cases.",
        example="echo 7010/tcp tls_cert=/etc/svcd/tls/cert.pem tls_client_ca=/etc/svcd/tls/ca.pem tls_client=optional",
    )  # fmt: skip
    tls_client_names: tuple[ClientName, ...] = option(
        CLIENT_NAMES, (), "tls", "tls",
        "Allowed subject alternative names of client certificates. Default: all certificates of tls_client_ca.",
        example="echo 7010/tcp tls_cert=/etc/svcd/tls/cert.pem "
        "tls_client_ca=/etc/svcd/tls/ca.pem tls_client_names=*.example.org",
    )  # fmt: skip
    tls_crl: str | None = option(
        or_none(PATH), None, "tls", "tls",
        "PEM file with the certificate revocation lists of all authorities in tls_client_ca. The file is read again "
        "when it changes.",
        example="echo 7010/tcp tls_cert=/etc/svcd/tls/cert.pem "
        "tls_client_ca=/etc/svcd/tls/ca.pem tls_crl=/etc/svcd/tls/ca.crl",
    )  # fmt: skip
    tls_warn: int = option(
        DAYS, 21, "tls", "tls",
        "Log a warning this long before a certificate or a revocation list expires. For a revocation list that is "
        "valid for less than three times this long, the warning starts in the last third of its validity.",
        example="https 443/tcp http tls_cert=/etc/svcd/tls/cert.pem tls_warn=7d",
    )  # fmt: skip
