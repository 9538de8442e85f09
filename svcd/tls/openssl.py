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

#: The most that one record holds (RFC 8446, 5.1), in bytes.
MAX_RECORD = 16_384
#: What read_records() returns at most, in bytes: two full records with their headers, and more.
MAX_READ = 36_864
# Each is filled and copied from in one call.
_PLAIN = ffi.new("char[]", MAX_RECORD)
_SEALED = ffi.new("char[]", MAX_READ)
_NAME_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)
_PROTOCOL_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_ubyte), ctypes.c_void_p,
    ctypes.c_uint, ctypes.c_void_p,
)  # fmt: skip
_OK = lib.SSL_TLSEXT_ERR_OK
_FATAL = lib.SSL_TLSEXT_ERR_ALERT_FATAL
#: An alert (RFC 6066, section 3).
_UNRECOGNIZED_NAME = 112
#: A leading question mark lets OpenSSL go on without a group that it does not know; before 3.5 there is no such mark.
_GROUPS = (b"?X25519MLKEM768:X25519:P-256:P-384", b"X25519:P-256:P-384")


class ServerConnection(SSL.Connection):
    """The server's side of TLS."""

    @property
    def verify_error(self) -> str:
        """What is wrong with the client's certificate, in OpenSSL's words; empty for nothing."""
        error = lib.SSL_get_verify_result(self._ssl)
        return "" if error == lib.X509_V_OK else ffi.string(lib.X509_verify_cert_error_string(error)).decode()

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the client."""
        lib.BIO_write(self._into_ssl, ffi.from_buffer(data), len(data))

    def read_records(self) -> bytes:
        """Bytes for the client, TAKEN at most; empty if there are none."""
        size = lib.BIO_read(self._from_ssl, _SEALED, MAX_READ)
        return ffi.buffer(_SEALED, size)[:] if size > 0 else b""

    def continue_handshake(self) -> bool:
        """Go on with the handshake; whether it is done.

        Raises:
            SSL.Error: it has failed; ZeroReturnError if the client takes its leave.
        """
        result = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        if not self._wants_more(result):
            raise SSL.ZeroReturnError
        return False

    def decrypt(self) -> bytes | None:
        """What the client has sent, of one record at most; None if there is nothing yet, empty if it was all.

        Raises:
            SSL.Error: OpenSSL can't go on.
        """
        size = lib.SSL_read(self._ssl, _PLAIN, MAX_RECORD)
        if size > 0:
            return ffi.buffer(_PLAIN, size)[:]  # type: ignore[no-any-return]
        return None if self._wants_more(size) else b""

    def encrypt(self, data: bytes | memoryview) -> int:
        """Encrypt something, which must not be empty; how much of it: one record at most.

        Raises:
            SSL.Error: OpenSSL can't go on.
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
    """A context that can be asked, and keeps alive what OpenSSL calls as long as a connection may need it."""

    def __init__(self) -> None:
        super().__init__(SSL.TLS_SERVER_METHOD)
        self._callbacks: list[object] = []

    def set_groups(self) -> None:
        """Set the groups for the key exchange.

        Where the bindings lack the function, OpenSSL's default holds: the same groups first, and some more.
        """
        if not hasattr(lib, "SSL_CTX_set1_curves_list"):
            return
        for groups in _GROUPS:
            if lib.SSL_CTX_set1_curves_list(self._context, groups) == 1:
                return
            lib.ERR_clear_error()

    def choose_by_name(self, find: Callable[[str], SSL.Context | None], *, refuse: bool) -> None:
        """Let handshakes go on in another context, by the name that the client asks for.

        Args:
            find: the context for a name, in small letters and empty for none; None if there is no other. It must not
                know this one, which would keep itself alive.
            refuse: whether clients get nothing then; else they stay in this one.

        Raises:
            MemoryError: the system has no memory for callbacks.
        """

        def called(ssl: int, alert: object, _argument: object) -> int:
            handle = ffi.cast("SSL *", ssl)
            asked = lib.SSL_get_servername(handle, lib.TLSEXT_NAMETYPE_host_name)
            name = ffi.string(asked).decode("ascii", "replace").lower().removesuffix(".") if asked else ""
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

    def choose_protocol(self, ours: Sequence[bytes]) -> None:
        """Choose among the protocols that clients offer (RFC 7301); without one in common the handshake ends (3.2).

        What data means is not left to chance: what one protocol takes for content another one may obey.

        Args:
            ours: their names, the preferred one first.

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
            for name in ours:
                if name in places:
                    # In the client's own list, which lives as long as the handshake.
                    chosen[0] = offered + places[name]  # type: ignore[index]
                    size[0] = len(name)  # type: ignore[index]
                    return int(_OK)
            return int(_FATAL)

        callback = _PROTOCOL_CALLBACK(called)
        self._callbacks.append(callback)
        kind = "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)"
        lib.SSL_CTX_set_alpn_select_cb(self._context, ffi.cast(kind, _address(callback)), ffi.NULL)


def _address(callback: Any) -> int:  # noqa: ANN401 - ctypes' classes are made as they are needed
    # Without ctypes.cast, whose result keeps itself alive until garbage is looked for.
    return ctypes.c_void_p.from_buffer(callback).value or 0
