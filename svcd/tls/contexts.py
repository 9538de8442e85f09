"""From what a service's files hold to OpenSSL's contexts.

The profile is Mozilla's intermediate one (wiki.mozilla.org/Security/Server_Side_TLS): TLS 1.2 and 1.3, ciphers with
forward secrecy and authenticated encryption, of which the client chooses. Without parameters for finite-field
Diffie-Hellman, which every client of TLS 1.2 can do without; and with the hybrid X25519MLKEM768, where OpenSSL has it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from OpenSSL import SSL
from OpenSSL._util import lib
from OpenSSL.crypto import X509, X509StoreFlags

from svcd.tls.callbacks import ServerContext

if TYPE_CHECKING:
    from svcd.config.service import Service
    from svcd.config.tls_files import TlsFiles
    from svcd.wire.certificates import Credentials

__all__ = ["make_context"]

_CIPHERS = b":".join(
    b"ECDHE-%s-%s" % (signature, cipher)
    for cipher in (b"AES128-GCM-SHA256", b"AES256-GCM-SHA384", b"CHACHA20-POLY1305")
    for signature in (b"ECDSA", b"RSA")
)
#: A leading question mark lets OpenSSL go on without a group that it does not know; before 3.5 there is no such mark.
_GROUPS = (b"?X25519MLKEM768:X25519:P-256:P-384", b"X25519:P-256:P-384")
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
#: How long a session can be resumed, in seconds. Tickets hold it, not our memory.
_RESUMABLE = 7200


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
    _set_groups(context)
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
        context.by_protocol([name.encode() for name in service.alpn])
    if material.authorities:
        _ask_clients(context, service, material)
    return context


def _set_groups(context: SSL.Context) -> None:
    # pyOpenSSL itself can set one group only. Where its bindings lack this one, OpenSSL's own choice holds: the same
    # groups first, and some more.
    if not hasattr(lib, "SSL_CTX_set1_curves_list"):
        return
    for groups in _GROUPS:
        if lib.SSL_CTX_set1_curves_list(context._context, groups) == 1:  # noqa: SLF001 - as Context's own methods do
            return
        lib.ERR_clear_error()


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
