"""A real daemon with a name server that never answers: all uses of names, reload and stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, exchange, fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

#: Bound for events that must not wait for the name server, in seconds.
SOON = 5.0
#: In new network and mount namespaces an inherited UDP socket that is never read is the name server.
ENTER = """
import os, socket, subprocess, sys
ip, resolv, *words = sys.argv[1:]
subprocess.run([ip, "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", resolv, os.path.realpath("/etc/resolv.conf")], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.53", 53))
server.set_inheritable(True)
os.execv(words[0], words)
"""


@pytest.fixture
def silent(program: Callable[[str], str], tmp_path: Path) -> list[str]:
    """Return the words before a command line that give it a silent name server."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    flags = ["--net", "--mount"] if os.geteuid() == 0 else ["--net", "--mount", "--user", "--map-root-user"]
    words = [program("unshare"), *flags, sys.executable, "-c", ENTER, program("ip"), str(resolv)]
    tried = subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespaces of one's own here: {tried.stderr.strip()}")
    return words


def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def _threads(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/task"))  # noqa: PTH208 - the names alone


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_silent_name_server(start: Callable[..., Daemon], silent: list[str], tmp_path: Path, reactor: str) -> None:
    """Connections to a name that is not answered fail in time; localhost, reload and the stop don't wait for it."""
    lines = [
        "@defaults shutdown_timeout=1s",
        "echo 7007/tcp4 bind=127.0.0.1",
        f"red {tmp_path}/red.sock/unix redirect=nosuch.example.org:80 connect_timeout=1s",
        f"local {tmp_path}/local.sock/unix redirect=localhost:7007",
    ]
    services = "\n".join(lines)
    daemon = start(services, before=silent, twistd_arguments=["--reactor", reactor])
    clients = [_connect(tmp_path / "red.sock") for _ in range(80)]
    began = time.monotonic()
    with _connect(tmp_path / "local.sock") as local:
        assert exchange(local, b"hello") == b"hello"
    for client in clients:
        with client:
            assert client.recv(1) == b""
    assert time.monotonic() - began < SOON
    for fail in daemon.wait_event("fail", "red/unix", 80):
        assert fail["reason"] == "can't connect to nosuch.example.org:80: it does not answer"
    daemon.file.write_text(f"{services}\nmore 7008/tcp4 echo bind=127.0.0.1\n")
    daemon.process.send_signal(signal.SIGHUP)
    (line,) = daemon.wait_for(lambda line: " reload " in line)
    assert fields(line)["added"] == "1"
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < SOON


def test_lookups_of_one_name_share_a_thread(start: Callable[..., Daemon], silent: list[str], tmp_path: Path) -> None:
    """However many clients connect and close, a name without an answer occupies one thread."""
    daemon = start(f"red {tmp_path}/red.sock/unix redirect=nosuch.example.org:80 connect_timeout=0.2s\n", before=silent)
    before = _threads(daemon)
    for _ in range(4):
        clients = [_connect(tmp_path / "red.sock") for _ in range(5)]
        for client in clients:
            with client:
                assert client.recv(1) == b""
    assert _threads(daemon) <= before + 1
    assert daemon.stop() == 0


def test_reload_with_a_host_name_in_bind(start: Callable[..., Daemon], silent: list[str]) -> None:
    """A reload with a host name in bind= ends after a second with the reason that no name server has answered."""
    services = "echo 0/tcp4 bind=127.0.0.1\n"
    daemon = start(services, before=silent)
    daemon.file.write_text(f"{services}other 0/tcp4 echo bind=nosuch.example.org\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: "no name server has answered within 1 s" in line)
    assert daemon.stop() == 0
