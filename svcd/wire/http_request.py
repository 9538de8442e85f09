"""HTTP/1.0 and 1.1 requests from bytes (RFC 9112), and response heads to bytes.

`RequestReader.feed` takes bytes in pieces and returns the complete requests; an empty list means that more bytes are
needed. It raises HttpError for invalid input. It holds at most MOST_HEAD bytes of a request; bodies are counted and
dropped, since no service uses them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

import httptools

__all__ = [
    "MOST_BODY",
    "MOST_FIELDS",
    "MOST_HEAD",
    "MOST_TARGET",
    "SLICE",
    "HttpError",
    "HttpRequest",
    "RequestReader",
    "authority",
    "head",
    "is_served_name",
    "path_segments",
]

#: The longest request target in bytes; more is 414 (RFC 9112, section 3, asks for at least 8,000).
MOST_TARGET = 8192
#: The largest request head in bytes, and the most fields in it; more is 431 (RFC 6585, section 5).
MOST_HEAD = 32_768
MOST_FIELDS = 100
#: The largest body that is read and dropped, in bytes; more is 413.
MOST_BODY = 1_048_576
#: The maximum size of a piece for the parser, in bytes. It has at most 227 of the shortest requests.
SLICE = 4096


#: A Host field: uri-host [ ":" port ] (RFC 9110, section 7.2; RFC 3986, section 3.2.2). It may be empty.
_HOST = re.compile(
    rb"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|\[[vV][0-9A-Fa-f]+\.[-A-Za-z0-9._~!$&'()*+,;=:]+\]"
    rb"|(?:[-A-Za-z0-9._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)
#: The number of Host fields in the cache of checked fields; clients use few different ones.
_KNOWN_HOSTS = 64


class HttpError(Exception):
    """Error: an invalid request. The response has a status, and the connection is closed after it.

    Args:
        status: the status of the response.
    """

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(f"{status.value} {status.phrase}")
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """Request without its body.

    Attributes:
        method: the method as sent: methods are case-sensitive.
        target: the request target as sent (RFC 9112, section 3.2).
        fields: the values by name in lower case; values of a repeated field are joined by a comma (RFC 9110, section
            5.3).
        version: "1.0" or "1.1".
        keep_alive: whether the connection may stay open after the response.
    """

    method: str
    target: bytes
    fields: dict[bytes, bytes]
    version: str
    keep_alive: bool


class RequestReader:
    """Parser of the requests of a connection; see the docstring of the module.

    Attributes:
        begun: whether an incomplete request has begun.
        body_bytes: the number of bytes of its body that were read.
    """

    def __init__(self) -> None:
        self._done: list[HttpRequest] = []
        self._error: HTTPStatus | None = None
        # Whether another request may follow the last request; whether all further input is an error.
        self._keep_alive = True
        self._ended = False
        self._parser = httptools.HttpRequestParser(self)
        self.on_message_begin()
        self.begun = False

    def feed(self, data: bytes) -> list[HttpRequest]:
        """Read the next bytes.

        Args:
            data: at most SLICE bytes.

        Returns:
            The requests that these bytes complete, in order.

        Raises:
            HttpError: invalid input; requests before it are returned first, and the next call raises.
        """
        if self._error is None:
            self._read(data)
        if self._done:
            done, self._done = self._done, []
            return done
        if self._error is not None:
            raise HttpError(self._error)
        return []

    @property
    def failed(self) -> bool:
        """Whether the next call of feed() raises, even without more bytes."""
        return self._error is not None

    def _read(self, data: bytes) -> None:
        if self._ended and data:
            self._error = HTTPStatus.BAD_REQUEST
            return
        self._uncounted += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An Upgrade field may be ignored (RFC 9110, section 7.8): HTTP/1 follows. The parser does not read the body
            # of a request with this field; the body must not be parsed as a request, so such a request is the last.
            self._ended = not self._keep_alive
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            self.on_message_begin()
            self.begun = False
            if rest:
                self._read(rest)
            return
        except httptools.HttpParserError:
            if self._error is None:
                self._error = HTTPStatus.BAD_REQUEST
            return
        # The parser buffers an incomplete field without a callback, in the head and in trailers, so the bytes that it
        # gets are counted, too.
        if self._error is None and self._uncounted > MOST_HEAD:
            in_target = not self._fields and len(self._target) > MOST_TARGET
            self._error = HTTPStatus.REQUEST_URI_TOO_LONG if in_target else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

    # Callbacks of httptools. An exception would end the parser and lose its reason, hence _error.

    def on_message_begin(self) -> None:
        """Reset the state for a new request."""
        self._target = b""
        self._fields: dict[bytes, bytes] = {}
        self._field_count = 0
        self._field_bytes = 0
        self._uncounted = 0
        self.body_bytes = 0
        self.begun = True

    def on_url(self, piece: bytes) -> None:
        """Append a piece of the request target."""
        self._target += piece
        if len(self._target) > MOST_TARGET:
            self._fail(HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a complete field."""
        self._field_count += 1
        self._field_bytes += len(name) + len(value) + len(": \r\n")
        if self._field_count > MOST_FIELDS or self._field_bytes > MOST_HEAD:
            self._fail(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        name, value = name.lower(), value.strip(b" \t")
        if name in self._fields:
            if name == b"host":
                # Repeated Host fields are used for request smuggling; the status must be 400 (RFC 9112, section 3.2).
                self._fail(HTTPStatus.BAD_REQUEST)
            value = self._fields[name] + b", " + value
        self._fields[name] = value

    def on_headers_complete(self) -> None:
        """Check the complete head."""
        self._uncounted = 0
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._fail(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        host = self._fields.get(b"host")
        if (version == "1.1") if host is None else not _is_host(host):
            # A request without a valid Host field must get 400 (RFC 9112, section 3.2).
            self._fail(HTTPStatus.BAD_REQUEST)
        if b"transfer-encoding" in self._fields:
            self._check_codings(version)
        if b"expect" in self._fields and self._has_body():
            # With Expect: 100-continue the client waits before it sends the body (RFC 9110, section 10.1.1).
            self._fail(HTTPStatus.EXPECTATION_FAILED)

    def _check_codings(self, version: str) -> None:
        """Check what the parser does not check of Transfer-Encoding: it checks that the last coding is chunked."""
        *others, last = (each.strip() for each in self._fields[b"transfer-encoding"].lower().split(b","))
        if version == "1.0":
            # It must be taken for a fault of the framing (RFC 9112, section 6.1).
            self._fail(HTTPStatus.BAD_REQUEST)
        elif others and last == b"chunked" and last not in others:
            # Coded content would be taken for the content itself.
            self._fail(HTTPStatus.NOT_IMPLEMENTED)

    def on_body(self, piece: bytes) -> None:
        """Count a piece of a body and drop it."""
        self._uncounted = 0
        self.body_bytes += len(piece)
        if self.body_bytes > MOST_BODY:
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def on_message_complete(self) -> None:
        """Store the complete request."""
        self.begun = False
        if self._error is None:
            parser = self._parser
            method = parser.get_method().decode("ascii")
            # The parser takes Proxy-Connection for Connection. A proxy that does not know the field passes it on and
            # waits for the end of the connection (RFC 9112, appendix C.2.2).
            is_old = parser.get_http_version() == "1.0" and b"connection" not in self._fields
            ends = is_old or method == "CONNECT" or (parser.should_upgrade() and self._has_body())
            self._keep_alive = parser.should_keep_alive() and not ends
            self._done.append(
                HttpRequest(method, self._target, self._fields, parser.get_http_version(), self._keep_alive)
            )
        self._uncounted = 0

    def _has_body(self) -> bool:
        return b"transfer-encoding" in self._fields or self._fields.get(b"content-length", b"0") != b"0"

    def _fail(self, status: HTTPStatus) -> None:
        if self._error is None:
            self._error = status


@lru_cache(_KNOWN_HOSTS)
def _is_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    try:
        if match["six"]:
            ipaddress.IPv6Address(match["six"].decode())
    except ValueError:
        return False
    return True


def authority(request: HttpRequest) -> bytes:
    """Return the host of a request, with the port if it has one: that of its target, else of its Host field.

    Raises:
        HttpError: 400, the target has an invalid host.
    """
    if request.target.startswith(b"/"):
        return request.fields.get(b"host", b"")
    # The absolute form overrides the Host field (RFC 9112, section 3.2.2).
    found = re.split(rb"[/?#]", request.target.partition(b"://")[2], maxsplit=1)[0]
    if not _is_host(found):
        raise HttpError(HTTPStatus.BAD_REQUEST)
    return found


def path_segments(target: bytes) -> list[str]:
    """Return the decoded path segments of a request target; the last is empty for a directory.

    The query is dropped, repeated slashes count as a single slash, and `.` segments are removed.

    Raises:
        HttpError: 400 for a path that is invalid or leaves the root: no leading slash, a bad percent escape, NUL or
            another control character, a backslash, a slash encoded as %2f, `..`, bytes that are not UTF-8.
    """
    bad = HttpError(HTTPStatus.BAD_REQUEST)
    target = target.partition(b"?")[0].partition(b"#")[0]
    if not target.startswith(b"/"):
        # The absolute form, which a server must take as well (RFC 9112, section 3.2.2).
        scheme, _, rest = target.partition(b"://")
        host, _, path = rest.partition(b"/")
        # An empty host, or userinfo before it, must be refused (RFC 9110, sections 4.2.1 and 4.2.4).
        if scheme.lower() not in (b"http", b"https") or not host or not _is_host(host):
            raise bad
        target = b"/" + path
    segments = []
    for raw in target.split(b"/")[1:]:
        first, *escaped = raw.split(b"%")
        try:
            decoded = first + b"".join(bytes.fromhex(_two_digits(part)) + part[2:] for part in escaped)
            text = decoded.decode("utf-8")
        except ValueError:
            raise bad from None
        if text == ".." or not is_served_name(text):
            raise bad
        segments.append(text)
    last = "" if segments[-1] == "." else segments[-1]
    return [segment for segment in segments[:-1] if segment not in ("", ".")] + [last]


def is_served_name(name: str) -> bool:
    """Return whether a segment of a path may be the name of a file that is served."""
    # A file name that is not UTF-8 has surrogates (PEP 383).
    return not any(each in "/\\\x7f" or each < " " or "\ud800" <= each <= "\udfff" for each in name)


def _two_digits(part: bytes) -> str:
    digits = part[:2]
    if len(digits) != 2 or not digits.isalnum():
        raise ValueError(part)
    return digits.decode("ascii")


def head(status: HTTPStatus, fields: dict[str, str], *, keep_alive: bool) -> bytes:
    """Return the head of a response, with its blank line.

    Args:
        status: the code and phrase of the status line.
        fields: names and values, in latin-1 and without line ends; values from a client must not be passed.
        keep_alive: whether the connection stays open. The head has a Connection field in both cases, which HTTP/1.0
            clients need.
    """
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
