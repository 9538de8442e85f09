"""All contexts of one service, and the choice between them by the name that a client asks for (RFC 6066, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from OpenSSL import SSL

from svcd.config.tls_files import ANY_LABEL
from svcd.errors import ConfigError
from svcd.tls.contexts import make_context
from svcd.tls.peer import why

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.tls.callbacks import ServerContext
    from svcd.wire.certificates import Credentials

__all__ = ["Contexts", "make_contexts"]

_NO_CALLBACKS = (
    "this Python's libffi is older than 3.4 and needs memory that is written and executed, which the system denies; "
    "upgrade it, or say MemoryDenyWriteExecute=no in svcd's unit"
)


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
    material: TlsFiles
    first: ServerContext
    named: Mapping[str, ServerContext]


def make_contexts(service: Service, material: TlsFiles, before: Contexts | None = None) -> Contexts:
    """Make what a service needs.

    Args:
        service: it.
        material: what its files hold.
        before: others of the same service: of those for names only what is different is made anew.

    Raises:
        ConfigError: OpenSSL does not take a certificate, or the system has no memory for callbacks.
    """
    known = before if before is not None and _is_like(before, service, material) else None

    def context_of(name: str, credentials: Credentials) -> ServerContext:
        if known is not None and known.material.named.get(name) is credentials:
            return known.named[name]
        return _context(service, material, credentials, "tls_sni")

    first = _context(service, material, material.default, "tls_cert" if material.default is not None else "tls_sni")
    named = {name: context_of(name, credentials) for name, credentials in material.named.items()}
    if service.options.tls_sni is not None:
        try:
            first.by_name(partial(_find, named), refuse=service.options.tls_unknown_name == "refuse")
        except MemoryError:
            raise ConfigError([service.fault("tls_sni", _NO_CALLBACKS)]) from None
    return Contexts(service, material, first, named)


def _is_like(before: Contexts, service: Service, material: TlsFiles) -> bool:
    """Whether the same certificate makes the same context."""
    mine, others = before.material, material
    same_clients = (mine.authorities, mine.revocations) == (others.authorities, others.revocations)
    return before.service == service and same_clients


def _context(service: Service, material: TlsFiles, credentials: Credentials | None, option: str) -> ServerContext:
    try:
        return make_context(service, material, credentials)
    except SSL.Error as error:
        text = f"OpenSSL does not take the certificate: {why(error)}"
    except MemoryError:
        text = _NO_CALLBACKS
    raise ConfigError([service.fault(option, text)])


def _find(named: Mapping[str, SSL.Context], name: str) -> SSL.Context | None:
    first, _, rest = name.partition(".")
    # An empty label is none that a file could stand for.
    return named.get(name) or (named.get(f"{ANY_LABEL}.{rest}") if first else None)
