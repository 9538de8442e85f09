"""The TLS of one service: every new connection gets the newest of its certificates."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from svcd.config.tls_files import DAY, list_ends, read_material, tls_paths
from svcd.errors import ConfigError
from svcd.tls.contexts import make_contexts
from svcd.tls.openssl import ServerConnection
from svcd.tls.peer import is_named, names_in
from svcd.wire.certificates import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from OpenSSL import SSL

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.interfaces import FileReader
    from svcd.model import ConfigProblem
    from svcd.tls.contexts import Contexts

__all__ = ["CertificateInUse", "ServerTls", "tls_server"]


class CertificateInUse(NamedTuple):
    """A certificate that is in use, or the revocation list of an authority.

    Attributes:
        expires: in seconds since 1970.
        file: where it stands.
        warned: from when on its end is to be told of, in seconds since 1970.
    """

    expires: float
    file: str
    warned: float


@dataclass(frozen=True, slots=True)
class _State:
    """What is exchanged as a whole.

    Attributes:
        service: whose options hold.
        contexts: in which handshakes are made.
        stamps: of the files, from just before they were read.
        problems: why what stands in some of them is not in use.
    """

    service: Service
    contexts: Contexts
    stamps: Mapping[str, Hashable]
    problems: tuple[ConfigProblem, ...] = ()


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Makes the TLS side of a service's connections.

    A change of certificates, by prepare() or renew(), holds for whoever comes afterwards: who is in goes on.

    Args:
        service: whose TLS it is.
        files: reads what its options name.
        wall: the time of day, in seconds since 1970.

    Raises:
        ConfigError: a certificate, a key or another file can't be used; with a Problem for each. A certificate that has
            expired can: who starts a daemon of many services had rather it ran.
    """

    def __init__(self, service: Service, files: FileReader, wall: Callable[[], float]) -> None:
        self._files = files
        self._wall = wall
        self._state = self._made(service, None)
        self._use(self._state)

    def _made(self, service: Service, before: Contexts | None) -> _State:
        stamps = self._stamps(service)
        material, problems = read_material(service, self._files, None, before.material if before else None)
        if problems:
            raise ConfigError(problems)
        return _State(service, make_contexts(service, material, before), stamps)

    def _stamps(self, service: Service) -> dict[str, Hashable]:
        def stamp(path: str) -> Hashable:
            try:
                return self._files.stamp(path)
            except OSError as error:
                return error.errno

        return {path: stamp(path) for path in tls_paths(service, self._files)}

    def _use(self, state: _State) -> None:
        self._state = state
        self._context = state.contexts.first
        options = state.service.options
        self._asks = options.tls_client_ca is not None
        self._required = self._asks and options.tls_client == "required"
        self._wanted = options.tls_client_names

    @property
    def service(self) -> Service:
        """Whose it is, with the options that hold."""
        return self._state.service

    @property
    def problems(self) -> tuple[ConfigProblem, ...]:
        """Why new files are not in use, as refresh() has said."""
        return self._state.problems

    def serverConnectionForTLS(self, _protocol: object) -> ServerConnection:
        """The server's side of one connection, over memory."""
        connection = ServerConnection(self._context, None)
        connection.set_accept_state()
        return connection

    def refusal(self, connection: SSL.Connection) -> str | None:
        """Why a client may not go on although its handshake is over; None if it may.

        A client without the certificate that it needs, or with one that does not hold, does not get so far. Of one that
        may go on identity_of() can be asked, which raises nothing.
        """
        if not self._asks:
            return None
        try:
            certificate = connection.get_peer_certificate(as_cryptography=True)
            if certificate is None:
                return "it has no certificate" if self._required else None
            # A session that is resumed may be older than this: OpenSSL does not look at the certificate again.
            if certificate.not_valid_after_utc.timestamp() <= self._wall():
                return "its certificate has expired"
            # OpenSSL may have taken what others can't make sense of.
            certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        except UNREADABLE:
            return "its certificate can't be read"
        if self._wanted and not is_named(names_in(certificate), self._wanted):
            return "its certificate is for nobody in tls_client_names"
        return None

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read everything anew, for the same or for other options; returns what lets it hold, which can't fail.

        Raises:
            ConfigError: something can't be used; nothing has changed.
        """
        return partial(self._use, self._made(service, self._state.contexts))

    def refresh(self) -> tuple[bool, list[ConfigProblem]]:
        """Read everything anew, and use what can be used: what can't, or has expired, stays as it was.

        Returns:
            Whether something is in use that was not before, and what is wrong.
        """
        before, stamps = self._state.contexts, self._stamps(self.service)
        material, problems = read_material(self.service, self._files, self._wall(), before.material)
        try:
            contexts = make_contexts(self.service, material, before)
        except ConfigError as error:
            contexts = before
            problems += error.problems
        self._use(_State(self.service, contexts, stamps, tuple(problems)))
        return _published(contexts.material) != _published(before.material), problems

    def renew(self) -> None:
        """Encrypt session tickets with new keys: who comes back with an older one has a full handshake.

        OpenSSL makes the keys of a context with it and keeps them as long; a stolen one opens what tickets of TLS 1.2
        have protected. To give it keys of ours, old ones among them, there are no bindings.
        """
        state = self._state
        contexts = state.contexts
        self._use(replace(state, contexts=make_contexts(contexts.service, contexts.material, contexts)))

    def stay(self, service: Service) -> None:
        """The same options stand in other places of the file now."""
        self._use(replace(self._state, service=service))

    @property
    def held(self) -> list[CertificateInUse]:
        """Its certificates, those that expire first at the front."""
        material, options = self._state.contexts.material, self.service.options
        ends = [(each.expires, f"{options.tls_sni}/{name}.pem") for name, each in material.named.items()]
        if material.default is not None:
            ends.append((material.default.expires, str(options.tls_cert)))
        return sorted(CertificateInUse(expires, file, expires - options.tls_warn * DAY) for expires, file in ends)

    @property
    def ending(self) -> list[CertificateInUse]:
        """Return its certificates and revocation lists of which a warning is due, those that end first at the front."""
        path = str(self.service.options.tls_crl)
        lists = [
            CertificateInUse(until, path, warned)
            for until, warned in list_ends(self.service, self._state.contexts.material)
        ]
        return sorted(each for each in [*self.held, *lists] if each.warned < self._wall())

    @property
    def stamps(self) -> Mapping[str, Hashable]:
        """Of each of the files that are in use, what tells it from a newer one."""
        return self._state.stamps

    def stamps_now(self) -> Mapping[str, Hashable]:
        """The same of the files as they are."""
        return self._stamps(self.service)

    def denied(self, stamps: Mapping[str, Hashable] | None = None) -> OSError | None:
        """The error of the first file that can't be read again for want of rights; None if all can.

        Args:
            stamps: of the files now; of a directory with names only files are read whose stamps were others.
        """
        for path in stamps or self.stamps:
            if stamps is not None and self._is_named(path) and stamps[path] == self.stamps.get(path):
                continue
            try:
                if path != self.service.options.tls_sni:
                    self._files.read(path)
                elif not self._files.is_directory(path):
                    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            except PermissionError as error:
                return error
            except OSError:
                # Others are for who reads them to find.
                continue
        return None

    def _is_named(self, path: str) -> bool:
        return self.service.options.tls_sni is not None and path.startswith(f"{self.service.options.tls_sni}/")


def _published(material: TlsFiles) -> tuple[object, ...]:
    """All but the keys, which say nothing that is not in the certificates, and can't be compared."""
    named = {name: each.chain for name, each in material.named.items()}
    default = material.default.chain if material.default is not None else None
    return default, named, material.authorities, material.revocations


def tls_server(service: Service, files: FileReader, wall: Callable[[], float] = time.time) -> ServerTls:
    """The TLS of a service that has one (Service.tls).

    Args:
        service: it.
        files: reads what its options name.
        wall: the time of day, in seconds since 1970.

    Raises:
        ConfigError: a certificate, a key or another file can't be used; with a Problem for each.
    """
    return ServerTls(service, files, wall)
