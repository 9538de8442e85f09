"""From what a service's files hold to OpenSSL's contexts.

The profile is Mozilla's intermediate one (wiki.mozilla.org/Security/Server_Side_TLS): TLS 1.2 and 1.3, ciphers with
forward secrecy and authenticated encryption, of which the client chooses. Without parameters for finite-field
Diffie-Hellman, which every client of TLS 1.2 can do without; and with the hybrid X25519MLKEM768, where OpenSSL has it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from svcd.config.tls_files import ANY_LABEL
from svcd.errors import ConfigError
from svcd.tls.openssl import ServerContext
from svcd.tls.peer import why

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.wire.certificates import Credentials

__all__ = ["Contexts", "make_context", "make_contexts"]

_CIPHERS = b":".join(
    b"ECDHE-%s-%s" % (signature, cipher)
    for cipher in (b"AES128-GCM-SHA256", b"AES256-GCM-SHA384", b"CHACHA20-POLY1305")
    for signature in (b"ECDSA", b"RSA")
)
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
#: How long a session can be resumed, in seconds. Tickets hold it, not our memory.
_RESUMABLE = 7200
_NO_CALLBACKS = (
    "this Python's libffi is older than 3.4 and needs memory that is written and executed, which the system denies; "
    "upgrade it, or say MemoryDenyWriteExecute=no in svcd's unit"
)


def make_context(service: Service, material: TlsFiles, credentials: Credentials | None) -> ServerContext:
    """The context of one certificate, with everything but the choice between names.

    Args:
        service: whose options hold.
        material: vouches for clients.
        credentials: the certificate; with None no handshake gets far.

    Raises:
        SSL.Error: OpenSSL does not take the certificate.
        MemoryError: the system has no memory for callbacks.
    """
    context = ServerContext()
    context.set_min_proto_version(_VERSIONS[service.options.tls_min])
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    # An idle connection gives back 34 KB of buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS)
    context.set_groups()
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(hashlib.sha256(service.id.encode()).digest())
    context.set_timeout(_RESUMABLE)
    if credentials is not None:
        context.use_certificate(credentials.chain[0])
        for each in credentials.chain[1:]:
            context.add_extra_chain_cert(each)
        context.use_privatekey(credentials.key)
        context.check_privatekey()
    if service.alpn:
        context.choose_protocol([name.encode() for name in service.alpn])
    if material.authorities:
        _ask_clients(context, service, material)
    return context


def _ask_clients(context: SSL.Context, service: Service, material: TlsFiles) -> None:
    store = context.get_cert_store()
    assert store is not None  # noqa: S101 - a context made just now has one
    for authority in material.authorities:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    if material.revocations:
        for revocations in material.revocations:
            store.add_crl(revocations)
        # Of all on the way to the root: an authority that was revoked vouches for nobody.
        store.set_flags(X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL)
    else:
        # Who stands in tls_client_ca vouches, a root or not. With lists OpenSSL needs the root to have them all.
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if service.options.tls_client == "required" else 0
    context.set_verify(SSL.VERIFY_PEER | required)


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
            first.choose_by_name(partial(_find, named), refuse=service.options.tls_unknown_name == "refuse")
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
