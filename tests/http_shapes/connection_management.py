"""Persistence, pipelining, upgrades and expectations (RFC 9112, section 9; RFC 9110, sections 7.6, 7.8 and 10.1.1)."""

from __future__ import annotations

from tests.http_shapes.shape import closed, get, kept, post

__all__ = ["CONNECTION_MANAGEMENT"]

_CLOSE = {"Connection": "close"}
_OLD = "HTTP/1.0"


def _with(value: str, version: str = "HTTP/1.1") -> bytes:
    return get("/file.txt", f"Connection: {value}", version=version)


_PERSISTENCE = (
    closed("9112 9.6", "close", _with("close"), 200, fields=_CLOSE),
    closed("9112 9.6", "close in upper case", _with("CLOSE"), 200, fields=_CLOSE),
    closed("9112 9.6", "close in a list", _with("x, close"), 200, fields=_CLOSE),
    closed("9112 9.6", "close in a list with empty elements", _with(",, close ,"), 200, fields=_CLOSE),
    closed("9112 9.3", "close and keep-alive", _with("close, keep-alive"), 200, fields=_CLOSE),
    closed("9112 9.3", "keep-alive and close", _with("keep-alive, close"), 200, fields=_CLOSE),
    closed("9112 9.6", "close in a second field", get("/", "Connection: x", "Connection: close"), 200, fields=_CLOSE),
    closed("9112 9.6", "close in HTTP/1.0", _with("close", _OLD), 200, fields=_CLOSE),
    kept("9112 9.3", "keep-alive", _with("keep-alive"), 200),
    kept("9112 9.3", "keep-alive in HTTP/1.0", _with("keep-alive", _OLD), 200, fields={"Connection": "keep-alive"}),
    kept("9112 9.3", "keep-alive in upper case", _with("Keep-Alive", _OLD), 200, fields={"Connection": "keep-alive"}),
    kept("9112 9.3", "keep-alive in a list", _with("x, keep-alive", _OLD), 200, fields={"Connection": "keep-alive"}),
    kept("9110 7.6.1", "an unknown option", _with("frobnicate"), 200),
    kept("9110 7.6.1", "an empty list", _with(""), 200),
    kept("9110 7.6.1", "a name that ends with close", _with("xclose"), 200),
    kept("9110 7.6.1", "a name that begins with close", _with("closed"), 200),
    kept("9112 c.2.2", "Keep-Alive", get("/", "Keep-Alive: timeout=5", "Connection: keep-alive"), 200),
    # A server may close at any time; llhttp takes the field for Connection.
    closed("9112 c.2.2", "Proxy-Connection: close", get("/", "Proxy-Connection: close"), 200),
    # A proxy that does not know the field passes it on and waits for the end of the connection.
    closed("9112 c.2.2", "Proxy-Connection: keep-alive", get("/", "Proxy-Connection: keep-alive", version=_OLD), 200),
)
_PIPELINING = (
    kept("9112 9.3.2", "two requests", get("/file.txt") + get("/empty.txt"), 200, 200, content=b""),
    kept("9112 9.3.2", "five requests, of which some fail",
         get() + get("/missing") + get("/%zz") + get("/folder") + get(), 200, 404, 400, 301, 200),
    kept("9112 9.3.2", "HEAD in the middle", get() + get(method="HEAD") + get(), 200, 200, 200),
    kept("9112 9.3.2", "GET after a body", post("Content-Length: 5", body="hello") + get(), 405, 200),
    closed("9112 9.3.2", "an invalid request after a valid one", get() + b"\0", 200, 400),
    closed("9112 9.3.2", "an invalid request after a body", post("Content-Length: 5", body="hello\0"), 405, 400),
    closed("9112 9.6", "nothing is answered after close", _with("close") + get(), 200, fields=_CLOSE),
    closed("9112 9.6", "nothing is answered after HTTP/1.0", get(version=_OLD) + get(), 200, fields=_CLOSE),
    closed("9112 9.6", "nothing is answered after an error", b"\0" + get(), 400, fields=_CLOSE),
    closed("9112 9.6", "garbage after close", _with("close") + b"\0\0", 200, fields=_CLOSE),
    closed("9112 9.3", "1.0 after 1.1", get() + get(version=_OLD), 200, 200, fields=_CLOSE),
    kept("9112 9.3", "1.1 after 1.0 that is kept", _with("keep-alive", _OLD) + get(), 200, 200),
)  # fmt: skip
_UPGRADES = (
    kept("9110 7.8", "an upgrade to HTTP/2 is ignored",
         get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk") + get(), 200, 200),
    kept("9110 7.8", "an upgrade to WebSocket is ignored",
         get("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13") + get(), 200, 200),
    kept("9110 7.8", "Upgrade without Connection", get("/", "Upgrade: h2c") + get(), 200, 200),
    kept("9110 7.8", "Connection: upgrade without Upgrade", get("/", "Connection: upgrade") + get(), 200, 200),
    closed("9110 7.8", "an upgrade and close", get("/", "Connection: upgrade, close", "Upgrade: h2c") + get(), 200),
    closed("9110 7.8", "an upgrade in HTTP/1.0", get("/", "Connection: upgrade", "Upgrade: h2c", version=_OLD), 200),
)  # fmt: skip
_EXPECTATIONS = (
    kept("9110 10.1.1", "an expectation without a body", get("/", "Expect: 100-continue"), 200),
    # The final status comes instead of 100; the client may still send its body, so the connection ends.
    closed("9110 10.1.1", "an expectation of a body that nothing reads",
           post("Expect: 100-continue", "Content-Length: 5"), 405),
    closed("9110 10.1.1", "an expectation in upper case", post("Expect: 100-CONTINUE", "Content-Length: 5"), 405),
    closed("9110 10.1.1", "an expectation of chunks", post("Expect: 100-continue", "Transfer-Encoding: chunked"), 405),
)  # fmt: skip

CONNECTION_MANAGEMENT = (*_PERSISTENCE, *_PIPELINING, *_UPGRADES, *_EXPECTATIONS)
