"""HTTP connections whose handlers read the bodies of requests, send responses as they are made, or upgrade."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.protocols.http.connections import CHECK_SECONDS
from svcd.protocols.http.response import Response, Upgrade, text_response
from svcd.protocols.http.server import HttpFactory
from svcd.wire.http_request import MOST_BODY
from tests.doubles import PEER, LogCatcher, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.wire.http_request import HttpRequest

POST = "POST /{} HTTP/1.1\r\nHost: a\r\n{}\r\n"


class _PushBody:
    """Response body whose pieces the test adds.

    Attributes:
        pieces: pieces that are not read yet; an empty one is the end.
        closed: how often it was closed.
    """

    uncounted = False

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = 0
        self.wake: Callable[[], None] = lambda: None

    def count(self, budget: object) -> None:
        """Fail: there is no descriptor."""
        raise NotImplementedError

    def read(self) -> bytes | None:
        """Return the next piece, or None."""
        return self.pieces.pop(0) if self.pieces else None

    def add(self, *pieces: bytes) -> None:
        """Add pieces."""
        self.pieces += pieces
        self.wake()

    def close(self) -> None:
        """Count the call."""
        self.closed += 1


class _Handler:
    """Handler that responds when the test says.

    Attributes:
        requests: the requests.
        replies: the Deferreds of their responses.
        data: what was delivered of the bodies; `end` and `broken` for their ends.
        cancelled: how many Deferreds were cancelled.
    """

    streams: Literal[True] = True
    methods = None

    def __init__(self, *, starts: bool = True) -> None:
        self.requests: list[HttpRequest] = []
        self.replies: list[Deferred[Any]] = []
        self.data: list[bytes | str] = []
        self.cancelled = 0
        self.starts = starts

    def respond(self, request: HttpRequest, peer: object, transport: Any) -> Deferred[Any]:
        """Start the body."""
        assert transport.getPeer() == peer
        self.requests.append(request)
        self.replies.append(Deferred(self._cancel))
        if self.starts:
            self.start()
        return self.replies[-1]

    def start(self) -> None:
        """Start the delivery of the last body."""
        body = self.requests[-1].body
        if body is not None:
            body.start(self.data.append, lambda whole: self.data.append("end" if whole else "broken"))

    def _cancel(self, _reply: object) -> None:
        self.cancelled += 1


class _Client:
    """Client of one connection."""

    def __init__(self, *, starts: bool = True, room: float = float("inf")) -> None:
        self.clock = Clock()
        self.handler = _Handler(starts=starts)
        protocol: Any = HttpFactory(self.handler, self.clock).buildProtocol(PEER)
        self.protocol = protocol
        self.transport = StreamDouble(protocol, room=room)
        protocol.makeConnection(self.transport)

    def send(self, data: bytes | str) -> None:
        """Send bytes."""
        self.protocol.dataReceived(data if isinstance(data, bytes) else data.encode())

    def post(self, name: str, *fields: str, body: str = "") -> None:
        """Send the head of a request, and a first part of its body."""
        self.send(POST.format(name, "".join(f"{each}\r\n" for each in fields)) + body)

    def reply(self, text: str = "done") -> None:
        """Let the handler respond to the oldest request."""
        self.handler.replies.pop(0).callback(text_response(HTTPStatus.OK, "text/plain", text))

    @property
    def statuses(self) -> list[int]:
        """Status codes of the responses so far."""
        return [int(each[:3]) for each in self.transport.sent.split(b"HTTP/1.1 ")[1:]]

    @property
    def content(self) -> bytes:
        """What follows the last head."""
        return self.transport.sent.rpartition(b"\r\n\r\n")[2]


def test_a_body_is_delivered_as_it_arrives() -> None:
    """The handler gets a request with its head, the body in pieces, and the next request after its response."""
    client = _Client()
    client.post("a", "Content-Length: 6", body="ab")
    assert client.handler.data == [b"ab"]
    client.send("cdefGET /b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.handler.data == [b"ab", b"cdef", "end"]
    assert [each.target for each in client.handler.requests] == [b"/a"]
    client.reply()
    assert [each.target for each in client.handler.requests] == [b"/a", b"/b"]
    client.reply()
    assert client.statuses == [200, 200]


def test_a_chunked_body() -> None:
    """A chunked body is delivered without its framing."""
    client = _Client()
    client.post("a", "Transfer-Encoding: chunked", body="3\r\nabc\r\n")
    client.send("2\r\nde\r\n0\r\n\r\n")
    assert client.handler.data == [b"abc", b"de", "end"]
    client.reply()
    assert client.statuses == [200]


def test_a_paused_body_is_not_read() -> None:
    """While the handler has paused the body nothing is delivered, and the client is not read from."""
    client = _Client()
    client.post("a", "Content-Length: 300000")
    body = client.handler.requests[0].body
    assert body is not None
    body.pause()
    client.send("x" * 100_000)
    assert client.handler.data == []
    assert not client.transport.reading
    body.resume()
    assert sum(map(len, client.handler.data)) == 100_000
    assert client.transport.reading
    client.send("x" * 200_000)
    assert client.handler.data[-1] == "end"


def test_the_handler_may_wait_before_it_starts_the_body() -> None:
    """The body waits until it is started; the client is not read from meanwhile."""
    client = _Client(starts=False)
    client.post("a", "Content-Length: 100000", body="x" * 50_000)
    assert not client.transport.reading
    client.handler.start()
    assert sum(map(len, client.handler.data)) == 50_000
    assert client.transport.reading


def test_expect_continue() -> None:
    """100 is sent when the handler starts the body, and only if none of it has arrived."""
    client = _Client(starts=False)
    client.post("a", "Content-Length: 2", "Expect: 100-continue")
    assert client.transport.sent == b""
    client.handler.start()
    assert client.statuses == [100]
    client.send("ab")
    client.reply()
    assert client.statuses == [100, 200]
    assert not client.transport.write_closed
    client.post("b", "Content-Length: 2", "Expect: 100-continue", body="a")
    client.handler.start()
    assert client.statuses == [100, 200]


def test_a_final_response_instead_of_100() -> None:
    """A response before the body was started closes the connection, as the client may or may not send the body."""
    client = _Client(starts=False)
    client.post("a", "Content-Length: 2", "Expect: 100-continue")
    client.reply()
    assert client.statuses == [200]
    assert b"Connection: close" in client.transport.sent
    assert client.transport.write_closed


def test_a_body_that_the_handler_does_not_read() -> None:
    """After the response the rest of the body is dropped, and the next request is answered."""
    client = _Client(starts=False)
    client.post("a", "Content-Length: 100000", body="x" * 50_000)
    client.reply()
    client.send("x" * 50_000 + POST.format("b", ""))
    assert [each.target for each in client.handler.requests] == [b"/a", b"/b"]


def test_a_started_body_whose_response_ends_before_it() -> None:
    """A handler that responds early is told that the body ends early; the rest is dropped."""
    client = _Client()
    client.post("a", "Content-Length: 10", body="abc")
    client.reply()
    assert client.handler.data == [b"abc", "broken"]
    client.send("defghij" + POST.format("b", ""))
    assert [each.target for each in client.handler.requests] == [b"/a", b"/b"]


@pytest.mark.parametrize("starts", [True, False])
def test_an_invalid_body(starts: bool) -> None:
    """Invalid data in a body cancels the response of the handler; the client gets 400, and the connection is closed."""
    client = _Client(starts=starts)
    client.post("a", "Transfer-Encoding: chunked", body="3\r\nabc\r\n")
    client.send("x\r\n")
    if not starts:
        client.handler.start()
    assert client.handler.data[-1] == "broken"
    assert client.statuses == [400]
    assert client.handler.cancelled == 1
    assert client.transport.write_closed


@pytest.mark.parametrize("framing", ["Content-Length: {}", "Transfer-Encoding: chunked"])
def test_a_body_above_the_limit(framing: str) -> None:
    """A body above the limit is 413: with a length the handler is not called, else it gets no more than the limit."""
    client = _Client()
    client.post("a", framing.format(MOST_BODY + 1))
    client.send("%x\r\n" % (2 * MOST_BODY))
    for _ in range(2 * MOST_BODY // 4096):
        client.send("x" * 4096)
    assert client.statuses == [413]
    assert sum(map(len, client.handler.data[:-1])) <= MOST_BODY
    assert client.transport.write_closed


def test_an_error_just_after_a_body() -> None:
    """A body is whole, and its request is answered, if invalid data follows it in the same piece."""
    client = _Client()
    client.post("a", "Content-Length: 5", body="a")
    client.send("bcde\x00nonsense")
    assert client.handler.data == [b"a", b"bcde", "end"]
    client.reply()
    assert client.statuses == [200, 400]


def test_an_invalid_body_after_the_start_of_the_response() -> None:
    """If the response has begun, it is cut off: the client must not take it for complete."""
    client = _Client()
    client.post("a", "Transfer-Encoding: chunked")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, body=body))
    client.send("x\r\n")
    assert client.transport.lost == "aborted"
    assert body.closed == 1
    assert client.handler.data == ["broken"]


def test_an_invalid_body_after_the_response() -> None:
    """If the response is complete, the connection is closed without a second one."""
    client = _Client()
    client.post("a", "Transfer-Encoding: chunked")
    client.reply()
    client.send("x\r\n")
    assert client.statuses == [200]
    assert client.transport.write_closed


def test_a_client_that_disconnects() -> None:
    """The end of the connection cancels the response, and ends the body."""
    client = _Client()
    client.post("a", "Content-Length: 10", body="abc")
    client.transport.lose(Failure(ConnectionLost()))
    assert client.handler.data == [b"abc", "broken"]
    assert client.handler.cancelled == 1
    assert client.transport.sent == b""


def test_a_client_that_half_closes_within_a_body() -> None:
    """The end of the input within a body ends the request without a response."""
    client = _Client()
    client.post("a", "Content-Length: 10", body="abc")
    client.protocol.readConnectionLost()
    assert client.handler.data == [b"abc", "broken"]
    assert client.handler.cancelled == 1
    assert client.transport.lost == "done"


def test_a_client_that_sends_its_body_too_slowly() -> None:
    """A body that does not arrive in time gets 408; the time in which the handler has paused it does not count."""
    client = _Client()
    client.post("a", "Content-Length: 100000")
    body = client.handler.requests[0].body
    assert body is not None
    body.pause()
    client.send("abc")
    for _ in range(100):
        client.clock.advance(CHECK_SECONDS)
    assert client.statuses == []
    body.resume()
    for _ in range(62):
        client.clock.advance(CHECK_SECONDS)
    assert client.statuses == [408]
    assert client.handler.data == [b"abc", "broken"]
    assert client.protocol.end_reason == "request"


def test_a_response_as_it_is_made() -> None:
    """A body without a length is sent in chunks, each as soon as it is made; then the next request is answered."""
    client = _Client()
    client.post("a")
    client.post("b")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, content=b"first", body=body))
    assert b"Transfer-Encoding: chunked" in client.transport.sent
    assert client.transport.sent.endswith(b"\r\n\r\n5\r\nfirst\r\n")
    body.add(b"second", b"third")
    assert client.transport.sent.endswith(b"6\r\nsecond\r\n5\r\nthird\r\n")
    assert len(client.handler.requests) == 1
    body.add(b"")
    assert client.transport.sent.endswith(b"\r\n0\r\n\r\n")
    assert body.closed == 1
    assert len(client.handler.requests) == 2


def test_a_response_to_http_1_0_of_unknown_length() -> None:
    """A client of HTTP/1.0 gets a body without a length up to the end of the connection."""
    client = _Client()
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, body=body))
    assert b"Connection: close" in client.transport.sent
    assert b"Transfer-Encoding" not in client.transport.sent
    body.add(b"all", b"")
    assert client.content == b"all"
    assert client.transport.write_closed


def test_head_of_a_response_of_unknown_length() -> None:
    """The response to HEAD has no body, whatever its length, and the connection stays open."""
    client = _Client()
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, body=body))
    assert client.content == b""
    assert body.closed == 1
    assert not client.transport.write_closed


@pytest.mark.parametrize("pieces", [(b"abc", b""), (b"abcdef",)])
def test_a_body_of_another_length_than_announced(pieces: tuple[bytes, ...]) -> None:
    """A body that is shorter or longer than its Content-Length resets the connection; nothing is sent beyond it."""
    client = _Client()
    client.post("a")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, {"Content-Length": "5"}, body=body))
    with LogCatcher() as log:
        body.add(*pieces)
    assert client.transport.lost == "aborted"
    assert client.content in (b"abc", b"")
    assert any("missing" in str(each.get("error")) or "too many" in str(each.get("error")) for each in log.events)


def test_a_client_that_disconnects_from_a_stalled_response() -> None:
    """The body of a response that has nothing to send is closed when the client disconnects; wake() does nothing."""
    client = _Client()
    client.post("a")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, body=body))
    client.transport.lose(Failure(ConnectionLost()))
    assert body.closed == 1
    body.add(b"late")
    assert body.pieces == [b"late"]


def test_a_raw_response() -> None:
    """A raw response is sent as it is, and the connection is closed after it."""
    client = _Client()
    client.post("a")
    body = _PushBody()
    client.handler.replies[0].callback(Response(HTTPStatus.OK, body=body, raw=True))
    body.add(b"HTTP/1.1 299 Own\r\n\r\nown", b"")
    assert client.transport.sent == b"HTTP/1.1 299 Own\r\n\r\nown"
    assert client.transport.write_closed


def test_repeated_fields_of_a_response() -> None:
    """A response may have the same field more than once; its length is known from any of its fields."""
    client = _Client()
    client.post("a")
    cookies = (("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("content-length", "4"))
    client.handler.replies[0].callback(Response(HTTPStatus.OK, {}, b"text", more_fields=cookies))
    assert client.transport.sent.count(b"Set-Cookie: ") == 2
    assert client.transport.sent.lower().count(b"content-length") == 1


class _Echo(Protocol):
    """Protocol after an upgrade: it sends back what it gets.

    Attributes:
        lost: the reason of the end.
        drained: whether drain() was called.
    """

    lost: Failure | None = None
    drained = False
    end_reason = "echoed"
    failure_text = "failed"

    def dataReceived(self, data: bytes) -> None:
        """Send back data."""
        assert self.transport is not None
        self.transport.write(data)

    def drain(self) -> None:
        """Record the call."""
        self.drained = True

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Record the end."""
        self.lost = reason


def _upgraded(rest: str = "") -> tuple[_Client, _Echo]:
    """Return a connection that was passed on to an _Echo, and the _Echo."""
    client, echo = _Client(), _Echo()
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n" + rest)
    client.handler.replies[0].callback(Upgrade({"Upgrade": "echo"}, echo))
    return client, echo


def test_an_upgrade() -> None:
    """The other protocol gets the bytes after the request, and all further input."""
    client, _ = _upgraded("\x01early")
    assert client.statuses == [101]
    assert b"\r\nConnection: Upgrade\r\n" in client.transport.sent
    assert client.content == b"\x01early"
    client.send(" and GET / HTTP/1.1\r\n\r")
    assert client.content == b"\x01early and GET / HTTP/1.1\r\n\r"
    assert client.transport.reading
    client.clock.advance(1000)
    assert not client.transport.lost


def test_the_end_of_an_upgraded_connection() -> None:
    """drain(), a half-close and the end reach the other protocol; its reasons are those of the connection."""
    client, echo = _upgraded()
    client.protocol.drain()
    assert echo.drained
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"
    assert echo.lost is not None
    assert (client.protocol.end_reason, client.protocol.failure_text) == ("echoed", "failed")


def test_a_request_for_an_upgrade_may_get_another_response() -> None:
    """The bytes after the request are the next request if the handler does not upgrade."""
    client = _Client()
    upgrade = "GET /{} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    client.send(upgrade.format("a") + upgrade.format("b"))
    client.reply()
    client.reply()
    assert client.statuses == [200, 200]
