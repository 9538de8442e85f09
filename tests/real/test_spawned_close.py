"""Handlers that close their connection and go on: the client sees the end, whichever process has the socket open."""

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
# A child goes on with the connection, for one line.
LEAVES = "echo $$; exec 3<&0; (read line <&3; echo $line) & exec 0<&- 1>&- 2>&- 3<&-; sleep 1000; :"
MODULE = """
import os, time

def serve(sock, address):
    sock.sendall(b"%d\\n" % os.getpid())
    sock.close()
    time.sleep(1000)
"""
#: Options of a handler, and the bytes in its end line.
WAYS = {
    "plain": ("", ("-", "-")),
    "counted": ("log_on_success=PID,EXIT,TRAFFIC", ("0", "{out}")),
    "logged": ("log_on_success=PID,EXIT,TRAFFIC stderr=log", ("0", "{out}")),
    "limited": ("log_on_success=PID,EXIT,TRAFFIC rlimit_as=1G", ("0", "{out}")),
}


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """Return a directory with programs, a module and a certificate."""
    (open_folder / "closes").write_text(CLOSES)
    (open_folder / "leaves").write_text(LEAVES)
    (open_folder / "closing.py").write_text(MODULE)
    (open_folder / "server").touch(0o600)
    (open_folder / "server").write_bytes(Authority().sign("localhost").bundle)
    return open_folder


def _end_of(client: socket.socket) -> Process:
    """Return the process that sent its pid and closed the connection; the client sees the end while it runs."""
    with client, client.makefile() as lines:
        process = Process(int(lines.readline()))
        assert lines.read() == ""
    assert process.alive
    os.kill(process.pid, signal.SIGKILL)
    return process


@pytest.mark.parametrize("way", WAYS)
def test_program_that_closes_its_connection(start: Callable[..., Daemon], folder: Path, way: str) -> None:
    """The client sees the end while the program goes on; the bytes until then are counted."""
    options, (received, sent) = WAYS[way]
    daemon = start(f'it 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/closes" {options}\n')
    process = _end_of(daemon.connect("it/tcp"))
    (end,) = daemon.wait_event("end", "it/tcp")
    assert end["exit"] == "SIGKILL"
    counts = received, sent.format(out=len(str(process.pid)) + 1)
    assert (end.get("in", "-"), end.get("out", "-")) == counts
    assert daemon.stop() == 0


def test_local_connection_that_is_closed(start: Callable[..., Daemon], folder: Path) -> None:
    """At a UNIX socket no bytes are counted, so no copy of the socket is kept."""
    daemon = start(f'it {folder}/s/unix server="/bin/sh {folder}/closes" log_on_success=PID,TRAFFIC\n')
    _end_of(daemon.connect("it/unix", socket.AF_UNIX))
    (end,) = daemon.wait_event("end", "it/unix")
    assert (end["in"], end["out"]) == ("-1", "-1")
    assert daemon.stop() == 0


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_tls_connection_that_is_closed(start: Callable[..., Daemon], folder: Path, reactor: str) -> None:
    """The daemon ends the connection of the client when the program has closed its end of the socket pair."""
    options = f"tls_cert={folder}/server log_on_success=PID,TRAFFIC,EXIT"
    services = f'it 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/closes" {options}\n'
    daemon = start(services, twistd_arguments=["--reactor", reactor])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _end_of(context.wrap_socket(daemon.connect("it/tcp")))
    assert daemon.stop() == 0


@pytest.mark.parametrize("model", ["process", "thread"])
def test_python_handler_that_closes_its_connection(start: Callable[..., Daemon], folder: Path, model: str) -> None:
    """The bytes until then are counted."""
    options = f"model={model} log_on_success=PID,TRAFFIC shutdown_timeout=0.1"
    daemon = start(f"it 0/tcp bind=127.0.0.1 python=closing:serve python_path={folder} {options}\n")
    process = _end_of(daemon.connect("it/tcp"))
    (end,) = daemon.wait_event("end", "it/tcp")
    # A thread goes on; the test has killed its launcher with it.
    counts = ("0", str(len(str(process.pid)) + 1)) if model == "process" else ("-1", "-1")
    assert (end["in"], end["out"]) == counts
    assert daemon.stop() == 0


#: Without imports: only root may be able to read the library of Python.
ECHO = """
def serve(sock, address):
    with sock.makefile("rb") as lines:
        sock.sendall(lines.readline() * 1000)
"""


@pytest.mark.parametrize(("model", "user"), [("process", ""), ("process", "nobody"), ("thread", "")])
def test_bytes_of_python_handlers(start: Callable[..., Daemon], folder: Path, model: str, user: str) -> None:
    """All bytes are counted, also if a launcher without root can't read /proc of its handlers."""
    if user and os.geteuid():
        pytest.skip("needs root")
    (folder / "echoes.py").write_text(ECHO)
    options = f"model={model} log_on_success=TRAFFIC" + (f" user={user}" if user else "")
    daemon = start(f"it 0/tcp bind=127.0.0.1 python=echoes:serve python_path={folder} {options}\n")
    for _ in range(3):
        with daemon.connect("it/tcp") as client:
            client.sendall(b"123456789\n")
            assert len(client.makefile("rb").read()) == 10_000
    ends = daemon.wait_event("end", "it/tcp", 3)
    assert {(end["in"], end["out"]) for end in ends} == {("10", "10000")}
    assert daemon.stop() == 0


def test_bytes_of_a_killed_python_handler(start: Callable[..., Daemon], folder: Path) -> None:
    """The bytes that it received and sent until then are counted."""
    (folder / "stays.py").write_text(MODULE.replace("sock.close()", "sock.recv(9); sock.sendall(b'taken\\n')"))
    options = f"python_path={folder} log_on_success=PID,TRAFFIC"
    daemon = start(f"it 0/tcp bind=127.0.0.1 python=stays:serve {options}\n")
    with daemon.connect("it/tcp") as client, client.makefile("rb") as lines:
        line = lines.readline()
        client.sendall(b"x")
        # The data is read before the signal: a socket that is closed with unread data resets its connection.
        assert lines.readline() == b"taken\n"
        os.kill(int(line), signal.SIGKILL)
        assert lines.read() == b""
    (end,) = daemon.wait_event("end", "it/tcp")
    assert (end["in"], end["out"]) == ("1", str(len(line) + len("taken\n")))
    assert daemon.stop() == 0


def test_child_that_keeps_the_connection(start: Callable[..., Daemon], folder: Path) -> None:
    """The connection and its count last as long as a descendant of the program has it."""
    options = "log_on_success=PID,TRAFFIC"
    daemon = start(f'it 0/tcp bind=127.0.0.1 server="/bin/sh {folder}/leaves" {options}\n')
    with daemon.connect("it/tcp") as client, client.makefile() as lines:
        process = Process(int(lines.readline()))
        # Longer than the daemon needs to notice that no process has the connection.
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
