"""The options that say how a service speaks TLS, and with whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.config.option_info import option
from svcd.config.tls_types import ALPN, CLIENT_NAMES, DAYS
from svcd.config.value_types import PATH, choice, or_none

if TYPE_CHECKING:
    from svcd.wire.certificates import ClientName

__all__ = ["TlsOptions"]


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """A part of Options, which has the slots for all its parts.

    A service speaks TLS if it has tls_cert or tls_sni (Service.tls); on a line, none undoes what a defaults line says.
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
