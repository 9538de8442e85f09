"""One HTTP connection: order, keep-alive, back-pressure, ends."""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.protocols.base import LINGER_SECONDS
from svcd.protocols.http.connections import CHECK_SECONDS
from svcd.protocols.http.response import Response, text_response
from svcd.protocols.http.server import HttpFactory
from svcd.wire.http_request import MOST_TARGET, HttpError, HttpRequest
from tests.doubles import PEER, LogCatcher, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IAddress

PIECE = b"p" * 1000


class _Body:
    """A body of some pieces; an exception among them is raised."""

    def __init__(self, pieces: Sequence[bytes | OSError]) -> None:
        self._pieces = list(pieces)
        self.closed = 0
        self.uncounted = False

    def count(self, budget: object) -> None:
        """Never called."""
        raise NotImplementedError

    def read(self) -> bytes:
        """The next."""
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, OSError):
            raise piece
        return piece

    def close(self) -> None:
        """Count."""
        self.closed += 1


class _Handler:
    """Answers with the target, unless the test planned something else for it."""

    def __init__(self, **planned: Any) -> None:
        self.planned = planned
        self.asked: list[str] = []

    def respond(self, request: HttpRequest, peer: IAddress) -> Any:
        """Answer."""
        assert peer == PEER
        name = request.target.decode().strip("/")
        self.asked.append(f"{request.method} {name}")
        planned = self.planned.get(name)
        if isinstance(planned, Exception):
            raise planned
        return planned or text_response(HTTPStatus.OK, "text/plain", f"[{name}]")


class _Client:
    """A client of one connection."""

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
        """Send requests, in one piece."""
        self.send(
            b"".join(f"{method} /{name} HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode() for name in names)
        )  # fmt: skip

    @property
    def statuses(self) -> list[int]:
        """Of the answers so far."""
        return [int(each[:3]) for each in self.transport.sent.split(b"HTTP/1.1 ")[1:]]

    @property
    def bodies(self) -> list[str]:
        """Of the answers so far."""
        return [each.partition(b"\r\n\r\n")[2].decode() for each in self.transport.sent.split(b"HTTP/1.1 ")[1:]]


def _parsed(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    opening, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = opening.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), content


def test_an_answer_that_is_given_again_has_the_time_of_each_time() -> None:
    """A head is reused within a second, separately for connections that stay open and that close."""
    now = [784_111_777.5]
    factory = HttpFactory(_Handler(), Clock(), now=lambda: now[0])
    answer, other = (text_response(HTTPStatus.OK, "text/plain", text) for text in ("one", "other"))
    heads = [factory.opening(answer, keep_alive=True), factory.opening(answer, keep_alive=True)]
    assert heads[0] == heads[1]
    assert b"Date: Sun, 06 Nov 1994 08:49:37 GMT" in heads[0]
    assert b"Connection: close" in factory.opening(answer, keep_alive=False)
    assert b"Content-Length: 5" in factory.opening(other, keep_alive=True)
    now[0] += 1
    assert b"Date: Sun, 06 Nov 1994 08:49:38 GMT" in factory.opening(answer, keep_alive=True)


def test_an_answer_is_whole() -> None:
    """Status, date, server, length, connection and content are all there."""
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


def test_the_connection_is_kept() -> None:
    """Request after request is answered, and nothing closes."""
    client = _Client()
    for name in "abc":
        client.get(name)
    assert client.bodies == ["[a]", "[b]", "[c]"]
    assert (client.transport.lost, client.transport.calls) == ("", ["registerProducer"])


def test_pipelined_requests_are_answered_in_order() -> None:
    """A slow answer holds back those behind it, which are asked for one at a time."""
    slow: Deferred[Response] = Deferred()
    client = _Client(a=slow)
    client.get("a", "b", "c")
    assert client.handler.asked == ["GET a"]
    assert not client.transport.reading
    slow.callback(text_response(HTTPStatus.OK, "text/plain", "slow"))
    assert client.bodies == ["slow", "[b]", "[c]"]
    assert client.transport.reading


def test_thousands_of_pipelined_requests_are_all_answered() -> None:
    """Neither the stack nor the order gives way."""
    client = _Client()
    client.get(*map(str, range(3000)))
    assert client.bodies == [f"[{number}]" for number in range(3000)]


def test_a_request_may_come_in_single_bytes() -> None:
    """However slowly it comes, it is answered once."""
    client = _Client()
    for byte in b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n":
        assert not client.transport.sent
        client.send(bytes([byte]))
    assert client.bodies == ["[a]"]


def test_head_has_the_length_and_no_content() -> None:
    """The answer to HEAD is that to GET without its content; a body is closed unread."""
    body = _Body([PIECE])
    client = _Client(b=Response(HTTPStatus.OK, {"Content-Length": "1000"}, body=body))
    client.get("a", "b", method="HEAD")
    assert client.bodies == ["", ""]
    assert b"Content-Length: 3\r\n" in client.transport.sent
    assert b"Content-Length: 1000\r\n" in client.transport.sent
    assert body.closed == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_not_allowed(method: str) -> None:
    """405 lists the allowed methods; the handler is not called, and the connection stays open."""
    client = _Client()
    client.get("a", method=method, fields="Content-Length: 0\r\n")
    status, fields, _ = _parsed(client.transport.sent)
    assert (status, fields["Allow"]) == ("HTTP/1.1 405 Method Not Allowed", "GET, HEAD")
    assert client.handler.asked == []
    client.get("b")
    assert client.statuses == [405, 200]


@pytest.mark.parametrize(("fields", "version"), [("Connection: close\r\n", "1.1"), ("", "1.0")])
def test_a_client_that_wants_one_answer_gets_one(fields: str, version: str) -> None:
    """The response announces the close, and requests after it are not answered."""
    client = _Client()
    client.get("a", fields=fields, version=version)
    assert _parsed(client.transport.sent)[1]["Connection"] == "close"
    assert client.transport.write_closed
    client.get("b")
    assert client.handler.asked == ["GET a"]
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"
    client.clock.advance(CHECK_SECONDS)
    assert not client.clock.getDelayedCalls()


def test_an_old_client_may_keep_the_connection() -> None:
    """HTTP/1.0 with keep-alive keeps the connection, and the response announces that."""
    client = _Client()
    for name in "ab":
        client.get(name, fields="Connection: keep-alive\r\n", version="1.0")
    assert client.statuses == [200, 200]
    assert client.transport.sent.count(b"Connection: keep-alive") == 2


def test_a_client_that_never_closes_is_cut_off() -> None:
    """Once the last answer is with the kernel there is a bounded wait, then a plain close."""
    client = _Client()
    client.get("a", fields="Connection: close\r\n")
    client.clock.advance(LINGER_SECONDS)
    assert client.transport.lost == "done"


def test_a_slow_client_gets_its_whole_answer() -> None:
    """While the client has not taken the last answer, the wait for its end has not begun."""
    client = _Client(room=0)
    client.get("a", fields="Connection: close\r\n")
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
def test_what_is_no_request_ends_the_connection(data: bytes, status: int) -> None:
    """The response has content, the write side is closed, and the rest is dropped for a while."""
    client = _Client()
    client.get("a")
    client.send(data)
    assert client.statuses == [200, status]
    assert client.bodies[1].startswith(str(status))
    assert client.transport.write_closed
    assert not client.transport.lost
    client.get("b")
    assert client.handler.asked == ["GET a"]
    assert client.clock.getDelayedCalls()


def test_good_requests_before_a_bad_one_are_answered() -> None:
    """A mistake does not swallow what came before it in the same bytes."""
    client = _Client()
    client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n")
    assert client.statuses == [200, 200, 400]


def test_a_handler_refuses_by_an_http_error() -> None:
    """Its status is the answer, and the connection goes on."""
    client = _Client(a=HttpError(HTTPStatus.NOT_FOUND))
    with LogCatcher() as log:
        client.get("a", "b")
    assert client.statuses == [404, 200]
    assert client.bodies[0] == "404 Not Found\n"
    assert not log.failures


@pytest.mark.parametrize("later", [False, True])
def test_a_handlers_mistake_is_500_and_logged(later: bool) -> None:
    """The client learns nothing of it but that, the log all, and the connection goes on."""
    mistake = ZeroDivisionError("secret")
    client = _Client(a=fail(mistake) if later else mistake)
    with LogCatcher() as log:
        client.get("a", "b")
    assert client.statuses == [500, 200]
    assert b"secret" not in client.transport.sent
    assert [failure.value for failure in log.failures] == [mistake]


def test_a_handler_may_refuse_later() -> None:
    """A Deferred that fails by an HttpError is an answer as well, no mistake."""
    client = _Client(a=fail(HttpError(HTTPStatus.NOT_FOUND)))
    with LogCatcher() as log:
        client.get("a")
    assert client.statuses == [404]
    assert not log.failures


def test_a_client_that_goes_while_its_answer_is_made() -> None:
    """The late answer is thrown away and its body closed, whether it comes or fails."""
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
    """Head, content and pieces come in order, then the next answer."""
    body = _Body([b"two", b"three"])
    client = _Client(a=Response(HTTPStatus.OK, {}, b"one", body))
    client.get("a", "b")
    assert client.bodies == ["onetwothree", "[b]"]
    assert body.closed == 1


def test_a_client_that_does_not_read_costs_one_piece() -> None:
    """While the transport has enough, no piece is read, no request answered, and nothing more read from the client."""
    body = _Body([PIECE] * 10)
    client = _Client(room=1500, a=Response(HTTPStatus.OK, {}, body=body))
    client.get("a", "b")
    assert client.transport.pending <= 1500 + len(PIECE)
    assert not client.transport.reading
    assert client.handler.asked == ["GET a"]
    sent = len(client.transport.sent)
    client.get("c")
    assert len(client.transport.sent) == sent
    for _ in range(20):
        client.transport.drain()
        assert client.transport.pending <= 1500 + len(PIECE)
    assert client.bodies == ["p" * 10_000, "[b]", "[c]"]
    assert client.transport.reading


def test_answers_without_a_reader_hold_back_requests() -> None:
    """A client that sends requests and reads no answers is not read from after the buffer is full."""
    client = _Client(room=1000)
    client.get(*map(str, range(500)))
    assert len(client.handler.asked) < 20
    assert not client.transport.reading
    for _ in range(500):
        client.transport.drain()
    assert client.bodies == [f"[{number}]" for number in range(500)]


def test_a_body_that_cannot_be_had_aborts() -> None:
    """The client sees that the answer is short; nothing follows it."""
    body = _Body([b"one", OSError(errno.EIO, "gone")])
    client = _Client(a=Response(HTTPStatus.OK, {"Content-Length": "6"}, body=body))
    with LogCatcher() as log:
        client.get("a", "b")
    assert client.transport.lost == "aborted"
    assert client.bodies == ["one"]
    assert body.closed == 1
    assert any("gone" in str(event.get("error")) for event in log.events)


def test_a_body_is_closed_when_its_client_goes() -> None:
    """Half sent, it is given back once."""
    body = _Body([PIECE] * 10)
    client = _Client(room=10, a=Response(HTTPStatus.OK, {}, body=body))
    client.get("a")
    assert body.closed == 0
    client.transport.lose(Failure(ConnectionLost()))
    assert body.closed == 1


def test_a_half_closed_client_gets_its_answers() -> None:
    """All that was asked before the FIN is answered, slowly if need be, then the connection closes."""
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


def test_a_half_closed_client_that_asked_nothing() -> None:
    """There is nothing to wait for."""
    client = _Client()
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"


def test_draining_closes_an_idle_connection() -> None:
    """Nothing is owed to a client that asks nothing."""
    client = _Client()
    client.get("a")
    client.protocol.drain()
    assert client.transport.write_closed
    client.protocol.readConnectionLost()
    assert client.transport.lost == "done"


def test_draining_lets_the_last_answer_through() -> None:
    """The requests that were read are answered; the last response announces the close."""
    slow: Deferred[Response] = Deferred()
    client = _Client(a=slow)
    client.get("a", "b")
    client.protocol.drain()
    assert not client.transport.write_closed
    slow.callback(text_response(HTTPStatus.OK, "text/plain", "slow"))
    assert client.bodies == ["slow", "[b]"]
    assert client.transport.sent.count(b"Connection: close") == 1
    assert client.transport.write_closed


def test_without_a_listener_the_next_answer_is_the_last() -> None:
    """A client that comes back could not reach this service; a connection without a request stays open."""
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
