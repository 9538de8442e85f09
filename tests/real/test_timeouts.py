"""Timeouts of a daemon with many clients, and of processes."""

from __future__ import annotations

import contextlib
import itertools
import re
import resource
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

CLIENTS = 1000
SERVICES = f"""
@defaults bind=127.0.0.1 backlog={4 * CLIENTS}
normal  0/tcp echo
silent  0/tcp discard first_byte_timeout=4s
deaf    0/tcp chargen idle_timeout=4s
slow    0/tcp discard idle_timeout=4s session_timeout=6s
"""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the soft limit of descriptors for the test's side of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * CLIENTS:
        pytest.skip(f"the hard limit of open files is {hard}; {4 * CLIENTS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _crowd(daemon: Daemon, service: str) -> list[socket.socket]:
    """Return 1000 clients of a service."""
    address = ("127.0.0.1", daemon.port(service))
    clients = []
    for _ in range(CLIENTS):
        client = socket.socket()
        client.settimeout(PATIENCE)
        # Small buffers: with default ones clients that do not read would fill gigabytes of the kernel.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(address)
        clients.append(client)
    return clients


def _send_a_byte_per_second(clients: list[socket.socket]) -> None:
    """Send until a connection is ended."""
    with contextlib.suppress(ConnectionError):
        while True:
            for client in clients:
                client.send(b"x")
            select.select([], [], [], 1)


def _ends(daemon: Daemon, service: str) -> list[dict[str, str]]:
    return daemon.wait_event("end", service, CLIENTS)


def _answer_time(daemon: Daemon) -> float:
    """Return the response time of a normal client, with its connection, in seconds."""
    began = time.monotonic()
    assert exchange(daemon.connect("normal/tcp"), b"hello") == b"hello"
    return time.monotonic() - began


@pytest.mark.load
@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_timeouts_of_many_clients(start: Callable[..., Daemon], reactor: str) -> None:
    """Clients that are silent, do not read or never end are closed by timeouts while a normal client is served."""
    daemon = start(SERVICES, twistd_arguments=("-r", reactor))
    crowds = {service: _crowd(daemon, f"{service}/tcp") for service in ("silent", "deaf", "slow")}
    waits = []
    slow = threading.Thread(target=_send_a_byte_per_second, args=(crowds["slow"],))
    slow.start()
    while slow.is_alive():
        waits.append(_answer_time(daemon))
        select.select([], [], [], 0.01)
    promised = {"silent": ("first_byte", 4.0), "deaf": ("idle", 4.0), "slow": ("session", 6.0)}
    for service, (reason, seconds) in promised.items():
        ends = _ends(daemon, f"{service}/tcp")
        assert {end["reason"] for end in ends} == {reason}
        lasted = [float(end["seconds"]) for end in ends]
        # The promised bound is 9/8; a loaded machine may add to it, and `deaf` clients first fill their buffers.
        assert seconds <= min(lasted)
        assert max(lasted) < seconds * 9 / 8 + 20
        print(f"{reactor}: {service} ended after {min(lasted):.3f} to {max(lasted):.3f} s, by {reason}")
    waits.sort()
    print(f"{reactor}: a normal client waits {waits[len(waits) // 2] * 1000:.1f} ms, at most {waits[-1] * 1000:.1f} ms")
    assert waits[len(waits) // 2] < 1
    assert {end["reason"] for end in daemon.wait_event("end", "normal/tcp", len(waits))} == {"done"}
    for client in itertools.chain(*crowds.values()):
        client.close()
    assert daemon.stop() == 0


def test_timeouts_at_a_unix_socket(start: Callable[..., Daemon], tmp_path: object) -> None:
    """At a UNIX socket the transport measures activity."""
    daemon = start(
        f"one {tmp_path}/1/unix echo idle_timeout=1s\ntwo {tmp_path}/2/unix chargen idle_timeout=1s\n"
        f"three {tmp_path}/3/unix discard first_byte_timeout=1s\n"
    )
    clients = [daemon.connect(f"{name}/unix", socket.AF_UNIX) for name in ("one", "two", "three")]
    reasons = [daemon.wait_event("end", f"{name}/unix")[0]["reason"] for name in ("one", "two", "three")]
    assert reasons == ["idle", "idle", "first_byte"]
    for client in clients:
        client.close()


def test_timeouts_of_handlers(start: Callable[..., Daemon]) -> None:
    """The kernel reports activity of a connection that only a process has: an idle cat is ended, a busy one not."""
    daemon = start(
        "@defaults bind=127.0.0.1\n"
        "cat     0/tcp  server=/bin/cat idle_timeout=1.5s log_on_success=PID,EXIT,DURATION\n"
        "dumb    0/tcp  server=/bin/cat first_byte_timeout=1.5s\n"
        "deaf    0/tcp  server='/usr/bin/yes' idle_timeout=1.5s\n"
        "long    0/tcp  server=/bin/cat session_timeout=2s idle_timeout=1.5s\n"
    )
    idle, busy, silent, spoken, deaf, long = (
        daemon.connect(f"{name}/tcp") for name in ("cat", "cat", "dumb", "dumb", "deaf", "long")
    )
    spoken.sendall(b"x")
    for _ in range(16):
        for client in (busy, long):
            try:
                client.sendall(b"x")
                assert client.recv(1) in (b"x", b"")
            except OSError:
                assert client is long
        select.select([], [], [], 0.25)
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert (end["reason"], end["exit"]) == ("idle", "SIGTERM")
    assert 1.5 <= float(end["seconds"]) < 3.5
    assert busy.fileno() >= 0
    busy.sendall(b"still")
    assert busy.recv(5) == b"still"
    busy.close()
    assert [end["reason"] for end in daemon.wait_event("end", "cat/tcp", 2)] == ["idle", "done"]
    (end,) = daemon.wait_event("end", "dumb/tcp")
    assert end["reason"] == "first_byte"
    assert daemon.wait_event("end", "deaf/tcp")[0]["reason"] == "idle"
    assert daemon.wait_event("end", "long/tcp")[0]["reason"] == "session"
    spoken.sendall(b"y")
    assert re.fullmatch(b"xy?", spoken.recv(2))
    for client in (idle, silent, spoken, deaf, long):
        client.close()
    assert daemon.stop() == 0


def test_handler_that_has_closed_its_connection_is_idle(start: Callable[..., Daemon]) -> None:
    """idle_timeout ends a process that has closed its connection."""
    daemon = start(
        "@defaults bind=127.0.0.1\n"
        "first  0/tcp server=/bin/cat idle_timeout=1s\n"
        "shut   0/tcp server=\"/bin/sh -c 'echo hi; exec <&- >&- 2>&-; sleep 60'\" idle_timeout=1s\n"
    )
    client = daemon.connect("shut/tcp")
    assert exchange(client) == b"hi\n"
    assert daemon.wait_event("end", "shut/tcp")[0]["reason"] == "idle"


def test_timeouts_of_handlers_over_ipv6(start: Callable[..., Daemon], has_ipv6: bool) -> None:
    """Activity is found for IPv6 and IPv4-mapped connections."""
    if not has_ipv6:
        pytest.skip("no IPv6")
    daemon = start(
        "six   0/tcp6 bind=::1 server=/bin/cat idle_timeout=1s\n"
        "both  0/tcp6 bind=:: v6only=no server=/bin/cat idle_timeout=1s\n"
        "mapped  0/tcp6 bind=:: v6only=no first_byte_timeout=1s server=/bin/cat\n"
    )
    six = daemon.connect("six/tcp6", socket.AF_INET6)
    both = socket.create_connection(("127.0.0.1", daemon.port("both/tcp6")), PATIENCE)
    spoken = socket.create_connection(("127.0.0.1", daemon.port("mapped/tcp6")), PATIENCE)
    spoken.sendall(b"x")
    assert daemon.wait_event("end", "six/tcp6")[0]["reason"] == "idle"
    assert daemon.wait_event("end", "both/tcp6")[0]["reason"] == "idle"
    select.select([], [], [], 1)
    assert spoken.recv(1) == b"x"
    assert exchange(spoken) == b""
    assert daemon.wait_event("end", "mapped/tcp6")[0]["reason"] == "done"
    six.close()
    both.close()
