"""OpenSSL contexts of a service, and the choice between them by host name (SNI: RFC 6066, section 3).

The profile is Mozilla's intermediate one (wiki.mozilla.org/Security/Server_Side_TLS): TLS 1.2 and 1.3, ciphers with
forward secrecy and authenticated encryption, the client's preference. It has no parameters for finite-field
Diffie-Hellman, which no client of TLS 1.2 needs, and has the hybrid X25519MLKEM768 where OpenSSL supports it.
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
from svcd.tls.peer import failure_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.wire.certificates import Credentials

__all__ = ["Contexts", "make_contexts"]

_CIPHERS = b":".join(
    b"ECDHE-%s-%s" % (signature, cipher)
    for cipher in (b"AES128-GCM-SHA256", b"AES256-GCM-SHA384", b"CHACHA20-POLY1305")
    for signature in (b"ECDSA", b"RSA")
)
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
#: How long a session can be resumed, in seconds. The session is in the client's ticket; the daemon stores none.
_SESSION_SECONDS = 7200
_NO_CALLBACKS = (
    "this Python's libffi is older than 3.4 and needs memory that is written and executed, which the system denies; "
    "upgrade it, or set MemoryDenyWriteExecute=no in svcd's unit"
)


def _make_context(service: Service, tls_files: TlsFiles, credentials: Credentials | None) -> ServerContext:
    """Make the context of one certificate, without the choice by host name.

    Args:
        service: the service with its options.
        tls_files: the content with the authorities and revocation lists for client certificates.
        credentials: the certificate and its key; with None every handshake fails.

    Raises:
        SSL.Error: OpenSSL does not accept the certificate.
        MemoryError: the system has no memory for callbacks.
    """
    context = ServerContext()
    context.set_min_proto_version(_VERSIONS[service.options.tls_min])
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    # Frees 34 KB of buffers of an idle connection.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS)
    context.set_groups()
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(hashlib.sha256(service.id.encode()).digest())
    context.set_timeout(_SESSION_SECONDS)
    if credentials is not None:
        context.use_certificate(credentials.chain[0])
        for each in credentials.chain[1:]:
            context.add_extra_chain_cert(each)
        context.use_privatekey(credentials.key)
        context.check_privatekey()
    if service.alpn:
        context.choose_protocol([name.encode() for name in service.alpn])
    if tls_files.authorities:
        _request_client_certificates(context, service, tls_files)
    return context


def _request_client_certificates(context: SSL.Context, service: Service, tls_files: TlsFiles) -> None:
    store = context.get_cert_store()
    assert store is not None  # noqa: S101 - a context made just now has one
    for authority in tls_files.authorities:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    if tls_files.revocations:
        for revocations in tls_files.revocations:
            store.add_crl(revocations)
        # CHECK_ALL: intermediate authorities can be revoked as well.
        store.set_flags(X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL)
    else:
        # Each certificate in tls_client_ca is trusted, whether root or intermediate. With revocation lists OpenSSL
        # needs the whole chain up to the root.
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if service.options.tls_client == "required" else 0
    context.set_verify(SSL.VERIFY_PEER | required)


@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts of a service.

    Attributes:
        service: the service with the options of the contexts.
        tls_files: the certificates of the contexts.
        first: the context in which every handshake begins; its callback switches to one of the others. Session tickets
            of all names have its keys: OpenSSL takes them from the context in which the handshake began.
        named: the contexts by host name, with the keys of TlsFiles.named.
    """

    service: Service
    tls_files: TlsFiles
    first: ServerContext
    named: Mapping[str, ServerContext]


def make_contexts(service: Service, tls_files: TlsFiles, previous: Contexts | None = None) -> Contexts:
    """Make the contexts of a service.

    Args:
        service: the service with its options.
        tls_files: the content of its certificate files.
        previous: earlier contexts of the service; those of names with unchanged certificates are used again.

    Raises:
        ConfigError: OpenSSL does not accept a certificate, or the system has no memory for callbacks.
    """
    known = previous if previous is not None and _same_options(previous, service, tls_files) else None

    def context_of(name: str, credentials: Credentials) -> ServerContext:
        if known is not None and known.tls_files.named.get(name) is credentials:
            return known.named[name]
        return _checked_context(service, tls_files, credentials, "tls_sni")

    option = "tls_cert" if tls_files.default is not None else "tls_sni"
    first = _checked_context(service, tls_files, tls_files.default, option)
    named = {name: context_of(name, credentials) for name, credentials in tls_files.named.items()}
    if service.options.tls_sni is not None:
        try:
            first.choose_by_name(partial(_find_by_name, named), refuse=service.options.tls_unknown_name == "refuse")
        except MemoryError:
            raise ConfigError([service.fault("tls_sni", _NO_CALLBACKS)]) from None
    return Contexts(service, tls_files, first, named)


def _same_options(previous: Contexts, service: Service, tls_files: TlsFiles) -> bool:
    """Return whether an unchanged certificate would make the same context again."""
    old = previous.tls_files
    same_clients = (old.authorities, old.revocations) == (tls_files.authorities, tls_files.revocations)
    return previous.service == service and same_clients


def _checked_context(
    service: Service, tls_files: TlsFiles, credentials: Credentials | None, option: str
) -> ServerContext:
    try:
        return _make_context(service, tls_files, credentials)
    except SSL.Error as error:
        text = f"OpenSSL rejects the certificate: {failure_reason(error)}"
    except MemoryError:
        text = _NO_CALLBACKS
    raise ConfigError([service.fault(option, text)])


def _find_by_name(named: Mapping[str, SSL.Context], name: str) -> SSL.Context | None:
    first, _, rest = name.partition(".")
    # A wildcard does not stand for an empty label.
    return named.get(name) or (named.get(f"{ANY_LABEL}.{rest}") if first else None)
