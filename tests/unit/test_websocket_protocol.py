"""WebSocket around a protocol, in memory: messages, Pings, back-pressure, and the close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.protocols.websocket.factory import WebSocketFactory
from svcd.protocols.websocket.settings import WebSocketSettings
from tests.doubles import PEER, FakeReactor, StreamDouble, service_of
from tests.websocket import HANDSHAKE, Received, deflated, frame, received, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

BYE = frame(0x88, b"\x03\xe8")


@implementer(IHalfCloseableProtocol)
class _Inner(Protocol):
    """Protocol that records what it gets.

    Attributes:
        got: its input, in pieces.
        ended: the reason of its end.
        failure_text: why it could not serve the client.
    """

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.calls: list[str] = []
        self.ended: Failure | None = None
        self.failure_text = ""
        self.on_data: Callable[[], object] = lambda: None

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)
        self.on_data()

    def readConnectionLost(self) -> None:
        self.calls.append("input ended")

    def writeConnectionLost(self) -> None:
        self.calls.append("output ended")

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.ended = reason

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")


class _Case:
    """A WebSocket connection, with the protocol behind it.

    Attributes:
        client: the transport of the connection.
        inner: the protocol behind it.
    """

    def __init__(self, mode: str = "lines", *, banner: bytes = b"", room: float = float("inf"), **options: str) -> None:
        self.reactor = FakeReactor()
        words = " ".join(f"websocket_{name}={value}" for name, value in options.items() if name != "idle_timeout")
        more = f" idle_timeout={options['idle_timeout']}" if "idle_timeout" in options else ""
        service = service_of(f"x 7/tcp server=/bin/cat websocket={mode} {words}{more}")
        settings = WebSocketSettings.of(service.options, self.reactor, banner)
        self.inner: Any = _Inner()
        factory: Any = self
        self.protocol: Any = WebSocketFactory(factory, settings).buildProtocol(PEER)
        self.client = StreamDouble(self.protocol, room=room)
        self.protocol.makeConnection(self.client)
        self._read = 0

    def buildProtocol(self, _addr: object) -> Any:
        return self.inner

    def open(self, head: bytes = HANDSHAKE) -> _Case:
        """Do the handshake."""
        self.send(head)
        assert self.client.sent.startswith(b"HTTP/1.1 101 ")
        self._read = self.client.sent.index(b"\r\n\r\n") + 4
        return self

    def send(self, *pieces: bytes) -> None:
        """Send bytes as the client."""
        for piece in pieces:
            self.client.bytes_in += len(piece)
            self.protocol.dataReceived(piece)

    def frames(self) -> list[Received]:
        """Return the frames since the last call."""
        found = received(self.client.sent[self._read :])
        self._read = len(self.client.sent)
        return found

    def closes(self, code: int, reason: str = "") -> None:
        """Assert that the last frame is a Close frame."""
        last = self.frames()[-1]
        assert (last.code, last.payload[2:].decode()) == (code, reason)

    @property
    def timers(self) -> int:
        return len(self.reactor.getDelayedCalls())


def test_messages_are_lines() -> None:
    """A message is a line in both directions, whichever way it is split."""
    case = _Case().open()
    case.send(frame(0x81, b"one"), frame(0x01, b"t") + frame(0x80, b"wo") + frame(0x81, b"a\nb"))
    assert b"".join(case.inner.got) == b"one\ntwo\na\nb\n"
    transport = case.inner.transport
    transport.write(b"three\r\nfour\n\nfi")
    transport.write(b"ve")
    transport.writeSequence([b"\n", b"r\xc3\xa9st \xff"])
    assert case.frames() == [(0x81, b"three"), (0x81, b"four"), (0x81, b""), (0x81, b"five")]
    transport.loseConnection()
    assert case.frames() == [(0x81, "rést \ufffd".encode()), (0x88, b"\x03\xe8")]


def test_messages_that_arrive_together_are_passed_on_together() -> None:
    """Messages of one read are one write to the program."""
    case = _Case().open()
    case.send(b"".join(frame(0x81, b"%d" % number) for number in range(100)))
    assert case.inner.got == [b"".join(b"%d\n" % number for number in range(100))]


def test_text_is_a_stream() -> None:
    """Output as text is cut at characters; input is passed on as it comes."""
    case = _Case("text").open()
    case.send(frame(0x81, b"a"), frame(0x01, "é".encode()[:1]), frame(0x80, "é".encode()[1:]))
    assert b"".join(case.inner.got) == "aé".encode()
    case.inner.transport.write("x€".encode()[:3])
    case.inner.transport.write("€".encode()[2:] + b"\n\xff")
    assert case.frames() == [(0x81, b"x"), (0x81, "€\n\ufffd".encode())]
    case.inner.transport.write(b"\xe2")
    case.inner.transport.loseConnection()
    assert case.frames() == [(0x81, "\ufffd".encode()), (0x88, b"\x03\xe8")]


def test_bytes_are_a_stream() -> None:
    """Binary output is sent as it comes, in messages of the largest size; input may be text as well."""
    case = _Case("binary", max_message="10").open()
    case.send(frame(0x82, b"\xff\x00"), frame(0x81, b"text"))
    assert b"".join(case.inner.got) == b"\xff\x00text"
    case.inner.transport.write(bytes(25))
    assert case.frames() == [(0x82, bytes(10)), (0x82, bytes(10)), (0x82, bytes(5))]


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_binary_messages_where_text_is_expected(mode: str) -> None:
    """A binary message is refused where the program gets text."""
    case = _Case(mode).open()
    case.send(frame(0x81, b"a"), frame(0x82, b"b"))
    case.closes(1003, "the service takes text only")
    assert b"".join(case.inner.got) in (b"a", b"a\n")


def test_compression() -> None:
    """Messages are compressed in both directions if the service and the client want it."""
    head = request(Sec_WebSocket_Extensions="permessage-deflate")
    case = _Case(deflate="yes").open(head)
    case.send(frame(0xC1, deflated(b"x" * 1000)))
    assert case.inner.got == [b"x" * 1000 + b"\n"]
    case.inner.transport.write(b"y" * 1000 + b"\n")
    (answer,) = case.frames()
    assert answer.first == 0xC1
    assert len(answer.payload) < 50
    assert b"permessage" not in _Case().open(head).client.sent


def test_banner() -> None:
    """The banner is output before that of the program."""
    case = _Case(banner=b"hello\nall\n").open()
    assert case.frames() == [(0x81, b"hello"), (0x81, b"all")]


def test_frames_after_the_head() -> None:
    """Frames in the read that ends the head are not lost."""
    case = _Case()
    case.send(HANDSHAKE[:20], HANDSHAKE[20:] + frame(0x81, b"early") + frame(0x81, b"bird")[:3])
    case.send(frame(0x81, b"bird")[3:])
    assert b"".join(case.inner.got) == b"early\nbird\n"


@pytest.mark.parametrize(
    ("data", "code", "passed"),
    [
        (frame(0x81, b"\xff"), 1007, b""),
        (frame(0x81, b"a") + frame(0x83, b"b"), 1002, b"a\n"),
        (frame(0x81, b"x" * 101), 1009, b""),
        (frame(0x01, b"x" * 99) + frame(0x80, b"xx"), 1009, b""),
        (frame(0x81, b"\xff", mask=None), 1002, b""),
    ],
)
def test_clients_that_break_the_protocol(data: bytes, code: int, passed: bytes) -> None:
    """The client is told why, and the connection ends soon; a message that is not valid does not reach the program."""
    case = _Case(max_message="100").open()
    case.send(data)
    assert case.frames()[-1].code == code
    assert b"".join(case.inner.got) == passed
    case.send(frame(0x81, b"more"), b"\xff" * 100)
    assert b"".join(case.inner.got) == passed
    assert [case.client.lost] == [""]
    case.reactor.advance(LINGER_SECONDS)
    assert case.client.lost == "done"
    assert case.protocol.failure_text.startswith(f"WebSocket: {code}, ")
    assert not case.timers


def test_long_lines_of_output() -> None:
    """A line that is too long ends the connection; the lines before it are sent."""
    case = _Case(max_message="10").open()
    case.inner.transport.write(b"short\n" + b"x" * 11)
    assert case.frames()[-1].code == 1009
    case = _Case(max_message="10").open()
    case.inner.transport.write(b"x" * 10 + b"\n" + b"y" * 6)
    case.inner.transport.write(b"z" * 5)
    assert [each.first for each in case.frames()] == [0x81, 0x88]


# Pings


def test_pings_are_answered() -> None:
    """A Ping gets a Pong with its payload, between the fragments of a message as well."""
    case = _Case().open()
    case.send(frame(0x89, b"1"), frame(0x01, b"a") + frame(0x89, b"2") + frame(0x80, b"b"), frame(0x8A, b"3"))
    assert case.frames() == [(0x8A, b"1"), (0x8A, b"2")]
    assert case.inner.got == [b"ab\n"]


def test_a_flood_of_pings_takes_no_memory() -> None:
    """While the client does not read, only the last Ping is kept, and answered later."""
    case = _Case(room=1000).open()
    case.client.drain()
    case.inner.transport.registerProducer(case.inner, True)
    case.inner.transport.write(b"x" * 2000 + b"\n")
    assert case.inner.calls == ["pause"]
    sent = len(case.client.sent)
    for number in range(1000):
        case.send(frame(0x89, b"%d" % number))
    assert len(case.client.sent) == sent
    case.client.drain()
    assert case.frames()[1:] == [(0x8A, b"999")]
    assert case.inner.calls == ["pause", "resume"]


def test_silent_clients_get_pings() -> None:
    """A client that is silent gets a Ping, whose answer counts as activity; a Ping without an answer does not."""
    case = _Case(idle_timeout="30s").open()
    case.reactor.advance(10)
    case.reactor.advance(10)
    assert case.frames() == [(0x89, b"")]
    before = case.protocol.traffic
    case.client.bytes_in += 0
    case.reactor.advance(10)
    assert (case.frames(), case.protocol.traffic) == ([], before)
    case.send(frame(0x8A))
    assert case.protocol.traffic != before
    case.send(frame(0x81, b"x"))
    case.reactor.advance(10)
    assert case.frames() == []
    case.reactor.advance(10)
    assert case.frames() == [(0x89, b"")]


def test_no_pings_unless_asked_for() -> None:
    """Without idle_timeout and websocket_ping there is no timer."""
    assert _Case().open().timers == 0
    case = _Case(ping="5s").open()
    case.reactor.advance(5)
    assert case.frames() == [(0x89, b"")]


# Back-pressure


def test_a_program_that_is_busy() -> None:
    """While the program takes no input, the rest stays where it is, and compressed messages stay compressed."""
    head = request(Sec_WebSocket_Extensions="permessage-deflate")
    case = _Case(deflate="yes").open(head)
    case.inner.on_data = case.inner.transport.pauseProducing
    big = frame(0xC1, deflated(b"x" * 100_000))
    case.send(big * 5 + frame(0x89))
    assert len(case.inner.got) == 1
    assert not case.client.reading
    case.inner.transport.resumeProducing()
    case.reactor.advance(0)
    assert len(case.inner.got) == 2
    case.inner.on_data = lambda: None
    case.inner.transport.resumeProducing()
    case.reactor.advance(0)
    assert sum(map(len, case.inner.got)) == 500_005
    assert case.client.reading
    assert case.frames() == [(0x8A, b"")]


def test_an_end_of_input_while_the_program_is_busy() -> None:
    """Input that has arrived before the end of the connection still reaches the program."""
    case = _Case().open()
    case.inner.on_data = case.inner.transport.pauseProducing
    case.send(b"".join(frame(0x81, b"x" * 100) for _ in range(1000)))
    case.protocol.readConnectionLost()
    assert [case.client.lost] == [""]
    for _ in range(5):
        case.inner.transport.resumeProducing()
        case.reactor.advance(0)
    assert sum(map(len, case.inner.got)) == 101_000
    assert case.client.lost == "done"


# The close


def test_the_client_closes() -> None:
    """A Close frame is answered with its status, and the program loses the connection in good order."""
    case = _Case().open()
    case.send(frame(0x81, b"last") + BYE + frame(0x81, b"ignored"))
    assert case.inner.got == [b"last\n"]
    case.closes(1000)
    assert case.client.lost == "done"
    assert case.inner.ended.check(ConnectionDone)
    assert not case.timers


def test_a_close_without_a_status() -> None:
    """A Close frame without a status is answered without one."""
    case = _Case().open()
    case.send(frame(0x88))
    assert case.frames() == [(0x88, b"")]


def test_the_client_vanishes() -> None:
    """An end of the input without a Close frame ends the connection."""
    case = _Case().open()
    case.send(frame(0x81, b"x") + frame(0x81, b"cut")[:4])
    case.protocol.readConnectionLost()
    assert (case.inner.got, case.client.lost) == ([b"x\n"], "done")


def test_the_program_closes() -> None:
    """The server closes when the client has answered its Close frame; messages meanwhile are dropped."""
    case = _Case().open()
    case.inner.transport.write(b"bye\n")
    case.inner.transport.loseConnection()
    assert [each.first for each in case.frames()] == [0x81, 0x88]
    case.inner.transport.write(b"more\n")
    case.send(frame(0x81, b"late") + frame(0x89))
    assert (case.inner.got, case.frames(), case.client.lost) == ([], [], "")
    case.send(BYE)
    assert case.client.lost == "done"
    assert not case.timers


def test_a_client_that_does_not_answer_the_close() -> None:
    """The time for the answer is limited, from the moment when the client has all output."""
    case = _Case(room=10).open()
    case.inner.transport.loseConnection()
    case.client.writing = True  # type: ignore[attr-defined]
    case.reactor.advance(LINGER_SECONDS)
    assert "loseConnection" not in case.client.calls
    case.client.writing = False  # type: ignore[attr-defined]
    case.reactor.advance(LINGER_SECONDS)
    assert "loseConnection" in case.client.calls


def test_a_client_that_goes_on_sending() -> None:
    """After the Close frame a limited amount of input is read."""
    case = _Case("binary").open()
    case.inner.transport.loseConnection()
    for _ in range(LINGER_BYTES // 1000 + 1):
        case.send(frame(0x82, bytes(1000)))
    assert not case.client.reading


def test_failures_behind_the_connection() -> None:
    """The client is told that the server behind can't be reached, or has reset the connection."""
    case = _Case().open()
    case.inner.failure_text = "can't connect"
    case.inner.transport.loseConnection()
    case.closes(1011, "the server can't be reached")
    case = _Case().open()
    case.inner.transport.abortConnection()
    case.closes(1011, "the connection was reset")


def test_half_close_of_the_program() -> None:
    """The end of output closes the connection, after a last line without a line feed."""
    case = _Case().open()
    case.inner.transport.write(b"a\nb")
    case.inner.transport.loseWriteConnection()
    assert [each.payload for each in case.frames()] == [b"a", b"b", b"\x03\xe8"]


def test_a_drain() -> None:
    """A service that stops says so, to clients in their handshake as well."""
    case = _Case().open()
    case.protocol.drain()
    case.closes(1001, "the service stops")
    case = _Case()
    case.protocol.drain()
    assert case.client.sent.startswith(b"HTTP/1.1 503 ")


# Handshakes


def test_a_refused_handshake() -> None:
    """The response is followed by the end of the output; the connection ends when the client closes, or soon."""
    case = _Case(path="/x")
    case.send(HANDSHAKE + b"rest")
    assert case.client.sent.startswith(b"HTTP/1.1 404 ")
    assert case.client.write_closed
    assert case.protocol.failure_text == "WebSocket handshake: 404, no service has this path"
    case.send(b"more")
    assert [case.client.lost] == [""]
    case.protocol.readConnectionLost()
    assert case.client.lost == "done"
    assert (case.inner.ended, case.timers) == (None, 0)
    case = _Case(path="/x")
    case.send(HANDSHAKE)
    case.reactor.advance(LINGER_SECONDS)
    assert case.client.lost == "done"


def test_the_time_of_a_handshake_is_limited() -> None:
    """A request that is not complete in time gets 408; a client that sends nothing is closed."""
    case = _Case()
    case.send(HANDSHAKE[:-2])
    case.reactor.advance(30)
    assert case.client.sent.startswith(b"HTTP/1.1 408 ")
    case = _Case()
    case.reactor.advance(30)
    assert (case.client.sent, case.client.lost) == (b"", "done")
    assert "no request" in case.protocol.failure_text


def test_a_client_that_leaves_in_its_handshake() -> None:
    """A client that leaves is no failure."""
    case = _Case()
    case.send(HANDSHAKE[:30])
    case.protocol.readConnectionLost()
    assert (case.client.lost, case.protocol.failure_text, case.timers) == ("done", "", 0)


def test_a_service_that_declines() -> None:
    """Without a protocol behind it the connection is closed with 1011."""
    case = _Case()
    case.inner = None
    case.send(HANDSHAKE)
    case._read = case.client.sent.index(b"\r\n\r\n") + 4
    case.closes(1011, "the service declines the connection")
    case.send(frame(0x81, b"x"), BYE)
    assert case.client.lost == "done"


def test_the_transport_below_shows_through() -> None:
    """What the protocol behind asks of its transport is answered by that below, except startTLS()."""
    case = _Case().open()
    assert case.inner.transport.getPeer() == PEER
    assert case.inner.transport.bytes_in == len(HANDSHAKE)
    assert not hasattr(case.inner.transport, "startTLS")
    assert case.protocol.logPrefix() == "_Inner"
