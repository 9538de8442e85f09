"""HTTP/1.0 and 1.1 requests from bytes (RFC 9112).

`RequestReader.feed` takes bytes in pieces and returns the requests whose heads are complete; an empty list means that
more bytes are needed. It raises HttpError for invalid input. It holds at most the head of a request; the pieces of a
body are given to the RequestBody of the request.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools

from svcd.wire.request_body import RequestBody

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MOST_BODY",
    "MOST_FIELDS",
    "MOST_HEAD",
    "MOST_TARGET",
    "SLICE",
    "HttpError",
    "HttpLimits",
    "HttpRequest",
    "KnownHeads",
    "RequestReader",
    "authority",
    "is_served_name",
    "path_segments",
]

#: The longest request target in bytes; more is 414 (RFC 9112, section 3, asks for at least 8,000).
MOST_TARGET = 8192
#: The largest request head in bytes, and the most fields in it; more is 431 (RFC 6585, section 5).
MOST_HEAD = 32_768
MOST_FIELDS = 100
#: The largest body in bytes; more is 413.
MOST_BODY = 1_048_576
#: The maximum size of a piece for the parser, in bytes. It has at most 227 of the shortest requests.
SLICE = 4096
#: The same within a body of known length, which has no requests in it.
_MOST_BODY_SLICE = 65_536
#: The largest head that is kept in a KnownHeads, in bytes, and the number of heads.
_MOST_KNOWN_HEAD = 2048
_MOST_KNOWN_HEADS = 256

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
        fields: fields of the response.
    """

    def __init__(self, status: HTTPStatus, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status.value} {status.phrase}")
        self.status = status
        self.fields = fields or {}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """Request, whose body is delivered as it arrives.

    Attributes:
        method: the method as sent: methods are case-sensitive.
        target: the request target as sent (RFC 9112, section 3.2).
        fields: the values by name in lower case; values of a repeated field are joined by a comma (RFC 9110, section
            5.3).
        version: "1.0" or "1.1".
        keep_alive: whether the connection may stay open after the response.
        body: the body; None for a request without one.
        memo: what a handler keeps about this request, to find its response sooner: requests of the same bytes may be
            the same object.
    """

    method: str
    target: bytes
    fields: dict[bytes, bytes]
    version: str
    keep_alive: bool
    body: RequestBody | None = field(default=None, compare=False)
    memo: list[Any] = field(default_factory=list, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits on requests.

    Attributes:
        target: the length of the request target in bytes; more is 414.
        head: the size of the head in bytes; more is 431.
        fields: the number of fields in the head, and in trailers; more is 431.
        body: the size of the body in bytes; more is 413.
    """

    target: int = MOST_TARGET
    head: int = MOST_HEAD
    fields: int = MOST_FIELDS
    body: int = MOST_BODY


class KnownHeads:
    """Requests without a body by all their bytes: clients that send the same bytes again need no parser.

    The oldest entries are dropped if there are too many.
    """

    def __init__(self) -> None:
        self._requests: dict[bytes, HttpRequest] = {}
        self.get = self._requests.get

    def add(self, data: bytes, request: HttpRequest) -> None:
        """Add the request that a parser has made from bytes, unless it has a body or they are many."""
        if request.body is None and len(data) <= _MOST_KNOWN_HEAD:
            self._requests[data] = request
            if len(self._requests) > _MOST_KNOWN_HEADS:
                del self._requests[next(iter(self._requests))]


class RequestReader:
    """Parser of the requests of a connection; see the docstring of the module.

    Args:
        limits: the limits on requests.
        known: requests that were parsed before, of any connections; None to parse all.

    Attributes:
        begun: whether an incomplete request has begun.
        body_bytes: the number of bytes of its body that were read.
        failed_head: whether the invalid request has the method HEAD, so that its response has no content.
    """

    def __init__(self, limits: HttpLimits | None = None, known: KnownHeads | None = None) -> None:
        self._limits = limits or HttpLimits()
        self._known = known
        self._done: list[HttpRequest] = []
        self._error: HTTPStatus | None = None
        self.failed_head = False
        # Whether all further input is an error; bytes that follow a request for an upgrade, which are not parsed yet.
        self._ended = False
        self._rest = b""
        # Whether the parser ends with the head of a request that has a body; whether it reads a head that was made so
        # that it reads this body.
        self._ends_early = self._is_reframed = False
        self._body: RequestBody | None = None
        # Whether a body has ended within this call of feed().
        self._has_ended_body = False
        self._remaining = 0
        # The parser; None until it is needed.
        self._parser: Any = None
        self.on_message_begin()
        self.begun = False

    def feed(self, data: bytes) -> list[HttpRequest]:
        """Read the next bytes.

        Args:
            data: at most `room` bytes.

        Returns:
            The requests whose heads these bytes complete, in order; their bodies get what has arrived of them. A
            request for an upgrade is the last one: what follows it is read by the next call.

        Raises:
            HttpError: invalid input; requests before it are returned first, and the next call raises.
        """
        known = self._known
        if known is None or self.begun or self._ended or self._rest or self._error is not None:
            return self._feed(data)
        request = known.get(data)
        if request is not None:
            self._ended = not request.keep_alive
            return [request]
        requests = self._feed(data)
        # The parser must be between requests again.
        if len(requests) == 1 and not (self.begun or self._rest or self._is_upgrade or self._error is not None):
            known.add(data, requests[0])
        return requests

    def _feed(self, data: bytes) -> list[HttpRequest]:
        self._has_ended_body = False
        if self._error is None:
            data, self._rest = self._rest + data, b""
            self._read(data)
        if self._done:
            done, self._done = self._done, []
            return done
        if self._has_ended_body:
            # The end of the body is handled before the error after it.
            return []
        if self._error is not None:
            raise HttpError(self._error)
        return []

    @property
    def ready(self) -> bool:
        """Whether feed() has something to do even without more bytes."""
        return self._error is not None or bool(self._rest)

    @property
    def ended(self) -> bool:
        """Whether the last request ends the connection, so that all further bytes are an error."""
        return self._ended

    @property
    def room(self) -> int:
        """The maximum size of the data for the next call of feed(), in bytes."""
        return min(max(self._remaining, SLICE), _MOST_BODY_SLICE)

    def take_rest(self) -> bytes:
        """Return the bytes after a request for an upgrade, which will not be read as HTTP."""
        rest, self._rest = self._rest, b""
        self._ended = True
        return rest

    def _read(self, data: bytes) -> None:
        if self._ended and data:
            self._fail(HTTPStatus.BAD_REQUEST)
            return
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        self._uncounted += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            self._parser = httptools.HttpRequestParser(self)
            if self._body is None:
                # An Upgrade field may be ignored (RFC 9110, section 7.8): HTTP/1 may follow, after the response.
                self._ended = self._ended or not self._keep_alive
                self._rest = rest
            else:
                self._reframe(self._body, rest)
            return
        except httptools.HttpParserError:
            self._fail(HTTPStatus.BAD_REQUEST)
            return
        # The parser buffers an incomplete field without a callback, in the head and in trailers, so the bytes that it
        # gets are counted, too.
        if self._error is None and self._uncounted > self._limits.head:
            in_target = not self._fields and len(self._target) > self._limits.target
            self._fail(HTTPStatus.REQUEST_URI_TOO_LONG if in_target else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _reframe(self, body: RequestBody, rest: bytes) -> None:
        """Read the body of a request for an upgrade: the parser ends with the head of such a request."""
        framing = b"Transfer-Encoding: chunked" if body.length is None else b"Content-Length: %d" % body.length
        self._ends_early = False
        self._is_reframed = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        self._is_reframed = False
        self._uncounted = 0
        if rest:
            self._read(rest)

    # Callbacks of httptools. An exception would end the parser and lose its reason, hence _error.

    def on_message_begin(self) -> None:
        """Reset the state for a new request."""
        if self._is_reframed:
            return
        self._target = b""
        self._fields: dict[bytes, bytes] = {}
        self._field_count = 0
        self._field_bytes = 0
        self._uncounted = 0
        self.body_bytes = 0
        self._keep_alive = True
        self._is_upgrade = self._ends_early = False
        self.begun = True

    def on_url(self, piece: bytes) -> None:
        """Append a piece of the request target."""
        if self._is_reframed:
            return
        self._target += piece
        if len(self._target) > self._limits.target:
            self._fail(HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a complete field; count and drop those of trailers (RFC 9110, section 6.5)."""
        if self._is_reframed:
            return
        self._field_count += 1
        self._field_bytes += len(name) + len(value) + len(": \r\n")
        if self._field_count > self._limits.fields or self._field_bytes > self._limits.head:
            self._fail(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if self._body is not None:
            return
        name, value = name.lower(), value.strip(b" \t")
        if name in self._fields:
            if name == b"host":
                # Repeated Host fields are used for request smuggling; the status must be 400 (RFC 9112, section 3.2).
                self._fail(HTTPStatus.BAD_REQUEST)
            value = self._fields[name] + b", " + value
        self._fields[name] = value

    def on_headers_complete(self) -> None:
        """Check the complete head, and store the request."""
        if self._is_reframed:
            return
        self._uncounted = 0
        parser = self._parser
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._fail(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        host = self._fields.get(b"host")
        if (version == "1.1") if host is None else not _is_host(host):
            # A request without a valid Host field must get 400 (RFC 9112, section 3.2).
            self._fail(HTTPStatus.BAD_REQUEST)
        body = self._begin_body(version)
        if self._error is not None:
            return
        method = parser.get_method().decode("ascii")
        # The parser takes Proxy-Connection for Connection. A proxy that does not know the field passes it on and waits
        # for the end of the connection (RFC 9112, appendix C.2.2). The bytes after CONNECT are never HTTP (RFC 9110,
        # section 9.3.6).
        ends = (version == "1.0" and b"connection" not in self._fields) or method == "CONNECT"
        self._keep_alive = parser.should_keep_alive() and not ends
        self._is_upgrade = parser.should_upgrade()
        self._ends_early = self._is_upgrade and body is not None
        self._body = body
        self._done.append(HttpRequest(method, self._target, self._fields, version, self._keep_alive, body))

    def _begin_body(self, version: str) -> RequestBody | None:
        """Return the body that a head announces; None if it announces none."""
        fields = self._fields
        coding, size = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        length: int | None = None
        if coding is not None:
            self._check_codings(coding, version)
            if size is not None:
                # Another recipient may find another end of the body (RFC 9112, section 6.3).
                self._fail(HTTPStatus.BAD_REQUEST)
        elif size is None:
            return None
        elif not size.isdigit():
            self._fail(HTTPStatus.BAD_REQUEST)
        else:
            length = int(size)
            if length == 0:
                return None
            if length > self._limits.body:
                self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._remaining = length or 0
        expectation = fields.get(b"expect", b"").lower()
        if expectation not in (b"", b"100-continue"):
            self._fail(HTTPStatus.EXPECTATION_FAILED)
        # An expectation of HTTP/1.0 must be ignored (RFC 9110, section 10.1.1).
        return RequestBody(length, expects_continue=bool(expectation) and version != "1.0")

    def _check_codings(self, coding: bytes, version: str) -> None:
        """Check Transfer-Encoding: no other coding than chunked is known."""
        *others, last = (each.strip() for each in coding.lower().split(b","))
        if version == "1.0" or last != b"chunked" or last in others:
            # It must be taken for a fault of the framing (RFC 9112, sections 6.1 and 6.3).
            self._fail(HTTPStatus.BAD_REQUEST)
        elif others:
            # Coded content would be taken for the content itself.
            self._fail(HTTPStatus.NOT_IMPLEMENTED)

    def on_body(self, piece: bytes) -> None:
        """Add a piece to the body."""
        self._uncounted = 0
        self.body_bytes += len(piece)
        self._remaining = max(self._remaining - len(piece), 0)
        if self.body_bytes > self._limits.body:
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif self._body is not None and self._error is None:
            self._body.add(piece)

    def on_message_complete(self) -> None:
        """End the body."""
        if self._ends_early:
            return
        self.begun = False
        self._uncounted = 0
        if self._error is None:
            # The parser heeds Connection in trailers, too.
            self._ended = not (self._keep_alive and self._parser.should_keep_alive())
            body, self._body = self._body, None
            if body is not None:
                self._has_ended_body = True
                body.end(whole=True)

    def _fail(self, status: HTTPStatus) -> None:
        if self._error is not None:
            return
        self._error = status
        self.failed_head = self.begun and bool(self._target) and self._parser.get_method() == b"HEAD"
        if self._body is not None:
            self._body.end(whole=False)
            if self._done and self._done[-1].body is self._body:
                # Its handler has not seen it yet.
                self._done.pop()


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
