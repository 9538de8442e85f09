"""Answers to HTTP requests, and who gives them."""

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
    """What is sent behind the head, piece by piece, when the client has room for it."""

    @property
    def uncounted(self) -> bool:
        """Whether it has a descriptor that is not counted yet."""
        ...

    def count(self, budget: DescriptorCounter, /) -> None:
        """Take over a descriptor that was counted in a budget, to release it when its own is closed."""
        ...

    def read(self) -> bytes:
        """The next piece, at most 64 KiB; empty at the end.

        Raises:
            OSError: the rest can't be had; the connection is aborted, so that the client sees that it is short.
        """
        ...

    def close(self) -> None:
        """Give back what it holds. Called once, whatever happens."""
        ...


@dataclass(slots=True)
class Response:
    """An answer.

    Attributes:
        status: its status.
        fields: its fields; Date, Server and Connection are added, Content-Length must be there.
        content: a body that is at hand.
        body: a body that is sent piece by piece after it.
    """

    status: HTTPStatus
    fields: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    body: Body | None = None


class Handler(Protocol):
    """Answers requests."""

    def respond(self, request: HttpRequest, peer: IAddress) -> Response | Deferred[Response]:
        """The answer to a GET or HEAD.

        Raises:
            HttpError: an error is the answer.
        """
        ...


def text_response(status: HTTPStatus, content_type: str, text: str) -> Response:
    """An answer made of a text, in UTF-8."""
    content = text.encode()
    fields = {"Content-Type": f"{content_type}; charset=utf-8", "Content-Length": str(len(content))}
    return Response(status, fields, content)


def error_response(status: HTTPStatus) -> Response:
    """An answer that says what is wrong, and nothing about the server."""
    return text_response(status, "text/plain", f"{status.value} {status.phrase}\n")
