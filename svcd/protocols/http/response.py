"""HTTP responses, their bodies, and the interface of handlers that make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from http import HTTPStatus

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress

    from svcd.interfaces import DescriptorCounter
    from svcd.wire.http_request import HttpRequest

__all__ = ["Body", "Handler", "Response", "error_response", "text_response"]


class Body(Protocol):
    """A response body that is sent piece by piece, as the client takes it."""

    @property
    def uncounted(self) -> bool:
        """Whether the body has a descriptor that is not counted yet."""
        ...

    def count(self, budget: DescriptorCounter, /) -> None:
        """Take over a reserved place in the budget, and release it when the descriptor of the body is closed."""
        ...

    def read(self) -> bytes:
        """Return the next piece, of at most 64 KiB; empty at the end.

        Raises:
            OSError: the rest can't be read. The connection is aborted, so that the client notices the truncation.
        """
        ...

    def close(self) -> None:
        """Release all resources. Called exactly once."""
        ...


@dataclass(slots=True)
class Response:
    """A response.

    Attributes:
        status: the status code.
        fields: the header fields. Content-Length is required; Date, Server and Connection are added.
        content: a body in memory.
        body: a body that is sent piece by piece after `content`; None for none.
    """

    status: HTTPStatus
    fields: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    body: Body | None = None


class Handler(Protocol):
    """An object that responds to requests."""

    def respond(self, request: HttpRequest, peer: IAddress) -> Response | Deferred[Response]:
        """Return the response to a GET or HEAD request.

        Raises:
            HttpError: the response is an error with this status.
        """
        ...


def text_response(status: HTTPStatus, content_type: str, text: str) -> Response:
    """Return a response with a text, in UTF-8."""
    content = text.encode()
    fields = {"Content-Type": f"{content_type}; charset=utf-8", "Content-Length": str(len(content))}
    return Response(status, fields, content)


def error_response(status: HTTPStatus) -> Response:
    """Return a response with the status as text, without details about the server."""
    return text_response(status, "text/plain", f"{status.value} {status.phrase}\n")
