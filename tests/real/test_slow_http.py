"""Clients of HTTP that are slow on purpose, in the ways of slowhttptest(1): nobody else feels them."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, Daemon, exchange
from tests.real.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DESCRIPTORS = 200
CLIENTS = 400
SIZE = 3_000_000

_HOST = b"Host: x\r\n"
#: What each kind says first, and then again and again.
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
    """A small file and a large one."""
    (open_folder / "index.html").write_text("hello")
    (open_folder / "large").write_bytes(b"x" * SIZE)
    return open_folder


def _get(port: int, path: str = "/") -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(1_000_000):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:100]
        return answer


def _echoes(port: int) -> None:
    assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"hello") == b"hello"


@contextlib.contextmanager
def _slow_clients(port: int, first: bytes, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            # A window that is small, and that opens slowly.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            clients.append(client)
        for client in clients:
            if select.select([], [client], [], 0.01)[1]:
                _say(client, first)
        yield clients


def _say(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.send(data)


@pytest.fixture(params=["uv", "epoll"])
def reactor(request: pytest.FixtureRequest) -> str:
    """Each reactor that has ports of its own."""
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_answered(start: Callable[..., Daemon], www: Path, reactor: str, kind: str) -> None:
    """More slow clients than there are descriptors keep no other service from answering, nor HTTP its new clients."""
    daemon = start(
        SERVICES.format(folder=www, options=""),
        preexec_fn=_few_descriptors,
        twistd_arguments=("-r", reactor),
    )
    port = daemon.port("http/tcp")
    watch = Watch(
        {
            "http": partial(_get, port),
            "status": partial(_get, daemon.port("status/tcp"), "/healthz"),
            "echo": partial(_echoes, daemon.port("echo/tcp")),
            "cat": partial(_echoes, daemon.port("cat/tcp")),
        }
    )
    first, more = KINDS[kind]
    with watch.going_on(), _slow_clients(port, first, CLIENTS) as clients:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            time.sleep(0.2)
            for client in clients:
                if more:
                    _say(client, more)
                else:
                    with contextlib.suppress(OSError):
                        client.recv(16)
        # A whole large file, too.
        assert len(_get(port, "/large")) > SIZE
    assert watch.wrong == []
    # They take far less. What they must not do is wait for the slow ones.
    assert max(watch.worst.values()) < 10, watch.worst
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        ("headers", "request", b"HTTP/1.1 408 "),
        ("body", "request", b"HTTP/1.1 408 "),
        ("silent", "request", b""),
        ("idle", "keepalive", b"HTTP/1.1 200 "),
        ("read", "send", b"HTTP/1.1 200 "),
    ],
)
def test_timeouts(start: Callable[..., Daemon], www: Path, reactor: str, kind: str, reason: str, said: bytes) -> None:
    """Each way of being slow ends with its own timeout, and the log says which."""
    options = "request_timeout=1s keepalive_timeout=1s send_timeout=1s"
    daemon = start(SERVICES.format(folder=www, options=options), twistd_arguments=("-r", reactor))
    first, more = KINDS[kind]
    with _slow_clients(daemon.port("http/tcp"), first, 5) as clients:
        for _ in range(4):
            time.sleep(0.2)
            for client in clients:
                _say(client, more)
        ends = daemon.wait_event("end", "http/tcp", 5)
        assert [end["reason"] for end in ends] == [reason] * 5
        assert all(0.9 < float(end["seconds"]) < 20 for end in ends)
        for client in clients:
            client.settimeout(PATIENCE)
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while len(got) < len(said) and (piece := client.recv(1000)):
                    got += piece
            assert got.startswith(said)
    assert daemon.stop() == 0


def test_a_crowded_service_closes_idle_connections(start: Callable[..., Daemon], www: Path) -> None:
    """At instances= a new client gets the place of the connection that has been idle longest."""
    daemon = start(SERVICES.format(folder=www, options="instances=3"))
    port = daemon.port("http/tcp")
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(3)]
        for client in idle:
            client.sendall(KINDS["idle"][0])
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        time.sleep(1)
        # Each is closed when it is answered, and leaves its place.
        for _ in range(3):
            _get(port)
        assert idle[0].recv(1) == b""
        idle[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[1].recv(1)
    ends = daemon.wait_event("end", "http/tcp", 6)
    assert [end["reason"] for end in ends].count("evicted") == 1
    assert daemon.stop() == 0
