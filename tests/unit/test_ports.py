"""Ports over real sockets and a reactor that watches nothing."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.python.failure import Failure

from svcd.transport.ports import DatagramPort, StreamPort
from tests.doubles import FakeReactor, LogCatcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from twisted.internet.interfaces import IAddress


class _Echo(Protocol):
    """Sends back, and keeps why it ended."""

    def __init__(self, mistake: Exception | None) -> None:
        self.mistake = mistake
        self.lost: Failure | None = None

    def connectionMade(self) -> None:
        if self.mistake is not None:
            raise self.mistake

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = reason


class _Factory(Factory):
    """Builds what is planned, else an _Echo."""

    def __init__(self) -> None:
        self.planned: list[Any] = []
        self.peers: list[IAddress] = []
        self.built: list[_Echo] = []

    def buildProtocol(self, addr: IAddress) -> _Echo | None:  # type: ignore[override]
        self.peers.append(addr)
        plan = self.planned.pop(0) if self.planned else None
        if plan == "refuse":
            return None
        if plan == "raise":
            raise ZeroDivisionError
        self.built.append(_Echo(plan))
        return self.built[-1]


class _Accepting:
    """A listening socket whose accept fails as planned."""

    def __init__(self, inner: socket.socket, errors: list[int]) -> None:
        self._inner = inner
        self._errors = errors
        self.accepts = 0

    def _accept(self) -> Any:
        """Fail, or accept."""
        self.accepts += 1
        if self._errors:
            code = self._errors.pop(0)
            raise OSError(code, os.strerror(code))
        return self._inner._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Streams:
    """A stream port on a real listener, and its clients."""

    def __init__(self, listener: socket.socket) -> None:
        self.reactor = FakeReactor()
        self.factory = _Factory()
        self.short = 0
        self.may_accept = True
        self.listener = listener
        self.port = StreamPort(
            self.reactor,
            listener,
            self.factory,
            lambda: self.may_accept,
            self._short,
        )
        self.clients: list[socket.socket] = []

    def _short(self) -> None:
        self.short += 1

    def connect(self) -> socket.socket:
        """A client in the queue; connecting to a listener of this machine is done when connect returns."""
        client = socket.socket(self.listener.family)
        self.clients.append(client)
        client.settimeout(10)
        client.connect(self.listener.getsockname())
        return client

    def failing(self, *codes: int) -> _Accepting:
        """Let accept fail by these first."""
        accepting = _Accepting(self.listener, list(codes))
        self.port.socket = accepting  # type: ignore[assignment]
        return accepting

    def close(self) -> None:
        """Close everything."""
        for protocol in self.factory.built:
            if protocol.transport is not None:
                protocol.transport.abortConnection()  # type: ignore[attr-defined]
        self.reactor.advance(0)
        for each in [*self.clients, self.listener]:
            each.close()


def _listener(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family)
    listener.setblocking(False)
    listener.bind(address)
    listener.listen()
    return listener


@pytest.fixture
def streams() -> Iterator[_Streams]:
    """A port on the loopback interface that listens."""
    made = _Streams(_listener(socket.AF_INET, ("127.0.0.1", 0)))
    made.port.startListening()
    yield made
    made.close()


def test_a_port_is_watched_while_it_listens(streams: _Streams) -> None:
    """It rests and goes on as told, and once stopped it stays so; its socket stays its owner's."""
    port, watched = streams.port, streams.reactor.readers
    assert port in watched
    port.pause()
    assert port not in watched
    port.resume()
    assert port in watched
    assert port.stopListening().called
    assert port not in watched
    port.resume()
    assert port not in watched
    assert port.fileno() == streams.listener.fileno() != -1
    assert port.getHost() == IPv4Address("TCP", *streams.listener.getsockname())
    assert port.logPrefix() == "StreamPort"


def test_all_who_wait_are_accepted(streams: _Streams) -> None:
    """One event takes everyone in the queue, each with its own address."""
    clients = [streams.connect() for _ in range(5)]
    streams.port.doRead()
    assert streams.factory.peers == [IPv4Address("TCP", *client.getsockname()) for client in clients]
    streams.port.doRead()
    assert len(streams.factory.built) == 5


def test_bytes_are_counted_both_ways(streams: _Streams) -> None:
    """What came in and what the kernel took, on the transport."""
    client = streams.connect()
    streams.port.doRead()
    client.sendall(b"12345")
    transport: Any = streams.factory.built[0].transport
    transport.doRead()
    transport.doWrite()
    assert client.recv(100) == b"12345"
    assert (transport.bytes_in, transport.bytes_out) == (5, 5)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_is_reported_and_ends_the_round(streams: _Streams, code: int) -> None:
    """Nobody is turned away: the client stays in the queue, and accept is not tried again in this round."""
    streams.connect()
    accepting = streams.failing(code)
    streams.port.doRead()
    assert (streams.short, accepting.accepts, streams.factory.built) == (1, 1, [])
    streams.port.doRead()
    assert len(streams.factory.built) == 1


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR])
def test_a_client_that_went_away_is_skipped(streams: _Streams, code: int) -> None:
    """The next in the queue is served in the same round."""
    streams.connect()
    streams.failing(code)
    streams.port.doRead()
    assert (streams.short, len(streams.factory.built)) == (0, 1)


def test_nobody_is_accepted_while_the_budget_is_used_up(streams: _Streams) -> None:
    """The question is asked before each accept, so that the limit is never passed."""
    streams.connect()
    accepting = streams.failing()
    streams.may_accept = False
    streams.port.doRead()
    assert accepting.accepts == 0


def test_a_port_that_begins_while_nobody_may_be_accepted_rests(streams: _Streams) -> None:
    """A watched socket with a client in its queue would make the reactor spin."""
    streams.port.stopListening()
    streams.may_accept = False
    streams.port.startListening()
    assert streams.port not in streams.reactor.readers
    streams.may_accept = True
    streams.port.resume()
    assert streams.port in streams.reactor.readers


def test_a_round_ends_when_the_port_stops_in_it(streams: _Streams) -> None:
    """A connection that stops the listener is the last."""
    for _ in range(3):
        streams.connect()
    build = streams.factory.buildProtocol

    def stopping(addr: IAddress) -> Any:
        streams.port.stopListening()
        return build(addr)

    streams.factory.buildProtocol = stopping  # type: ignore[method-assign]
    streams.port.doRead()
    assert len(streams.factory.built) == 1


@pytest.mark.parametrize(("plan", "failures"), [("raise", 1), ("refuse", 0)])
def test_a_client_that_cannot_be_served_is_closed_alone(streams: _Streams, plan: str, failures: int) -> None:
    """A mistake in the factory is logged and ends that one connection; a refusal is no mistake."""
    bad, good = streams.connect(), streams.connect()
    streams.factory.planned = [plan]
    with LogCatcher() as log:
        streams.port.doRead()
    assert bad.recv(1) == b""
    assert len(log.failures) == failures
    assert len(streams.factory.built) == 1
    good.sendall(b"x")
    transport: Any = streams.factory.built[0].transport
    transport.doRead()
    transport.doWrite()
    assert good.recv(1) == b"x"


def test_a_protocol_that_fails_to_begin_is_closed_alone(streams: _Streams) -> None:
    """Its transport is aborted and it is told so; the next client is served."""
    bad = streams.connect()
    streams.connect()
    streams.factory.planned = [ZeroDivisionError("at once")]
    with LogCatcher() as log:
        streams.port.doRead()
        streams.reactor.advance(0)
    with pytest.raises(ConnectionResetError):
        bad.recv(1)
    assert [str(failure.value) for failure in log.failures] == ["at once"]
    first, second = streams.factory.built
    assert first.lost is not None
    assert first.lost.check(ConnectionAborted)
    assert second.lost is None


def test_clients_of_a_unix_socket(tmp_path: Path) -> None:
    """They are served, bound or not, and counted like others."""
    streams = _Streams(_listener(socket.AF_UNIX, str(tmp_path / "s")))
    streams.port.startListening()
    try:
        client = streams.connect()
        streams.port.doRead()
        assert streams.factory.peers == [UNIXAddress(None)]
        assert streams.port.getHost() == UNIXAddress(str(tmp_path / "s"))
        client.sendall(b"123")
        transport: Any = streams.factory.built[0].transport
        transport.doRead()
        transport.doWrite()
        assert client.recv(10) == b"123"
        assert (transport.bytes_in, transport.bytes_out) == (3, 3)
    finally:
        streams.close()


class _Answers(DatagramProtocol):
    """Answers by the question; `raise` is a mistake."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.stopped = 0

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.asked.append(datagram)
        if datagram == b"raise":
            raise ZeroDivisionError
        assert self.transport is not None
        self.transport.write(datagram, addr)

    def stopProtocol(self) -> None:
        self.stopped += 1


class _Failing:
    """A datagram socket whose recvfrom or sendto fails first."""

    def __init__(self, inner: socket.socket, **codes: int) -> None:
        self._inner = inner
        self._codes = codes

    def _fail(self, name: str) -> None:
        code = self._codes.pop(name, None)
        if code is not None:
            raise OSError(code, os.strerror(code))

    def recvfrom(self, size: int) -> Any:
        """Fail, or receive."""
        self._fail("recvfrom")
        return self._inner.recvfrom(size)

    def sendto(self, data: bytes, address: Any) -> int:
        """Fail, or send."""
        self._fail("sendto")
        return self._inner.sendto(data, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Datagrams:
    """A datagram port on a real socket, and a client."""

    def __init__(self, family: int, server: Any, client: Any) -> None:
        self.reactor = FakeReactor()
        self.protocol = _Answers()
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(server)
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.client.settimeout(10)
        if client is not None:
            self.client.bind(client)
        self.port = DatagramPort(self.reactor, self.sock, self.protocol)
        self.port.startListening()

    def send(self, *datagrams: bytes) -> None:
        """Send to the port, which on this machine arrives at once."""
        for each in datagrams:
            self.client.sendto(each, self.sock.getsockname())

    def close(self) -> None:
        """Close both."""
        self.sock.close()
        self.client.close()


@pytest.fixture
def datagrams() -> Iterator[_Datagrams]:
    """A port on the loopback interface that listens."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0))
    yield made
    made.close()


def test_datagrams_are_answered_and_counted(datagrams: _Datagrams) -> None:
    """Everything that waits is read in one go; datagrams and bytes are counted both ways."""
    datagrams.send(b"one", b"", b"three")
    datagrams.port.doRead()
    assert [datagrams.client.recv(100) for _ in range(3)] == [b"one", b"", b"three"]
    port = datagrams.port
    assert (port.datagrams, port.bytes_in, port.bytes_out) == (3, 8, 8)
    assert port.getHost() == IPv4Address("UDP", *datagrams.sock.getsockname())


def test_a_datagram_port_stops_at_once(datagrams: _Datagrams) -> None:
    """The protocol is told once, nothing is read any more, and the socket stays open."""
    assert datagrams.port in datagrams.reactor.readers
    datagrams.send(b"late")
    datagrams.port.stopListening()
    datagrams.port.stopListening()
    datagrams.port.doRead()
    assert datagrams.port not in datagrams.reactor.readers
    assert (datagrams.protocol.asked, datagrams.protocol.stopped) == ([], 1)
    assert datagrams.sock.fileno() != -1


def test_an_answer_that_cannot_be_sent_is_lost(datagrams: _Datagrams) -> None:
    """As the network might lose it; the next is sent, and only that is counted."""
    datagrams.port.socket = _Failing(datagrams.sock, sendto=errno.ENOBUFS)  # type: ignore[assignment]
    datagrams.send(b"lost", b"sent")
    datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"sent"
    assert datagrams.port.bytes_out == 4


def test_an_answer_that_is_too_large_is_lost(datagrams: _Datagrams) -> None:
    """The kernel's refusal is no mistake of the service."""
    datagrams.port.write(b"x" * 70_000, datagrams.client.getsockname())
    assert datagrams.port.bytes_out == 0


def test_an_error_of_an_earlier_answer_is_not_the_next_ones_fault(datagrams: _Datagrams) -> None:
    """An ICMP error that recvfrom reports is skipped."""
    datagrams.port.socket = _Failing(datagrams.sock, recvfrom=errno.ECONNREFUSED)  # type: ignore[assignment]
    datagrams.send(b"x")
    datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"x"


def test_a_mistake_with_one_datagram_spares_the_next(datagrams: _Datagrams) -> None:
    """It is logged, and the port listens on."""
    datagrams.send(b"raise", b"x")
    with LogCatcher() as log:
        datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"x"
    assert len(log.failures) == 1


def test_who_cannot_be_answered_is_counted_only(tmp_path: Path) -> None:
    """A UNIX socket without a name asks in vain; one with a name is answered."""
    for name, answered in ((None, []), (str(tmp_path / "client"), [b"x"])):
        server = str(tmp_path / f"server-{bool(answered)}")
        made = _Datagrams(socket.AF_UNIX, server, name)
        try:
            made.send(b"x")
            made.port.doRead()
            assert made.protocol.asked == answered
            assert made.port.datagrams == 1
            assert made.port.getHost() == UNIXAddress(server)
            if answered:
                assert made.client.recv(100) == b"x"
        finally:
            made.close()


def test_a_port_that_the_reactor_gave_up_is_not_watched_again(streams: _Streams) -> None:
    """The log says why."""
    with LogCatcher() as log:
        streams.port.connectionLost(Failure(ConnectionDone()))
    assert len(log.failures) == 1
    streams.reactor.removeReader(streams.port)
    streams.port.resume()
    assert streams.port not in streams.reactor.readers
