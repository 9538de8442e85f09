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
from tests.real.daemon import PATIENCE, environment, exchange

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

SERVICES = f"""
@defaults bind=127.0.0.1
tcpmux 0/tcp
echo 0/tcp mux=yes
cat 0/tcp server=/bin/cat mux=yes
env 0/tcp server=/usr/bin/env mux=yes
hidden 0/tcp echo
away 0/tcp server="{sys.executable} -c 'import sys; print(sys.stdin.readline().upper())'" mux=yes
"""


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
@pytest.mark.parametrize("name", ["echo", "ECHO", "cat"])
def test_a_service_is_reached_by_its_name(start: Callable[..., Daemon], name: str, reactor: str) -> None:
    """Built-ins and programs alike, on every reactor, and what was sent with the name is theirs."""
    daemon = start(SERVICES, twistd_arguments=["--reactor", reactor])
    answer = exchange(daemon.connect("tcpmux/tcp"), f"{name}\r\nhello\n".encode())
    assert answer == b"+Go\r\nhello\n"
    (end,) = daemon.wait_event("end", f"{name.lower()}/tcp")
    assert end["reason"] == "done"


def test_help_lists_what_is_offered_and_nothing_else(start: Callable[..., Daemon]) -> None:
    """In the order of the file; a service that is not offered can't be asked for."""
    daemon = start(SERVICES)
    assert exchange(daemon.connect("tcpmux/tcp"), b"HELP\r\n") == b"echo\r\ncat\r\nenv\r\naway\r\n"
    assert exchange(daemon.connect("tcpmux/tcp"), b"hidden\r\n") == b"-there is no service hidden\r\n"


def test_a_program_behind_it_knows_its_client(start: Callable[..., Daemon]) -> None:
    """The environment is that of the client's own connection."""
    daemon = start(SERVICES)
    client = daemon.connect("tcpmux/tcp")
    port = client.getsockname()[1]
    answer = exchange(client, b"env\r\n").decode()
    assert f"TCPREMOTEPORT={port}\n" in answer


def test_netcat_talks_through_it(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """As a person at a terminal would."""
    daemon = start(SERVICES)
    _, _, port = daemon.addresses("tcpmux/tcp")[0].rpartition(":")
    done = subprocess.run(
        [program("nc"), "-N", "127.0.0.1", port], input=b"away\r\nhello\n", capture_output=True, timeout=PATIENCE
    )
    assert done.stdout == b"+Go\r\nHELLO\n\n"


def test_the_handshake_follows_the_answer(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A built-in and a program that speak TLS do so with the clients that tcpmux brings as well."""
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


def test_clients_wait_for_their_turn(start: Callable[..., Daemon]) -> None:
    """A program with on_limit=queue serves one after the other, by tcpmux, too."""
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
def test_clients_that_have_not_named_a_service_are_seen(
    start: Callable[..., Daemon], tmp_path: Path, reactor: str
) -> None:
    """They are listed; a daemon that is drained serves those that go on, and one that stops ends the others at once."""
    path = tmp_path / "control"
    daemon = start(SERVICES, "--control", str(path), twistd_arguments=["--reactor", reactor])

    def svcctl(*words: str) -> Any:
        command = [sys.executable, "-m", "svcd", "--control", str(path), *words, "--json"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
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
