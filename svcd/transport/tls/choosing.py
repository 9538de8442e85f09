"""All contexts of one service, and the choice between them by the name that a client asks for (RFC 6066, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from OpenSSL import SSL

from svcd.config.tls_files import ANY_LABEL
from svcd.errors import ConfigError
from svcd.transport.tls.connection import ServerConnection
from svcd.transport.tls.contexts import make_context
from svcd.transport.tls.identity import why

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from svcd.config.service import Service
    from svcd.config.tls_files import Material
    from svcd.wire.pem import Credentials

__all__ = ["Contexts", "make_contexts"]

_ASKS_OTHER_NAME = "there is no certificate for the name that it asks for"


@dataclass(frozen=True, slots=True)
class Contexts:
    """What a service's handshakes are made in.

    Attributes:
        service: whose options they have.
        material: what they were made of.
        first: in which every handshake begins, and which goes over to one of the others. Session tickets are its own
            for all names: OpenSSL takes their keys from where a handshake began.
        named: by name, as in Material.
    """

    service: Service
    material: Material
    first: SSL.Context
    named: Mapping[str, SSL.Context]


def make_contexts(service: Service, material: Material, before: Contexts | None = None) -> Contexts:
    """Make what a service needs.

    Args:
        service: it.
        material: what its files hold.
        before: others of the same service: of those for names only what is different is made anew.

    Raises:
        ConfigError: OpenSSL does not take a certificate.
    """
    known = before if before is not None and _is_like(before, service, material) else None

    def context_of(name: str, credentials: Credentials) -> SSL.Context:
        if known is not None and known.material.named.get(name) is credentials:
            return known.named[name]
        return _context(service, material, credentials, "tls_sni")

    first = _context(service, material, material.default, "tls_cert")
    named = {name: context_of(name, credentials) for name, credentials in material.named.items()}
    if service.options.tls_sni is not None:
        refused = None
        if service.options.tls_unknown_name == "refuse":
            # Without a certificate a handshake fails; there is no other way to say no from where the name is known.
            refused = make_context(service, material, None)
        first.set_tlsext_servername_callback(_chooser(named, refused))
    return Contexts(service, material, first, named)


def _is_like(before: Contexts, service: Service, material: Material) -> bool:
    """Whether the same certificate makes the same context."""
    mine, others = before.material, material
    same_clients = (mine.authorities, mine.revocations) == (others.authorities, others.revocations)
    return before.service == service and same_clients


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
