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
    """Start a coroutine; return a list to which its result or Failure is added."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    return results


def failed(results: list[Any]) -> str:
    """Return the message of the svcctl error with which a coroutine has failed."""
    [failure] = results
    assert isinstance(failure, Failure)
    assert failure.check(UnavailableError, ServerError, UsageError), failure
    return str(failure.value)


def connected(**settings: Any) -> tuple[Stream, StreamDouble]:
    """Return a stream and its transport."""
    stream = Stream(**settings)
    transport = StreamDouble(stream, peer=LOCAL_PEER)
    made: Any = stream
    made.makeConnection(transport)
    return stream, transport


# Ports, URLs, times


def test_ports() -> None:
    """A port is a number from 1 to 65535 or a name of /etc/services."""
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
    """A URL is split into what the request needs."""
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "http://", "ftp://a/", "http://a:b/", "http://a:0/", "http://a:70000/", "http://[::1/", "http://u:p@a/",
     "http://a/ b", "http://a/\r\nX: y", "http://\u2028/", "http://a..b/é", "mailto:x@y.example"],
)  # fmt: skip
def test_malformed_urls(text: str) -> None:
    """A malformed URL is a UsageError, whose text does not repeat what may be a password."""
    with pytest.raises(UsageError) as caught:
        parse_url(text if text != "http://a..b/é" else "http://é..b/")
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://a:b/", "http://a:70000/"])
def test_a_url_with_a_wrong_port(text: str) -> None:
    """A URL with a wrong port is a UsageError that names the port."""
    with pytest.raises(UsageError, match=f"{text}: the port is not a number from 1 to 65535"):
        parse_url(text)


@given(st.integers(-(2**31), 2**34), st.integers(-(2**31) + 1, 2**31 - 1))
def test_times_of_four_bytes(moment: int, away: int) -> None:
    """moment_1900() restores a time from 4 bytes and a clock that is wrong by less than 68 years, in any era."""
    assert moment_1900(time_1900(moment), moment + away) == moment


def test_the_era_of_2036() -> None:
    """The next era (RFC 868) begins with four zero bytes."""
    rollover = int(datetime(2036, 2, 7, 6, 28, 16, tzinfo=UTC).timestamp())
    assert moment_1900(bytes(4), rollover - 100) == rollover
    assert moment_1900(b"\xff\xff\xff\xff", rollover + 100) == rollover - 1


# Streams


def test_a_stream_is_paused_while_data_waits() -> None:
    """The transport is paused while data waits for read(); data that still arrives is kept."""
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


def test_reading_a_lost_stream() -> None:
    """Data received before the loss is read first; every later read() fails."""
    stream, _ = connected()
    stream.dataReceived(b"a")
    stream.connectionLost(Failure(ConnectionLost()))
    found: list[Any] = []
    for _ in range(3):
        stream.read().addBoth(found.append)
    assert found[0] == b"a"
    for each in found[1:]:
        assert "connection to the server was lost" in failed([each])


def test_writing_waits_for_room() -> None:
    """write() returns when the transport has room or the connection is lost."""
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
    """A secure stream becomes ready when the handshake fails, and has the reason in `lost`."""
    stream, _ = connected(secure=True)
    assert not stream.ready.called
    stream.connectionLost(Failure(ConnectionDone()))
    assert stream.ready.called
    assert isinstance(stream.lost, ConnectionDone)


# Several coroutines


def test_the_first_coroutine_to_end_decides() -> None:
    """first_of() ends with the first coroutine: the others are cancelled, and its error is raised."""
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


def test_the_inactivity_timeout() -> None:
    """The timeout ends when nothing has happened for its duration while something is awaited."""
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


# Arbitrary servers

_LINES = ["HTTP/1.1 200 OK", "HTTP/1.1 302 Found", "Content-Length: 3", "Transfer-Encoding: chunked", "Location: /x"]
_WORDS = [f"{line}\r\n".encode() for line in (*_LINES, "", "3\r\nabc", "0", "Sat Nov 21 10:12:00 2026")]


@given(
    st.sampled_from(["check", "talk", "type", "daytime", "time", "fetch", "probe"]),
    st.lists(st.one_of(st.sampled_from([*_WORDS, b"hello\n", b"hel", bytes(4)]), st.binary(max_size=20)), max_size=8),
    st.sampled_from([None, ConnectionDone(), ConnectionLost()]),
)
def test_arbitrary_servers(client: str, pieces: list[bytes], end: Exception | None) -> None:
    """Whatever a server sends, a client ends with a result or a ClientError, closes, and leaves no timer."""
    clock, console = Clock(), _Console(interactive=client == "type")
    stream, transport = connected()

    async def give(_: IReactorTime, __: Target) -> Stream:
        return stream

    settings = HttpQuery(redirects=1)
    clients: dict[str, Callable[[], Coroutine[Deferred[Any], Any, Any]]] = {
        "check": lambda: check(clock, TARGET, b"hello\n"),
        "talk": lambda: exchange_lines(clock, TARGET, console),  # type: ignore[arg-type]
        "type": lambda: exchange_lines(clock, TARGET, console),  # type: ignore[arg-type]
        "daytime": lambda: daytime(clock, TARGET),
        "time": lambda: ask_time(clock, TARGET, clock.seconds),
        "fetch": lambda: fetch(clock, "a.example", settings, lambda _: TARGET, console.write),
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
        if not results and console.pending:
            console.type(b"hello\n")
        clock.pump([1] * 15)
        if not results:
            console.type(b"")
            clock.pump([1] * 15)
    [result] = results
    if isinstance(result, Failure):
        assert result.check(ClientError), result
        assert str(result.value)
    assert end is not None or "loseConnection" in transport.calls
    assert not clock.getDelayedCalls()


# Redirects


@pytest.mark.parametrize(
    ("url", "place", "message"),
    [
        ("https://a.example/", "http://a.example/", "from https to http, which is not secure: http://a.example/"),
        (
            "http://a.example/",
            "ftp://a.example/",
            ("to an invalid URL: ftp://a.example/: the scheme ftp is not supported"),
        ),
        ("http://a.example/", "//u:p@b.example/", "to an invalid URL: names and passwords"),
        ("http://a.example/", "http://[", "to an invalid URL"),
    ],
)
def test_redirects_that_are_not_followed(monkeypatch: pytest.MonkeyPatch, url: str, place: str, message: str) -> None:
    """A redirect to http, to another scheme, with a password or malformed is a ServerError."""
    stream, _ = connected()
    stream.dataReceived(f"HTTP/1.1 302 Found\r\nLocation: {place}\r\n\r\n".encode())

    async def give(_: IReactorTime, __: Target) -> Stream:
        return stream

    monkeypatch.setattr("svcd.clients.http_get.connect", give)
    settings = HttpQuery(redirects=1)
    assert message in failed(started(fetch(Clock(), url, settings, lambda _: TARGET, lambda _: None)))


# Connecting


@pytest.fixture
def reactor_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MemoryReactorClock]:
    """Return a function that makes a reactor for which every name has the given addresses."""

    def reactor(*sockaddrs: tuple[Any, ...]) -> MemoryReactorClock:
        def look(of: Any, host: str, port: int, family: Any) -> Deferred[Any]:
            return lookup(of, host, port, family, "TCP", lambda *_: [(0, 0, 0, "", each) for each in sockaddrs])

        monkeypatch.setattr("svcd.clients.connect.lookup", look)
        return MemoryReactorClock()

    return reactor


def test_addresses_are_raced(reactor_for: Callable[..., MemoryReactorClock]) -> None:
    """If the first address does not answer within 0.25 s the next is tried too; the first connection is used."""
    reactor = reactor_for(("::1", 7, 0, 0), ("127.0.0.1", 7))
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


def test_an_address_that_refuses(reactor_for: Callable[..., MemoryReactorClock]) -> None:
    """After a refusal the next address is tried at once; after the last one the reason is reported."""
    reactor = reactor_for(("::1", 7, 0, 0), ("127.0.0.1", 7))
    results = started(connect(reactor, TARGET))
    for number in range(2):
        _, _, factory, _, _ = reactor.tcpClients[number]
        refused = Failure(RefusedError(osError=111, string="x"))
        factory.clientConnectionFailed(reactor.connectors[number], refused)
    assert failed(results) == "can't connect to server.example port 7: Connection refused"


def test_addresses_of_both_versions_alternate() -> None:
    """IPv6 and IPv4 addresses alternate, and the one that the system prefers is first."""
    v6, v4 = ([IPv6Address("TCP", f"::{number}", 7) for number in range(3)], [IPv4Address("TCP", "192.0.2.1", 7)])
    assert by_turns([*v6, *v4]) == [v6[0], v4[0], v6[1], v6[2]]
    assert by_turns([*v4, *v6]) == [v4[0], *v6]
    assert by_turns(v4) == v4


def test_an_address_that_does_not_answer(reactor_for: Callable[..., MemoryReactorClock]) -> None:
    """A connection that is not answered fails after the timeout."""
    reactor = reactor_for(("192.0.2.1", 7))
    results = started(connect(reactor, TARGET))
    reactor.pump([1] * 11)
    assert failed(results) == "server.example port 7 does not answer within 10 s"


class _ThreadedClock(Clock):
    """Clock whose callFromThread() queues calls for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = SimpleQueue[Any]()

    def callFromThread(self, call: Any, *arguments: Any) -> None:
        self.queue.put((call, arguments))

    def run_call(self) -> None:
        call, arguments = self.queue.get()
        call(*arguments)


def test_lookups() -> None:
    """Names are looked up in a thread, addresses are not; a link-local address keeps its interface."""
    reactor: Any = _ThreadedClock()
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
    reactor.run_call()
    interface = socket.if_indextoname(1)
    assert found == [[IPv4Address("UDP", "192.0.2.1", 7), IPv6Address("UDP", f"fe80::1%{interface}", 7, 0, 1)]]
    assert flags == [socket.AI_NUMERICHOST, 0]
    found.clear()
    lookup(reactor, "none.example", 7, socket.AF_UNSPEC, "TCP", getaddrinfo).addBoth(found.append)
    reactor.run_call()
    assert failed(found) == "none.example has no address: Name or service not known"
    found.clear()
    lookup(reactor, "127.0.0.1", 7, socket.AF_UNSPEC).addBoth(found.append)
    lookup(reactor, "a" * 70 + ".example", 7, socket.AF_UNSPEC).addBoth(found.append)
    assert found[0] == [IPv4Address("TCP", "127.0.0.1", 7)]
    assert "can't be the name of a host" in failed(found[1:])


def test_late_results_of_threads_are_ignored() -> None:
    """Addresses and input that arrive after cancellation are ignored."""
    reactor: Any = _ThreadedClock()
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
    reactor.run_call()
    os.close(sink)
    reactor.run_call()
    os.close(source)
    assert [failure.check(CancelledError) for failure in found] == [CancelledError] * 2


# Datagrams


class _Network(Clock):
    """Reactor whose UDP sockets belong to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, bytes]] = []
        self.sockets: list[Any] = []

    def listenUDP(self, port: int, protocol: Any, **settings: Any) -> None:
        assert (port, settings["maxPacketSize"]) == (0, 65_536)
        protocol.makeConnection(_Sender(self, protocol))
        self.sockets.append(protocol)


class _Sender:
    """Transport of a UDP socket."""

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


def _query(*hosts: str) -> tuple[_Network, UdpQuery]:
    network = _Network()
    return network, UdpQuery(network, TARGET, [IPv4Address("UDP", host, 7) for host in hosts])


def test_queries_are_repeated() -> None:
    """A query is repeated after 1, 2 and 4 s, until the answer arrives or the time is over."""
    network, query = _query("192.0.2.1")
    results = started(query.ask(b"q"))
    for passed, count in ((0, 1), (0.75, 1), (0.25, 2), (1.75, 2), (0.25, 3), (3.75, 3), (0.25, 4)):
        network.advance(passed)
        assert len(network.sent) == count
    network.sockets[0].datagramReceived(b"a", None)
    assert results == [b"a"]
    results = started(query.ask(b"q"))
    network.pump([0.5] * 25)
    assert failed(results) == "server.example port 7 has not answered over UDP within 10 s"
    query.close()


def test_duplicate_answers_are_ignored() -> None:
    """A second answer to a repeated query is not taken for the answer to the next query."""
    network, query = _query("192.0.2.1")
    results = started(query.ask(b"q"))
    network.advance(1.5)
    network.sockets[0].datagramReceived(b"a", None)
    assert results == [b"a"]
    results = started(query.ask(b"r"))
    network.sockets[0].datagramReceived(b"a", None)
    assert not results
    network.sockets[0].datagramReceived(b"b", None)
    network.sockets[0].datagramReceived(b"c", None)
    assert results == [b"b"]


def test_a_refusal_leads_to_the_next_address() -> None:
    """After a refusal the next address is queried; after the last one the error is reported."""
    network, query = _query("192.0.2.1", "192.0.2.2")
    results = started(query.ask(b"q"))
    network.sockets[0].connectionRefused()
    assert network.sent == [("192.0.2.1", b"q"), ("192.0.2.2", b"q")]
    # A port that was closed counts as a refusal, too.
    network.sockets[1].doStop()
    assert failed(results) == "can't reach server.example port 7 over UDP: Connection refused"


def test_a_query_that_is_too_long() -> None:
    """A datagram above 65,507 bytes is an error before anything is sent."""
    network, query = _query("192.0.2.1")
    assert "65507 at most" in failed(started(query.ask(b"x" * (MOST_BYTES + 1))))
    assert not network.sent


# Exchange of lines


class _Console:
    """Console whose input the test types."""

    def __init__(self, *, interactive: bool) -> None:
        self.interactive = interactive
        self.shown = b""
        self._pending: Deferred[bytes] | None = None

    def read(self) -> Deferred[bytes]:
        self._pending = Deferred()
        return self._pending

    def write(self, data: bytes) -> None:
        self.shown += data

    def type(self, data: bytes) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None, "nothing reads"
        pending.callback(data)

    @property
    def pending(self) -> bool:
        return self._pending is not None


class _Exchange:
    """exchange_lines() between a console and a transport in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, interactive: bool, secure: bool = False) -> None:
        self.clock = Clock()
        self.console = _Console(interactive=interactive)
        self.stream, self.transport = connected(secure=secure)

        async def give(_: IReactorTime, __: Target) -> Stream:
            return self.stream

        monkeypatch.setattr("svcd.clients.echo.connect", give)
        self.results = started(exchange_lines(self.clock, TARGET, self.console))  # type: ignore[arg-type]

    def answer(self, data: bytes) -> None:
        self.stream.dataReceived(data)


def test_an_interactive_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt returns when as many lines have been received as were sent, however they are split."""
    exchange = _Exchange(monkeypatch, interactive=True)
    console = exchange.console
    assert console.shown == b"type: "
    console.type(b"one\n")
    assert exchange.transport.sent == b"one\n"
    exchange.answer(b"O")
    assert not console.pending
    exchange.answer(b"NE AND MORE\r\n")
    assert console.shown == b"type: echo: ONE AND MORE\r\ntype: "
    console.type(b"a\nb\n")
    exchange.answer(b"a\n")
    assert not console.pending
    exchange.answer(b"b\n")
    assert console.shown.endswith(b"type: echo: a\necho: b\ntype: ")
    # Ctrl-D within a line: the answer has as many bytes, and no line end.
    console.type(b"xy")
    exchange.answer(b"XY")
    assert console.shown.endswith(b"type: echo: XY\ntype: ")
    console.type(b"")
    assert exchange.results == [None]
    assert "loseConnection" in exchange.transport.calls


def test_an_interactive_exchange_without_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive user has no timeout; the server has."""
    exchange = _Exchange(monkeypatch, interactive=True)
    exchange.clock.pump([7] * 10)
    assert not exchange.results
    exchange.console.type(b"one\n")
    exchange.clock.pump([7] * 2)
    assert failed(exchange.results) == "server.example port 7 has not answered within 10 s"


def test_an_exchange_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write side is shut down when as many bytes have been received as were sent."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.console.type(b"abc")
    exchange.console.type(b"def")
    exchange.console.type(b"")
    exchange.answer(b"abc")
    assert not exchange.transport.write_closed
    exchange.answer(b"def")
    assert exchange.transport.write_closed
    assert not exchange.results
    exchange.stream.readConnectionLost()
    assert exchange.results == [None]
    assert exchange.console.shown == b"abcdef"


def test_an_exchange_with_a_server_that_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write side is shut down after 1 s for a server that waits for the end before it answers."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.console.type(b"abc")
    exchange.console.type(b"")
    exchange.clock.advance(0.9)
    assert not exchange.transport.write_closed
    exchange.clock.advance(0.2)
    assert exchange.transport.write_closed
    exchange.clock.pump([3] * 4)
    assert failed(exchange.results) == "server.example port 7 has not answered within 10 s"


def test_an_exchange_with_a_server_that_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has answered everything and does not close is left after the timeout, without an error."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.console.type(b"abc")
    exchange.console.type(b"")
    exchange.answer(b"ABC")
    exchange.clock.pump([3] * 3)
    assert not exchange.results
    exchange.clock.pump([3] * 2)
    assert exchange.results == [None]


def test_an_exchange_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS, which has no half-close, the exchange ends when as many bytes have been received as were sent."""
    exchange = _Exchange(monkeypatch, interactive=False, secure=True)
    exchange.console.type(b"abc")
    exchange.console.type(b"")
    exchange.answer(b"AB")
    assert not exchange.results
    exchange.answer(b"C")
    assert exchange.results == [None]
    assert not exchange.transport.write_closed


def test_a_server_that_closes_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that closes half a second before the end of the input is an error."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.console.type(b"abc")
    exchange.stream.readConnectionLost()
    exchange.clock.advance(0.4)
    assert not exchange.results
    exchange.clock.advance(0.2)
    assert failed(exchange.results) == "the server has closed the connection before the end of the input"


def test_a_server_that_closes_shortly_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers a line and closes the connection may be faster than the end of the input."""
    exchange = _Exchange(monkeypatch, interactive=False)
    exchange.console.type(b"Anna\n")
    exchange.answer(b"Hello, Anna!\n")
    exchange.stream.readConnectionLost()
    exchange.console.type(b"")
    assert exchange.results == [None]
    assert exchange.console.shown == b"Hello, Anna!\n"


# Command lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["echo", "a", "ecoh"], "no ecoh/tcp"),
        (["daytime", "-u", "a", "ecoh"], "no ecoh/udp"),
        (["time", "-u", "--tls", "a"], "--udp can't be combined with"),
        (["echo", "-u", "/a"], "--udp can't be combined with"),
        (["probe", "a"], "the port is missing"),
        (["probe", "/a", "7"], "has no port"),
        (["echo", "--ca", "x", "a"], "require --tls"),
        (["echo", "--tls", "--ca", "/none", "a", "7"], "--ca /none: No such file"),
        (["echo", "--tls", "--key", "/none", "a", "7"], "--key requires --cert"),
        (["echo", "--tls", "/a"], "--name"),
        (["get", "ftp://a/"], "the scheme ftp"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line exits with EX_USAGE, and the message begins with the name of the command."""
    assert main(words) == os.EX_USAGE
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"svcctl {words[0]}: ")
    assert message in found.err


def test_options_between_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """Options may stand between arguments; after `--` there are none."""
    assert main(["probe", "a", "--wait", "2", "ecoh"]) == os.EX_USAGE
    assert "no ecoh/tcp" in capsys.readouterr().err
    assert main(["echo", "a", "-u", "ecoh", "x", "--timeout", "3", "y", "--", "--nothing"]) == os.EX_USAGE
    assert "no ecoh/udp" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["echo"], ["echo", "-4", "-6", "a"], ["get", "--timeout", "0", "a"], ["get", "--timeout", "nan", "a"],
     ["get", "--timeout", "inf", "a"], ["probe", "--retries", "-1", "a", "7"], ["time", "a", "37", "b"]],
)  # fmt: skip
def test_mistakes_that_argparse_finds(words: list[str]) -> None:
    """Mistakes that argparse finds exit with EX_USAGE."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == os.EX_USAGE


def test_wrong_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong number is reported with what the option takes."""
    for words, text in {
        ("--timeout", "0"): "'0' is not a number of seconds above 0",
        ("--wait", "soon"): "'soon' is not a number of seconds above 0",
        ("--retries", "x"): "'x' is not a whole number of at least 0",
    }.items():
        with pytest.raises(SystemExit):
            main(["probe", *words, "a", "7"])
        assert capsys.readouterr().err.endswith(f"svcctl probe: argument {words[0]}: {text}\n")


def test_files_without_a_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without a certificate is reported with the option that names it."""
    path = tmp_path / "file"
    path.write_text("nothing\n")
    for option in ("--ca", "--cert"):
        # The files are read before anything is looked up.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            words = ["echo", "--tls", option, str(path), "127.0.0.1", str(listener.getsockname()[1]), "x"]
            assert main(words) == os.EX_USAGE
        assert capsys.readouterr().err.startswith(f"svcctl echo: {option}: there is no certificate in it")


def test_a_key_in_a_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate without its key is reported with the option --key, and a key file without a key as such."""
    path, other = tmp_path / "certificate", tmp_path / "other"
    for each in (path, other):
        each.write_bytes(Authority().sign("a").pem)
    nothing = "there is no private key in it (PEM: -----BEGIN PRIVATE KEY-----)"
    for words, text in {
        (): f"--cert: {nothing}; set --key to the file that contains it",
        ("--key", str(other)): f"--key: {nothing}",
    }.items():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = ["127.0.0.1", str(listener.getsockname()[1]), "x"]
            assert main(["echo", "--tls", "--cert", str(path), *words, *address]) == os.EX_USAGE
        assert capsys.readouterr().err == f"svcctl echo: {text}\n"


def test_an_authority_below_a_root_is_trusted_alone() -> None:
    """An intermediate authority given by --ca is sufficient; the name of the server is verified all the same."""
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
