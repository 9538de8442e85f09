"""The server's side of TLS on one connection, over memory: bytes in, bytes out, by OpenSSL's own functions.

pyOpenSSL says by an exception that there is nothing to do yet, which comes with nearly every piece of data, and makes a
buffer for each call. To leave that out halves what small messages cost.
"""

from __future__ import annotations

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

__all__ = ["RECORD", "TAKEN", "ServerConnection"]

#: The most that one record holds (RFC 8446, 5.1), in bytes.
RECORD = 16_384
#: What emit() returns at most, in bytes: two full records with their headers, and more.
TAKEN = 36_864
# Each is filled and copied from in one call.
_PLAIN = ffi.new("char[]", RECORD)
_SEALED = ffi.new("char[]", TAKEN)


class ServerConnection(SSL.Connection):
    """The server's side of TLS."""

    @property
    def reason(self) -> str:
        """What is wrong with the client's certificate, in OpenSSL's words; empty for nothing."""
        error = lib.SSL_get_verify_result(self._ssl)
        return "" if error == lib.X509_V_OK else ffi.string(lib.X509_verify_cert_error_string(error)).decode()

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the client."""
        lib.BIO_write(self._into_ssl, ffi.from_buffer(data), len(data))

    def emit(self) -> bytes:
        """Bytes for the client, TAKEN at most; empty if there are none."""
        size = lib.BIO_read(self._from_ssl, _SEALED, TAKEN)
        return ffi.buffer(_SEALED, size)[:] if size > 0 else b""

    def shake(self) -> bool:
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

    def receive(self) -> bytes | None:
        """What the client has sent, of one record at most; None if there is nothing yet, empty if it was all.

        Raises:
            SSL.Error: OpenSSL can't go on.
        """
        size = lib.SSL_read(self._ssl, _PLAIN, RECORD)
        if size > 0:
            return ffi.buffer(_PLAIN, size)[:]  # type: ignore[no-any-return]
        return None if self._wants_more(size) else b""

    def seal(self, data: bytes | memoryview) -> int:
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
