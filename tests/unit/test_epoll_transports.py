"""Transports of connected sockets on a FakeReactor."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from svcd.sockets.epoll_transports import adopter
from tests.doubles import FakeReactor

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Reader(Protocol):
    """Protocol that reads the rest from its socket in connectionLost()."""

    transport: Any
    lost: Failure | None = None

    def connectionMade(self) -> None:
        self.received = self.rest = b""
        self.handle = self.transport.getHandle()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.lost = reason
        with contextlib.suppress(OSError):
            self.rest = self.handle.recv(100)


@pytest.fixture
def far() -> Iterator[tuple[socket.socket, Any]]:
    """Yield the far end of a socket pair, and the transport of the near end on a FakeReactor."""
    near, far = socket.socketpair()
    far.settimeout(10)
    reader = _Reader()
    adopter(FakeReactor())(near.detach(), "", socket.AF_UNIX, reader)
    with far:
        yield far, reader.transport
    reader.transport.connectionLost(Failure(ConnectionDone()))


def test_the_last_bytes_can_be_read_at_the_end(far: Any) -> None:
    """The socket is open in connectionLost(), and closed after it."""
    sock, transport = far
    reader = transport.protocol
    sock.sendall(b"first")
    transport.doRead()
    sock.sendall(b"last")
    transport.connectionLost(Failure(ConnectionLost()))
    assert (reader.received, reader.rest) == (b"first", b"last")
    assert reader.lost.check(ConnectionLost)
    assert reader.handle.fileno() == -1
    assert sock.recv(1) == b""
    # Twisted may call it twice.
    transport.connectionLost(Failure(ConnectionDone()))
    assert reader.lost.check(ConnectionLost)


def test_bytes_are_counted(far: Any) -> None:
    """Bytes are counted in both directions."""
    sock, transport = far
    sock.sendall(b"four")
    transport.doRead()
    transport.write(b"seven b")
    transport.doWrite()
    assert (transport.bytes_in, transport.bytes_out) == (4, 7)
    assert sock.recv(100) == b"seven b"


@pytest.mark.parametrize(
    ("family", "name", "peer"),
    [
        (socket.AF_INET, ("192.0.2.1", 7), IPv4Address("TCP", "192.0.2.1", 7)),
        (socket.AF_INET6, ("2001:db8::1", 7, 0, 0), IPv6Address("TCP", "2001:db8::1", 7, 0, 0)),
        (socket.AF_INET6, ("fe80::1", 7, 0, 1), IPv6Address("TCP", "fe80::1%lo", 7, 0, 1)),
        (socket.AF_UNIX, "", UNIXAddress(None)),
    ],
)
def test_the_address_of_the_peer(family: int, name: Any, peer: object) -> None:
    """getPeer() returns the address given; a link-local address keeps its scope, a UNIX client has no name."""
    reader, reactor = _Reader(), FakeReactor()
    one, far = socket.socketpair()
    with far:
        adopter(reactor)(one.detach(), name, family, reader)
        assert reader.transport.getPeer() == peer
        assert repr(reader.transport) == "<connection>"
        transport = reader.transport
        transport.doRead()
        assert reader.lost is None
        transport.connectionLost(Failure(ConnectionDone()))
        assert reader.lost is not None


def test_a_peer_on_an_interface_that_is_gone() -> None:
    """A peer with an unknown scope is an OSError, and the connection is closed."""
    near, far = socket.socketpair()
    far.settimeout(10)
    with far:
        with pytest.raises(OSError, match="No such"):
            adopter(FakeReactor())(near.detach(), ("fe80::1", 7, 0, 99_999), socket.AF_INET6, _Reader())
        assert far.recv(1) == b""


class _Raises(Protocol):
    def connectionMade(self) -> None:
        raise ZeroDivisionError


def test_a_protocol_that_raises() -> None:
    """An exception of connectionMade() is raised to the caller, and the connection is closed."""
    near, far = socket.socketpair()
    far.settimeout(10)
    with far:
        reactor = FakeReactor()
        with pytest.raises(ZeroDivisionError):
            adopter(reactor)(near.detach(), "", socket.AF_UNIX, _Raises())
        reactor.advance(0)
        assert far.recv(1) == b""
