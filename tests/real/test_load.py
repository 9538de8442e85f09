"""Many clients, clients that do not read, and too few descriptors."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

MANY = 10_000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the soft limit of descriptors for the test's side of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MANY + 1000:
        pytest.skip(f"the hard limit of open files is {hard}; {MANY + 1000} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.load
@pytest.mark.usefixtures("many_descriptors")
def test_ten_thousand_connections(start: Callable[..., Daemon]) -> None:
    """10,000 connections are open at once, and each is answered."""
    daemon = start("echo 0/tcp bind=127.0.0.1 log_on_success=none\n")
    clients = []
    try:
        address = ("127.0.0.1", daemon.port("echo/tcp"))
        for number in range(MANY):
            client = socket.socket()
            client.settimeout(PATIENCE)
            # Several source addresses: one has too few ports.
            client.bind((f"127.0.1.{number % 250 + 1}", 0))
            client.connect(address)
            clients.append(client)
        for number, client in enumerate(clients):
            client.sendall(f"{number}".encode())
        for number, client in enumerate(clients):
            assert client.recv(100) == f"{number}".encode()
    finally:
        for client in clients:
            client.close()
    assert daemon.stop() == 0


def _few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def test_descriptors_run_out(start: Callable[..., Daemon]) -> None:
    """At the limit of descriptors further clients wait without cost, and are served when others leave."""
    daemon = start("echo 0/tcp bind=127.0.0.1\n", preexec_fn=_few_descriptors)
    # The start logs the low limit.
    daemon.wait_for(lambda line: " descriptors limit=128 connections=63 " in line)
    served: list[socket.socket] = []
    waiting: list[socket.socket] = []
    for _ in range(120):
        client = daemon.connect("echo/tcp")
        client.sendall(b"?")
        (served if select.select([client], [], [], 0.5)[0] else waiting).append(client)
        if len(waiting) == 5:
            break
    assert len(served) > 40
    assert len(waiting) == 5
    daemon.wait_for(lambda line: " pause reason=descriptors " in line)
    # While they wait the daemon uses no processor time.
    used = daemon.cpu_seconds()
    assert not select.select(waiting, [], [], 1.0)[0]
    assert daemon.cpu_seconds() - used < 0.5
    for client in served:
        assert client.recv(1) == b"?"
        client.close()
    for client in waiting:
        assert client.recv(1) == b"?"
        client.close()
    daemon.wait_for(lambda line: " resume reason=descriptors " in line)
    assert daemon.stop() == 0


@pytest.mark.load
def test_client_that_never_reads(start: Callable[..., Daemon]) -> None:
    """Each client that sends and never reads, or is sent chargen and never reads, costs a bounded buffer."""
    daemon = start("@defaults bind=127.0.0.1\necho 0/tcp\nupper 0/tcp\nchargen 0/tcp\nhttp 0/tcp\n")
    exchange(daemon.connect("echo/tcp"), b"warm")
    before = daemon.memory()
    clients, questions = [], {}
    for name in ["echo", "upper", "chargen", "http"] * 10:
        client = daemon.connect(f"{name}/tcp")
        client.setblocking(False)
        clients.append(client)
        if name != "chargen":
            questions[client] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000 if name == "http" else b"x" * 65_536
    # Until the daemon reads no more from any of them: then all buffers on the way are full.
    while ready := select.select([], questions, [], 0.5)[1]:
        for client in ready:
            with contextlib.suppress(BlockingIOError):
                client.send(questions[client])
    assert daemon.memory() - before < len(clients) * 1_048_576
    assert exchange(daemon.connect("echo/tcp"), b"still there") == b"still there"
    for client in clients:
        client.close()
    assert daemon.stop() == 0


@pytest.mark.load
def test_no_descriptor_is_lost(start: Callable[..., Daemon]) -> None:
    """After many short connections the daemon has as many descriptors as before."""
    daemon = start("@defaults bind=127.0.0.1\necho 0/tcp\ndaytime 0/tcp\nhttp 0/tcp\n")
    exchange(daemon.connect("http/tcp"), b"GET / HTTP/1.0\r\n\r\n")
    daemon.wait_event("end", "http/tcp")
    before = daemon.descriptors()
    for _ in range(200):
        assert exchange(daemon.connect("echo/tcp"), b"x") == b"x"
        exchange(daemon.connect("daytime/tcp"))
        exchange(daemon.connect("http/tcp"), b"GET / HTTP/1.0\r\n\r\n")
    for service, count in [("echo/tcp", 200), ("daytime/tcp", 200), ("http/tcp", 201)]:
        daemon.wait_event("end", service, count)
    assert daemon.descriptors() == before
