"""Reads and validates the files that the TLS options of a service name."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.wire.certificates import (
    KeyMistakeError,
    holds_key,
    issued,
    read_authorities,
    read_credentials,
    read_revocations,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509

    from svcd.config.service import Service
    from svcd.interfaces import FileReader
    from svcd.model import ConfigProblem
    from svcd.wire.certificates import Credentials

__all__ = ["ANY_LABEL", "DAY", "TlsFiles", "read_tls_files", "revocation_list_ends", "tls_paths"]

#: A day in seconds.
DAY = 86_400.0

#: The first label of the name of a file in tls_sni that stands for any label.
ANY_LABEL = "_"
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The content of the TLS files of a service.

    Attributes:
        default: the certificate of tls_cert; None for none.
        named: the certificates of tls_sni, by host name in lower case, with ANY_LABEL for any first label.
        authorities: the certificates of tls_client_ca.
        revocations: the certificate revocation lists of tls_crl.
    """

    default: Credentials | None
    named: Mapping[str, Credentials]
    authorities: tuple[x509.Certificate, ...] = ()
    revocations: tuple[x509.CertificateRevocationList, ...] = ()


def tls_paths(service: Service, files: FileReader) -> list[str]:
    """Return the paths of all files and directories that the TLS options of a service name."""
    options = service.options
    found = [options.tls_cert, options.tls_key, options.tls_sni, options.tls_client_ca, options.tls_crl]
    paths = [path for path in found if path is not None]
    try:
        return paths + (_named_files(options.tls_sni, files) if options.tls_sni is not None else [])
    except OSError:
        return paths


def _named_files(folder: str, files: FileReader) -> list[str]:
    """Return the paths of the certificates in a directory, without names that begin with a dot."""
    paths = files.entries(folder)
    return [path for path in paths if path.endswith(".pem") and not posixpath.basename(path).startswith(".")]


def read_tls_files(
    service: Service, files: FileReader, now: float | None, previous: TlsFiles | None = None
) -> tuple[TlsFiles, list[ConfigProblem]]:
    """Read the TLS files of a service.

    Args:
        service: the service.
        files: reads the files.
        now: the time in seconds since 1970; None to ignore the validity periods of certificates.
        previous: the result of an earlier call. It replaces files that can't be used now; a certificate of it that has
            expired since is no problem; and an unchanged file in tls_sni gives the same Credentials.

    Returns:
        The content of the files, and the problems. Without `previous` the content may be used only if there is no
        problem.
    """
    return _TlsFileReader(service, files, now, previous or TlsFiles(None, {})).read()


def revocation_list_ends(service: Service, tls_files: TlsFiles) -> list[tuple[float, float]]:
    """Return the end of each authority's revocation list and the start of its warning, in seconds since 1970.

    The warning about a short-lived list starts in the last third of its life.
    """
    newest: dict[object, tuple[float, float]] = {}
    for each in tls_files.revocations:
        if each.next_update_utc is not None:
            until = each.next_update_utc.timestamp()
            third = (until - each.last_update_utc.timestamp()) / 3
            warned = until - min(service.options.tls_warn * DAY, third)
            newest[each.issuer] = max(newest.get(each.issuer, (0.0, 0.0)), (until, warned))
    endless = {each.issuer for each in tls_files.revocations if each.next_update_utc is None}
    return [ends for issuer, ends in newest.items() if issuer not in endless]


class _TlsFileReader:
    def __init__(self, service: Service, files: FileReader, now: float | None, previous: TlsFiles) -> None:
        self._service = service
        self._files = files
        self._now = now
        self._previous = previous
        self._known = {each.source: each for each in previous.named.values()}
        self._problems: list[ConfigProblem] = []

    def read(self) -> tuple[TlsFiles, list[ConfigProblem]]:
        options = self._service.options
        default = None
        if options.tls_cert is not None:
            default = self._credentials("tls_cert", options.tls_cert, options.tls_key, self._previous.default)
        named = self._named(options.tls_sni) if options.tls_sni is not None else {}
        authorities, revocations = self._clients()
        return TlsFiles(default, named, authorities, revocations), self._problems

    def _problem(self, option: str, text: str) -> None:
        self._problems.append(self._service.fault(option, text))

    def _contents(self, paths: Mapping[str, str | None]) -> dict[str, bytes]:
        """Read the files that options name; add a problem for each that can't be read.

        Args:
            paths: the paths by option.

        Returns:
            The contents by option, without the files that can't be read.
        """
        named = {option: path for option, path in paths.items() if path is not None}
        contents = self._files.read_together(list(named.values()))
        found = {}
        for option, path in named.items():
            content = contents[path]
            if isinstance(content, OSError):
                denied = isinstance(content, PermissionError)
                remedy = f"; make it readable for the user {self._files.user}" if denied else ""
                self._problem(option, f"can't read {path}: {content.strerror or content}{remedy}")
            else:
                found[option] = content
        return found

    def _credentials(
        self, option: str, path: str, key_path: str | None, previous: Credentials | None
    ) -> Credentials | None:
        key_option = option if key_path is None else "tls_key"
        contents = self._contents({option: path, key_option: key_path or path})
        # Only a file with a key must not be readable by all users: without the key, its lack is the only problem.
        secret = holds_key(contents.get(key_option, b""))
        exposed = secret and self._is_exposed(key_option, key_path or path)
        if option not in contents or key_option not in contents or exposed:
            return previous
        try:
            found = self._known.get(contents[option]) or read_credentials(contents[option], contents[key_option])
        except KeyMistakeError as error:
            remedy = (
                "; set tls_key= to the file that contains it"
                if option == key_option == "tls_cert" and not secret
                else ""
            )
            self._problem(key_option, f"can't use {key_path or path}: {error}{remedy}")
            return previous
        except ValueError as error:
            self._problem(option, f"can't use {path}{f' with {key_path}' if key_path else ''}: {error}")
            return previous
        return self._in_time(option, path, found, previous)

    def _in_time(self, option: str, path: str, found: Credentials, previous: Credentials | None) -> Credentials:
        """Check the validity period of a certificate; return it, or the earlier one if that is valid longer."""
        if self._now is None or (previous is not None and previous.chain == found.chain):
            return found
        own = found.chain[0]
        if found.begins > self._now:
            first = own.not_valid_before_utc
            self._problem(option, f"the certificate in {path} is not valid before {first:%Y-%m-%d %H:%M} UTC")
            return previous or found
        if found.expires <= self._now:
            last = own.not_valid_after_utc
            self._problem(option, f"the certificate in {path} expired on {last:%Y-%m-%d}; renew it")
            return previous if previous is not None and previous.expires > found.expires else found
        return found

    def _is_exposed(self, option: str, path: str) -> bool:
        try:
            exposed = self._files.is_exposed(path)
        except PermissionError:
            # It was checked when it could be.
            return False
        if exposed:
            self._problem(
                option, f"{path} contains a private key, and all users can read or change it; run chmod o= {path}"
            )
        return exposed

    def _named(self, folder: str) -> Mapping[str, Credentials]:
        try:
            paths = _named_files(folder, self._files)
        except OSError as error:
            self._problem("tls_sni", f"can't list {folder}: {error.strerror or error}")
            return self._previous.named
        if not paths:
            self._problem(
                "tls_sni", f"{folder} has no *.pem files; name each after its host, as in www.example.org.pem"
            )
            return self._previous.named
        found = {}
        for path in paths:
            name = posixpath.basename(path).removesuffix(".pem").lower()
            if not _HOST.fullmatch(name):
                remedy = f"use a name such as www.example.org.pem or {ANY_LABEL}.example.org.pem"
                self._problem("tls_sni", f"{path} is not named after a host; {remedy}")
                continue
            previous = self._previous.named.get(name)
            credentials = self._credentials("tls_sni", path, None, previous)
            if credentials is not None and not credentials.covers(name):
                wanted = name.replace("_.", "*.")
                self._problem("tls_sni", f"the certificate in {path} is not for {wanted}; rename the file")
                credentials = previous
            if credentials is not None:
                found[name] = credentials
        return found

    def _clients(self) -> tuple[tuple[x509.Certificate, ...], tuple[x509.CertificateRevocationList, ...]]:
        options, previous = self._service.options, (self._previous.authorities, self._previous.revocations)
        if options.tls_client_ca is None:
            return (), ()
        contents = self._contents({"tls_client_ca": options.tls_client_ca, "tls_crl": options.tls_crl})
        if "tls_client_ca" not in contents or ("tls_crl" not in contents and options.tls_crl is not None):
            return previous
        try:
            authorities = read_authorities(contents["tls_client_ca"])
        except ValueError as error:
            self._problem("tls_client_ca", f"can't use {options.tls_client_ca}: {error}")
            return previous
        if options.tls_crl is None:
            return authorities, ()
        revocations = self._revocations(options.tls_crl, contents["tls_crl"], authorities)
        return previous if revocations is None else (authorities, revocations)

    def _revocations(
        self, path: str, content: bytes, authorities: tuple[x509.Certificate, ...]
    ) -> tuple[x509.CertificateRevocationList, ...] | None:
        """Read the revocation lists of all authorities; return None if one is missing or out of date."""
        try:
            revocations = read_revocations(content)
        except ValueError as error:
            self._problem("tls_crl", f"can't use {path}: {error}")
            return None
        whole = True
        for authority in authorities:
            name = authority.subject.rfc4514_string()
            lists = [each for each in revocations if issued(each, authority)]
            if not lists:
                self._problem(
                    "tls_crl", f"{path} has no revocation list of {name}; add it, otherwise all clients are refused"
                )
                whole = False
            if all(authority.issuer != each.subject for each in authorities):
                above = authority.issuer.rfc4514_string()
                self._problem(
                    "tls_client_ca",
                    f"with tls_crl the certificate of {above}, the issuer of {name}, is required; add it",
                )
                whole = False
            until = [each.next_update_utc for each in lists]
            past = [each is not None and self._now is not None and each.timestamp() <= self._now for each in until]
            if lists and all(past):
                self._problem("tls_crl", f"the revocation list of {name} in {path} is out of date; install the newest")
                whole = False
        return revocations if whole else None
