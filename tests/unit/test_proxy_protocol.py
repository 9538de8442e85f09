"""ProxyProtocolReader: headers of proxies, and their clients."""

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
    """Service with proxy_protocol=, with the test as the handler of its connections."""

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

    def serve(self, fd: int, sockaddr: Any, family: int, proxy_header: ProxyHeader | None = None) -> None:
        self.taken.append((fd, sockaddr, family, proxy_header))

    def connect(self, data: bytes = b"") -> socket.socket:
        """Return a client whose connection is accepted after it has sent data."""
        client = socket.socket(self.family)
        self.clients.append(client)
        client.settimeout(10)
        client.connect(self.listener.getsockname())
        client.sendall(data)
        fd, sockaddr = self.listener._accept()  # type: ignore[attr-defined]
        self.header_reader.take(self.serve, fd, sockaddr, self.family)
        return client

    def send(self, client: socket.socket, data: bytes) -> None:
        """Send data, or the end of input, and let the reader read it."""
        if data:
            client.sendall(data)
        else:
            client.shutdown(socket.SHUT_WR)
        (reader,) = [each for each in self.reactor.readers if each.peer == client.getsockname()]
        select.select([reader], [], [], 10)
        reader.doRead()

    def remaining(self) -> bytes:
        """Return the data that is left for the handler of the last connection."""
        return os.read(self.taken[-1][0], 100)

    @property
    def none_waiting(self) -> bool:
        """Whether no connection waits for its header or for room."""
        timers = [call for call in self.reactor.getDelayedCalls() if "ProxiedConnection" in str(call)]
        return not (timers or self.tracker.pending or self.reactor.readers or self.budget.open)

    def close(self) -> None:
        self.header_reader.close()
        for each in [*self.clients, self.listener]:
            each.close()
        for fd, *_ in self.taken:
            os.close(fd)


@pytest.fixture
def proxied() -> Iterator[Callable[..., _Proxied]]:
    """Function that creates services with proxy_protocol=."""
    made: list[_Proxied] = []

    def make(*arguments: Any, **settings: Any) -> _Proxied:
        made.append(_Proxied(*arguments, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("data", [V1, V2])
def test_header_that_has_arrived_is_read_at_once(proxied: Callable[..., _Proxied], data: bytes) -> None:
    """The handler gets the address in the header, and all data after the header is left."""
    service = proxied()
    service.connect(data + b"hello")
    ((_, sockaddr, family, proxy_header),) = service.taken
    assert (sockaddr, family, proxy_header) == (SOURCE, socket.AF_INET, ProxyHeader(len(data), SOURCE, DESTINATION))
    assert service.remaining() == b"hello"
    assert os.get_blocking(service.taken[0][0])
    assert service.none_waiting


@pytest.mark.parametrize("data", [V1, V2, LOCAL])
def test_header_in_single_bytes(proxied: Callable[..., _Proxied], data: bytes) -> None:
    """Each part of an incomplete header is read, so that the socket does not become readable again."""
    service = proxied()
    client = service.connect()
    (waiting,) = service.reactor.readers
    assert service.budget.open == 1
    for byte in data[:-1]:
        service.send(client, bytes([byte]))
        assert not select.select([waiting], [], [], 0)[0]
        assert not service.taken
    service.send(client, data[-1:] + b"hello")
    assert service.remaining() == b"hello"
    assert service.taken[0][3] is not None
    assert service.taken[0][3].size == len(data)
    assert service.none_waiting


def test_local_header(proxied: Callable[..., _Proxied]) -> None:
    """With a LOCAL header the handler gets the address of the proxy; the header is not counted as data."""
    service = proxied()
    client = service.connect(LOCAL + b"check")
    assert service.taken[0][1:] == (client.getsockname(), socket.AF_INET, ProxyHeader(16))
    assert service.remaining() == b"check"


@pytest.mark.parametrize("options", ["proxy_protocol=10.0.0.0/8", "proxy_protocol=local,127.0.0.2,::1"])
def test_header_of_another_client_is_data(proxied: Callable[..., _Proxied], options: str) -> None:
    """A header from an address that is not in proxy_protocol= is passed on as data."""
    service = proxied(options)
    client = service.connect(V1)
    assert service.taken[0][1:] == (client.getsockname(), socket.AF_INET, None)
    assert service.remaining() == V1


def test_a_proxy_at_a_unix_socket(proxied: Callable[..., _Proxied], tmp_path: Path) -> None:
    """proxy_protocol=local accepts headers at a UNIX socket; with a LOCAL header there is no header for the handler."""
    service = proxied("proxy_protocol=10.0.0.1,local", path=str(tmp_path / "s"))
    service.connect(V2 + b"hello")
    assert service.taken[0][1:] == (SOURCE, socket.AF_UNIX, ProxyHeader(len(V2), SOURCE, DESTINATION))
    assert service.remaining() == b"hello"
    service.connect(LOCAL)
    assert service.taken[1][1:] == ("", socket.AF_UNIX, None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\n", "there is no PROXY header"),
        (V2[:12] + b"\x31", "the version or the command is unknown"),
        (V2[:14] + b"\xff\xff", f"the header has 65551 bytes, more than {MOST}"),
    ],
)
def test_invalid_header_closes_the_connection(proxied: Callable[..., _Proxied], data: bytes, text: str) -> None:
    """The connection is closed, and the refusal is counted and logged with the error and the option's position."""
    service = proxied()
    client = service.connect(data)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    host, port = client.getsockname()
    rule = f'"proxy_protocol: {text} (s:1:27)"'
    assert service.lines == [f"refuse service=echo/tcp peer={host}:{port} reason=proxy count=1 rule={rule}"]
    assert service.service_admission.refusals.counts == {"proxy": 1}
    assert not service.taken
    assert service.none_waiting


def test_end_within_a_header(proxied: Callable[..., _Proxied]) -> None:
    """An end within the header is an error; a close without data, as of a health check, is not."""
    service = proxied()
    service.send(service.connect(), b"")
    assert (service.lines, service.none_waiting) == ([], True)
    service.send(service.connect(V1[:-1]), b"")
    assert "the header ends too early" in service.lines[0]
    assert service.none_waiting


def test_reset_before_a_header(proxied: Callable[..., _Proxied]) -> None:
    """Nothing is kept of a connection that is reset."""
    service = proxied()
    client = service.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    (waiting,) = service.reactor.readers
    client.close()
    waiting.doRead()
    assert (service.lines, service.none_waiting) == ([], True)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [("", HEADER_TIMEOUT), ("first_byte_timeout=3s", 3.0), ("first_byte_timeout=1h", HEADER_TIMEOUT)],
)
def test_header_timeout(proxied: Callable[..., _Proxied], options: str, seconds: float) -> None:
    """The limit is first_byte_timeout, HEADER_TIMEOUT at most; parts of the header do not extend it."""
    service = proxied(f"proxy_protocol=127.0.0.1 {options}")
    client = service.connect()
    service.reactor.advance(seconds - 0.5)
    service.send(client, V1[:3])
    service.reactor.advance(0.4)
    assert not service.none_waiting
    service.reactor.advance(0.2)
    assert "the rest of the header does not arrive" in service.lines[0]
    assert service.none_waiting
    service.connect()
    service.reactor.advance(seconds)
    assert service.service_admission.refusals.counts == {"proxy": 2}


def test_number_of_waiting_connections_is_limited(proxied: Callable[..., _Proxied]) -> None:
    """Over the limit, a share of the descriptors, the connection that has waited longest is closed."""
    service = proxied(limit=12)
    first = [service.connect() for _ in range(3)]
    assert service.budget.open == service.header_queue.max_waiting == 3
    service.connect(V1)
    assert len(service.taken) == 1
    service.connect()
    assert service.budget.open == 3
    assert first[0].recv(1) == b""
    assert "too many connections wait for a header" in service.lines[0]
    service.send(first[1], V1)
    assert len(service.taken) == 2


def test_close_ends_waiting_connections(proxied: Callable[..., _Proxied]) -> None:
    """Waiting connections are closed with their service, and when_empty() fires after the last one."""
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
    assert (service.lines, service.none_waiting) == ([], True)


def test_new_options_apply_to_waiting_connections(proxied: Callable[..., _Proxied]) -> None:
    """After a reload connections of addresses that are still in proxy_protocol= wait on, others are closed."""
    service = proxied()
    client = service.connect()
    service.header_reader.retune(service_of("echo 0/tcp proxy_protocol=127.0.0.0/8"))
    assert not service.none_waiting
    service.header_reader.retune(service_of("echo 0/tcp proxy_protocol=10.0.0.1"))
    assert client.recv(1) == b""
    assert "the client is no longer a proxy" in service.lines[0]
    assert service.none_waiting


def test_client_waits_for_room_after_its_header(proxied: Callable[..., _Proxied]) -> None:
    """With on_limit=queue the listener is paused without room; a client whose header is complete then is queued."""
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
    # Their headers are complete, so it does not matter any more whether their addresses are proxies.
    service.header_reader.close()
    service.header_reader.retune(service_of("echo 0/tcp proxy_protocol=10.0.0.1"))
    service.tracker.all_connections()[0].drain()
    assert clients[0].recv(1) == b""
    slot.release()
    assert len(service.taken) == 2
    assert service.none_waiting
    assert third.getsockname()


def test_exception_of_a_handler_is_logged(proxied: Callable[..., _Proxied]) -> None:
    """An exception of a handler is logged, and nothing of the connection is kept."""
    service = proxied()

    def serve(fd: int, *_arguments: Any) -> None:
        os.close(fd)
        raise ZeroDivisionError

    service.serve = serve  # type: ignore[method-assign, assignment]
    client = service.connect(V1)
    assert client.recv(1) == b""
    assert service.none_waiting


def test_lack_of_descriptors_closes_the_connection(
    proxied: Callable[..., _Proxied], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a descriptor for its handler is closed, and nothing of it is kept."""

    def dup(_fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    service = proxied()
    client = service.connect(V1[:5])
    monkeypatch.setattr("svcd.connections.proxy_protocol.os.dup", dup)
    service.send(client, V1[5:])
    assert client.recv(1) == b""
    assert (service.taken, service.none_waiting) == ([], True)
