"""The TLS of one service: every new connection gets the newest of its certificates."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from svcd.config.tls_files import ANY_LABEL, read_material, tls_paths
from svcd.errors import ConfigError
from svcd.transport.tls.connection import ServerConnection
from svcd.transport.tls.contexts import make_context
from svcd.transport.tls.identity import why
from svcd.transport.tls.names import is_named, names_in

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from svcd.config.service import Service
    from svcd.config.tls_files import Material
    from svcd.interfaces import Files
    from svcd.wire.pem import Credentials

__all__ = ["Held", "TlsServer", "tls_server"]

_ASKS_OTHER_NAME = "there is no certificate for the name that it asks for"


class Held(NamedTuple):
    """A certificate that is in use.

    Attributes:
        expires: in seconds since 1970.
        file: where it stands.
    """

    expires: float
    file: str


@dataclass(frozen=True, slots=True)
class _State:
    """What is exchanged as a whole.

    Attributes:
        service: whose options hold.
        material: what the files held.
        context: in which every handshake begins.
        stamps: of the files, from just before they were read.
    """

    service: Service
    material: Material
    context: SSL.Context
    stamps: Mapping[str, Hashable]


@implementer(IOpenSSLServerConnectionCreator)
class TlsServer:
    """Makes the TLS side of a service's connections.

    A change of certificates, by prepare() or renew(), holds for whoever comes afterwards: who is in goes on.

    Args:
        service: whose TLS it is.
        files: reads what its options name.
        wall: the time of day, in seconds since 1970.

    Raises:
        ConfigError: a certificate, a key or another file can't be used; with a Problem for each.
    """

    def __init__(self, service: Service, files: Files, wall: Callable[[], float]) -> None:
        self._files = files
        self._wall = wall
        self._use(self._made(service))

    def _made(self, service: Service) -> _State:
        stamps = self._stamps(service)
        material, problems = read_material(service, self._files, self._wall())
        if problems:
            raise ConfigError(problems)
        return _State(service, material, _contexts(service, material), stamps)

    def _stamps(self, service: Service) -> dict[str, Hashable]:
        def stamp(path: str) -> Hashable:
            try:
                return self._files.stamp(path)
            except OSError as error:
                return error.errno

        return {path: stamp(path) for path in tls_paths(service, self._files)}

    def _use(self, state: _State) -> None:
        self._state = state
        self._context = state.context
        options = state.service.options
        self._wanted = options.tls_client_names
        self._required = options.tls_client_ca is not None and options.tls_client == "required"

    @property
    def service(self) -> Service:
        """Whose it is, with the options that hold."""
        return self._state.service

    def serverConnectionForTLS(self, _protocol: object) -> ServerConnection:
        """The server's side of one connection, over memory."""
        connection = ServerConnection(self._context, None)
        connection.set_accept_state()
        return connection

    def refusal(self, connection: SSL.Connection) -> str | None:
        """Why a client may not go on although its handshake is over; None if it may.

        A client without the certificate that it needs, or with one that does not hold, does not get so far.
        """
        if not self._wanted and not self._required:
            return None
        certificate = connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            return "it has no certificate" if self._required else None
        if self._wanted and not is_named(names_in(certificate), self._wanted):
            return "its certificate is for nobody in tls_client_names"
        return None

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read everything anew, for the same or for other options; returns what lets it hold, which can't fail.

        Raises:
            ConfigError: something can't be used; nothing has changed.
        """
        return partial(self._use, self._made(service))

    def renew(self) -> None:
        """Encrypt session tickets with new keys: who comes back with an older one has a full handshake.

        OpenSSL makes the keys of a context with it and keeps them as long; a stolen one opens what tickets of TLS 1.2
        have protected. To give it keys of ours, old ones among them, there are no bindings.
        """
        state = self._state
        self._use(replace(state, context=_contexts(state.service, state.material)))

    def stay(self, service: Service) -> None:
        """The same options stand in other places of the file now."""
        self._use(replace(self._state, service=service))

    @property
    def held(self) -> list[Held]:
        """Its certificates, those that expire first at the front."""
        material, options = self._state.material, self.service.options
        held = [Held(each.expires, f"{options.tls_sni}/{name}.pem") for name, each in material.named.items()]
        if material.default is not None:
            held.append(Held(material.default.expires, str(options.tls_cert)))
        return sorted(held)

    @property
    def stamps(self) -> Mapping[str, Hashable]:
        """Of each of the files that are in use, what tells it from a newer one."""
        return self._state.stamps

    def stamps_now(self) -> Mapping[str, Hashable]:
        """The same of the files as they are."""
        return self._stamps(self.service)

    def denied(self) -> OSError | None:
        """The error of the first file that could not be read again for want of rights; None if all could."""
        for path in self.stamps:
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


def tls_server(service: Service, files: Files, wall: Callable[[], float] = time.time) -> TlsServer:
    """The TLS of a service that has one (Service.tls).

    Args:
        service: it.
        files: reads what its options name.
        wall: the time of day, in seconds since 1970.

    Raises:
        ConfigError: a certificate, a key or another file can't be used; with a Problem for each.
    """
    return TlsServer(service, files, wall)


def _contexts(service: Service, material: Material) -> SSL.Context:
    """The context in which every handshake begins, which knows those of the other names.

    Session tickets are its own for all names: OpenSSL takes them from the context in which a connection began.
    """
    default = _context(service, material, material.default, "tls_cert")
    if material.named or service.options.tls_sni is not None:
        named = {name: _context(service, material, each, "tls_sni") for name, each in material.named.items()}
        refused = None
        if service.options.tls_unknown_name == "refuse":
            # Without a certificate a handshake fails; there is no other way to say no from where the name is known.
            refused = make_context(service, material, None)
        default.set_tlsext_servername_callback(_chooser(named, refused))
    return default


def _context(service: Service, material: Material, credentials: Credentials | None, option: str) -> SSL.Context:
    try:
        return make_context(service, material, credentials)
    except SSL.Error as error:
        raise ConfigError([service.problem(option, f"OpenSSL does not take the certificate: {why(error)}")]) from None


def _chooser(named: Mapping[str, SSL.Context], refused: SSL.Context | None) -> Callable[[SSL.Connection], None]:
    def choose(connection: SSL.Connection) -> None:
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower().removesuffix(".")
        context = named.get(name) or named.get(f"{ANY_LABEL}.{name.partition('.')[2]}")
        if context is None and refused is not None:
            context = refused
            if isinstance(connection, ServerConnection):
                connection.reason = _ASKS_OTHER_NAME
        if context is not None:
            connection.set_context(context)

    return choose
