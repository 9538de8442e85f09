"""Connections of proxies: their headers, and what is let in behind them."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from svcd.access.admission import ConnectionSlot, GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.proxy_protocol import HEADER_TIMEOUT, HeaderQueue, ProxiedConnection, ProxyProtocolReader
from svcd.connections.tracker import ConnectionTracker
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.wire.proxy_header import MOST, ProxyHeader, block, line
from tests.doubles import FakeFiles, FakeReactor, FakeResolver, list_sink, service_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOURCE, DESTINATION = ("192.0.2.1", 40_000), ("198.51.100.7", 443)
V1, V2 = line(SOURCE, DESTINATION), block(SOURCE, DESTINATION)
LOCAL = V2[:12] + b"\x20\0\0\0"


class _Proxied:
    """A service behind proxies, with the test as what takes connections in."""

    def __init__(self, options: str = "proxy_protocol=127.0.0.1", *, path: str = "", limit: int = 100) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.taken: list[tuple[int, Any, int, ProxyHeader | None]] = []
        self.budget = DescriptorBudget(limit, self.reactor)
        self.global_limit = GlobalLimit()
        service = service_of(f"echo {f'{path}/unix' if path else '0/tcp'} {options}")
        log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False))
        context = ConnectionContext(
            self.reactor, log_writer, FakeFiles(), FakeResolver(), self.budget, self.global_limit
        )
        self.service_admission = ServiceAdmission(context, service)
        self.tracker: ConnectionTracker[Any] = ConnectionTracker(service, context, self.service_admission)
        self.header_queue = HeaderQueue(self.reactor, self.budget)
        self.header_reader = ProxyProtocolReader(self.tracker, self.header_queue)
        self.family = socket.AF_UNIX if path else socket.AF_INET
        self.listener = socket.socket(self.family)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.listener.listen()
        self.clients: list[socket.socket] = []

    def serve(self, descriptor: int, name: Any, family: int, relay: ProxyHeader | None = None) -> None:
        self.taken.append((descriptor, name, family, relay))

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection that was accepted when it had said something."""
        client = socket.socket(self.family)
        self.clients.append(client)
        client.settimeout(10)
        client.connect(self.listener.getsockname())
        client.sendall(data)
        descriptor, name = self.listener._accept()  # type: ignore[attr-defined]
        self.header_reader.take(self.serve, descriptor, name, self.family)
        return client

    def send(self, client: socket.socket, data: bytes) -> None:
        """Let it say more, which is heard."""
        if data:
            client.sendall(data)
        else:
            client.shutdown(socket.SHUT_WR)
        (reader,) = [each for each in self.reactor.readers if each.peer == client.getsockname()]
        select.select([reader], [], [], 10)
        reader.doRead()

    def heard(self) -> bytes:
        """What is left for the service of the last connection that was taken in."""
        return os.read(self.taken[-1][0], 100)

    @property
    def quiet(self) -> bool:
        """Whether nothing is left of anybody who waited."""
        late = [call for call in self.reactor.getDelayedCalls() if "Unannounced" in str(call)]
        return not (late or self.tracker.pending or self.reactor.readers or self.budget.open)

    def close(self) -> None:
        self.header_reader.close()
        for each in [*self.clients, self.listener]:
            each.close()
        for descriptor, *_ in self.taken:
            os.close(descriptor)


@pytest.fixture
def proxied() -> Iterator[Callable[..., _Proxied]]:
    """Make services behind proxies."""
    made: list[_Proxied] = []

    def make(*arguments: Any, **settings: Any) -> _Proxied:
        made.append(_Proxied(*arguments, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("data", [V1, V2])
def test_a_header_that_is_there_costs_no_wait(proxied: Callable[..., _Proxied], data: bytes) -> None:
    """The client goes on under its own address, and what it has said is all there."""
    service = proxied()
    service.connect(data + b"hello")
    ((_, name, family, relay),) = service.taken
    assert (name, family, relay) == (SOURCE, socket.AF_INET, ProxyHeader(len(data), SOURCE, DESTINATION))
    assert service.heard() == b"hello"
    assert os.get_blocking(service.taken[0][0])
    assert service.quiet


@pytest.mark.parametrize("data", [V1, V2, LOCAL])
def test_a_header_may_come_byte_by_byte(proxied: Callable[..., _Proxied], data: bytes) -> None:
    """What is its beginning is taken, so it is not found again and again."""
    service = proxied()
    client = service.connect()
    (waiting,) = service.reactor.readers
    assert service.budget.open == 1
    for byte in data[:-1]:
        service.send(client, bytes([byte]))
        assert not select.select([waiting], [], [], 0)[0]
        assert not service.taken
    service.send(client, data[-1:] + b"hello")
    assert service.heard() == b"hello"
    assert service.taken[0][3] is not None
    assert service.taken[0][3].size == len(data)
    assert service.quiet


def test_a_proxy_that_speaks_for_itself(proxied: Callable[..., _Proxied]) -> None:
    """Its own address counts, and its header does not count as what it says."""
    service = proxied()
    client = service.connect(LOCAL + b"check")
    assert service.taken[0][1:] == (client.getsockname(), socket.AF_INET, ProxyHeader(16))
    assert service.heard() == b"check"


@pytest.mark.parametrize("options", ["proxy_protocol=10.0.0.0/8", "proxy_protocol=local,127.0.0.2,::1"])
def test_nobody_else_is_believed(proxied: Callable[..., _Proxied], options: str) -> None:
    """A header of anybody else is what a client says."""
    service = proxied(options)
    client = service.connect(V1)
    assert service.taken[0][1:] == (client.getsockname(), socket.AF_INET, None)
    assert service.heard() == V1


def test_a_proxy_at_a_unix_socket(proxied: Callable[..., _Proxied], tmp_path: Path) -> None:
    """It is told by the word local; what it says of itself is nothing."""
    service = proxied("proxy_protocol=10.0.0.1,local", path=str(tmp_path / "s"))
    service.connect(V2 + b"hello")
    assert service.taken[0][1:] == (SOURCE, socket.AF_UNIX, ProxyHeader(len(V2), SOURCE, DESTINATION))
    assert service.heard() == b"hello"
    service.connect(LOCAL)
    assert service.taken[1][1:] == ("", socket.AF_UNIX, None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\n", "it begins with no PROXY header"),
        (V2[:12] + b"\x31", "its version or its command is unknown"),
        (V2[:14] + b"\xff\xff", f"it has 65551 bytes, more than {MOST}"),
    ],
)
def test_a_broken_header_ends_the_connection(proxied: Callable[..., _Proxied], data: bytes, text: str) -> None:
    """It is closed, counted and told, with what is wrong and the option's place."""
    service = proxied()
    client = service.connect(data)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    host, port = client.getsockname()
    rule = f'"proxy_protocol: {text} (s:1:27)"'
    assert service.lines == [f"refuse service=echo/tcp peer={host}:{port} reason=proxy count=1 rule={rule}"]
    assert service.service_admission.refusals.counts == {"proxy": 1}
    assert not service.taken
    assert service.quiet


def test_a_header_that_is_cut_off(proxied: Callable[..., _Proxied]) -> None:
    """An end in its middle is a mistake; to say nothing at all is how proxies look whether we are there."""
    service = proxied()
    service.send(service.connect(), b"")
    assert (service.lines, service.quiet) == ([], True)
    service.send(service.connect(V1[:-1]), b"")
    assert "it ends too early" in service.lines[0]
    assert service.quiet


def test_a_connection_that_is_reset(proxied: Callable[..., _Proxied]) -> None:
    """It leaves nothing."""
    service = proxied()
    client = service.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    (waiting,) = service.reactor.readers
    client.close()
    waiting.doRead()
    assert (service.lines, service.quiet) == ([], True)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [("", HEADER_TIMEOUT), ("first_byte_timeout=3s", 3.0), ("first_byte_timeout=1h", HEADER_TIMEOUT)],
)
def test_a_header_has_its_time(proxied: Callable[..., _Proxied], options: str, seconds: float) -> None:
    """As long as a first byte may take, and a bounded time in any case; the pieces of it don't prolong that."""
    service = proxied(f"proxy_protocol=127.0.0.1 {options}")
    client = service.connect()
    service.reactor.advance(seconds - 0.5)
    service.send(client, V1[:3])
    service.reactor.advance(0.4)
    assert not service.quiet
    service.reactor.advance(0.2)
    assert "the rest of it does not come" in service.lines[0]
    assert service.quiet
    service.connect()
    service.reactor.advance(seconds)
    assert service.service_admission.refusals.counts == {"proxy": 2}


def test_who_has_waited_longest_makes_room(proxied: Callable[..., _Proxied]) -> None:
    """However many connections say nothing, they have a share of the descriptors, and others find room."""
    service = proxied(limit=12)
    first = [service.connect() for _ in range(3)]
    assert service.budget.open == service.header_queue.max_waiting == 3
    service.connect(V1)
    assert len(service.taken) == 1
    service.connect()
    assert service.budget.open == 3
    assert first[0].recv(1) == b""
    assert "too many connections wait for theirs" in service.lines[0]
    service.send(first[1], V1)
    assert len(service.taken) == 2


def test_who_waits_is_closed_when_the_service_stops(proxied: Callable[..., _Proxied]) -> None:
    """Nothing is owed to it; and whoever waits for the last connection is told then."""
    service = proxied()
    clients = [service.connect() for _ in range(3)]
    empty: list[Any] = []
    service.tracker.when_empty().addCallback(empty.append)
    drained, cut, closed = service.tracker.all_connections()
    found = [each.info() for each in (drained, cut, closed)]
    peers = [":".join(map(str, client.getsockname())) for client in clients]
    assert [(each["id"], each["peer"], each["state"]) for each in found] == [
        (number, peer, "proxy-header") for number, peer in enumerate(peers, 1)
    ]
    drained.drain()
    cut.abort("shutdown")
    assert not empty
    service.header_reader.close()
    assert empty == [None]
    assert isinstance(closed, ProxiedConnection)
    assert [client.recv(1) for client in clients] == [b""] * 3
    assert (service.lines, service.quiet) == ([], True)


def test_other_options_hold_at_once(proxied: Callable[..., _Proxied]) -> None:
    """Who is still a proxy may go on waiting, who is none any more is closed."""
    service = proxied()
    client = service.connect()
    service.header_reader.retune(service_of("echo 0/tcp proxy_protocol=127.0.0.0/8"))
    assert not service.quiet
    service.header_reader.retune(service_of("echo 0/tcp proxy_protocol=10.0.0.1"))
    assert client.recv(1) == b""
    assert "it is no proxy any more" in service.lines[0]
    assert service.quiet


def test_a_client_waits_for_room_where_it_may(proxied: Callable[..., _Proxied]) -> None:
    """With on_limit=queue the listener rests while there is none; whose header comes then waits in its place."""
    service = proxied("proxy_protocol=127.0.0.1 instances=1 on_limit=queue")
    clients = [service.connect() for _ in range(2)]
    slot = service.service_admission.admit("192.0.2.9", 0.0)
    assert isinstance(slot, ConnectionSlot)
    for client in clients:
        service.send(client, V1)
    third = service.connect(V2)
    assert (service.taken, service.budget.open) == ([], 3)
    facts = service.tracker.all_connections()[0].info()
    assert (facts["peer"], facts["state"]) == ("192.0.2.1:40000", "room")
    assert not service.reactor.getDelayedCalls()
    # Their proxies have said all, so it does not matter any more who these are.
    service.header_reader.close()
    service.header_reader.retune(service_of("echo 0/tcp proxy_protocol=10.0.0.1"))
    service.tracker.all_connections()[0].drain()
    assert clients[0].recv(1) == b""
    slot.release()
    assert len(service.taken) == 2
    assert service.quiet
    assert third.getsockname()


def test_a_service_that_fails_is_one_connections_end(proxied: Callable[..., _Proxied]) -> None:
    """What it raises is logged, and nothing of the connection is left here."""
    service = proxied()

    def serve(descriptor: int, *_arguments: Any) -> None:
        os.close(descriptor)
        raise ZeroDivisionError

    service.serve = serve  # type: ignore[method-assign, assignment]
    client = service.connect(V1)
    assert client.recv(1) == b""
    assert service.quiet


def test_a_lack_of_descriptors_is_one_connections_end(
    proxied: Callable[..., _Proxied], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection for which there is none is closed, and nothing of it is left here."""

    def dup(_descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    service = proxied()
    client = service.connect(V1[:5])
    monkeypatch.setattr("svcd.connections.proxy_protocol.os.dup", dup)
    service.send(client, V1[5:])
    assert client.recv(1) == b""
    assert (service.taken, service.quiet) == ([], True)
