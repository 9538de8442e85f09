"""The opening handshake of WebSocket (RFC 6455, section 4): an HTTP request is answered by 101, or refused by HTTP.

Pure: `Negotiation.accept()` takes a request and returns the response with what was agreed, or raises HandshakeError.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from svcd.wire.http_request import SLICE, HttpError, RequestReader, authority, path_segments

if TYPE_CHECKING:
    from svcd.wire.http_request import HttpRequest

__all__ = ["Agreement", "DeflateOffer", "HandshakeError", "HandshakeReader", "Negotiation", "http_response"]

#: The largest head of a handshake in bytes. Its fields are passed to a program in one message (svcd.process.messages).
_MOST_HEAD = 16_384
_END_OF_HEAD = b"\r\n\r\n"

#: The constant that the accept key is made with (section 1.3).
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16
_VERSION = "13"
#: Windows of permessage-deflate in bits: the values that zlib can use for raw streams, of those that the RFC 7692
#: (section 7.1.2) allows.
_LEAST_WINDOW, _GREATEST_WINDOW = 9, 15
_WINDOW = re.compile('[0-9]{1,2}|"[0-9]{1,2}"')
_UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade, close"}


class HandshakeError(Exception):
    """Error: a request is no acceptable handshake. The response has a status, and the connection is closed after it.

    Args:
        status: the status of the response.
        reason: the reason, for the log and the content of the response.
        fields: additional fields of the response.
    """

    def __init__(self, status: HTTPStatus, reason: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.fields = fields or {}

    @property
    def response(self) -> bytes:
        """The whole response."""
        return http_response(self.status, f"{self}\n".encode(errors="replace"), self.fields)


def http_response(status: HTTPStatus, content: bytes, fields: dict[str, str] | None = None) -> bytes:
    """Return a whole response in plain text, after which the connection is closed.

    Args:
        status: the status.
        content: the content.
        fields: additional fields; values from a client must not be passed.
    """
    given = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(content)), "Connection": "close"}
    lines = [f"{name}: {value}\r\n" for name, value in {**given, **(fields or {})}.items()]
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{''.join(lines)}\r\n".encode("latin-1") + content


class HandshakeReader:
    """Reader of the request of a handshake. What follows its head is no HTTP."""

    __slots__ = ("_head", "_reader")

    def __init__(self) -> None:
        self._head = bytearray()
        self._reader: RequestReader | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of the request has arrived."""
        return bool(self._head)

    def feed(self, data: bytes) -> tuple[HttpRequest, bytes] | None:
        """Read the next bytes; return the request and the bytes after it, or None if more bytes are needed.

        Raises:
            HandshakeError: the request is invalid, or too large.
        """
        if self._reader is None:
            self._reader = RequestReader()
        # The end may have begun in the data before.
        searched = max(0, len(self._head) - len(_END_OF_HEAD) + 1)
        self._head += data
        end = self._head.find(_END_OF_HEAD, searched)
        rest = b"" if end < 0 else bytes(self._head[end + len(_END_OF_HEAD) :])
        if len(self._head) - len(rest) > _MOST_HEAD:
            raise HandshakeError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")
        used = data[: len(data) - len(rest)]
        requests: list[HttpRequest] = []
        try:
            for at in range(0, len(used), SLICE):
                requests += self._reader.feed(used[at : at + SLICE])
        except HttpError as error:
            raise HandshakeError(error.status, "the request is not valid") from None
        if end < 0:
            return None
        if not requests:
            raise HandshakeError(HTTPStatus.BAD_REQUEST, "a handshake has no body")
        return requests[0], rest


@dataclass(frozen=True, slots=True)
class DeflateOffer:
    """Parameters of permessage-deflate that a client offers and that can be used (RFC 7692, section 7.1).

    Attributes:
        server_window: greatest window of the server's compression in bits; None if the client sets no limit.
        client_window: whether the client lets the server limit the window of its compression.
    """

    server_window: int | None = None
    client_window: bool = False

    @property
    def answer(self) -> str:
        """The value of the response's field. Without context takeover an idle connection keeps no window in memory."""
        window = "" if self.server_window is None else f"; server_max_window_bits={self.server_window}"
        return f"permessage-deflate; server_no_context_takeover; client_no_context_takeover{window}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a handshake has agreed on.

    Attributes:
        request: the request.
        response: the whole response.
        script_name: the part of the path that the service is at; empty for the root.
        path_info: the rest of the path, decoded.
        protocol: the subprotocol; empty for none.
        deflate: the parameters of permessage-deflate; None without compression.
    """

    request: HttpRequest
    response: bytes
    script_name: str
    path_info: str
    protocol: str = ""
    deflate: DeflateOffer | None = None


@dataclass(frozen=True, slots=True)
class Negotiation:
    """What a service accepts in handshakes.

    Attributes:
        path: the path of the service, with those below it; empty for any path.
        origins: the web sites that may connect, `scheme://host[:port]` or `*` for all; empty for the same site only.
        protocols: the subprotocols; empty for none.
        deflate: whether to compress messages if the client offers it.
    """

    path: str = ""
    origins: frozenset[str] = field(default_factory=frozenset)
    protocols: tuple[str, ...] = ()
    deflate: bool = False

    def accept(self, request: HttpRequest) -> Agreement:
        """Accept a handshake.

        Raises:
            HandshakeError: it is refused.
        """
        if request.method != "GET":
            raise HandshakeError(HTTPStatus.METHOD_NOT_ALLOWED, "a handshake has the method GET", {"Allow": "GET"})
        try:
            host = authority(request).decode("latin-1").lower()
            path = "/" + "/".join(path_segments(request.target))
        except HttpError as error:
            raise HandshakeError(error.status, "the target is not valid") from None
        script_name, path_info = self._path(path)
        fields = {name: value.decode("latin-1") for name, value in request.fields.items()}
        key = _checked_key(request, fields)
        self._check_origin(host, fields)
        protocol = next((each for each in _words(fields, "sec-websocket-protocol") if each in self.protocols), "")
        deflate = _deflate_offer(fields.get(b"sec-websocket-extensions", "")) if self.deflate else None
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {_accept_key(key)}",
        ]
        if protocol:
            lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        if deflate is not None:
            lines.append(f"Sec-WebSocket-Extensions: {deflate.answer}")
        response = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        return Agreement(request, response, script_name, path_info, protocol, deflate)

    def _path(self, path: str) -> tuple[str, str]:
        """Return the path of the service and the rest of the request's path."""
        if not self.path:
            return "", path
        if path != self.path and not path.startswith(self.path.rstrip("/") + "/"):
            raise HandshakeError(HTTPStatus.NOT_FOUND, "no service has this path")
        return self.path.rstrip("/"), path[len(self.path.rstrip("/")) :]

    def _check_origin(self, host: str, fields: dict[bytes, str]) -> None:
        """Refuse pages of other web sites (section 10.2); clients that send no Origin are no browsers."""
        origin = fields.get(b"origin", "").lower()
        if not origin or "*" in self.origins or origin in self.origins:
            return
        # The scheme is not compared: in front of the service there may be a proxy that terminates TLS.
        if self.origins or origin.partition("://")[2] != host:
            raise HandshakeError(HTTPStatus.FORBIDDEN, "pages of this origin may not connect")


def _words(fields: dict[bytes, str], name: str) -> list[str]:
    """Return the elements of a list in a field, without blanks."""
    return [word.strip(" \t") for word in fields.get(name.encode(), "").split(",")]


def _checked_key(request: HttpRequest, fields: dict[bytes, str]) -> str:
    """Return the key of a handshake (section 4.2.1)."""
    upgrades = [word.lower() for word in _words(fields, "upgrade")]
    if "websocket" not in upgrades or "upgrade" not in [word.lower() for word in _words(fields, "connection")]:
        reason = "this service speaks WebSocket (RFC 6455)"
        raise HandshakeError(HTTPStatus.UPGRADE_REQUIRED, reason, {**_UPGRADE, "Sec-WebSocket-Version": _VERSION})
    if request.version != "1.1":
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "a handshake needs HTTP/1.1")
    if b"transfer-encoding" in fields or fields.get(b"content-length", "0") != "0":
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "a handshake has no body")
    if fields.get(b"sec-websocket-version") != _VERSION:
        more = {**_UPGRADE, "Sec-WebSocket-Version": _VERSION}
        raise HandshakeError(HTTPStatus.UPGRADE_REQUIRED, f"the version of WebSocket is {_VERSION}", more)
    key = fields.get(b"sec-websocket-key", "")
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != _KEY_BYTES:
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in base64")
    return key


def _accept_key(key: str) -> str:
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def _deflate_offer(value: str) -> DeflateOffer | None:
    """Return the first offer of permessage-deflate that can be used; others are declined (RFC 7692, section 7)."""
    for offer in value.split(","):
        name, *parameters = (part.strip(" \t") for part in offer.split(";"))
        if name == "permessage-deflate":
            found = _usable(parameters)
            if found is not None:
                return found
    return None


def _usable(parameters: list[str]) -> DeflateOffer | None:
    """Return an offer; None if a parameter is unknown, repeated, has an invalid value, or asks too little of zlib."""
    values: dict[str, str | None] = {}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if name in values:
            return None
        values[name] = value if equals else None
    window = values.pop("server_max_window_bits", "")
    limit = values.pop("client_max_window_bits", "")
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        if values.pop(name, None) is not None:
            return None
    if values or window is None or (limit and _window(limit) is None):
        return None
    if not window:
        return DeflateOffer(None, limit != "")
    bits = _window(window)
    return None if bits is None or bits < _LEAST_WINDOW else DeflateOffer(bits, limit != "")


def _window(value: str) -> int | None:
    """Return a window in bits; None if the value is not valid."""
    if not _WINDOW.fullmatch(value):
        return None
    bits = int(value.strip('"'))
    return bits if _LEAST_WINDOW - 1 <= bits <= _GREATEST_WINDOW else None
