"""Sockets of wait=yes services that programs share with the daemon: the daemon survives any change of their flags."""

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
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

REACTORS = ["uv", "epoll", "asyncio"]
NETS = ["tcp", "udp", "unix", "unixgram"]
#: Program that answers each client with its pid, and sets and clears O_NONBLOCK of its socket all the time.
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
    """A daemon with a wait=yes service `it` of each network type in `nets`, and an echo service `other`.

    The services run a program that sets and clears O_NONBLOCK of their sockets.
    """

    def __init__(
        self,
        start: Callable[..., Daemon],
        folder: Path,
        nets: Sequence[str],
        options: str,
        words: str,
        reactor: str,
    ) -> None:
        self.folder, self._nets = folder, nets
        (folder / "flips.py").write_text(FLIPS)
        self.program = f'server="{sys.executable} -I -S {folder}/flips.py {words}" wait=yes {options}'
        self._ports = {net: _free_port(net) for net in nets if net in ("tcp", "udp")}
        settings = ["--reactor", reactor] if reactor else []
        text = self.text("it {where} {program}")
        self.daemon = start(text, "--control", str(folder / "control"), twistd_arguments=settings)
        self._reloads = 0

    def text(self, line: str) -> str:
        """Return a services file with a line for each network type; {where} and {program} are replaced."""
        lines = [line.format(where=f"{self._address(net)}/{net}", program=self.program) for net in self._nets]
        return "\n".join(["@defaults bind=127.0.0.1 shutdown_timeout=1s", "other 0/tcp echo", *lines, ""])

    def _address(self, net: str) -> str:
        return str(self._ports.get(net, self.folder / f"{net}.sock"))

    def change(self, line: str) -> None:
        """Reload with another line for the services, and check that the daemon answers other clients at once."""
        self.daemon.file.write_text(self.text(line))
        self.daemon.process.send_signal(signal.SIGHUP)
        self._reloads += 1
        self.daemon.wait_for(lambda each: " reload added=" in each, self._reloads)
        self.check_other()

    def check_other(self) -> None:
        """Check that the echo service answers."""
        assert exchange(self.daemon.connect("other/tcp"), b"x") == b"x"

    @contextlib.contextmanager
    def client(self, net: str) -> Iterator[socket.socket]:
        """Connect to the service of a network type."""
        kind = socket.SOCK_DGRAM if net in ("udp", "unixgram") else socket.SOCK_STREAM
        local = net not in self._ports
        with socket.socket(socket.AF_UNIX if local else socket.AF_INET, kind) as client:
            client.settimeout(PATIENCE)
            if net == "unixgram":
                client.bind("")
            client.connect(self._address(net) if local else ("127.0.0.1", self._ports[net]))
            yield client

    def ask(self, net: str) -> bytes:
        """Return the answer of the service to a word."""
        with self.client(net) as client:
            # The program answers before it reads.
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b"hello")
            return client.recv(100)

    def pid(self, net: str) -> int:
        """Return the pid of the process that answers."""
        return int(self.ask(net))

    def pids(self) -> dict[str, int]:
        """Return the pids of the processes that answer, by network type."""
        return {net: self.pid(net) for net in self._nets}

    def end_of(self, net: str, pid: int, *names: str) -> tuple[str, ...]:
        """Return fields of the `end` line of a program."""
        (line,) = self.daemon.wait_for(lambda line: f" end service=it/{net} " in line and f" pid={pid} " in line)
        return tuple(fields(line)[name] for name in names)

    def wait_for_echo(self, net: str) -> None:
        """Return when the echo protocol answers on the socket; the daemon answers other clients all the time."""
        wait_until(lambda: self._answers(net) == b"hello", "the new service answers")

    def wait_for_new_program(self, net: str, old: int) -> None:
        """Return when a program with another pid answers; the daemon answers other clients all the time."""
        wait_until(lambda: (new := self._answers(net)).isdigit() and int(new) != old, "a new program answers")

    def _answers(self, net: str) -> bytes:
        self.check_other()
        try:
            with self.client(net) as client:
                client.settimeout(0.3)
                client.sendall(b"hello")
                return client.recv(100)
        except (OSError, TimeoutError):
            return b""


def _free_port(net: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if net == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def served(start: Callable[..., Daemon], open_folder: Path) -> Callable[..., _Served]:
    """Return a function that starts such a daemon."""

    def starter(nets: Sequence[str], options: str = "", words: str = "", reactor: str = "") -> _Served:
        return _Served(start, open_folder, nets, options, words, reactor)

    return starter


@pytest.mark.parametrize("reactor", REACTORS)
def test_reload_to_another_handler(served: Callable[..., _Served], reactor: str) -> None:
    """The program gets SIGTERM, the new service serves its socket, and the daemon never waits for the program."""
    it = served(NETS, reactor=reactor)
    first = it.pids()
    assert [it.pids(), it.pids()] == [first, first]
    it.change("it {where} echo")
    for net, pid in first.items():
        Process(pid).wait()
        it.wait_for_echo(net)
        assert it.ask(net) == b"hello"
        assert it.end_of(net, pid, "reason", "exit") == ("shutdown", "SIGTERM")
    # And back: no program has had that socket.
    it.change("it {where} {program}")
    for net, pid in it.pids().items():
        assert pid not in (0, first[net])
    assert it.daemon.stop() == 0


def test_program_that_ignores_sigterm(served: Callable[..., _Served]) -> None:
    """It gets SIGKILL after shutdown_timeout; until then the new service is broken, and the reason has its pid."""
    it = served(["tcp", "udp"], "shutdown_timeout=2s", "ignore")
    first = it.pids()
    it.change("it {where} echo")
    for net, pid in first.items():
        (broken,) = it.daemon.wait_for(lambda line, net=net: f" broken service=it/{net} " in line)  # type: ignore[misc]
        assert f"process {pid} " in broken
        assert Process(pid).alive
    for net, pid in first.items():
        Process(pid).wait()
        it.wait_for_echo(net)
        it.daemon.wait_event("recovered", f"it/{net}")
        assert it.end_of(net, pid, "reason", "exit") == ("shutdown", "SIGKILL")
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("reactor", REACTORS)
def test_line_removed_and_restored(served: Callable[..., _Served], reactor: str) -> None:
    """The service gets its socket and a new program, though the first program ignores SIGTERM."""
    it = served(NETS, "shutdown_timeout=1s", "ignore", reactor)
    first = it.pids()
    it.change("")
    it.change("it {where} {program}")
    for net, pid in first.items():
        Process(pid).wait()
        it.wait_for_new_program(net, pid)
    assert it.daemon.stop() == 0


def test_reload_with_other_options(served: Callable[..., _Served]) -> None:
    """The program stays while its service has wait=yes on that socket; a service with another id has its own."""
    it = served(["tcp"])
    first = it.pid("tcp")
    it.change("it {where} {program} nice=3 description=mine")
    assert it.pid("tcp") == first
    it.change("that {where} {program}")
    Process(first).wait()
    it.wait_for_new_program("tcp", first)
    assert len(it.daemon.wait_event("accept", "that/tcp")) == 1
    assert it.daemon.stop() == 0


def test_reload_to_another_port(served: Callable[..., _Served]) -> None:
    """The program on the old port is ended, and that port is free for another service."""
    it = served(["tcp"])
    first = it.pid("tcp")
    it.change("it 0/tcp {program}\nthat {where} echo")
    Process(first).wait()
    it.wait_for_echo("tcp")
    moved = it.daemon.wait_event("listen", "it/tcp", 2)[-1]["address"]
    with socket.create_connection(("127.0.0.1", int(moved.rpartition(":")[2])), PATIENCE) as client:
        assert int(client.recv(100)) != first
    assert it.daemon.stop() == 0


def test_background_process_of_a_program(served: Callable[..., _Served], open_folder: Path) -> None:
    """A process that the program leaves behind keeps the socket: the service is broken until that process ends."""
    it = served(["tcp"], words=f"leave {open_folder}/enough")
    it.pid("tcp")
    it.daemon.wait_event("end", "it/tcp")
    it.change("it {where} echo")
    (broken,) = it.daemon.wait_for(lambda line: " broken service=it/tcp " in line)
    assert "Address already in use" in fields(broken)["reason"]
    it.check_other()
    (open_folder / "enough").touch()
    it.wait_for_echo("tcp")
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("reactor", REACTORS)
def test_refusals_at_a_blocking_socket(served: Callable[..., _Served], open_folder: Path, reactor: str) -> None:
    """Clients of a service whose rate allows no program are refused, though its socket blocks."""
    nets = ["tcp", "unix", "udp"]
    it = served(nets, "rate=1/h", f"leave {open_folder}/enough", reactor)
    it.pids()
    for net in nets:
        it.daemon.wait_event("end", f"it/{net}")
        for _ in range(5):
            with it.client(net) as client, contextlib.suppress(ConnectionError):
                client.send(b"hello")
                assert net == "udp" or client.recv(100) == b""
    for net in nets:
        lines = it.daemon.wait_event("refuse", f"it/{net}")
        assert {line["reason"] for line in lines} == {"rate"}
    it.check_other()
    assert it.daemon.stop() == 0


@pytest.mark.parametrize("reactor", REACTORS)
def test_stop_with_a_program_that_changes_flags(served: Callable[..., _Served], reactor: str) -> None:
    """The program has shutdown_timeout, and the daemon ends after it."""
    it = served(["tcp"], "shutdown_timeout=0.5s", "ignore", reactor)
    first = Process(it.pid("tcp"))
    assert it.daemon.stop() == 0
    first.wait()


def test_upgrade_to_another_handler(served: Callable[..., _Served]) -> None:
    """The services file of the new daemon has another handler: the program is ended, and then that handler serves."""
    it = served(["tcp", "udp", "unix"])
    first = it.pids()
    it.daemon.file.write_text(it.text("it {where} echo"))
    pid = _upgrade(it)
    _check_end_of_programs(it, first)
    os.kill(pid, signal.SIGTERM)
    Process(pid).wait()


def test_reload_after_an_upgrade(served: Callable[..., _Served]) -> None:
    """The new daemon ends a program of the old daemon as it ends its own."""
    it = served(["tcp", "udp", "unix"])
    first = it.pids()
    pid = _upgrade(it)
    assert it.pids() == first
    it.daemon.file.write_text(it.text("it {where} echo"))
    os.kill(pid, signal.SIGHUP)
    _check_end_of_programs(it, first)
    os.kill(pid, signal.SIGTERM)
    Process(pid).wait()


def _check_end_of_programs(it: _Served, pids: dict[str, int]) -> None:
    for net, pid in pids.items():
        Process(pid).wait()
        it.wait_for_echo(net)


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
