"""All use of pyOpenSSL beyond its public interface: contexts and connections that call OpenSSL directly.

The private names used are `ffi` and `lib` of OpenSSL._util (the bindings of the cryptography package), `_context` of
Context, and `_ssl`, `_into_ssl`, `_from_ssl` and `_raise_ssl_error` of Connection. No other module uses private names
of pyOpenSSL; tests/unit/test_tls_openssl.py fails when one of them is gone. They are needed for three things:

- Data path: pyOpenSSL raises an exception whenever OpenSSL needs more input, which happens with nearly every piece of
  data, and allocates a buffer for each call. Without both, small messages cost half as much.
- Callbacks: pyOpenSSL allocates them in memory that is writable and executable, which hardened systems refuse
  (MemoryDenyWriteExecute= of systemd, SELinux). Callbacks of ctypes need none with libffi 3.4 or newer. They can also
  refuse a host name with its own alert (unrecognized_name).
- Groups: pyOpenSSL can set a single group for the key exchange.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["MAX_READ", "MAX_RECORD", "ServerConnection", "ServerContext"]

#: Maximum size of the content of a record (RFC 8446, 5.1), in bytes.
MAX_RECORD = 16_384
#: Maximum size that read_records() returns, in bytes: two full records with their headers, and some more.
MAX_READ = 36_864
# Shared by all connections: each is filled and copied from within one call.
_PLAIN = ffi.new("char[]", MAX_RECORD)
_SEALED = ffi.new("char[]", MAX_READ)
_NAME_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)
_PROTOCOL_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_ubyte), ctypes.c_void_p,
    ctypes.c_uint, ctypes.c_void_p,
)  # fmt: skip
_OK = lib.SSL_TLSEXT_ERR_OK
_FATAL = lib.SSL_TLSEXT_ERR_ALERT_FATAL
#: The alert unrecognized_name (RFC 6066, section 3).
_UNRECOGNIZED_NAME = 112
#: A leading question mark makes a group optional; OpenSSL before 3.5 does not know the mark.
_GROUPS = (b"?X25519MLKEM768:X25519:P-256:P-384", b"X25519:P-256:P-384")


class ServerConnection(SSL.Connection):
    """Server side of a TLS connection with memory BIOs: bytes in, bytes out, no exceptions for missing input."""

    @property
    def verify_error(self) -> str:
        """OpenSSL's verification error of the client's certificate; empty if there is none."""
        error = lib.SSL_get_verify_result(self._ssl)
        return "" if error == lib.X509_V_OK else ffi.string(lib.X509_verify_cert_error_string(error)).decode()

    def feed(self, data: bytes | memoryview) -> None:
        """Give OpenSSL bytes that the client has sent."""
        lib.BIO_write(self._into_ssl, ffi.from_buffer(data), len(data))

    def read_records(self) -> bytes:
        """Return records to send to the client, MAX_READ bytes at most; empty if there are none."""
        size = lib.BIO_read(self._from_ssl, _SEALED, MAX_READ)
        return ffi.buffer(_SEALED, size)[:] if size > 0 else b""

    def continue_handshake(self) -> bool:
        """Continue the handshake; return whether it is done.

        Raises:
            SSL.Error: it has failed; ZeroReturnError if the client has sent a closure alert.
        """
        result = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        if not self._wants_more(result):
            raise SSL.ZeroReturnError
        return False

    def decrypt(self) -> bytes | None:
        """Return plaintext of one record at most; None if there is no complete record, empty at the end of input.

        Raises:
            SSL.Error: the connection has failed.
        """
        size = lib.SSL_read(self._ssl, _PLAIN, MAX_RECORD)
        if size > 0:
            return ffi.buffer(_PLAIN, size)[:]  # type: ignore[no-any-return]
        return None if self._wants_more(size) else b""

    def encrypt(self, data: bytes | memoryview) -> int:
        """Encrypt data, which must not be empty, one record at most; return the number of encrypted bytes.

        Raises:
            SSL.Error: the connection has failed.
        """
        size = lib.SSL_write(self._ssl, ffi.from_buffer(data), len(data))
        if size <= 0:
            self._raise_ssl_error(self._ssl, size)
        return int(size)

    def _wants_more(self, result: int) -> bool:
        error = lib.SSL_get_error(self._ssl, result)
        if error == lib.SSL_ERROR_WANT_READ:
            return True
        if error == lib.SSL_ERROR_ZERO_RETURN:
            return False
        self._raise_ssl_error(self._ssl, result)
        return False


class ServerContext(SSL.Context):
    """OpenSSL context of a server. It owns its callbacks, which OpenSSL may call as long as a connection exists."""

    def __init__(self) -> None:
        super().__init__(SSL.TLS_SERVER_METHOD)
        self._callbacks: list[object] = []

    def set_groups(self) -> None:
        """Set the groups for the key exchange.

        If the bindings lack the function, OpenSSL's default applies: the same groups first, and some more.
        """
        if not hasattr(lib, "SSL_CTX_set1_curves_list"):
            return
        for groups in _GROUPS:
            if lib.SSL_CTX_set1_curves_list(self._context, groups) == 1:
                return
            lib.ERR_clear_error()

    def choose_by_name(self, find: Callable[[str], SSL.Context | None], *, refuse: bool) -> None:
        """Switch handshakes to another context by the host name that the client requests (SNI).

        Args:
            find: returns the context for a host name in lower case, empty if the client requested none; None if there
                is no such context. It must not refer to this context, which would never be freed then.
            refuse: whether handshakes fail without such a context; otherwise they continue in this context.

        Raises:
            MemoryError: the system has no memory for callbacks.
        """

        def called(ssl: int, alert: object, _argument: object) -> int:
            handle = ffi.cast("SSL *", ssl)
            sni = lib.SSL_get_servername(handle, lib.TLSEXT_NAMETYPE_host_name)
            name = ffi.string(sni).decode("ascii", "replace").lower().removesuffix(".") if sni else ""
            context = find(name)
            if context is None and refuse:
                alert[0] = _UNRECOGNIZED_NAME  # type: ignore[index]
                return int(_FATAL)
            if context is not None:
                lib.SSL_set_SSL_CTX(handle, context._context)  # noqa: SLF001 - as Connection.set_context does
            return int(_OK)

        callback = _NAME_CALLBACK(called)
        self._callbacks.append(callback)
        address = _address(callback)
        lib.SSL_CTX_set_tlsext_servername_callback(self._context, ffi.cast("int (*)(SSL *, int *, void *)", address))

    def choose_protocol(self, supported: Sequence[bytes]) -> None:
        """Select an application protocol (ALPN, RFC 7301) among those that the client offers.

        Without a common protocol the handshake fails (RFC 7301, 3.2): bytes that are content in one protocol may be
        commands in another one.

        Args:
            supported: names of protocols, by preference.

        Raises:
            MemoryError: the system has no memory for callbacks.
        """

        def called(_ssl: int, chosen: object, size: object, offered: int, length: int, _argument: object) -> int:
            names = ctypes.string_at(offered, length)
            places = {}
            place = 0
            while place < length:
                end = place + 1 + names[place]
                places[names[place + 1 : end]] = place + 1
                place = end
            for name in supported:
                if name in places:
                    # A pointer into the client's list, which exists as long as the handshake.
                    chosen[0] = offered + places[name]  # type: ignore[index]
                    size[0] = len(name)  # type: ignore[index]
                    return int(_OK)
            return int(_FATAL)

        callback = _PROTOCOL_CALLBACK(called)
        self._callbacks.append(callback)
        kind = "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)"
        lib.SSL_CTX_set_alpn_select_cb(self._context, ffi.cast(kind, _address(callback)), ffi.NULL)


def _address(callback: Any) -> int:  # noqa: ANN401 - ctypes' classes are made as they are needed
    # Not ctypes.cast(): its result is part of a reference cycle.
    return ctypes.c_void_p.from_buffer(callback).value or 0
