"""HTTP/1.0 and 1.1 responses from bytes (RFC 9112).

`ResponseReader.feed` takes bytes in pieces of any size and returns their content: the Head of the response when it is
complete, then pieces of its body without their framing; an empty list means that more bytes are needed. `close` marks
the end of the input. Both raise ResponseError for an invalid or incomplete response. A reader holds at most twice
MOST_HEAD bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

__all__ = ["MOST_HEAD", "Head", "ResponseError", "ResponseReader"]

#: The largest head in bytes, and the largest framing between pieces of the body: extensions of chunks, trailers.
MOST_HEAD = 65_536
#: The size of a piece for the parser, in bytes, so that the parser holds little more than MOST_HEAD.
_SLICE = 4096


class ResponseError(Exception):
    """Error: an invalid or incomplete HTTP response; the text has the reason."""


@dataclass(frozen=True, slots=True)
class Head:
    """Head of a response.

    Attributes:
        version: "1.0" or "1.1".
        status: the status code, at least 200: interim responses are skipped.
        reason: the reason phrase; it may be empty.
        fields: names and values as sent, in their order.
    """

    version: str
    status: int
    reason: bytes
    fields: tuple[tuple[bytes, bytes], ...]

    def field(self, name: bytes) -> bytes | None:
        """Return the first value of a field, given its name in lower case; None if there is none."""
        return next((value for key, value in self.fields if key.lower() == name), None)

    def __bytes__(self) -> bytes:
        """Return the head as sent, with CRLF as line ends and with the blank line."""
        lines = [b"HTTP/%s %d %s" % (self.version.encode(), self.status, self.reason)]
        lines += [name + b": " + value for name, value in self.fields]
        return b"".join(line + b"\r\n" for line in [*lines, b""])


class ResponseReader:
    """Parser of a single response; see the docstring of the module.

    Args:
        bodiless: whether the response has no body regardless of its head, as for HEAD.

    Attributes:
        done: whether the response is complete; bytes after it are not read.
    """

    def __init__(self, *, bodiless: bool = False) -> None:
        self.done = False
        self._bodiless = bodiless
        self._head: Head | None = None
        self._found: list[Head | bytes] = []
        self._error = ""
        self._received = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._reason = b""
        self._uncounted = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> list[Head | bytes]:
        """Read the next bytes.

        Raises:
            ResponseError: the bytes are invalid.
        """
        left = memoryview(data)
        while left and not self.done:
            size = _SLICE if self._head is None else MOST_HEAD
            piece, left = left[:size], left[size:]
            self._uncounted += len(piece)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                self._error = self._error or "the server changes the protocol without a request for it"
            except httptools.HttpParserError as error:
                if not self.done:
                    self._error = self._error or f"the answer is not HTTP: {error}"
            if self._uncounted > MOST_HEAD and not self.done:
                self._error = self._error or f"more than {MOST_HEAD} bytes in the response header"
            if self._error:
                raise ResponseError(self._error)
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Handle the end of the input.

        Raises:
            ResponseError: the response is incomplete.
        """
        if self.done:
            return
        if self._head is None:
            where = "within the response header" if self._uncounted else "without an answer"
            raise ResponseError(f"the server has closed the connection {where}")
        length = self._head.field(b"content-length")
        if length is not None:
            text = length.decode("latin-1")
            raise ResponseError(f"the server has closed the connection after {self._received} of {text} bytes")
        if self._head.field(b"transfer-encoding") is not None:
            raise ResponseError(
                f"the server has closed the connection within the chunked body, after {self._received} bytes"
            )
        self.done = True

    # Callbacks of httptools. An exception would end the parser and lose its reason, hence _error.

    def on_message_begin(self) -> None:
        """Reset the state for a response; an interim response may precede it."""
        if not self.done:
            self._fields, self._reason = [], b""

    def on_status(self, piece: bytes) -> None:
        """Append a piece of the reason phrase."""
        self._reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a complete field; drop trailers."""
        if self._head is None:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Add the complete head to the result, unless the response is interim."""
        status = self._parser.get_status_code()
        if self.done or status < 200:
            return
        version = self._parser.get_http_version()
        self._head = Head(version, status, self._reason, tuple(self._fields))
        self._found.append(self._head)
        self._uncounted = 0
        self.done = self._bodiless

    def on_body(self, piece: bytes) -> None:
        """Add a piece of the body to the result."""
        self._uncounted = 0
        if not self.done:
            self._received += len(piece)
            self._found.append(piece)

    def on_message_complete(self) -> None:
        """Mark the response as complete unless it is an interim response."""
        if self._head is not None:
            self.done = True
