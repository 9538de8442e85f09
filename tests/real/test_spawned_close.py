"""Handlers that close their connection and live on: the client sees its end, whoever else might have it open."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.real.daemon import PATIENCE
from tests.real.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

CLOSES = "echo $$; exec 0<&- 1>&- 2>&-; exec sleep 1000"
# A child goes on with the connection, for a line.
LEAVES = "echo $$; exec 3<&0; (read line <&3; echo $line) & exec 0<&- 1>&- 2>&- 3<&-; sleep 1000; :"
MODULE = """
import os, time

def serve(sock, address):
    sock.sendall(b"%d\\n" % os.getpid())
    sock.close()
    time.sleep(1000)
"""
#: How a handler is run, and what its end line then says of the bytes.
WAYS = {
    "plain": ("", ("-", "-")),
    "counted": ("log_on_success=PID,EXIT,TRAFFIC", ("0", "{out}")),
    "logged": ("log_on_success=PID,EXIT,TRAFFIC stderr=log", ("0", "{out}")),
    "limited": ("log_on_success=PID,EXIT,TRAFFIC rlimit_as=1G", ("0", "{out}")),
}


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """Programs, a module, and a certificate."""
    (open_folder / "closes").write_text(CLOSES)
    (open_folder / "leaves").write_text(LEAVES)
    (open_folder / "closing.py").write_text(MODULE)
    (open_folder / "server").touch(0o600)
    (open_folder / "server").write_bytes(Authority().sign("localhost").both)
    return open_folder


def _end_of(client: socket.socket) -> Process:
    """The process that has said its pid and closed the connection, which is seen while it lives."""
    with client, client.makefile() as lines:
        process = Process(int(lines.readline()))
        assert lines.read() == ""
    assert process.alive
    os.kill(process.pid, signal.SIGKILL)
    return process


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_closes_its_connection(start: Callable[..., Daemon], folder: Path, way: str) -> None:
    """The client sees the end while the program lives on; its bytes are those until then."""
    options, (received, sent) = WAYS[way]
    daemon = start(f'it 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/closes" {options}\n')
    process = _end_of(daemon.connect("it/tcp"))
    (end,) = daemon.wait_event("end", "it/tcp")
    assert end["exit"] == "SIGKILL"
    counts = received, sent.format(out=len(str(process.pid)) + 1)
    assert (end.get("in", "-"), end.get("out", "-")) == counts
    assert daemon.stop() == 0


def test_a_local_connection_that_is_closed(start: Callable[..., Daemon], folder: Path) -> None:
    """At a UNIX socket there is nothing to count, and no copy to be kept."""
    daemon = start(f'it {folder}/s/unix server="/bin/sh {folder}/closes" log_on_success=PID,TRAFFIC\n')
    _end_of(daemon.connect("it/unix", socket.AF_UNIX))
    (end,) = daemon.wait_event("end", "it/unix")
    assert (end["in"], end["out"]) == ("-1", "-1")
    assert daemon.stop() == 0


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_a_connection_with_tls_that_is_closed(start: Callable[..., Daemon], folder: Path, reactor: str) -> None:
    """The daemon has the client's connection then, and ends it when the program has closed its end of the pair."""
    options = f"tls_cert={folder}/server log_on_success=PID,TRAFFIC,EXIT"
    services = f'it 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/closes" {options}\n'
    daemon = start(services, twistd_arguments=["--reactor", reactor])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _end_of(context.wrap_socket(daemon.connect("it/tcp")))
    assert daemon.stop() == 0


@pytest.mark.parametrize("model", ["process", "thread"])
def test_a_python_handler_that_closes_its_connection(start: Callable[..., Daemon], folder: Path, model: str) -> None:
    """Nobody else has it."""
    options = f"model={model} log_on_success=PID,TRAFFIC shutdown_timeout=0.1"
    daemon = start(f"it 0/tcp bind=127.0.0.1 python=closing:serve python_path={folder} {options}\n")
    _end_of(daemon.connect("it/tcp"))
    assert daemon.stop() == 0


def test_a_child_that_goes_on_with_the_connection(start: Callable[..., Daemon], folder: Path) -> None:
    """The connection and its count last as long as a descendant of the program has it."""
    options = "log_on_success=PID,TRAFFIC"
    daemon = start(f'it 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/leaves" {options}\n')
    with daemon.connect("it/tcp") as client, client.makefile() as lines:
        process = Process(int(lines.readline()))
        # Longer than it takes until nobody would have it.
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE)
        client.sendall(b"more\n")
        assert client.makefile().read() == "more\n"
        assert process.alive
        os.kill(process.pid, signal.SIGKILL)
        (end,) = daemon.wait_event("end", "it/tcp")
    assert (end["in"], end["out"]) == ("5", str(len(str(process.pid)) + 6))
    assert daemon.stop() == 0
