"""The TLS of one service: every new connection gets the newest of its certificates."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from svcd.config.tls_files import ANY_LABEL, read_material
from svcd.errors import ConfigError
from svcd.transport.tls.contexts import make_context
from svcd.transport.tls.identity import ServerConnection, why
from svcd.transport.tls.names import is_named, names_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from svcd.config.service import Service
    from svcd.config.tls_files import Material
    from svcd.interfaces import Files
    from svcd.wire.pem import Credentials

__all__ = ["TlsServer", "tls_server"]

_ASKS_OTHER_NAME = "there is no certificate for the name that it asks for"


@implementer(IOpenSSLServerConnectionCreator)
class TlsServer:
    """Makes the TLS side of a service's connections.

    A change of certificates, by prepare() or renew(), holds for whoever comes afterwards: who is in goes on.

    Args:
        service: whose TLS it is.
        material: what its files hold.
        files: reads them again.
        wall: the time of day, in seconds since 1970.

    Raises:
        ConfigError: OpenSSL does not take a certificate.

    Attributes:
        service: as given, or as the last change had it.
    """

    def __init__(self, service: Service, material: Material, files: Files, wall: Callable[[], float]) -> None:
        self._files = files
        self._wall = wall
        self._set(service, material, _contexts(service, material))

    def _set(self, service: Service, material: Material, context: SSL.Context) -> None:
        self.service = service
        self._material = material
        self._context = context
        self._wanted = service.options.tls_client_names
        self._required = service.options.tls_client_ca is not None and service.options.tls_client == "required"

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
        material = _read(service, self._files, self._wall())
        context = _contexts(service, material)

        def commit() -> None:
            self._set(service, material, context)

        return commit

    def renew(self) -> None:
        """Encrypt session tickets with new keys: who comes back with an older one has a full handshake."""
        self._context = _contexts(self.service, self._material)

    @property
    def certificates(self) -> Mapping[str, Credentials]:
        """What it has: by host name, with an empty one for tls_cert."""
        default = self._material.default
        return {**({"": default} if default is not None else {}), **self._material.named}


def tls_server(service: Service, files: Files, wall: Callable[[], float] = time.time) -> TlsServer:
    """The TLS of a service that has one (Service.tls).

    Args:
        service: it.
        files: reads what its options name.
        wall: the time of day, in seconds since 1970.

    Raises:
        ConfigError: a certificate, a key or another file can't be used; with a Problem for each.
    """
    return TlsServer(service, _read(service, files, wall()), files, wall)


def _read(service: Service, files: Files, now: float) -> Material:
    material, problems = read_material(service, files, now)
    if problems:
        raise ConfigError(problems)
    return material


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
