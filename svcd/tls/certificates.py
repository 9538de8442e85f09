"""Certificates of a service in use: loading, reloading, expiry, and checks of client certificates."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from svcd.config.tls_files import DAY, read_tls_files, revocation_list_ends, tls_paths
from svcd.errors import ConfigError
from svcd.tls.contexts import make_contexts
from svcd.tls.openssl import ServerConnection
from svcd.tls.peer import matches_names, subject_alt_names
from svcd.wire.certificates import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from OpenSSL import SSL

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.interfaces import FileReader
    from svcd.model import ConfigProblem
    from svcd.tls.contexts import Contexts

__all__ = ["CertificateInUse", "ServerTls"]


class CertificateInUse(NamedTuple):
    """A certificate in use, or the revocation list of an authority.

    Attributes:
        expires: the time of its expiry, in seconds since 1970.
        file: the path of its file.
        warn_from: the time from which warnings of its expiry are due, in seconds since 1970.
    """

    expires: float
    file: str
    warn_from: float


@dataclass(frozen=True, slots=True)
class _LoadedTls:
    """State of a ServerTls, replaced as a whole.

    Attributes:
        service: the service with the options in use.
        contexts: the contexts of new handshakes.
        file_stats: FileReader.file_stat() of each file, taken just before it was read.
        problems: reasons why the content of some files is not in use.
    """

    service: Service
    contexts: Contexts
    file_stats: Mapping[str, Hashable]
    problems: tuple[ConfigProblem, ...] = ()


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Server side of TLS of one service.

    Changed certificates apply to connections made afterwards; established connections keep theirs.

    Args:
        service: the service, which has TLS (Service.tls).
        files: reads the files that the options name.
        wall_clock: returns the time of day, in seconds since 1970.

    Raises:
        ConfigError: a certificate, a key or another file can't be used; it has a ConfigProblem for each. An expired
            certificate is accepted, so that it does not keep a daemon of many services from starting.
    """

    def __init__(self, service: Service, files: FileReader, wall_clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._wall_clock = wall_clock
        self._state = self._load(service, None)
        self._activate(self._state)

    def _load(self, service: Service, previous: Contexts | None) -> _LoadedTls:
        file_stats = self._stat_files(service)
        tls_files, problems = read_tls_files(service, self._files, None, previous.tls_files if previous else None)
        if problems:
            raise ConfigError(problems)
        return _LoadedTls(service, make_contexts(service, tls_files, previous), file_stats)

    def _stat_files(self, service: Service) -> dict[str, Hashable]:
        def file_stat(path: str) -> Hashable:
            try:
                return self._files.file_stat(path)
            except OSError as error:
                return error.errno

        return {path: file_stat(path) for path in tls_paths(service, self._files)}

    def _activate(self, state: _LoadedTls) -> None:
        self._state = state
        self._context = state.contexts.first
        options = state.service.options
        self._verify_clients = options.tls_client_ca is not None
        self._client_required = self._verify_clients and options.tls_client == "required"
        self._client_names = options.tls_client_names

    @property
    def service(self) -> Service:
        """The service, with its current options."""
        return self._state.service

    @property
    def problems(self) -> tuple[ConfigProblem, ...]:
        """Reasons why the content of some files is not in use, as found by reload()."""
        return self._state.problems

    def serverConnectionForTLS(self, _protocol: object) -> ServerConnection:
        """Return the server's side of a new connection, with memory BIOs."""
        connection = ServerConnection(self._context, None)
        connection.set_accept_state()
        return connection

    def refusal(self, connection: SSL.Connection) -> str | None:
        """Return the reason to refuse a client after its handshake; None if it is accepted.

        OpenSSL itself fails the handshake of a client that lacks a required certificate or has an invalid one. For an
        accepted client peer_identity() raises nothing.
        """
        if not self._verify_clients:
            return None
        try:
            certificate = connection.get_peer_certificate(as_cryptography=True)
            if certificate is None:
                return "it has no certificate" if self._client_required else None
            # OpenSSL does not verify the certificate of a resumed session again, and it may have expired since.
            if certificate.not_valid_after_utc.timestamp() <= self._wall_clock():
                return "its certificate has expired"
            # OpenSSL accepts some certificates that cryptography can't parse.
            certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        except UNREADABLE:
            return "its certificate can't be read"
        if self._client_names and not matches_names(subject_alt_names(certificate), self._client_names):
            return "its certificate has no name of tls_client_names"
        return None

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read all files again, with the same or changed options.

        Returns:
            A function that puts them into use, which can't fail.

        Raises:
            ConfigError: a file can't be used; nothing has changed.
        """
        return partial(self._activate, self._load(service, self._state.contexts))

    def reload(self) -> tuple[bool, list[ConfigProblem]]:
        """Read all files again and use the valid content; in place of invalid or expired content the old one stays.

        Returns:
            Whether the certificates in use have changed, and the problems found.
        """
        previous, file_stats = self._state.contexts, self._stat_files(self.service)
        tls_files, problems = read_tls_files(self.service, self._files, self._wall_clock(), previous.tls_files)
        try:
            contexts = make_contexts(self.service, tls_files, previous)
        except ConfigError as error:
            contexts = previous
            problems += error.problems
        self._activate(_LoadedTls(self.service, contexts, file_stats, tuple(problems)))
        return _without_keys(contexts.tls_files) != _without_keys(previous.tls_files), problems

    def renew_ticket_keys(self) -> None:
        """Replace the keys of session tickets; clients with older tickets make a full handshake.

        OpenSSL generates these keys with a context and keeps them as long as the context; a stolen key decrypts what
        tickets of TLS 1.2 have protected. There are no bindings to set keys, and so none to keep accepting old ones.
        """
        state = self._state
        contexts = state.contexts
        self._activate(replace(state, contexts=make_contexts(contexts.service, contexts.tls_files, contexts)))

    def update_locations(self, service: Service) -> None:
        """Use the same options with other source locations."""
        self._activate(replace(self._state, service=service))

    @property
    def certificates(self) -> list[CertificateInUse]:
        """The certificates in use, by expiry, the earliest first."""
        tls_files, options = self._state.contexts.tls_files, self.service.options
        ends = [(each.expires, f"{options.tls_sni}/{name}.pem") for name, each in tls_files.named.items()]
        if tls_files.default is not None:
            ends.append((tls_files.default.expires, str(options.tls_cert)))
        return sorted(CertificateInUse(expires, file, expires - options.tls_warn * DAY) for expires, file in ends)

    @property
    def expiring(self) -> list[CertificateInUse]:
        """The certificates and revocation lists for which a warning is due, by expiry, the earliest first."""
        path = str(self.service.options.tls_crl)
        lists = [
            CertificateInUse(until, path, warn_from)
            for until, warn_from in revocation_list_ends(self.service, self._state.contexts.tls_files)
        ]
        return sorted(each for each in [*self.certificates, *lists] if each.warn_from < self._wall_clock())

    @property
    def file_stats(self) -> Mapping[str, Hashable]:
        """FileReader.file_stat() of each file in use, by path."""
        return self._state.file_stats

    def current_file_stats(self) -> Mapping[str, Hashable]:
        """Return FileReader.file_stat() of each file now, by path."""
        return self._stat_files(self.service)

    def access_error(self, file_stats: Mapping[str, Hashable] | None = None) -> OSError | None:
        """Return the error of the first file that the daemon may no longer read; None if it may read all.

        Args:
            file_stats: the result of current_file_stats(); with it, unchanged files of tls_sni are not read.
        """
        for path in file_stats or self.file_stats:
            if file_stats is not None and self._is_named(path) and file_stats[path] == self.file_stats.get(path):
                continue
            try:
                if path != self.service.options.tls_sni:
                    self._files.read(path)
                elif not self._files.is_directory(path):
                    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            except PermissionError as error:
                return error
            except OSError:
                # reload() reports other errors.
                continue
        return None

    def _is_named(self, path: str) -> bool:
        return self.service.options.tls_sni is not None and path.startswith(f"{self.service.options.tls_sni}/")


def _without_keys(tls_files: TlsFiles) -> tuple[object, ...]:
    """Return the content for comparisons, without private keys: a changed key changes its certificate as well."""
    named = {name: each.chain for name, each in tls_files.named.items()}
    default = tls_files.default.chain if tls_files.default is not None else None
    return default, named, tls_files.authorities, tls_files.revocations
