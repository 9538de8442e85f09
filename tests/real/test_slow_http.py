"""HTTP clients that are slow on purpose, in the ways of slowhttptest(1), do not hold up other clients."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, Daemon, exchange
from tests.real.http_requests import get
from tests.real.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DESCRIPTORS = 200
#: Slow clients of a daemon: three times as many stay below the usual limit of 1024 descriptors of the test.
CLIENTS = 270
SIZE = 3_000_000
#: How often the slow clients send or read a little, every 0.2 s.
ROUNDS = 8

_HOST = b"Host: x\r\n"
#: The data that each kind of client sends first, and then again and again.
KINDS = {
    "headers": (b"GET / HTTP/1.1\r\n" + _HOST, b"X-a: b\r\n"),
    "body": (b"POST / HTTP/1.1\r\n" + _HOST + b"Content-Length: 100000\r\n\r\n", b"b"),
    "read": (b"GET /large HTTP/1.1\r\n" + _HOST + b"\r\n", b""),
    "range": (b"GET /large HTTP/1.1\r\n" + _HOST + b"Range: bytes=0-" + b",5-0" * 500 + b"\r\n\r\n", b""),
    "idle": (b"GET / HTTP/1.1\r\n" + _HOST + b"\r\n", b""),
    "silent": (b"", b""),
}

SERVICES = """
@defaults bind=127.0.0.1
http    0/tcp root={folder} {options}
status  0/tcp {options}
echo    0/tcp
cat     0/tcp server=/bin/cat
"""


def _few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


@pytest.fixture
def www(open_folder: Path) -> Path:
    """Return a folder with a small file and a large one."""
    (open_folder / "index.html").write_text("hello")
    (open_folder / "large").write_bytes(b"x" * SIZE)
    return open_folder


def _echoes(port: int) -> None:
    assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"hello") == b"hello"


@contextlib.contextmanager
def _slow_clients(port: int, first: bytes, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            # The receive window is small and opens slowly.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            clients.append(client)
        for client in clients:
            poll = select.poll()
            poll.register(client, select.POLLOUT)
            if poll.poll(10):
                _send(client, first)
        yield clients


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.send(data)


@pytest.fixture(params=["uv", "epoll"])
def reactor(request: pytest.FixtureRequest) -> str:
    """Return the name of each reactor that has ports of its own."""
    return str(request.param)


class _Attacked:
    """A daemon with few descriptors, and what watches its services while clients of one kind are slow."""

    def __init__(self, start: Callable[..., Daemon], folder: Path, reactor: str, kind: str) -> None:
        self.kind = kind
        self._first, self._more = KINDS[kind]
        services = SERVICES.format(folder=folder, options="")
        self.daemon = start(services, preexec_fn=_few_descriptors, twistd_arguments=("-r", reactor))
        self.port = self.daemon.port("http/tcp")
        self.watch = Watch(
            {
                "http": partial(get, self.port),
                "status": partial(get, self.daemon.port("status/tcp"), "/healthz"),
                "echo": partial(_echoes, self.daemon.port("echo/tcp")),
                "cat": partial(_echoes, self.daemon.port("cat/tcp")),
            },
            pause=0.1,
        )

    @contextlib.contextmanager
    def slow_clients(self) -> Iterator[None]:
        """Watch the services, and connect the slow clients."""
        with self.watch.going_on(), _slow_clients(self.port, self._first, CLIENTS) as self._clients:
            yield

    def go_on(self) -> None:
        """Send a little more, or read a little, with each slow client."""
        for client in self._clients:
            if self._more:
                _send(client, self._more)
            else:
                with contextlib.suppress(OSError):
                    client.recv(16)

    def large(self) -> int:
        """Return the size of the answer to a request for the large file."""
        return len(get(self.port, "/large"))


@pytest.mark.parametrize("kinds", [("headers", "body", "read"), ("range", "idle", "silent")], ids="-".join)
def test_other_clients_are_answered(
    start: Callable[..., Daemon], www: Path, reactor: str, kinds: tuple[str, ...]
) -> None:
    """More slow clients than there are descriptors hold up neither other services nor new clients of HTTP.

    Each kind of client has a daemon of its own; they run side by side, because most of the time passes in timeouts.
    """
    attacked = [_Attacked(start, www, reactor, kind) for kind in kinds]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:
        for each in attacked:
            stack.enter_context(each.slow_clients())
        for _ in range(ROUNDS):
            time.sleep(0.2)
            for each in attacked:
                each.go_on()
        # Also a large file.
        assert all(size > SIZE for size in threads.map(_Attacked.large, attacked))
    for each in attacked:
        assert each.watch.wrong == [], each.kind
        # They take far less; the bound excludes that they wait for the slow clients.
        assert max(each.watch.worst.values()) < 10, (each.kind, each.watch.worst)
        assert each.daemon.stop() == 0


#: The timeout that ends each kind of slow client, and the start of the answer that the client gets.
ENDS = {
    "headers": ("request", b"HTTP/1.1 408 "),
    "body": ("request", b"HTTP/1.1 408 "),
    "silent": ("request", b""),
    "idle": ("keepalive", b"HTTP/1.1 200 "),
    "read": ("send", b"HTTP/1.1 200 "),
}


def test_timeouts(start: Callable[..., Daemon], www: Path, reactor: str) -> None:
    """Each kind of slow client is ended by its own timeout, which the log names."""
    options = "request_timeout=1s keepalive_timeout=1s send_timeout=1s"
    services = [f"{kind} 0/tcp http bind=127.0.0.1 root={www} {options}\n" for kind in ENDS]
    daemon = start("".join(services), twistd_arguments=("-r", reactor))
    with contextlib.ExitStack() as stack:
        clients = {
            kind: stack.enter_context(_slow_clients(daemon.port(f"{kind}/tcp"), KINDS[kind][0], 5)) for kind in ENDS
        }
        for _ in range(4):
            time.sleep(0.2)
            for kind, its_clients in clients.items():
                for client in its_clients:
                    _send(client, KINDS[kind][1])
        for kind, (reason, answer) in ENDS.items():
            ends = daemon.wait_event("end", f"{kind}/tcp", 5)
            assert [end["reason"] for end in ends] == [reason] * 5
            assert all(0.9 < float(end["seconds"]) < 20 for end in ends)
            for client in clients[kind]:
                client.settimeout(PATIENCE)
                got = b""
                with contextlib.suppress(ConnectionResetError):
                    while len(got) < len(answer) and (piece := client.recv(1000)):
                        got += piece
                assert got.startswith(answer)
    assert daemon.stop() == 0


def test_full_service_closes_idle_connections(start: Callable[..., Daemon], www: Path) -> None:
    """At instances= a new client gets the place of the connection that has been idle longest."""
    daemon = start(SERVICES.format(folder=www, options="instances=3"))
    port = daemon.port("http/tcp")
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(3)]
        for client in idle:
            client.sendall(KINDS["idle"][0])
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        time.sleep(1)
        # Each closes after its answer, and its place is free again.
        for _ in range(3):
            get(port)
        assert idle[0].recv(1) == b""
        idle[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[1].recv(1)
    ends = daemon.wait_event("end", "http/tcp", 6)
    assert [end["reason"] for end in ends].count("evicted") == 1
    assert daemon.stop() == 0
