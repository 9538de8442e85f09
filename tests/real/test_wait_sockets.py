"""Sockets that programs of wait=yes services have, had or may have: their flags are anybody's, and svcd goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, Daemon, exchange, fields
from tests.real.processes import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REACTORS = ["uv", "epoll", "asyncio"]
NETS = ["tcp", "udp", "unix", "unixgram"]
#: Answers with its pid, for ever, and makes its socket blocking and not in turn all the while.
FLIPS = """
import os, select, signal, socket, sys, threading, time
sock = socket.socket(fileno=os.dup(0))
stream = sock.type == socket.SOCK_STREAM
assert os.get_blocking(0)

def flip():
    while True:
        for value in (False, True):
            os.set_blocking(0, value)
            time.sleep(0.002)

def answer():
    if stream:
        client, _ = sock.accept()
        client.sendall(b"%d" % os.getpid())
        client.close()
    else:
        data, peer = sock.recvfrom(1000)
        sock.sendto(b"%d" % os.getpid(), peer)

if "ignore" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "leave" in sys.argv:
    answer()
    if os.fork():
        sys.exit()
    os.setsid()
    os.set_blocking(0, True)
    # Its own file goes with the test.
    while os.path.exists(__file__) and not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    sys.exit()
threading.Thread(target=flip, daemon=True).start()
while True:
    try:
        answer()
    except BlockingIOError:
        select.select([sock], [], [])
"""


class _Served:
    """A daemon with a service `it` that has wait=yes, another one, and a program that flips its socket's flags."""

    def __init__(
        self, start: Callable[..., Daemon], folder: Path, net: str, options: str, words: str, reactor: str
    ) -> None:
        self.folder, self.net = folder, net
        (folder / "flips.py").write_text(FLIPS)
        self.path = folder / "it.sock"
        self.program = f'server="{sys.executable} -I -S {folder}/flips.py {words}" wait=yes {options}'
        if net in ("tcp", "udp"):
            kind = socket.SOCK_STREAM if net == "tcp" else socket.SOCK_DGRAM
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            self.where = f"{self.port}/{net}"
        else:
            self.where = f"{self.path}/{net}"
        settings = ["--reactor", reactor] if reactor else []
        text = self._text(f"it {self.where} {self.program}")
        self.daemon = start(text, "--control", str(folder / "control"), twistd_arguments=settings)
        self._reloads = 0

    def _text(self, line: str) -> str:
        return f"@defaults bind=127.0.0.1 shutdown_timeout=1s\nother 0/tcp echo\n{line}\n"

    def change(self, line: str) -> None:
        """Reload with another line for the service; the daemon answers other clients at once."""
        self.daemon.file.write_text(self._text(line))
        self.daemon.process.send_signal(signal.SIGHUP)
        self._reloads += 1
        self.daemon.wait_for(lambda each: " reload added=" in each, self._reloads)
        self.lives()

    def lives(self) -> None:
        """The daemon answers."""
        assert exchange(self.daemon.connect("other/tcp"), b"x") == b"x"

    @contextlib.contextmanager
    def client(self) -> Iterator[socket.socket]:
        """A client of the service."""
        kind = socket.SOCK_DGRAM if self.net in ("udp", "unixgram") else socket.SOCK_STREAM
        local = self.net.startswith("unix")
        with socket.socket(socket.AF_UNIX if local else socket.AF_INET, kind) as client:
            client.settimeout(PATIENCE)
            if self.net == "unixgram":
                client.bind("")
            client.connect(str(self.path) if local else ("127.0.0.1", self.port))
            yield client

    def ask(self) -> bytes:
        """What the service answers to a word."""
        with self.client() as client:
            # A program answers before it reads.
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b"hello")
            return client.recv(100)

    def pid(self) -> int:
        """Which process answers."""
        return int(self.ask())

    def end_of(self, pid: int, *names: str) -> tuple[str, ...]:
        """What the log says of a program's end."""
        (line,) = self.daemon.wait_for(lambda line: f" end service=it/{self.net} " in line and f" pid={pid} " in line)
        return tuple(fields(line)[name] for name in names)

    def answers(self, wanted: Callable[[bytes], bool]) -> bool:
        """Whether the service answers so by now."""
        self.lives()
        try:
            with self.client() as client:
                client.settimeout(0.3)
                client.sendall(b"hello")
                return wanted(client.recv(100))
        except (OSError, TimeoutError):
            return False


@pytest.fixture
def served(start: Callable[..., Daemon], open_folder: Path) -> Callable[..., _Served]:
    """Start such a daemon."""

    def begin(net: str, options: str = "", words: str = "", reactor: str = "") -> _Served:
        return _Served(start, open_folder, net, options, words, reactor)

    return begin


def _echoes(answer: bytes) -> bool:
    return answer == b"hello"


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("net", NETS)
def test_a_line_that_is_changed_to_another_handler(served: Callable[..., _Served], net: str, reactor: str) -> None:
    """The program is ended, its port is served by the new service, and the daemon never waits for the program."""
    it = served(net, reactor=reactor)
    first = it.pid()
    assert [it.pid(), it.pid()] == [first, first]
    it.change(f"it {it.where} echo")
    Process(first).wait()
    wait_until(lambda: it.answers(_echoes), "the new service answers")
    assert it.ask() == b"hello"
    assert it.end_of(first, "reason", "exit") == ("shutdown", "SIGTERM")
    # And back: that socket was never a program's.
    it.change(f"it {it.where} {it.program}")
    assert it.pid() not in (0, first)
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("net", ["tcp", "udp"])
def test_a_program_that_does_not_heed_sigterm(served: Callable[..., _Served], net: str) -> None:
    """It has shutdown_timeout; until it is gone the new service is broken, for a reason that names it."""
    it = served(net, "shutdown_timeout=2s", "ignore")
    first = it.pid()
    it.change(f"it {it.where} echo")
    (broken,) = it.daemon.wait_for(lambda line: f" broken service=it/{net} " in line)
    assert f"process {first} " in broken
    assert Process(first).alive
    Process(first).wait()
    wait_until(lambda: it.answers(_echoes), "the new service answers")
    it.daemon.wait_for(lambda line: f" recovered service=it/{net} " in line)
    assert it.end_of(first, "reason", "exit") == ("shutdown", "SIGKILL")
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("net", NETS)
def test_a_line_that_is_taken_out_and_put_back(served: Callable[..., _Served], net: str, reactor: str) -> None:
    """It gets its port, and a program of its own, though the first one takes its time to end."""
    it = served(net, "shutdown_timeout=1s", "ignore", reactor)
    first = it.pid()
    it.change("")
    it.change(f"it {it.where} {it.program}")
    Process(first).wait()
    wait_until(lambda: it.answers(lambda answer: answer.isdigit() and int(answer) != first), "a new program answers")
    assert it.daemon.stop() == 0


def test_a_line_with_other_options(served: Callable[..., _Served]) -> None:
    """A program goes on as long as its service has wait=yes there; one of another service is ended."""
    it = served("tcp")
    first = it.pid()
    it.change(f"it {it.where} {it.program} nice=3 description=mine")
    assert it.pid() == first
    it.change(f"that {it.where} {it.program}")
    Process(first).wait()
    wait_until(lambda: it.answers(lambda answer: answer.isdigit() and int(answer) != first), "a new program answers")
    assert len(it.daemon.wait_event("accept", "that/tcp")) == 1
    assert it.daemon.stop() == 0


def test_a_port_that_moves(served: Callable[..., _Served]) -> None:
    """The program on the old one is ended, and that port is free for another service."""
    it = served("tcp")
    first = it.pid()
    it.change(f"it 0/tcp {it.program}\nthat {it.where} echo")
    Process(first).wait()
    wait_until(lambda: it.answers(_echoes), "the other service answers")
    moved = it.daemon.wait_event("listen", "it/tcp", 2)[-1]["address"]
    with socket.create_connection(("127.0.0.1", int(moved.rpartition(":")[2])), PATIENCE) as client:
        assert int(client.recv(100)) != first
    assert it.daemon.stop() == 0


def test_a_process_that_a_program_leaves_behind(served: Callable[..., _Served], open_folder: Path) -> None:
    """It keeps the socket, unseen; the service is broken as long, and served as soon as it is tried after that."""
    it = served("tcp", words=f"leave {open_folder}/enough")
    it.pid()
    it.daemon.wait_event("end", "it/tcp")
    it.change(f"it {it.where} echo")
    (broken,) = it.daemon.wait_for(lambda line: " broken service=it/tcp " in line)
    assert "Address already in use" in fields(broken)["reason"]
    it.lives()
    (open_folder / "enough").touch()
    wait_until(lambda: it.answers(_echoes), "the new service answers")
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("reactor", REACTORS)
@pytest.mark.parametrize("net", ["tcp", "unix", "udp"])
def test_refusals_at_a_socket_that_blocks(
    served: Callable[..., _Served], open_folder: Path, net: str, reactor: str
) -> None:
    """Clients of a service that starts no program now are turned away, though its socket blocks."""
    it = served(net, "rate=1/h", f"leave {open_folder}/enough", reactor)
    it.pid()
    it.daemon.wait_event("end", f"it/{net}")
    for _ in range(5):
        with it.client() as client, contextlib.suppress(ConnectionError):
            client.send(b"hello")
            assert net == "udp" or client.recv(100) == b""
    lines = it.daemon.wait_event("refuse", f"it/{net}")
    assert {line["reason"] for line in lines} == {"rate"}
    it.lives()
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("reactor", REACTORS)
def test_a_stop_under_a_program_that_flips(served: Callable[..., _Served], reactor: str) -> None:
    """The program has shutdown_timeout, and the daemon ends after it."""
    it = served("tcp", "shutdown_timeout=0.5s", "ignore", reactor)
    first = Process(it.pid())
    assert it.daemon.stop() == 0
    first.wait()


@pytest.mark.parametrize("net", ["tcp", "udp", "unix"])
def test_an_upgrade_with_another_line(served: Callable[..., _Served], net: str) -> None:
    """The new daemon has another handler there: the program is ended, and then that serves."""
    it = served(net)
    first = it.pid()
    it.daemon.file.write_text(it._text(f"it {it.where} echo"))
    pid = _upgrade(it)
    Process(first).wait()
    wait_until(lambda: it.answers(_echoes), "the new service answers")
    os.kill(pid, signal.SIGTERM)
    Process(pid).wait()


@pytest.mark.parametrize("net", ["tcp", "udp", "unix"])
def test_a_reload_after_an_upgrade(served: Callable[..., _Served], net: str) -> None:
    """The program that the daemon before has started is ended as its own ones are."""
    it = served(net)
    first = it.pid()
    pid = _upgrade(it)
    assert it.pid() == first
    it.daemon.file.write_text(it._text(f"it {it.where} echo"))
    os.kill(pid, signal.SIGHUP)
    Process(first).wait()
    wait_until(lambda: it.answers(_echoes), "the new service answers")
    os.kill(pid, signal.SIGTERM)
    Process(pid).wait()


def _upgrade(it: _Served) -> int:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE * 2)
        client.connect(str(it.folder / "control"))
        client.sendall(b'{"command": "upgrade"}\n')
        with client.makefile() as answers:
            found = json.loads(answers.readline())
            assert found["ok"], found
    pid: int = found["result"]["pid"]
    it.daemon.wait_for(lambda line: f" upgrade pid={pid} " in line)
    return pid
