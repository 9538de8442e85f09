"""Socket activation and the descriptor store of a service manager, without systemd."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.daemon import PATIENCE, Daemon, environment, exchange, fields, twistd
from tests.real.processes import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Moves descriptors to the numbers of sd_listen_fds(3), and executes the program that follows in its arguments.
_LAUNCH = """
import os, sys
numbers, names = sys.argv[1].split(","), sys.argv[2]
for place, number in enumerate(numbers):
    os.dup2(int(number), 200 + place)
for place in range(len(numbers)):
    os.dup2(200 + place, 3 + place, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(numbers)), LISTEN_FDNAMES=names)
os.execv(sys.argv[3], sys.argv[3:])
"""


def _with(sockets: dict[str, int]) -> dict[str, Any]:
    """Return the settings of a daemon that inherits sockets, by their names."""
    numbers = ",".join(map(str, sockets.values()))
    before = [sys.executable, "-c", _LAUNCH, numbers, ":".join(sockets)]
    return {"before": before, "pass_fds": tuple(sockets.values())}


class _Manager:
    """A service manager that records all messages and keeps the descriptors in them."""

    def __init__(self, path: Path) -> None:
        self.messages: list[str] = []
        self.store: dict[str, int] = {}
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            message, rights, _, _ = self._socket.recvmsg(4096, 4096)
            if not message:
                return
            numbers = array.array("i")
            for _, _, data in rights:
                numbers.frombytes(data)
            text = message.decode()
            lines = dict(line.split("=", 1) for line in text.splitlines())
            with self._changed:
                if "FDSTORE" in lines:
                    self.store[lines["FDNAME"]] = numbers.pop()
                elif "FDSTOREREMOVE" in lines:
                    os.close(self.store.pop(lines["FDNAME"]))
                for number in numbers:
                    os.close(number)
                self.messages.append(text)
                self._changed.notify_all()

    def wait_for(self, wanted: str, count: int = 1) -> list[str]:
        """Return the messages with a prefix, once there are `count` of them."""

        def found() -> list[str]:
            return [each for each in self.messages if each.startswith(wanted)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, PATIENCE), self.messages
            return found()

    def close(self) -> None:
        """Close the socket and the descriptors."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join(PATIENCE)
        self._socket.close()
        for number in self.store.values():
            os.close(number)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[_Manager]:
    """Return a service manager at the path `notify`."""
    made = _Manager(tmp_path / "notify")
    yield made
    made.close()


def test_sockets_by_address_and_by_name(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Each socket serves its line; the log names unused and missing ones; the socket file of the parent stays."""
    services = f"echo 0/tcp4 bind=127.0.0.1\nupper {tmp_path}/up/unix\ndiscard 0/tcp4 bind=127.0.0.1\n"
    with (
        socket.create_server(("127.0.0.1", 0)) as echo,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket(socket.AF_UNIX) as upper,
    ):
        upper.bind(str(tmp_path / "up"))
        upper.listen()
        given = {"echo": echo.fileno(), "svcd.socket": upper.fileno(), "nobody": other.fileno()}
        daemon = start(services, **_with(given))
        address = "127.0.0.1:%d"
        (listen,) = daemon.wait_event("listen", "echo/tcp4")
        assert (listen["address"], listen["origin"]) == (address % echo.getsockname()[1], "activation")
        (left,) = [fields(line) for line in daemon.wait_for(lambda line: " leftover " in line)]
        assert (left["name"], left["address"]) == ("nobody", address % other.getsockname()[1])
        assert [each["service"] for each in map(fields, daemon.wait_for(lambda line: " ungiven " in line))] == [
            "discard/tcp4"
        ]
    assert exchange(daemon.connect("echo/tcp4"), b"one") == b"one"
    assert exchange(daemon.connect("upper/unix", socket.AF_UNIX), b"two") == b"TWO"
    assert daemon.stop() == 0
    assert (tmp_path / "up").is_socket()


def test_variables_are_not_passed_on(start: Callable[..., Daemon]) -> None:
    """A handler does not get the variables of descriptors that it does not inherit."""
    services = 'env 0/tcp4 bind=127.0.0.1 server="/usr/bin/env" passenv=LISTEN_FDS,LISTEN_PID,LISTEN_FDNAMES,HOME\n'
    with socket.create_server(("127.0.0.1", 0)) as given:
        daemon = start(services, **_with({"env": given.fileno()}))
        answer = exchange(daemon.connect("env/tcp4"))
    assert b"HOME=" in answer
    assert b"LISTEN_" not in answer


def test_connected_socket_is_refused(start: Callable[..., Daemon]) -> None:
    """The error names Accept=yes of the socket unit, and the exit status is EX_CONFIG."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        daemon = start("echo 0/tcp4\n", ready=False, **_with({"connection": client.fileno()}))
        assert daemon.process.wait(PATIENCE) == os.EX_CONFIG
    daemon.end()
    assert "Accept=yes" in "\n".join(daemon.lines)


def test_socket_activation_by_systemd(
    start: Callable[..., Daemon], program: Callable[[str], str], tmp_path: Path
) -> None:
    """systemd-socket-activate(1) starts the daemon for the first client, which is served."""
    tool = program("systemd-socket-activate")
    path = tmp_path / "in"
    before = [tool, f"--listen={path}", "--fdname=echo", "-E", "PYTHONPATH", "-E", "PYTHONUNBUFFERED"]
    daemon = start(f"echo {path}/unix\n", ready=False, before=before)
    daemon.wait_for(lambda line: line.startswith("Listening on "))
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    assert exchange(client, b"hi") == b"hi"
    (listen,) = daemon.wait_event("listen", "echo/unix")
    assert listen["origin"] == "activation"


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_restart_refuses_no_client(
    reactor: str, start: Callable[..., Daemon], manager: _Manager, tmp_path: Path
) -> None:
    """Clients that connect while no daemon runs wait, and the next daemon serves them with the sockets of the first."""
    services = f"echo 0/tcp4 bind=127.0.0.1\nupper {tmp_path}/up/unix\ndaytime 0/udp4 bind=127.0.0.1\n"
    settings = {"env": {"NOTIFY_SOCKET": str(tmp_path / "notify")}, "twistd_arguments": ["-r", reactor]}
    first = start(services, **settings)
    manager.wait_for("FDSTORE=1", 3)
    (ready,) = manager.wait_for("READY=1")
    assert f"MAINPID={first.process.pid}" in ready
    assert "STATUS=services: 3, listeners: 3, connections: 0" in ready
    addresses = {name: first.addresses(name) for name in ("echo/tcp4", "upper/unix", "daytime/udp4")}
    assert first.stop() == 0
    assert manager.messages[-1] == "STOPPING=1\nSTATUS=stopping"
    waiting = [first.connect("echo/tcp4"), first.connect("upper/unix", socket.AF_UNIX)]
    question = first.connect("daytime/udp4")
    question.send(b"what?")
    for client in waiting:
        client.sendall(b"early")
    second = start(services, **settings, **_with(manager.store))
    assert {name: second.addresses(name) for name in addresses} == addresses
    assert {each["origin"] for name in addresses for each in second.wait_event("listen", name)} == {"store"}
    assert [exchange(client) for client in waiting] == [b"early", b"EARLY"]
    with question:
        assert question.recv(100)
    manager.wait_for("READY=1", 2)
    assert len(manager.wait_for("FDSTORE=1", 3)) == 3


def test_removed_line_leaves_the_descriptor_store(
    start: Callable[..., Daemon], manager: _Manager, tmp_path: Path
) -> None:
    """A reload or a restart with another file removes the socket, and its socket file."""
    settings = {"env": {"NOTIFY_SOCKET": str(tmp_path / "notify")}}
    first = start(f"echo 0/tcp4 bind=127.0.0.1\nupper {tmp_path}/up/unix\ndiscard {tmp_path}/no/unix\n", **settings)
    manager.wait_for("FDSTORE=1", 3)
    manager.wait_for("READY=1")
    first.file.write_text(f"echo 0/tcp4 bind=127.0.0.1\nupper {tmp_path}/up/unix\n")
    first.process.send_signal(signal.SIGHUP)
    (reloading,) = manager.wait_for("RELOADING=1")
    began = int(reloading.partition("MONOTONIC_USEC=")[2]) / 1e6
    assert 0 <= time.monotonic() - began < PATIENCE
    manager.wait_for("READY=1", 2)
    (removed,) = manager.wait_for("FDSTOREREMOVE=1")
    assert "discard" in removed
    assert not (tmp_path / "no").exists()
    first.stop()
    start("echo 0/tcp4 bind=127.0.0.1\n", **settings, **_with(manager.store))
    manager.wait_for("FDSTOREREMOVE=1", 2)
    manager.wait_for("BARRIER=1")
    assert len(manager.store) == 1
    assert not (tmp_path / "up").exists()


def test_watchdog_messages(start: Callable[..., Daemon], manager: _Manager, tmp_path: Path) -> None:
    """They are sent while the event loop runs, from READY on, and not by a stopped process."""
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    daemon = start("echo 0/tcp4 bind=127.0.0.1\n", env=env)
    manager.wait_for("WATCHDOG=1", 5)
    daemon.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: Process(daemon.process.pid).status("State").startswith("T"), "the daemon is stopped")
    before = len(manager.messages)
    time.sleep(1)
    # A message may have been sent before the stop.
    assert len(manager.messages) - before <= 1
    daemon.process.send_signal(signal.SIGCONT)
    manager.wait_for("WATCHDOG=1", before + 3)


def test_daemon_in_the_background(manager: _Manager, tmp_path: Path) -> None:
    """It sends its new MAINPID, and keeps the sockets that it has inherited."""
    (tmp_path / "services").write_text("echo 0/tcp4 bind=127.0.0.1\n")
    with socket.create_server(("127.0.0.1", 0)) as given:
        settings = _with({"echo": given.fileno()})
        words = [*settings["before"], *twistd("--pidfile=twistd.pid", "--logfile=log", "svcd", "--services=services")]
        env = environment(NOTIFY_SOCKET=str(tmp_path / "notify"))
        subprocess.run(words, cwd=tmp_path, env=env, pass_fds=settings["pass_fds"], check=True, timeout=PATIENCE)
        address = given.getsockname()
    (ready,) = manager.wait_for("READY=1")
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        assert f"MAINPID={pid}\n" in ready
        with socket.create_connection(address, PATIENCE) as client:
            client.settimeout(PATIENCE)
            assert exchange(client, b"hi") == b"hi"
    finally:
        os.kill(pid, signal.SIGTERM)
    manager.wait_for("STOPPING=1")
