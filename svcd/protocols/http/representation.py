"""Responses with a file: conditional requests and byte ranges (RFC 9110, sections 13 and 14).

A Representation is made from a file at one moment, and stays the same: it may be kept and used for many requests.
"""

from __future__ import annotations

import email.utils
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from svcd.protocols.http.response import Response, error_response
from svcd.wire.http_conditions import failed_precondition, range_applies
from svcd.wire.http_ranges import content_range, multipart, parse_ranges, unsatisfied_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from svcd.protocols.http.response import Body
    from svcd.wire.http_conditions import Validators
    from svcd.wire.http_ranges import ByteRange
    from svcd.wire.http_request import HttpRequest

__all__ = ["Content", "Representation"]

#: The fields of a 304 response, if the 200 response has them (RFC 9110, section 15.4.5).
_OF_304 = ("Cache-Control", "ETag", "Vary")


class Content(Protocol):
    """The bytes of a representation: in memory, or in an open file."""

    def take(self, pieces: Sequence[bytes | ByteRange]) -> tuple[bytes, Body | None]:
        """Return the content and the body of a response. Called at most once for a file.

        Args:
            pieces: bytes to send as they are, and ranges of this content.
        """


class Representation:
    """A representation of a resource.

    Args:
        fields: the fields of the 200 response that do not depend on the request: at least Content-Type.
        validators: its validators.
        length: its number of bytes.

    Attributes:
        whole: the 200 response, once it was made, if it may be returned again.
        not_modified: the 304 response, once it was made.
    """

    __slots__ = ("_fields", "_length", "_validators", "not_modified", "whole")

    def __init__(self, fields: Mapping[str, str], validators: Validators, length: int) -> None:
        self._validators = validators
        self._length = length
        self._fields = {
            **fields,
            "ETag": validators.etag.decode("latin-1"),
            "Last-Modified": email.utils.formatdate(validators.modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        # The same objects are returned for each request, since the server keeps the encoded head with a Response.
        self.whole: Response | None = None
        self.not_modified: Response | None = None

    def respond(self, request: HttpRequest, content: Content) -> Response:
        """Return the response to a GET or HEAD request.

        Args:
            request: the request.
            content: the content; not taken for a response without it.
        """
        fields = request.fields
        status = failed_precondition(fields, self._validators)
        if status is HTTPStatus.NOT_MODIFIED:
            return self._without_change()
        if status is not None:
            return error_response(status)
        # Range is defined for GET only (RFC 9110, section 14.2).
        if b"range" in fields and request.method == "GET" and range_applies(fields, self._validators):
            ranges = parse_ranges(fields[b"range"], self._length)
            if ranges is not None:
                return self._partial(ranges, content)
        return self._complete(content)

    def _without_change(self) -> Response:
        response = self.not_modified
        if response is None:
            fields = {name: self._fields[name] for name in _OF_304 if name in self._fields}
            response = self.not_modified = Response(HTTPStatus.NOT_MODIFIED, fields)
        return response

    def _complete(self, content: Content) -> Response:
        if self.whole is not None:
            return self.whole
        data, body = content.take([(0, self._length)])
        response = Response(HTTPStatus.OK, {**self._fields, "Content-Length": str(self._length)}, data, body)
        if body is None:
            self.whole = response
        return response

    def _partial(self, ranges: Sequence[ByteRange], content: Content) -> Response:
        if not ranges:
            response = error_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            response.fields["Content-Range"] = unsatisfied_range(self._length)
            return response
        pieces: list[bytes | ByteRange]
        fields = dict(self._fields)
        if len(ranges) == 1:
            pieces = [ranges[0]]
            fields["Content-Range"] = content_range(ranges[0], self._length)
        else:
            # Not to be guessed by the author of the file, so that a part can't end early.
            boundary = secrets.token_hex(12)
            pieces = list(multipart(ranges, self._length, fields["Content-Type"], boundary))
            fields["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        length = sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        data, body = content.take(pieces)
        return Response(HTTPStatus.PARTIAL_CONTENT, {**fields, "Content-Length": str(length)}, data, body)
