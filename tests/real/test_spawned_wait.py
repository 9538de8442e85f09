"""Services with wait=yes: a single process at a time has the listening socket."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, fields
from tests.real.processes import Process, all_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

# Exits after two clients.
ACCEPTS = """
import os, socket
listener = socket.socket(fileno=0)
for _ in range(2):
    client, _ = listener.accept()
    client.sendall(b"%d" % os.getpid())
    client.close()
"""
# Until no datagram arrives for a while.
DATAGRAMS = """
import os, select, socket
sock = socket.socket(fileno=os.dup(0))
assert sock.getblocking() and os.get_blocking(0)
while select.select([sock], [], [], 0.2)[0]:
    data, peer = sock.recvfrom(1000)
    sock.sendto(b"%d %s" % (os.getpid(), data), peer)
"""


@pytest.fixture
def serve(start: Callable[..., Daemon], open_folder: Path) -> Callable[..., Daemon]:
    """Return a function that starts a daemon with a wait=yes service that runs a Python program."""

    def begin(where: str, text: str, options: str = "") -> Daemon:
        (open_folder / "program.py").write_text(text)
        server = f"{sys.executable} -I -S {open_folder}/program.py"
        return start(f'it {where} server="{server}" wait=yes {options}\n')

    return begin


def no_wait(pid: int, descriptor: int) -> bool:
    """Return whether a descriptor of a process is non-blocking."""
    return bool(Process(pid).flags(descriptor) & os.O_NONBLOCK)


def test_program_that_accepts(serve: Callable[..., Daemon]) -> None:
    """A program gets the blocking listening socket and serves until it ends; then svcd listens again."""
    daemon = serve("0/tcp bind=127.0.0.1", ACCEPTS)
    pids = []
    for _ in range(2):
        served = set()
        for _ in range(2):
            with daemon.connect("it/tcp") as client:
                served.add(int(client.recv(100)))
        assert len(served) == 1
        pids.append(served.pop())
        daemon.wait_event("end", "it/tcp", len(pids))
    assert daemon.handlers("it/tcp", 2) == pids
    assert daemon.stop() == 0


def test_program_that_reads_datagrams(serve: Callable[..., Daemon]) -> None:
    """A program gets the datagram socket and answers until it exits; the next datagram starts another program."""
    daemon = serve("0/udp4 bind=127.0.0.1", DATAGRAMS)
    pids = []
    ours = [number for number, target in Process(daemon.process.pid).descriptors().items() if "socket" in target]
    for count in (1, 2):
        with daemon.connect("it/udp4") as client:
            for number in range(5):
                client.send(b"%d" % number)
            answers = [client.recv(1000).split() for _ in range(5)]
            assert [text for _, text in answers] == [b"%d" % number for number in range(5)]
            assert len({pid for pid, _ in answers}) == 1
            pids.append(int(answers[0][0]))
            accept = daemon.wait_event("accept", "it/udp4", count)[-1]
            host, port = client.getsockname()
            assert (accept["peer"], int(accept["pid"])) == (f"{host}:{port}", pids[-1])
        # The socket is non-blocking while svcd has it.
        daemon.wait_event("end", "it/udp4", count)
        assert all(no_wait(daemon.process.pid, number) for number in ours)
    assert pids[0] != pids[1]
    assert daemon.stop() == 0


def test_program_that_does_not_read(start: Callable[..., Daemon]) -> None:
    """A program that does not read the datagram is started a few times, and then after longer and longer delays."""
    daemon = start(
        "it 0/udp4 bind=127.0.0.1 server=/bin/true wait=yes\nthat 0/tcp bind=127.0.0.1 server=/bin/true wait=yes\n"
    )
    with daemon.connect("it/udp4") as asking, daemon.connect("that/tcp"):
        asking.send(b"?")
        for service in ("it/udp4", "that/tcp"):
            daemon.wait_event("end", service, 11)
        begun = time.monotonic()
        used = daemon.cpu_seconds()
        # The twelfth start is half a second after the eleventh, and the next a second later.
        for service in ("it/udp4", "that/tcp"):
            daemon.wait_event("end", service, 12)
        assert time.monotonic() - begun > 0.5
        assert daemon.cpu_seconds() - used < 0.3
        assert len(daemon.wait_event("end", "it/udp4", 12)) == 12
    assert daemon.stop() == 0


def test_datagrams_at_a_unix_socket(serve: Callable[..., Daemon], open_folder: Path) -> None:
    """A program gets a UNIX datagram socket."""
    daemon = serve(f"{open_folder}/s/unixgram", DATAGRAMS)
    with daemon.connect("it/unixgram", socket.AF_UNIX) as client:
        client.send(b"?")
        assert client.recv(100).endswith(b" ?")
    assert daemon.stop() == 0


def test_stop_while_a_program_has_the_socket(serve: Callable[..., Daemon]) -> None:
    """At the stop a program with the socket has shutdown_timeout, and can serve in that time."""
    daemon = serve("0/tcp bind=127.0.0.1", ACCEPTS, "shutdown_timeout=1m")
    with daemon.connect("it/tcp") as client:
        child = Process(int(client.recv(100)))
    port = daemon.port("it/tcp")
    daemon.process.terminate()
    daemon.wait_event("close", "it/tcp")
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        assert client.recv(100) == b"%d" % child.pid
    assert daemon.process.wait(PATIENCE) == 0
    all_gone([child])
    (end,) = daemon.wait_for(lambda line: " end service=it/tcp " in line)
    assert fields(end)["reason"] == "done"
