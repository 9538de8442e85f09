"""What OpenSSL asks while it shakes hands: which certificate fits a name, and which protocol is chosen.

pyOpenSSL makes such callbacks in memory that is written and executed, which hardened systems refuse to give
(MemoryDenyWriteExecute= of systemd, SELinux). Those of ctypes need none where libffi is 3.4 or newer. They can do
more besides: refuse a name with the alert that is for that.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ServerContext"]

_NAME_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)
_PROTOCOL_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_ubyte), ctypes.c_void_p,
    ctypes.c_uint, ctypes.c_void_p,
)  # fmt: skip
_OK, _FATAL = lib.SSL_TLSEXT_ERR_OK, lib.SSL_TLSEXT_ERR_ALERT_FATAL
#: An alert (RFC 6066, section 3).
_UNRECOGNIZED_NAME = 112


class ServerContext(SSL.Context):
    """A context that can be asked, and keeps alive what OpenSSL calls as long as a connection may need it."""

    def __init__(self) -> None:
        super().__init__(SSL.TLS_SERVER_METHOD)
        self._kept: list[object] = []

    def by_name(self, find: Callable[[str], SSL.Context | None], *, refuse: bool) -> None:
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
        self._kept.append(callback)
        address = _address(callback)
        lib.SSL_CTX_set_tlsext_servername_callback(self._context, ffi.cast("int (*)(SSL *, int *, void *)", address))

    def by_protocol(self, ours: Sequence[bytes]) -> None:
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
        self._kept.append(callback)
        kind = "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)"
        lib.SSL_CTX_set_alpn_select_cb(self._context, ffi.cast(kind, _address(callback)), ffi.NULL)


def _address(callback: Any) -> int:  # noqa: ANN401 - ctypes' classes are made as they are needed
    # Without ctypes.cast, whose result keeps itself alive until garbage is looked for.
    return ctypes.c_void_p.from_buffer(callback).value or 0
