"""Redirected connections, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet import error
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.addresses import HostPort
from svcd.protocols.catalog import stream_factory
from svcd.protocols.outgoing import client_endpoint, redirect_lookups
from svcd.protocols.redirect import RedirectFactory
from svcd.wire.proxy_header import block
from tests.doubles import LOCAL_PEER, PEER, FakeEndpoint, StreamDouble, dependencies, service_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress


class _Redirect:
    """Redirected connection of one client, with a server that the test controls."""

    def __init__(
        self, peer: IAddress = PEER, room: float = float("inf"), proxy_header: Callable[[Any, Any], bytes] | None = None
    ) -> None:
        self.clock = Clock()
        self.endpoint = FakeEndpoint()
        self.open = 0
        endpoint: Any = self.endpoint
        factory: Any = RedirectFactory(endpoint, "web:80", 10.0, self.clock, self, proxy_header)
        self.protocol: Any = factory.buildProtocol(None)
        self.client = StreamDouble(self.protocol, peer=peer, room=room)
        self.protocol.makeConnection(self.client)

    def acquire(self) -> None:
        self.open += 1

    def release(self) -> None:
        self.open -= 1

    def try_acquire(self) -> bool:
        raise NotImplementedError


@pytest.fixture
def redirect() -> _Redirect:
    """Return a redirection whose server has not accepted yet."""
    return _Redirect()


def _lose(transport: StreamDouble, cause: Exception) -> None:
    if not transport.lost:
        transport.lose(Failure(cause))


def test_bytes_are_forwarded_in_both_directions(redirect: _Redirect) -> None:
    """Bytes are forwarded in both directions."""
    server = redirect.endpoint.accept()
    redirect.protocol.dataReceived(b"question")
    server.protocol.dataReceived(b"answer")
    assert (server.sent, redirect.client.sent) == (b"question", b"answer")
    assert not redirect.clock.getDelayedCalls()


def test_nothing_is_read_before_the_server_accepts(redirect: _Redirect) -> None:
    """Before the server accepts nothing is read from the client; data that still arrives is kept in order."""
    assert not redirect.client.reading
    redirect.protocol.dataReceived(b"1")
    redirect.protocol.dataReceived(b"2")
    server = redirect.endpoint.accept()
    assert redirect.client.reading
    redirect.protocol.dataReceived(b"3")
    assert server.sent == b"123"


def test_a_client_that_half_closes_before_the_server_accepts(redirect: _Redirect) -> None:
    """The end of the client's data is forwarded after its bytes, once the server accepts."""
    redirect.protocol.dataReceived(b"all")
    redirect.protocol.readConnectionLost()
    server = redirect.endpoint.accept()
    assert server.sent == b"all"
    assert server.write_closed
    assert not redirect.client.write_closed


def test_back_pressure(redirect: _Redirect) -> None:
    """While one peer does not read, the other connection is paused."""
    redirect.client.room = 10
    server = redirect.endpoint.accept(room=10)
    server.protocol.dataReceived(b"x" * 11)
    assert not server.reading
    assert redirect.client.reading
    redirect.client.drain()
    assert server.reading
    redirect.protocol.dataReceived(b"x" * 11)
    assert not redirect.client.reading
    server.drain()
    assert redirect.client.reading


@pytest.mark.parametrize("first", ["client", "server"])
def test_each_direction_ends_separately(redirect: _Redirect, first: str) -> None:
    """Each direction ends separately; after both have ended both connections are closed."""
    server = redirect.endpoint.accept()
    one, other = (redirect.client, server) if first == "client" else (server, redirect.client)
    half_closeable = [IHalfCloseableProtocol.providedBy(each.protocol) for each in (one, other)]
    assert half_closeable == [True, True]
    one.protocol.readConnectionLost()
    assert other.write_closed
    assert (one.write_closed, one.lost, other.lost) == (False, "", "")
    other.protocol.dataReceived(b"still")
    assert one.sent == b"still"
    other.protocol.readConnectionLost()
    assert (one.lost, other.lost) == ("done", "done")
    assert redirect.open == 0


@pytest.mark.parametrize(
    ("version", "peer", "header"),
    [
        ("v1", PEER, b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 7\r\n"),
        ("v2", PEER, block(("192.0.2.1", 40_000), ("127.0.0.1", 7))),
        ("v1", LOCAL_PEER, b"PROXY UNKNOWN\r\n"),
        ("v2", LOCAL_PEER, block(None, None)),
    ],
)
def test_the_proxy_header(version: str, peer: IAddress, header: bytes) -> None:
    """The PROXY header is sent before the first byte, even if none follows, also for a client without an address."""
    service = service_of(f"web 80/tcp redirect=[::1]:8080 send_proxy={version}")
    made: Any = stream_factory(service, dependencies(Clock()))
    redirect = _Redirect(peer, proxy_header=made.proxy_header)
    redirect.protocol.dataReceived(b"early")
    assert redirect.endpoint.accept().sent == header + b"early"
    silent = _Redirect(peer, proxy_header=made.proxy_header)
    assert silent.endpoint.accept().sent == header


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_forwarded(redirect: _Redirect, first: str) -> None:
    """If one connection is reset, the other one is aborted."""
    server = redirect.endpoint.accept()
    one, other = (redirect.client, server) if first == "client" else (server, redirect.client)
    _lose(one, error.ConnectionLost())
    assert other.lost == "aborted"
    assert redirect.open == 0


def test_a_local_client_that_closes_at_once() -> None:
    """Data of a local client that closes at once is delivered, though Twisted reports a UNIX socket's end as a loss."""
    redirect = _Redirect(LOCAL_PEER)
    server = redirect.endpoint.accept()
    redirect.protocol.dataReceived(b"line")
    redirect.protocol.readConnectionLost()
    _lose(redirect.client, error.ConnectionLost())
    assert (server.sent, server.lost) == (b"line", "done")


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (error.ConnectError(111), "Connection refused"),
        (error.DNSLookupError("x"), "its name is not known"),
        (error.TimeoutError(), "it does not answer"),
        (ValueError("invalid hostname: ..."), "invalid hostname: ..."),
    ],
)
def test_a_server_that_can_not_be_reached(redirect: _Redirect, cause: Exception, reason: str) -> None:
    """If the connection to the server fails, the client is closed and the reason is logged."""
    assert redirect.open == 1
    redirect.endpoint.refuse(cause)
    assert redirect.protocol.failure_text == f"can't connect to web:80: {reason}"
    assert redirect.client.lost == "done"
    assert (redirect.open, redirect.clock.getDelayedCalls()) == (0, [])


def test_a_server_that_does_not_answer(redirect: _Redirect) -> None:
    """The attempt is cancelled after connect_timeout."""
    redirect.clock.advance(9.9)
    assert not redirect.client.lost
    redirect.clock.advance(0.1)
    assert redirect.endpoint.cancelled == 1
    assert redirect.protocol.failure_text == "can't connect to web:80: it does not answer"
    assert (redirect.client.lost, redirect.open) == ("done", 0)


def test_a_client_that_disconnects_before_the_server_accepts(redirect: _Redirect) -> None:
    """If the client disconnects meanwhile, the attempt is cancelled and not counted as a failure."""
    _lose(redirect.client, error.ConnectionLost())
    assert redirect.endpoint.cancelled == 1
    assert redirect.protocol.failure_text == ""
    assert (redirect.open, redirect.clock.getDelayedCalls()) == (0, [])


def test_late_data_is_dropped(redirect: _Redirect) -> None:
    """Data that a transport delivers after the end is dropped."""
    server = redirect.endpoint.accept()
    _lose(server, error.ConnectionDone())
    redirect.protocol.dataReceived(b"late")
    redirect.protocol.readConnectionLost()
    assert server.sent == b""


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        (HostPort("127.0.0.1", 7), "TCP4ClientEndpoint"),
        (HostPort("::1", 7), "TCP6ClientEndpoint"),
        (HostPort("web.example", 7), "NameEndpoint"),
    ],
)
def test_only_names_are_looked_up(server: HostPort, kind: str) -> None:
    """An address is connected to without a lookup; a name is looked up for each connection."""
    from twisted.internet.testing import MemoryReactorClock

    assert type(client_endpoint(MemoryReactorClock(), redirect_lookups(), server, 3.0, _Redirect())).__name__ == kind
