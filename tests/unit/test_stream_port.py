"""Ports over real sockets and a reactor that watches nothing."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from svcd.sockets.ports import StreamPort
from svcd.wire.proxy_header import ProxyHeader
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


def test_a_port_that_the_reactor_gave_up_is_not_watched_again(streams: _Streams) -> None:
    """The log says why."""
    with LogCatcher() as log:
        streams.port.connectionLost(Failure(ConnectionDone()))
    assert len(log.failures) == 1
    streams.reactor.removeReader(streams.port)
    streams.port.resume()
    assert streams.port not in streams.reactor.readers


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (("192.0.2.1", 40_000), ("198.51.100.7", 443)),
        (("2001:db8::1", 40_000, 0, 0), ("2001:db8::7", 443, 0, 0)),
    ],
)
def test_a_client_that_a_proxy_names(tmp_path: Path, family: int, source: Any, destination: Any) -> None:
    """Both ends are as the header has them, whatever the socket is, and its bytes are not the client's."""
    streams = _Streams(_listener(family, ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "s")))
    client = streams.connect()
    client.sendall(b"headerhello")
    descriptor, _ = streams.listener._accept()  # type: ignore[attr-defined]
    assert os.read(descriptor, 6) == b"header"
    streams.port.adopt(descriptor, source, family, ProxyHeader(6, source, destination))
    transport: Any = streams.factory.built[0].transport
    kind = IPv4Address if len(source) == 2 else IPv6Address
    assert (transport.getPeer(), transport.getHost()) == (kind("TCP", *source), kind("TCP", *destination))
    assert streams.factory.peers == [kind("TCP", *source)]
    assert source[0] in transport.logstr
    if family == socket.AF_INET:
        assert transport.traffic == (5, 0)
    transport.doRead()
    assert transport.bytes_in == 5
    streams.close()


def test_a_proxy_that_speaks_for_itself(streams: _Streams) -> None:
    """It is its own client, where it has connected to; its header is not counted all the same."""
    client = streams.connect()
    client.sendall(b"header")
    descriptor, peer = streams.listener._accept()  # type: ignore[attr-defined]
    assert os.read(descriptor, 6) == b"header"
    streams.port.adopt(descriptor, peer, socket.AF_INET, ProxyHeader(6))
    transport: Any = streams.factory.built[0].transport
    assert transport.getPeer() == IPv4Address("TCP", *client.getsockname())
    assert transport.getHost() == IPv4Address("TCP", *client.getpeername())
    assert transport.traffic == (0, 0)
