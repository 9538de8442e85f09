"""Responses of CGI programs from bytes (RFC 3875, section 6).

`CgiHeadReader.feed` takes the output of a program in pieces and returns the head once it is complete; None means that
more bytes are needed. It raises CgiError for output that is no CGI response. It holds at most MOST_CGI_HEAD bytes, and
the rest of the piece that completes the head.

Deviations from the RFC, each for programs that are in use: a field may have any value that HTTP allows, not only ASCII;
a Location field with a path and other fields is a redirect by the client, as it is with a Status field (the RFC forbids
the other fields); a Content-Type is not required with content, since HTTP does not require it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

__all__ = ["MOST_CGI_FIELDS", "MOST_CGI_HEAD", "CgiError", "CgiHead", "CgiHeadReader"]

#: The largest head of a program's response in bytes, and the most fields in it.
MOST_CGI_HEAD = 32_768
MOST_CGI_FIELDS = 100

#: The number of heads that are kept with their values, and the size of the largest: programs write the same ones again.
_KNOWN_HEADS = 128
_KNOWN_HEAD_SIZE = 512

#: A field line (RFC 3875, section 6.3): no blank before the colon, no control characters in the value, no line folding.
_FIELD = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
#: status-code [ SP reason-phrase ] (section 6.3.3). The server sends no interim responses for a program.
_STATUS = re.compile(rb"([2-5][0-9][0-9])(?: +(.*))?")
_DIGITS = re.compile(rb"[0-9]{1,18}")
#: A Location that names a scheme (RFC 3986, section 3.1) is a redirect by the client (section 6.2.3).
_ABSOLUTE = re.compile(rb"[A-Za-z][-A-Za-z0-9+.]*:")
#: An empty line ends the head; a line ends with LF or CRLF (section 6.2, NL in section 2.2).
_END = re.compile(rb"(?:^|\n)\r?\n")

#: The fields of which a response has at least one, and each at most once (section 6.3).
_CGI_FIELDS = frozenset({b"content-type", b"location", b"status"})
_ONCE = _CGI_FIELDS | {b"content-length"}
#: Fields about the connection, which are the server's business (section 6.3.4), and those that the server adds itself.
_SERVERS = frozenset({
    b"connection", b"date", b"keep-alive", b"proxy-connection", b"server", b"te", b"trailer", b"transfer-encoding",
    b"upgrade",
})  # fmt: skip
#: Fields for the server (section 6.3.5), which has no use for them.
_EXTENSION = b"x-cgi-"


class CgiError(Exception):
    """Error: the output of a program is no CGI response. The text is for the log."""


@dataclass(frozen=True, slots=True)
class CgiHead:
    """Head of a program's response.

    Attributes:
        status: the code.
        reason: the reason phrase, in latin-1; empty for the usual one.
        fields: the header fields for the client, in the order of the program, names and values in latin-1.
        content_length: the number of bytes of the content, if the program says it.
        local_target: path and query of a local redirect (section 6.2.2); empty for all other responses.
    """

    status: int
    reason: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    content_length: int | None = None
    local_target: bytes = b""

    @property
    def has_content(self) -> bool:
        """Whether a response with this status may have content (RFC 9110, sections 15.3.5 and 15.4.5)."""
        return self.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class CgiHeadReader:
    """Parser of the head of a program's response; see the docstring of the module.

    Attributes:
        rest: the content that was received with the end of the head.
    """

    def __init__(self) -> None:
        self._data = b""
        self.rest = b""

    def feed(self, data: bytes) -> CgiHead | None:
        """Read the next bytes.

        Returns:
            The head if it is complete; feed() must not be called after that.

        Raises:
            CgiError: the output is no CGI response, or its head is too large.
        """
        # The end of the head may begin with the last bytes of the data before.
        start = max(0, len(self._data) - 2)
        self._data += data
        found = _END.search(self._data, start) if start else _END.match(self._data) or _END.search(self._data)
        if (len(self._data) if found is None else found.end()) > MOST_CGI_HEAD:
            raise CgiError(f"the header of its response is larger than {MOST_CGI_HEAD} bytes")
        if found is None:
            return None
        self.rest = self._data[found.end() :]
        data = self._data[: found.start()]
        return _known_head(data) if len(data) <= _KNOWN_HEAD_SIZE else _head(data)

    def end(self) -> CgiError:
        """Return the error of output that ended before the head was complete."""
        return CgiError("it ended within the header of its response" if self._data else "it ended without a response")


@lru_cache(_KNOWN_HEADS)
def _known_head(data: bytes) -> CgiHead:
    """Return the head that a program has most likely written before."""
    return _head(data)


def _head(data: bytes) -> CgiHead:
    lines = data.split(b"\n") if data else []
    if len(lines) > MOST_CGI_FIELDS:
        raise CgiError(f"its response has more than {MOST_CGI_FIELDS} header fields")
    fields: list[tuple[str, str]] = []
    known: dict[bytes, bytes] = {}
    for line in lines:
        match = _FIELD.fullmatch(line.removesuffix(b"\r"))
        if match is None:
            raise CgiError(f"its response has an invalid header line: {line[:80]!r}")
        name, value = match[1].lower(), match[2]
        if name in _ONCE:
            if name in known:
                raise CgiError(f"its response has two {match[1].decode()} fields")
            known[name] = value
        if name not in _SERVERS and name != b"status" and not name.startswith(_EXTENSION):
            fields.append((match[1].decode("ascii"), value.decode("latin-1")))
    if not _CGI_FIELDS & known.keys():
        raise CgiError("its response has neither a Content-Type nor a Location nor a Status field")
    return _checked(known, fields)


def _checked(known: dict[bytes, bytes], fields: list[tuple[str, str]]) -> CgiHead:
    """Return the head; check the fields that have a meaning for the server."""
    length = known.get(b"content-length")
    if length is not None and not _DIGITS.fullmatch(length):
        raise CgiError(f"its response has an invalid Content-Length: {length[:80]!r}")
    location = known.get(b"location")
    status, reason = HTTPStatus.OK.value, ""
    if b"status" in known:
        match = _STATUS.fullmatch(known[b"status"])
        if match is None:
            raise CgiError(f"its response has an invalid Status: {known[b'status'][:80]!r}")
        status, reason = int(match[1]), (match[2] or b"").decode("latin-1")
    elif location is not None:
        if location.startswith(b"/") and len(fields) == 1:
            return CgiHead(status, local_target=location)
        status = HTTPStatus.FOUND.value
    if location is not None and not (location.startswith(b"/") or _ABSOLUTE.match(location) or b"status" in known):
        raise CgiError(f"its response has a Location that is neither a path nor a URL: {location[:80]!r}")
    return CgiHead(status, reason, tuple(fields), None if length is None else int(length))
