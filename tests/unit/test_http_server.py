"""One HTTP connection: order of responses, keep-alive, back-pressure, close."""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.protocols.base import LINGER_SECONDS
from svcd.protocols.http.connections import CHECK_SECONDS
from svcd.protocols.http.context import HttpSettings
from svcd.protocols.http.response import GET_AND_HEAD, Response, text_response
from svcd.protocols.http.server import HttpFactory
from svcd.wire.http_request import MOST_TARGET, HttpError, HttpRequest
from tests.doubles import PEER, LogCatcher, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IAddress

PIECE = b"p" * 1000


class _Body:
    """Response body of some pieces; an exception among them is raised."""

    def __init__(self, pieces: Sequence[bytes | OSError]) -> None:
        self._pieces = list(pieces)
        self.closed = 0
        self.uncounted = False

    def count(self, budget: object) -> None:
        """Fail: the descriptor is counted already."""
        raise NotImplementedError

    def read(self) -> bytes:
        """Return the next piece, or raise it."""
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, OSError):
            raise piece
        return piece

    def close(self) -> None:
        """Count the call."""
        self.closed += 1


class _Handler:
    """Handler that responds with the target, or as the test has planned.

    Attributes:
        requests: the method and target of each request.
    """

    methods = GET_AND_HEAD
    streams: Literal[False] = False

    def __init__(self, **planned: Any) -> None:
        self.planned = planned
        self.requests: list[str] = []

    def respond(self, request: HttpRequest, peer: IAddress) -> Any:
        """Record a request and respond."""
        assert peer == PEER
        name = request.target.decode().strip("/")
        self.requests.append(f"{request.method} {name}")
        planned = self.planned.get(name)
        if isinstance(planned, Exception):
            raise planned
        return planned or text_response(HTTPStatus.OK, "text/plain", f"[{name}]")


class _Client:
    """Client of one connection."""

    def __init__(self, room: float = float("inf"), **planned: Any) -> None:
        self.clock = Clock()
        self.handler = _Handler(**planned)
        factory = HttpFactory(self.handler, self.clock, now=lambda: 784_111_777.5)
        self.protocol: Any = factory.buildProtocol(PEER)
        self.transport = StreamDouble(self.protocol, room=room)
        self.transport.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.protocol.dataReceived(data)

    def get(self, *names: str, method: str = "GET", fields: str = "", version: str = "1.1") -> None:
        """Send one request for each name, in one piece."""
        self.send(
            b"".join(f"{method} /{name} HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode() for name in names)
        )  # fmt: skip

    @property
    def statuses(self) -> list[int]:
        """Status codes of the responses so far."""
        return [int(each[:3]) for each in self.transport.sent.split(b"HTTP/1.1 ")[1:]]

    @property
    def bodies(self) -> list[str]:
        """Contents of the responses so far."""
        return [each.partition(b"\r\n\r\n")[2].decode() for each in self.transport.sent.split(b"HTTP/1.1 ")[1:]]


def _parsed(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    opening, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = opening.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), content


def test_the_head_of_a_response_is_cached_for_a_second() -> None:
    """The head of a response object is cached for one second, separately for connections that are kept and closed."""
    now = [784_111_777.5]
    factory = HttpFactory(_Handler(), Clock(), now=lambda: now[0])
    answer, other = (text_response(HTTPStatus.OK, "text/plain", text) for text in ("one", "other"))
    heads = [factory.context.encoded(answer, keep_alive=True), factory.context.encoded(answer, keep_alive=True)]
    assert heads[0] == heads[1]
    assert b"Date: Sun, 06 Nov 1994 08:49:37 GMT" in heads[0]
    assert b"Connection: close" in factory.context.encoded(answer, keep_alive=False)
    assert b"Content-Length: 5" in factory.context.encoded(other, keep_alive=True)
    now[0] += 1
    assert b"Date: Sun, 06 Nov 1994 08:49:38 GMT" in factory.context.encoded(answer, keep_alive=True)


def test_a_response() -> None:
    """A response has Date, Server, Content-Type, Content-Length, Connection and its content."""
    client = _Client()
    client.get("a")
    assert _parsed(client.transport.sent) == (
        "HTTP/1.1 200 OK",
        {
            "Date": "Sun, 06 Nov 1994 08:49:37 GMT",
            "Server": "svcd",
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": "3",
            "Connection": "keep-alive",
        },
        b"[a]",
    )


def test_the_connection_is_kept_alive() -> None:
    """A connection is kept alive over several requests."""
    client = _Client()
    for name in "abc":
        client.get(name)
    assert client.bodies == ["[a]", "[b]", "[c]"]
    assert (client.transport.lost, client.transport.calls) == ("", ["registerProducer"])


def test_pipelined_requests_are_answered_in_order() -> None:
    """Responses are in the order of the requests; the handler is called for one request at a time."""
    slow: Deferred[Response] = Deferred()
    client = _Client(a=slow)
    client.get("a", "b", "c")
    assert client.handler.requests == ["GET a"]
    assert not client.transport.reading
    slow.callback(text_response(HTTPStatus.OK, "text/plain", "slow"))
    assert client.bodies == ["slow", "[b]", "[c]"]
    assert client.transport.reading


def test_thousands_of_pipelined_requests_are_all_answered() -> None:
    """Thousands of pipelined requests are answered in order, without recursion."""
    client = _Client()
    client.get(*map(str, range(3000)))
    assert client.bodies == [f"[{number}]" for number in range(3000)]


def test_a_request_may_come_in_single_bytes() -> None:
    """A request that arrives byte by byte is answered once."""
    client = _Client()
    for byte in b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n":
        assert not client.transport.sent
        client.send(bytes([byte]))
    assert client.bodies == ["[a]"]


def test_head_has_the_length_and_no_content() -> None:
    """A response to HEAD has the Content-Length of GET and no content; the body is closed unread."""
    body = _Body([PIECE])
    client = _Client(b=Response(HTTPStatus.OK, {"Content-Length": "1000"}, body=body))
    client.get("a", "b", method="HEAD")
    assert client.bodies == ["", ""]
    assert b"Content-Length: 3\r\n" in client.transport.sent
    assert b"Content-Length: 1000\r\n" in client.transport.sent
    assert body.closed == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_not_allowed(method: str) -> None:
    """405 lists the allowed methods; the handler is not called, and the connection stays open."""
    client = _Client()
    client.get("a", method=method, fields="Content-Length: 0\r\n")
    status, fields, _ = _parsed(client.transport.sent)
    assert (status, fields["Allow"]) == ("HTTP/1.1 405 Method Not Allowed", "GET, HEAD, OPTIONS")
    assert client.handler.requests == []
    client.get("b")
    assert client.statuses == [405, 200]


@pytest.mark.parametrize(("fields", "version"), [("Connection: close\r\n", "1.1"), ("", "1.0")])
def test_a_request_that_closes_the_connection(fields: str, version: str) -> None:
    """The response announces the close, and the connection is closed after it."""
    client = _Client()
    client.get("a", fields=fields, version=version)
    assert _parsed(client.transport.sent)[1]["Connection"] == "close"
    assert client.transport.lost == "done"
    client.clock.advance(CHECK_SECONDS)
    assert not client.clock.getDelayedCalls()


def test_requests_after_one_that_closes_the_connection() -> None:
    """They are not answered, and dropped until the client closes its side: unread, they would reset the connection."""
    client = _Client()
    client.get("a", "b", fields="Connection: close\r\n")
    assert client.transport.write_closed
    client.get("c")
    assert client.handler.requests == ["GET a"]
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"
    client.clock.advance(CHECK_SECONDS)
    assert not client.clock.getDelayedCalls()


def test_the_last_request_of_a_connection() -> None:
    """The response to the last of keepalive_requests announces the close, and later requests are not answered."""
    for data in (2 * [b"a"], [b"aa"]):
        factory = HttpFactory(_Handler(), Clock(), HttpSettings(requests=3))
        protocol: Any = factory.buildProtocol(PEER)
        transport = StreamDouble(protocol)
        protocol.makeConnection(transport)
        request = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
        for each in data:
            protocol.dataReceived(request * len(each))
        assert b"Connection: close" not in transport.sent
        protocol.dataReceived(request)
        assert transport.sent.count(b"Connection: keep-alive") == 2
        assert transport.sent.count(b"Connection: close") == 1
        assert transport.write_closed
        protocol.dataReceived(request)
        assert transport.sent.count(b"HTTP/1.1") == 3


def test_options_is_answered_by_the_server() -> None:
    """OPTIONS gets the methods of the handler, for a path and for the server as a whole; the handler is not called."""
    client = _Client()
    client.send(b"OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.statuses == [204, 204]
    assert client.transport.sent.count(b"Allow: GET, HEAD, OPTIONS\r\n") == 2
    assert b"Content-Length" not in client.transport.sent
    assert client.handler.requests == []


def test_http_1_0_with_keep_alive() -> None:
    """HTTP/1.0 with keep-alive keeps the connection, and the response announces that."""
    client = _Client()
    for name in "ab":
        client.get(name, fields="Connection: keep-alive\r\n", version="1.0")
    assert client.statuses == [200, 200]
    assert client.transport.sent.count(b"Connection: keep-alive") == 2


def test_a_client_that_does_not_close() -> None:
    """After the last response is sent, a client that does not close is disconnected after LINGER_SECONDS."""
    client = _Client()
    client.get("a", "b", fields="Connection: close\r\n")
    client.clock.advance(LINGER_SECONDS)
    assert client.transport.lost == "done"


def test_a_slow_client_receives_its_whole_response() -> None:
    """The time to close does not begin before the client has read the last response."""
    client = _Client(room=0)
    client.get("a", "b", fields="Connection: close\r\n")
    client.clock.advance(LINGER_SECONDS * 20)
    assert "abortConnection" not in client.transport.calls
    assert "loseConnection" not in client.transport.calls
    client.transport.drain()
    client.transport.drain()
    client.clock.advance(LINGER_SECONDS)
    assert client.transport.lost == "done"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * MOST_TARGET + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ],
)
def test_a_malformed_request_closes_the_connection(data: bytes, status: int) -> None:
    """A malformed request is answered by an error, the write side is shut down, and later input is discarded."""
    client = _Client()
    client.get("a")
    client.send(data)
    assert client.statuses == [200, status]
    assert client.bodies[1].startswith(str(status))
    assert client.transport.write_closed
    assert not client.transport.lost
    client.get("b")
    assert client.handler.requests == ["GET a"]
    assert client.clock.getDelayedCalls()


def test_good_requests_before_a_bad_one_are_answered() -> None:
    """Requests before a malformed one in the same piece are answered."""
    client = _Client()
    client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n")
    assert client.statuses == [200, 200, 400]


def test_an_http_error_of_the_handler() -> None:
    """An HttpError of the handler is the response, and the connection stays open."""
    client = _Client(a=HttpError(HTTPStatus.NOT_FOUND))
    with LogCatcher() as log:
        client.get("a", "b")
    assert client.statuses == [404, 200]
    assert client.bodies[0] == "404 Not Found\n"
    assert not log.failures


@pytest.mark.parametrize("later", [False, True])
def test_an_exception_of_the_handler(later: bool) -> None:
    """Any other exception of the handler is logged and answered by 500; the connection stays open."""
    error = ZeroDivisionError("secret")
    client = _Client(a=fail(error) if later else error)
    with LogCatcher() as log:
        client.get("a", "b")
    assert client.statuses == [500, 200]
    assert b"secret" not in client.transport.sent
    assert [failure.value for failure in log.failures] == [error]


def test_a_deferred_http_error() -> None:
    """A Deferred that fails with an HttpError is answered by its status, and not logged."""
    client = _Client(a=fail(HttpError(HTTPStatus.NOT_FOUND)))
    with LogCatcher() as log:
        client.get("a")
    assert client.statuses == [404]
    assert not log.failures


def test_a_client_that_disconnects_before_its_response() -> None:
    """If the client has disconnected, a late response is dropped and its body closed; so is a late failure."""
    for answer in (Response(HTTPStatus.OK, body=_Body([PIECE])), Failure(ZeroDivisionError())):
        slow: Deferred[Response] = Deferred()
        client = _Client(a=slow)
        client.get("a")
        client.transport.lose(Failure(ConnectionLost()))
        with LogCatcher():
            slow.callback(answer) if isinstance(answer, Response) else slow.errback(answer)
        assert client.transport.sent == b""
        if isinstance(answer, Response):
            assert isinstance(answer.body, _Body)
            assert answer.body.closed == 1


def test_a_body_is_sent_piece_by_piece() -> None:
    """Head, content and pieces of the body are sent in order, before the next response."""
    body = _Body([b"two", b"three"])
    client = _Client(a=Response(HTTPStatus.OK, {"Content-Length": "11"}, b"one", body))
    client.get("a", "b")
    assert client.bodies == ["onetwothree", "[b]"]
    assert body.closed == 1


def test_a_client_that_does_not_read_pauses_the_body() -> None:
    """While the transport is paused no piece is read, no request is answered, and nothing is read from the client."""
    body = _Body([PIECE] * 10)
    client = _Client(room=1500, a=Response(HTTPStatus.OK, {"Content-Length": "10000"}, body=body))
    client.get("a", "b")
    assert client.transport.pending <= 1500 + len(PIECE)
    assert not client.transport.reading
    assert client.handler.requests == ["GET a"]
    sent = len(client.transport.sent)
    client.get("c")
    assert len(client.transport.sent) == sent
    for _ in range(20):
        client.transport.drain()
        assert client.transport.pending <= 1500 + len(PIECE)
    assert client.bodies == ["p" * 10_000, "[b]", "[c]"]
    assert client.transport.reading


def test_unread_responses_pause_the_client() -> None:
    """A client that sends requests and reads no responses is not read from once the write buffer is full."""
    client = _Client(room=1000)
    client.get(*map(str, range(500)))
    assert len(client.handler.requests) < 20
    assert not client.transport.reading
    for _ in range(500):
        client.transport.drain()
    assert client.bodies == [f"[{number}]" for number in range(500)]


def test_a_body_that_can_not_be_read() -> None:
    """A body that can't be read aborts the connection, so that the client sees the response is incomplete."""
    body = _Body([b"one", OSError(errno.EIO, "gone")])
    client = _Client(a=Response(HTTPStatus.OK, {"Content-Length": "6"}, body=body))
    with LogCatcher() as log:
        client.get("a", "b")
    assert client.transport.lost == "aborted"
    assert client.bodies == ["one"]
    assert body.closed == 1
    assert any("gone" in str(event.get("error")) for event in log.events)


def test_a_disconnect_closes_the_body() -> None:
    """The body of a response is closed once when its client disconnects."""
    body = _Body([PIECE] * 10)
    client = _Client(room=10, a=Response(HTTPStatus.OK, {}, body=body))
    client.get("a")
    assert body.closed == 0
    client.transport.lose(Failure(ConnectionLost()))
    assert body.closed == 1


def test_a_half_closed_client_receives_its_responses() -> None:
    """A client that has half-closed receives all responses before the connection is closed."""
    slow: Deferred[Response] = Deferred()
    client = _Client(a=slow)
    client.get("a", "b")
    client.protocol.readConnectionLost()
    assert client.transport.calls == ["registerProducer"]
    slow.callback(text_response(HTTPStatus.OK, "text/plain", "slow"))
    assert client.bodies == ["slow", "[b]"]
    assert client.transport.lost == "done"
    client.clock.advance(CHECK_SECONDS)
    assert not client.clock.getDelayedCalls()


def test_a_half_closed_client_without_a_request() -> None:
    """A client that half-closes without a request is disconnected at once."""
    client = _Client()
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"


def test_draining_closes_an_idle_connection() -> None:
    """drain() closes an idle connection at once."""
    client = _Client()
    client.get("a")
    client.protocol.drain()
    assert client.transport.write_closed
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"


def test_draining_completes_the_responses() -> None:
    """drain() answers the requests that were read; the last response announces the close."""
    slow: Deferred[Response] = Deferred()
    client = _Client(a=slow)
    client.get("a", "b")
    client.protocol.drain()
    assert not client.transport.write_closed
    slow.callback(text_response(HTTPStatus.OK, "text/plain", "slow"))
    assert client.bodies == ["slow", "[b]"]
    assert client.transport.sent.count(b"Connection: close") == 1
    assert client.transport.write_closed


def test_without_a_listener_the_next_response_is_the_last() -> None:
    """Without a listener the next response announces the close, as a new connection would fail; idle ones stay open."""
    client = _Client()
    client.get("a")
    client.protocol.factory.doStart()
    client.protocol.factory.doStop()
    assert not client.transport.write_closed
    client.get("b")
    assert client.bodies == ["[a]", "[b]"]
    assert client.transport.sent.count(b"Connection: close") == 1
    assert client.transport.write_closed
    client.protocol.factory.doStart()
    assert not client.protocol.factory.stopped
