"""Stream ports over real sockets and a FakeReactor."""

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
    """Echo protocol that records why its connection ended."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.lost: Failure | None = None

    def connectionMade(self) -> None:
        if self.error is not None:
            raise self.error

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = reason


class _Factory(Factory):
    """Factory that builds an _Echo, or refuses or raises as planned; it records protocols and addresses."""

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
    """Listening socket whose accept fails with planned errors first."""

    def __init__(self, inner: socket.socket, errors: list[int]) -> None:
        self._inner = inner
        self._errors = errors
        self.accepts = 0

    def _accept(self) -> Any:
        """Raise the next planned error, or accept."""
        self.accepts += 1
        if self._errors:
            code = self._errors.pop(0)
            raise OSError(code, os.strerror(code))
        return self._inner._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Streams:
    """Stream port on a real listening socket, and its clients."""

    def __init__(self, listener: socket.socket) -> None:
        self.reactor = FakeReactor()
        self.factory = _Factory()
        self.shortages = 0
        self.may_accept = True
        self.listener = listener
        self.port = StreamPort(
            self.reactor,
            listener,
            self.factory,
            lambda: self.may_accept,
            self._count_shortage,
        )
        self.clients: list[socket.socket] = []

    def _count_shortage(self) -> None:
        self.shortages += 1

    def connect(self) -> socket.socket:
        """Connect a client, which is in the backlog then."""
        client = socket.socket(self.listener.family)
        self.clients.append(client)
        client.settimeout(10)
        client.connect(self.listener.getsockname())
        return client

    def failing(self, *codes: int) -> _Accepting:
        """Let accept fail with these errors first."""
        accepting = _Accepting(self.listener, list(codes))
        self.port.socket = accepting  # type: ignore[assignment]
        return accepting

    def close(self) -> None:
        """Close all connections and the listening socket."""
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
    """Yield a listening port on the loopback interface."""
    made = _Streams(_listener(socket.AF_INET, ("127.0.0.1", 0)))
    made.port.startListening()
    yield made
    made.close()


def test_a_port_is_watched_while_it_listens(streams: _Streams) -> None:
    """A port is watched while it listens and is not paused; a stopped port is not, and its socket stays open."""
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


def test_all_waiting_connections_are_accepted(streams: _Streams) -> None:
    """One event accepts all waiting connections, each with its own address."""
    clients = [streams.connect() for _ in range(5)]
    streams.port.doRead()
    assert streams.factory.peers == [IPv4Address("TCP", *client.getsockname()) for client in clients]
    streams.port.doRead()
    assert len(streams.factory.built) == 5


def test_bytes_are_counted_both_ways(streams: _Streams) -> None:
    """Received bytes and bytes that the kernel has accepted are counted on the transport."""
    client = streams.connect()
    streams.port.doRead()
    client.sendall(b"12345")
    transport: Any = streams.factory.built[0].transport
    transport.doRead()
    transport.doWrite()
    assert client.recv(100) == b"12345"
    assert (transport.bytes_in, transport.bytes_out) == (5, 5)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_is_reported_and_ends_the_batch(streams: _Streams, code: int) -> None:
    """When descriptors or memory are exhausted accepting ends for this event, and the client stays in the backlog."""
    streams.connect()
    accepting = streams.failing(code)
    streams.port.doRead()
    assert (streams.shortages, accepting.accepts, streams.factory.built) == (1, 1, [])
    streams.port.doRead()
    assert len(streams.factory.built) == 1


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR])
def test_an_error_of_one_client_is_skipped(streams: _Streams, code: int) -> None:
    """After an error that concerns one client the next one is accepted in the same event."""
    streams.connect()
    streams.failing(code)
    streams.port.doRead()
    assert (streams.shortages, len(streams.factory.built)) == (0, 1)


def test_nothing_is_accepted_at_the_limit(streams: _Streams) -> None:
    """may_accept is called before each accept, so that the limit is not exceeded."""
    streams.connect()
    accepting = streams.failing()
    streams.may_accept = False
    streams.port.doRead()
    assert accepting.accepts == 0


def test_a_port_that_starts_at_the_limit(streams: _Streams) -> None:
    """A port that starts at the limit is not watched: a waiting client would make the reactor spin."""
    streams.port.stopListening()
    streams.may_accept = False
    streams.port.startListening()
    assert streams.port not in streams.reactor.readers
    streams.may_accept = True
    streams.port.resume()
    assert streams.port in streams.reactor.readers


def test_a_batch_ends_when_the_port_stops(streams: _Streams) -> None:
    """After a connection that stops the port no other one is accepted."""
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
def test_a_factory_that_raises_or_refuses(streams: _Streams, plan: str, failures: int) -> None:
    """An exception of the factory is logged and closes that connection only; a refusal is not logged."""
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


def test_a_protocol_that_raises(streams: _Streams) -> None:
    """A protocol whose connectionMade() raises is aborted; the next client is served."""
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
    """Clients of a UNIX socket are served and their bytes counted, without an address."""
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


def test_a_port_that_is_lost(streams: _Streams) -> None:
    """connectionLost() of a port is logged, and the port is not watched any more."""
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
def test_a_proxied_client(tmp_path: Path, family: int, source: Any, destination: Any) -> None:
    """Both addresses are those of the PROXY header, whose bytes are not counted."""
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


def test_a_header_without_addresses(streams: _Streams) -> None:
    """With a header without addresses (LOCAL) the addresses are the connection's; the header is not counted."""
    client = streams.connect()
    client.sendall(b"header")
    descriptor, peer = streams.listener._accept()  # type: ignore[attr-defined]
    assert os.read(descriptor, 6) == b"header"
    streams.port.adopt(descriptor, peer, socket.AF_INET, ProxyHeader(6))
    transport: Any = streams.factory.built[0].transport
    assert transport.getPeer() == IPv4Address("TCP", *client.getsockname())
    assert transport.getHost() == IPv4Address("TCP", *client.getpeername())
    assert transport.traffic == (0, 0)
