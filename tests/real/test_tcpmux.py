"""tcpmux on a real daemon: every kind of handler behind one port."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.certificates import Authority
from tests.real import preloaded
from tests.real.daemon import PATIENCE, Daemon, environment, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SERVICES = f"""
@defaults bind=127.0.0.1
tcpmux 0/tcp
echo 0/tcp mux=yes
cat 0/tcp server=/bin/cat mux=yes
env 0/tcp server=/usr/bin/env mux=yes
hidden 0/tcp echo
away 0/tcp server="{sys.executable} -c 'import sys; print(sys.stdin.readline().upper())'" mux=yes
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Return a daemon for the tests that do not change it."""
    daemon = Daemon(tmp_path_factory.mktemp("shared"), SERVICES)
    yield daemon
    daemon.end()


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_service_is_selected_by_name(start: Callable[..., Daemon], reactor: str) -> None:
    """Built-in services and programs get the data that was sent together with the name; case does not matter."""
    daemon = start(SERVICES, twistd_arguments=["--reactor", reactor])
    for name, count in (("echo", 1), ("ECHO", 2), ("cat", 1)):
        answer = exchange(daemon.connect("tcpmux/tcp"), f"{name}\r\nhello\n".encode())
        assert answer == b"+Go\r\nhello\n"
        end = daemon.wait_event("end", f"{name.lower()}/tcp", count)[-1]
        assert end["reason"] == "done"


def test_help_lists_the_offered_services(shared: Daemon) -> None:
    """The names are in the order of the file; a service without mux=yes can't be selected."""
    assert exchange(shared.connect("tcpmux/tcp"), b"HELP\r\n") == b"echo\r\ncat\r\nenv\r\naway\r\n"
    assert exchange(shared.connect("tcpmux/tcp"), b"hidden\r\n") == b"-there is no service hidden\r\n"


def test_environment_of_a_program(shared: Daemon) -> None:
    """The environment of the program has the address of the client."""
    client = shared.connect("tcpmux/tcp")
    port = client.getsockname()[1]
    answer = exchange(client, b"env\r\n").decode()
    assert f"TCPREMOTEPORT={port}\n" in answer


def test_netcat(shared: Daemon, program: Callable[[str], str]) -> None:
    """nc -N selects a service and sends it a line."""
    _, _, port = shared.addresses("tcpmux/tcp")[0].rpartition(":")
    done = subprocess.run(
        [program("nc"), "-N", "127.0.0.1", port], input=b"away\r\nhello\n", capture_output=True, timeout=PATIENCE
    )
    assert done.stdout == b"+Go\r\nHELLO\n\n"


def test_tls_handshake_follows_the_answer(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A built-in service and a program with TLS start the handshake after the answer of tcpmux."""
    authority = Authority()
    file = tmp_path / "both"
    file.touch(0o600)
    file.write_bytes(authority.sign("localhost").bundle)
    secure = f"mux=yes tls_cert={file}"
    daemon = start(f"@defaults bind=127.0.0.1\ntcpmux 0/tcp\necho 0/tcp {secure}\ncat 0/tcp server=/bin/cat {secure}\n")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    for name in (b"echo", b"cat"):
        client = daemon.connect("tcpmux/tcp")
        client.sendall(name + b"\r\n")
        assert client.recv(5, socket.MSG_WAITALL) == b"+Go\r\n"
        with context.wrap_socket(client, server_hostname="localhost") as secured:
            secured.sendall(b"hi")
            assert secured.recv(2) == b"hi"


def test_queue_of_an_iterative_program(start: Callable[..., Daemon]) -> None:
    """A program with instances=1 on_limit=queue serves the clients of tcpmux in turn, and none is refused."""
    one = "one 0/tcp server=/bin/cat mux=yes instances=1 on_limit=queue"
    daemon = start(f"@defaults bind=127.0.0.1\ntcpmux 0/tcp\n{one}\n")
    clients = [daemon.connect("tcpmux/tcp") for _ in range(3)]
    for client in clients:
        client.sendall(b"one\r\nhello")
        assert client.recv(5, socket.MSG_WAITALL) == b"+Go\r\n"
    for client in clients:
        with client:
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    daemon.wait_event("end", "one/tcp", 3)
    assert not [line for line in daemon.lines if " refuse " in line]


WAITING = 200


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_clients_without_a_service_name(start: Callable[..., Daemon], tmp_path: Path, reactor: str) -> None:
    """They are listed; while the daemon is drained they are served, and a stop closes the others at once."""
    path = tmp_path / "control"
    daemon = start(SERVICES, "--control", str(path), twistd_arguments=["--reactor", reactor])

    def svcctl(*words: str) -> Any:
        command = [sys.executable, "-m", "svcd", "--control", str(path), *words, "--json"]
        done = preloaded.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    clients = [daemon.connect("tcpmux/tcp") for _ in range(WAITING)]
    for client in clients:
        client.sendall(b"e")
    daemon.wait_event("accept", "tcpmux/tcp", WAITING)
    assert len(svcctl("connections", "tcpmux/tcp")) == WAITING
    svcctl("drain")
    daemon.wait_event("close", "echo/tcp")
    first = clients.pop()
    first.sendall(b"cho\r\n")
    assert first.recv(5, socket.MSG_WAITALL) == b"+Go\r\n"
    assert exchange(first, b"hello") == b"hello"
    assert daemon.stop() == 0
    for client in clients:
        with client:
            assert client.recv(1) == b""
    assert {each["reason"] for each in daemon.wait_event("end", "tcpmux/tcp", WAITING)} == {"done", "shutdown"}
