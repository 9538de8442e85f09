"""HTTP responses, their bodies, and the interface of handlers that make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from svcd.wire.http_request import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocol

    from svcd.interfaces import DescriptorCounter, StreamTransport
    from svcd.wire.http_request import HttpRequest
    from svcd.wire.response_head import StatusLine

__all__ = [
    "GET_AND_HEAD",
    "Body",
    "Handler",
    "PushBody",
    "RepeatingHandler",
    "Reply",
    "Response",
    "StreamHandler",
    "Upgrade",
    "error_response",
    "respond_with",
    "text_response",
]

#: The methods of a handler of documents that can't be changed.
GET_AND_HEAD = frozenset({"GET", "HEAD"})


class Body(Protocol):
    """A response body that is sent piece by piece, as the client takes it."""

    @property
    def uncounted(self) -> bool:
        """Whether the body has a descriptor that is not counted yet."""
        ...

    def count(self, budget: DescriptorCounter, /) -> None:
        """Take over a reserved place in the budget, and release it when the descriptor of the body is closed."""
        ...

    def read(self) -> bytes | None:
        """Return the next piece, of at most 64 KiB; empty at the end, None from a PushBody that has nothing yet.

        Raises:
            OSError: the rest can't be read. The connection is aborted, so that the client notices the truncation.
        """
        ...

    def close(self) -> None:
        """Release all resources. Called exactly once."""
        ...


class PushBody(Body, Protocol):
    """A response body whose pieces are made later.

    Attributes:
        wake: called once read() may return something again; the server sets it when read() has returned None.
    """

    wake: Callable[[], None]


@dataclass(slots=True)
class Response:
    """A response. It must not be changed once it is returned, and may be returned many times if it has no body.

    A body without Content-Length is sent in chunks to a client of HTTP/1.1; to others it ends with the connection.

    Attributes:
        status: the code and phrase of the status.
        fields: the header fields; Date, Server and Connection are added.
        content: a body in memory.
        body: a body that is sent piece by piece after `content`; None for none.
        more_fields: header fields that may be repeated.
        raw: whether content and body are the whole response with its head; the connection is closed after it.
        kept, closed: the encoded response for a connection that is kept open, and for another one, each with the
            second in its Date field; the server sets them.
    """

    status: HTTPStatus | StatusLine
    fields: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    body: Body | None = None
    more_fields: Sequence[tuple[str, str]] = ()
    raw: bool = False
    kept: tuple[int, bytes] = field(default=(-1, b""), repr=False, compare=False)
    closed: tuple[int, bytes] = field(default=(-1, b""), repr=False, compare=False)

    def all_fields(self) -> Iterator[tuple[str, str]]:
        """Return the names and values of all fields."""
        yield from self.fields.items()
        yield from self.more_fields

    @property
    def length(self) -> str | None:
        """The value of Content-Length; None without this field."""
        return next((value for name, value in self.all_fields() if name.lower() == "content-length"), None)


@dataclass(slots=True)
class Upgrade:
    """A 101 response: the connection is passed on to another protocol (RFC 9110, section 7.8).

    Attributes:
        fields: the header fields, with Upgrade; Date, Server and Connection are added.
        protocol: the protocol that gets the transport after the head, and then all further input. If it has a method
            drain(), it has to close the connection as soon as possible when that is called.
    """

    fields: dict[str, str]
    protocol: IProtocol


#: What a handler returns.
Reply: TypeAlias = "Response | Upgrade | Deferred[Response | Upgrade] | Deferred[Response]"


class Handler(Protocol):
    """An object that responds to requests, whose bodies are dropped before."""

    @property
    def streams(self) -> Literal[False]:
        """Whether it is a StreamHandler."""
        ...

    @property
    def methods(self) -> Collection[str] | None:
        """The methods that it takes; the server refuses others, and answers OPTIONS. None for all methods."""
        ...

    def respond(self, request: HttpRequest, peer: IAddress, /) -> Reply:
        """Return the response to a request.

        Raises:
            HttpError: the response is an error with this status.
        """
        ...


class StreamHandler(Protocol):
    """An object that responds to requests, and may read their bodies."""

    @property
    def streams(self) -> Literal[True]:
        """Whether it is a StreamHandler."""
        ...

    @property
    def methods(self) -> Collection[str] | None:
        """The methods that it takes, as of a Handler."""
        ...

    def respond(self, request: HttpRequest, peer: IAddress, transport: StreamTransport, /) -> Reply:
        """Return the response to a request, whose body may still have to arrive.

        A Deferred is cancelled when the client disconnects, and when the body is invalid.

        Args:
            request: the request.
            peer: the address of the client.
            transport: the connection, for facts about it.

        Raises:
            HttpError: the response is an error with this status.
        """
        ...


class RepeatingHandler(Handler, Protocol):
    """A Handler that finds the response to a request that it has had before in less time."""

    def respond_again(self, request: HttpRequest, /) -> Response | None:
        """Return the response to a request that respond() has had before, the same object; None to call respond().

        It is called while the reactor handles the results of a poll, with a request of which the first byte had
        arrived at the poll. So what is found out about a document may be used until the next poll.
        """
        ...


def respond_with(
    handler: Handler | StreamHandler, request: HttpRequest, peer: IAddress, transport: StreamTransport
) -> Reply:
    """Return the response of a handler to a request, if the handler takes its method.

    Raises:
        HttpError: 405 with Allow for other methods; the handler raises it.
    """
    methods = handler.methods
    if methods is not None and request.method not in methods:
        allowed = {"Allow": ", ".join(sorted({*methods, "OPTIONS"}))}
        if request.method == "OPTIONS":
            return Response(HTTPStatus.NO_CONTENT, allowed)
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, allowed)
    if handler.streams is True:
        return handler.respond(request, peer, transport)
    return handler.respond(request, peer)


def text_response(status: HTTPStatus, content_type: str, text: str) -> Response:
    """Return a response with a text, in UTF-8."""
    content = text.encode()
    fields = {"Content-Type": f"{content_type}; charset=utf-8", "Content-Length": str(len(content))}
    return Response(status, fields, content)


def error_response(status: HTTPStatus) -> Response:
    """Return a response with the status as text, without details about the server."""
    return text_response(status, "text/plain", f"{status.value} {status.phrase}\n")
