"""svcctl's clients against transports in memory."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.error import ConnectionRefusedError as RefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from svcd.cli import main
from svcd.clients.certificate_check import CertificateVerifier
from svcd.clients.connect import connect
from svcd.clients.echo import check, exchange_lines
from svcd.clients.happy_eyeballs import by_turns
from svcd.clients.http_get import HttpQuery, Url, fetch, parse_url
from svcd.clients.inactivity import InactivityTimeout, first_of
from svcd.clients.lookup import lookup
from svcd.clients.probe import probe
from svcd.clients.stdio import StandardStreams
from svcd.clients.stream import Stream
from svcd.clients.target import Target, TrustSettings, port_number
from svcd.clients.time_query import daytime
from svcd.clients.time_query import time as ask_time
from svcd.clients.udp_query import MOST_BYTES, UdpQuery
from svcd.errors import ClientError, ServerError, UnavailableError, UsageError
from svcd.wire.daytime import moment_1900, time_1900
from tests.certificates import Authority
from tests.doubles import LOCAL_PEER, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

TARGET = Target("server.example", 7, 10.0)


def started(coroutine: Coroutine[Deferred[Any], Any, Any]) -> list[Any]:
    """Start a coroutine; what it returns or raises is put into the list."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    return results


def failed(results: list[Any]) -> str:
    """What a coroutine has said when it failed."""
    [failure] = results
    assert isinstance(failure, Failure)
    assert failure.check(UnavailableError, ServerError, UsageError), failure
    return str(failure.value)


def connected(**settings: Any) -> tuple[Stream, StreamDouble]:
    """A stream with its transport."""
    stream = Stream(**settings)
    transport = StreamDouble(stream, peer=LOCAL_PEER)
    made: Any = stream
    made.makeConnection(transport)
    return stream, transport


# Ports, names, moments.


def test_ports() -> None:
    """A port is told by its number or its name."""
    assert (port_number("7", "tcp"), port_number("65535", "udp")) == (7, 65_535)
    assert (port_number("echo", "tcp"), port_number("domain", "udp")) == (7, 53)
    for text in ("0", "65536", "ecoh", "", "-1", "7/tcp", "\0", "écho"):
        with pytest.raises(UsageError):
            port_number(text, "tcp")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a.example", Url(False, "a.example", 80, "a.example", "/")),
        ("a.example:8080/x", Url(False, "a.example", 8080, "a.example:8080", "/x")),
        ("HTTPS://A.example:443/x?y=z#part", Url(True, "a.example", 443, "a.example", "/x?y=z")),
        ("https://[2001:db8::1]:8443/", Url(True, "2001:db8::1", 8443, "[2001:db8::1]:8443", "/")),
        ("http://[fe80::1%25eth0]/", Url(False, "fe80::1%eth0", 80, "[fe80::1]", "/")),
        ("http://a/ä?ö=%20", Url(False, "a", 80, "a", "/%C3%A4?%C3%B6=%20")),
        ("http://bücher.example/", Url(False, "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/")),
        ("http://a?q", Url(False, "a", 80, "a", "/?q")),
    ],
)
def test_urls(text: str, url: Url) -> None:
    """A URL is taken apart as the request needs it."""
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "http://", "ftp://a/", "http://a:b/", "http://a:0/", "http://a:70000/", "http://[::1/", "http://u:p@a/",
     "http://a/ b", "http://a/\r\nX: y", "http://\u2028/", "http://a..b/é", "mailto:x@y.example"],
)  # fmt: skip
def test_what_is_no_url(text: str) -> None:
    """It is a UsageError, and what may be a password is not repeated."""
    with pytest.raises(UsageError) as caught:
        parse_url(text if text != "http://a..b/é" else "http://é..b/")
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://a:b/", "http://a:70000/"])
def test_a_url_with_a_wrong_port(text: str) -> None:
    """It is said to be the port."""
    with pytest.raises(UsageError, match=f"{text}: the port is no number from 1 to 65535"):
        parse_url(text)


@given(st.integers(-(2**31), 2**34), st.integers(-(2**31) + 1, 2**31 - 1))
def test_moments(moment: int, away: int) -> None:
    """4 bytes and a clock that is wrong by less than 68 years make a moment, in whatever era."""
    assert moment_1900(time_1900(moment), moment + away) == moment


def test_the_era_of_2036() -> None:
    """The first second of the next era is told by four zeros."""
    rollover = int(datetime(2036, 2, 7, 6, 28, 16, tzinfo=UTC).timestamp())
    assert moment_1900(bytes(4), rollover - 100) == rollover
    assert moment_1900(b"\xff\xff\xff\xff", rollover + 100) == rollover - 1


# A stream.


def test_a_stream_is_read_when_it_is_wanted() -> None:
    """One piece waits for its reader, and the transport is told to wait; what comes all the same is kept."""
    stream, transport = connected()
    stream.dataReceived(b"a")
    assert not transport.reading
    stream.dataReceived(b"b")
    found: list[bytes] = []
    stream.read().addCallback(found.append)
    stream.read().addCallback(found.append)
    assert transport.reading
    stream.dataReceived(b"c")
    assert found == [b"ab", b"c"]
    stream.readConnectionLost()
    stream.read().addCallback(found.append)
    assert found[2:] == [b""]


def test_a_stream_that_is_lost() -> None:
    """What came before is read first; then reading fails, and so it does again."""
    stream, _ = connected()
    stream.dataReceived(b"a")
    stream.connectionLost(Failure(ConnectionLost()))
    found: list[Any] = []
    for _ in range(3):
        stream.read().addBoth(found.append)
    assert found[0] == b"a"
    for each in found[1:]:
        assert "broken off" in failed([each])


def test_writing_waits_for_the_server() -> None:
    """It returns when there is room, or when the server is gone."""
    stream, transport = connected()
    transport.room = 2
    assert started(stream.write(b"ab")) == [None]
    waiting = started(stream.write(b"c"))
    assert not waiting
    transport.drain()
    assert waiting == [None]
    waiting = started(stream.write(b"abc"))
    stream.connectionLost(Failure(ConnectionDone()))
    assert waiting == [None]
    assert started(stream.write(b"d")) == [None]
    assert transport.sent == b"abcabc"


def test_a_handshake_that_fails() -> None:
    """A secure stream is ready when that is decided, and knows what was wrong."""
    stream, _ = connected(secure=True)
    assert not stream.ready.called
    stream.connectionLost(Failure(ConnectionDone()))
    assert stream.ready.called
    assert isinstance(stream.lost, ConnectionDone)


# Several at once.


def test_the_first_to_end_decides() -> None:
    """The others are cancelled; and if it fails, its error is the one."""
    first, second = Deferred[None](), Deferred[None]()

    async def wait(one: Deferred[None]) -> None:
        await one

    results = started(first_of(wait(first), wait(second)))
    first.callback(None)
    assert results == [None]
    assert second.called
    first, second = Deferred(), Deferred()
    results = started(first_of(wait(first), wait(second)))
    second.errback(ServerError("why"))
    assert failed(results) == "why"


def test_patience() -> None:
    """It ends when nothing was done for so long while something was expected."""
    clock = Clock()
    timeout = InactivityTimeout(clock, 10, "nothing came")
    results = started(timeout.ends())
    clock.pump([5] * 10)
    timeout.waiting = True
    clock.advance(9)
    timeout.renew()
    clock.pump([1] * 9)
    assert not results
    clock.advance(2)
    assert failed(results) == "nothing came within 10 s"


# Whatever a server says.

_LINES = ["HTTP/1.1 200 OK", "HTTP/1.1 302 Found", "Content-Length: 3", "Transfer-Encoding: chunked", "Location: /x"]
_WORDS = [f"{line}\r\n".encode() for line in (*_LINES, "", "3\r\nabc", "0", "Sat Nov 21 10:12:00 2026")]


@given(
    st.sampled_from(["check", "talk", "type", "daytime", "time", "fetch", "probe"]),
    st.lists(st.one_of(st.sampled_from([*_WORDS, b"hello\n", b"hel", bytes(4)]), st.binary(max_size=20)), max_size=8),
    st.sampled_from([None, ConnectionDone(), ConnectionLost()]),
)
def test_any_server(client: str, pieces: list[bytes], end: Exception | None) -> None:
    """A client has a result or a ClientError to tell, in the end, and nothing is left of it."""
    clock, desk = Clock(), _Desk(interactive=client == "type")
    stream, transport = connected()

    async def give(_: IReactorTime, __: Target) -> Stream:
        return stream

    wish = HttpQuery(redirects=1)
    clients: dict[str, Callable[[], Coroutine[Deferred[Any], Any, Any]]] = {
        "check": lambda: check(clock, TARGET, b"hello\n"),
        "talk": lambda: exchange_lines(clock, TARGET, desk),  # type: ignore[arg-type]
        "type": lambda: exchange_lines(clock, TARGET, desk),  # type: ignore[arg-type]
        "daytime": lambda: daytime(clock, TARGET),
        "time": lambda: ask_time(clock, TARGET, clock.seconds),
        "fetch": lambda: fetch(clock, "a.example", wish, lambda _: TARGET, desk.write),
        "probe": lambda: probe(clock, Target("/socket", 0, 10.0), 0.5),
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in ("echo", "time_query", "http_get", "probe"):
            patch.setattr(f"svcd.clients.{module}.connect", give)
        results = started(clients[client]())
        for piece in pieces:
            stream.dataReceived(piece)
        if end is not None:
            stream.connectionLost(Failure(end))
        if not results and desk.wanted:
            desk.type(b"hello\n")
        clock.pump([1] * 15)
        if not results:
            desk.type(b"")
            clock.pump([1] * 15)
    [result] = results
    if isinstance(result, Failure):
        assert result.check(ClientError), result
        assert str(result.value)
    assert end is not None or "loseConnection" in transport.calls
    assert not clock.getDelayedCalls()


# Redirects.


@pytest.mark.parametrize(
    ("url", "place", "said"),
    [
        ("https://a.example/", "http://a.example/", "from https to http, which is not secure: http://a.example/"),
        ("http://a.example/", "ftp://a.example/", "to nowhere: ftp://a.example/: the scheme ftp is not known"),
        ("http://a.example/", "//u:p@b.example/", "to nowhere: names and passwords"),
        ("http://a.example/", "http://[", "to nowhere"),
    ],
)
def test_redirects_that_are_not_followed(monkeypatch: pytest.MonkeyPatch, url: str, place: str, said: str) -> None:
    """They are the server's mistake."""
    stream, _ = connected()
    stream.dataReceived(f"HTTP/1.1 302 Found\r\nLocation: {place}\r\n\r\n".encode())

    async def give(_: IReactorTime, __: Target) -> Stream:
        return stream

    monkeypatch.setattr("svcd.clients.http_get.connect", give)
    wish = HttpQuery(redirects=1)
    assert said in failed(started(fetch(Clock(), url, wish, lambda _: TARGET, lambda _: None)))


# Connecting.


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MemoryReactorClock]:
    """A reactor that connects to these addresses, whatever the name."""

    def reactor(*sockaddrs: tuple[Any, ...]) -> MemoryReactorClock:
        def look(of: Any, host: str, port: int, family: Any) -> Deferred[Any]:
            return lookup(of, host, port, family, "TCP", lambda *_: [(0, 0, 0, "", each) for each in sockaddrs])

        monkeypatch.setattr("svcd.clients.connect.lookup", look)
        return MemoryReactorClock()

    return reactor


def test_addresses_are_raced(known: Callable[..., MemoryReactorClock]) -> None:
    """Where the first address does not answer at once, the next is tried, and the first to answer is taken."""
    reactor = known(("::1", 7, 0, 0), ("127.0.0.1", 7))
    results = started(connect(reactor, TARGET))
    assert [each[0] for each in reactor.tcpClients] == ["::1"]
    reactor.advance(0.25)
    assert [each[0] for each in reactor.tcpClients] == ["::1", "127.0.0.1"]
    _, _, factory, _, _ = reactor.tcpClients[1]
    protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 7))
    protocol.makeConnection(StreamDouble(protocol, peer=LOCAL_PEER))
    [stream] = results
    assert isinstance(stream, Stream)
    assert list(stream.seconds) == ["lookup", "connect"]
    assert stream.seconds["connect"] == 0.25
    assert reactor.connectors[0].stoppedConnecting


def test_an_address_that_refuses(known: Callable[..., MemoryReactorClock]) -> None:
    """Then the next is tried at once, and after the last the reason is told."""
    reactor = known(("::1", 7, 0, 0), ("127.0.0.1", 7))
    results = started(connect(reactor, TARGET))
    for number in range(2):
        _, _, factory, _, _ = reactor.tcpClients[number]
        refused = Failure(RefusedError(osError=111, string="x"))
        factory.clientConnectionFailed(reactor.connectors[number], refused)
    assert failed(results) == "can't connect to server.example port 7: Connection refused"


def test_the_turns_of_addresses() -> None:
    """IPv6 and IPv4 change as long as there are both, and begin with what the system prefers."""
    v6, v4 = ([IPv6Address("TCP", f"::{number}", 7) for number in range(3)], [IPv4Address("TCP", "192.0.2.1", 7)])
    assert by_turns([*v6, *v4]) == [v6[0], v4[0], v6[1], v6[2]]
    assert by_turns([*v4, *v6]) == [v4[0], *v6]
    assert by_turns(v4) == v4


def test_nobody_answers(known: Callable[..., MemoryReactorClock]) -> None:
    """After the timeout that is told."""
    reactor = known(("192.0.2.1", 7))
    results = started(connect(reactor, TARGET))
    reactor.pump([1] * 11)
    assert failed(results) == "server.example port 7 does not answer within 10 s"


class _Threads(Clock):
    """Remembers what a thread has told it."""

    def __init__(self) -> None:
        super().__init__()
        self.told = SimpleQueue[Any]()

    def callFromThread(self, call: Any, *arguments: Any) -> None:
        self.told.put((call, arguments))

    def obey(self) -> None:
        call, arguments = self.told.get()
        call(*arguments)


def test_looking_up() -> None:
    """A name is looked up in a thread, an address is not; an IPv6 one keeps its interface."""
    reactor: Any = _Threads()
    flags = []

    def getaddrinfo(host: str, port: int, *rest: int) -> list[Any]:
        flags.append(rest[-1])
        if rest[-1]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == "none.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", ("192.0.2.1", port)), (0, 0, 0, "", ("fe80::1", port, 0, 1))]

    found: list[Any] = []
    lookup(reactor, "a.example", 7, socket.AF_UNSPEC, "UDP", getaddrinfo).addBoth(found.append)
    assert not found
    reactor.obey()
    interface = socket.if_indextoname(1)
    assert found == [[IPv4Address("UDP", "192.0.2.1", 7), IPv6Address("UDP", f"fe80::1%{interface}", 7, 0, 1)]]
    assert flags == [socket.AI_NUMERICHOST, 0]
    found.clear()
    lookup(reactor, "none.example", 7, socket.AF_UNSPEC, "TCP", getaddrinfo).addBoth(found.append)
    reactor.obey()
    assert failed(found) == "none.example has no address: Name or service not known"
    found.clear()
    lookup(reactor, "127.0.0.1", 7, socket.AF_UNSPEC).addBoth(found.append)
    lookup(reactor, "a" * 70 + ".example", 7, socket.AF_UNSPEC).addBoth(found.append)
    assert found[0] == [IPv4Address("TCP", "127.0.0.1", 7)]
    assert "can't be the name of a host" in failed(found[1:])


def test_who_does_not_wait_any_more() -> None:
    """Neither addresses nor input that come too late disturb anybody."""
    reactor: Any = _Threads()
    late = threading.Event()

    def getaddrinfo(*arguments: Any) -> list[Any]:
        if arguments[-1]:
            raise socket.gaierror
        late.wait()
        return []

    found: list[Any] = []
    looking = lookup(reactor, "a.example", 7, socket.AF_UNSPEC, "TCP", getaddrinfo).addErrback(found.append)
    source, sink = os.pipe()
    console = StandardStreams(reactor, source)
    reading = console.read().addErrback(found.append)
    for each in (looking, reading):
        each.cancel()
    late.set()
    reactor.obey()
    os.close(sink)
    reactor.obey()
    os.close(source)
    assert [failure.check(CancelledError) for failure in found] == [CancelledError] * 2


# Datagrams.


class _Network(Clock):
    """A reactor whose UDP sockets go to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, bytes]] = []
        self.sockets: list[Any] = []

    def listenUDP(self, port: int, protocol: Any, **settings: Any) -> None:
        assert (port, settings["maxPacketSize"]) == (0, 65_536)
        protocol.makeConnection(_Sender(self, protocol))
        self.sockets.append(protocol)


class _Sender:
    """The transport of one of them."""

    def __init__(self, network: _Network, protocol: Any) -> None:
        self._network = network
        self._protocol = protocol
        self._host = ""

    def connect(self, host: str, port: int) -> None:
        assert port == 7
        self._host = host

    def write(self, data: bytes) -> None:
        self._network.sent.append((self._host, data))

    def stopListening(self) -> None:
        self._protocol.doStop()


def _asking(*hosts: str) -> tuple[_Network, UdpQuery]:
    network = _Network()
    return network, UdpQuery(network, TARGET, [IPv4Address("UDP", host, 7) for host in hosts])


def test_questions_are_repeated() -> None:
    """After 1, 2 and 4 seconds, until the answer comes or the time is over."""
    network, questions = _asking("192.0.2.1")
    results = started(questions.ask(b"q"))
    for passed, count in ((0, 1), (0.75, 1), (0.25, 2), (1.75, 2), (0.25, 3), (3.75, 3), (0.25, 4)):
        network.advance(passed)
        assert len(network.sent) == count
    network.sockets[0].datagramReceived(b"a", None)
    assert results == [b"a"]
    results = started(questions.ask(b"q"))
    network.pump([0.5] * 25)
    assert failed(results) == "server.example port 7 has not answered over UDP within 10 s"
    questions.close()


def test_late_answers_answer_nothing_else() -> None:
    """What a repeated question is answered twice does not count for the next one."""
    network, questions = _asking("192.0.2.1")
    results = started(questions.ask(b"q"))
    network.advance(1.5)
    network.sockets[0].datagramReceived(b"a", None)
    assert results == [b"a"]
    results = started(questions.ask(b"r"))
    network.sockets[0].datagramReceived(b"a", None)
    assert not results
    network.sockets[0].datagramReceived(b"b", None)
    network.sockets[0].datagramReceived(b"c", None)
    assert results == [b"b"]


def test_a_refusal_leads_to_the_next_address() -> None:
    """And after the last it is told."""
    network, questions = _asking("192.0.2.1", "192.0.2.2")
    results = started(questions.ask(b"q"))
    network.sockets[0].connectionRefused()
    assert network.sent == [("192.0.2.1", b"q"), ("192.0.2.2", b"q")]
    # Another way to be told: the socket is gone.
    network.sockets[1].doStop()
    assert failed(results) == "can't reach server.example port 7 over UDP: Connection refused"


def test_a_question_that_is_too_long() -> None:
    """It is told before it is sent."""
    network, questions = _asking("192.0.2.1")
    assert "65507 at most" in failed(started(questions.ask(b"x" * (MOST_BYTES + 1))))
    assert not network.sent


# An exchange of lines.


class _Desk:
    """A console whose keys the test hits."""

    def __init__(self, *, interactive: bool) -> None:
        self.interactive = interactive
        self.shown = b""
        self._wanted: Deferred[bytes] | None = None

    def read(self) -> Deferred[bytes]:
        self._wanted = Deferred()
        return self._wanted

    def write(self, data: bytes) -> None:
        self.shown += data

    def type(self, data: bytes) -> None:
        wanted, self._wanted = self._wanted, None
        assert wanted is not None, "nobody reads"
        wanted.callback(data)

    @property
    def wanted(self) -> bool:
        return self._wanted is not None


class _Exchange:
    """An exchange between a desk and a transport in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, interactive: bool, secure: bool = False) -> None:
        self.clock = Clock()
        self.desk = _Desk(interactive=interactive)
        self.stream, self.transport = connected(secure=secure)

        async def give(_: IReactorTime, __: Target) -> Stream:
            return self.stream

        monkeypatch.setattr("svcd.clients.echo.connect", give)
        self.results = started(exchange_lines(self.clock, TARGET, self.desk))  # type: ignore[arg-type]

    def answer(self, data: bytes) -> None:
        self.stream.dataReceived(data)


def test_a_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line is asked for when as many lines came as went, however they are split."""
    exchange = _Exchange(monkeypatch, interactive=True)
    desk = exchange.desk
    assert desk.shown == b"type: "
    desk.type(b"one\n")
    assert exchange.transport.sent == b"one\n"
    exchange.answer(b"O")
    assert not desk.wanted
    exchange.answer(b"NE AND MORE\r\n")
    assert desk.shown == b"type: echo: ONE AND MORE\r\ntype: "
    desk.type(b"a\nb\n")
    exchange.answer(b"a\n")
    assert not desk.wanted
    exchange.answer(b"b\n")
    assert desk.shown.endswith(b"type: echo: a\necho: b\ntype: ")
    # Ctrl-D within a line: the answer has as many bytes, and no line end.
    desk.type(b"xy")
    exchange.answer(b"XY")
    assert desk.shown.endswith(b"type: echo: XY\ntype: ")
    desk.type(b"")
    assert exchange.results == [None]
    assert "loseConnection" in exchange.transport.calls


def test_a_dialogue_without_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever types may take as long as they like; the server may not."""
    exchange = _Exchange(monkeypatch, interactive=True)
    exchange.clock.pump([7] * 10)
    assert not exchange.results
    exchange.desk.type(b"one\n")
    exchange.clock.pump([7] * 2)
    assert failed(exchange.results) == "server.example port 7 has not answered within 10 s"


def test_a_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is told of the end when everything has come back."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.desk.type(b"abc")
    exchange.desk.type(b"def")
    exchange.desk.type(b"")
    exchange.answer(b"abc")
    assert not exchange.transport.write_closed
    exchange.answer(b"def")
    assert exchange.transport.write_closed
    assert not exchange.results
    exchange.stream.readConnectionLost()
    assert exchange.results == [None]
    assert exchange.desk.shown == b"abcdef"


def test_a_passage_to_who_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has not answered everything a second later is told of the end."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.desk.type(b"abc")
    exchange.desk.type(b"")
    exchange.clock.advance(0.9)
    assert not exchange.transport.write_closed
    exchange.clock.advance(0.2)
    assert exchange.transport.write_closed
    exchange.clock.pump([3] * 4)
    assert failed(exchange.results) == "server.example port 7 has not answered within 10 s"


def test_a_passage_to_who_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has answered everything and does not close is left after a while, in good order."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.desk.type(b"abc")
    exchange.desk.type(b"")
    exchange.answer(b"ABC")
    exchange.clock.pump([3] * 3)
    assert not exchange.results
    exchange.clock.pump([3] * 2)
    assert exchange.results == [None]


def test_a_passage_that_can_not_half_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS it ends when as much has come as went."""
    exchange = _Exchange(monkeypatch, interactive=False, secure=True)
    exchange.desk.type(b"abc")
    exchange.desk.type(b"")
    exchange.answer(b"AB")
    assert not exchange.results
    exchange.answer(b"C")
    assert exchange.results == [None]
    assert not exchange.transport.write_closed


def test_a_server_that_closes_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.desk.type(b"abc")
    exchange.stream.readConnectionLost()
    assert failed(exchange.results) == "the server has closed the connection before the end of the input"


# Command lines.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["echo", "a", "ecoh"], "no ecoh/tcp"),
        (["daytime", "-u", "a", "ecoh"], "no ecoh/udp"),
        (["time", "-u", "--tls", "a"], "--udp goes with neither"),
        (["echo", "-u", "/a"], "--udp goes with neither"),
        (["probe", "a"], "say the port"),
        (["probe", "/a", "7"], "has no port"),
        (["echo", "--ca", "x", "a"], "without --tls"),
        (["echo", "--tls", "--ca", "/none", "a", "7"], "--ca /none: No such file"),
        (["echo", "--tls", "--key", "/none", "a", "7"], "without --cert"),
        (["echo", "--tls", "/a"], "--name"),
        (["get", "ftp://a/"], "the scheme ftp"),
    ],
)
def test_wrong_command_lines(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The status is EX_USAGE, and what is wrong is told, behind the name of the command."""
    assert main(words) == os.EX_USAGE
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"svcctl {words[0]}: ")
    assert said in found.err


def test_options_between_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """They may stand anywhere, and behind -- there are none."""
    assert main(["probe", "a", "--wait", "2", "ecoh"]) == os.EX_USAGE
    assert "no ecoh/tcp" in capsys.readouterr().err
    assert main(["echo", "a", "-u", "ecoh", "x", "--timeout", "3", "y", "--", "--nothing"]) == os.EX_USAGE
    assert "no ecoh/udp" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["echo"], ["echo", "-4", "-6", "a"], ["get", "--timeout", "0", "a"], ["get", "--timeout", "nan", "a"],
     ["get", "--timeout", "inf", "a"], ["probe", "--retries", "-1", "a", "7"], ["time", "a", "37", "b"]],
)  # fmt: skip
def test_what_the_parser_refuses(words: list[str]) -> None:
    """It does so before anything else."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == os.EX_USAGE


def test_a_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """What the option takes is said."""
    for words, text in {
        ("--timeout", "0"): "'0' is no number of seconds above 0",
        ("--wait", "soon"): "'soon' is no number of seconds above 0",
        ("--retries", "x"): "'x' is no whole number from 0 on",
    }.items():
        with pytest.raises(SystemExit):
            main(["probe", *words, "a", "7"])
        assert capsys.readouterr().err.endswith(f"svcctl probe: argument {words[0]}: {text}\n")


def test_files_that_hold_no_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told which option named them."""
    path = tmp_path / "file"
    path.write_text("nothing\n")
    for option in ("--ca", "--cert"):
        # Nothing is looked up before they are read.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            words = ["echo", "--tls", option, str(path), "127.0.0.1", str(listener.getsockname()[1]), "x"]
            assert main(words) == os.EX_USAGE
        assert capsys.readouterr().err.startswith(f"svcctl echo: {option}: there is no certificate in it")


def test_a_key_in_a_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who has named a certificate without its key is told how to name it, and else which file has none."""
    path, other = tmp_path / "certificate", tmp_path / "other"
    for each in (path, other):
        each.write_bytes(Authority().sign("a").pem)
    nothing = "there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----)"
    for words, text in {
        (): f"--cert: {nothing}; name the file that has it by --key",
        ("--key", str(other)): f"--key: {nothing}",
    }.items():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = ["127.0.0.1", str(listener.getsockname()[1]), "x"]
            assert main(["echo", "--tls", "--cert", str(path), *words, *address]) == os.EX_USAGE
        assert capsys.readouterr().err == f"svcctl echo: {text}\n"


def test_an_authority_below_a_root_is_trusted_alone() -> None:
    """Who is named by --ca vouches for servers, and their own name is verified all the same."""
    below = Authority("Below", issuer=Authority("Root"))
    signed = below.sign("localhost")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(signed.certificate)
    context.use_privatekey(signed.key)

    def problems(name: str) -> list[str]:
        verifier = CertificateVerifier(TrustSettings(name, below.pem, lenient=True))
        any_protocol: Any = None
        client, server = verifier.clientConnectionForTLS(any_protocol), SSL.Connection(context, None)
        client.set_connect_state()
        server.set_accept_state()
        for here, there in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                here.do_handshake()
            there.bio_write(here.bio_read(65_536))
        client.do_handshake()
        return verifier.problems

    assert problems("localhost") == []
    assert problems("other.example") == ["it is not for other.example"]
