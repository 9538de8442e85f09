"""Launchers that end when idle, are restarted by a command, or break the protocol."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.real import preloaded
from tests.real.daemon import PATIENCE, environment, exchange
from tests.real.processes import Process, wait_until
from tests.real.test_spawned_deaths import idle_cats, still_echo

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

MANY_CLIENTS = 45
HANDLER = """
import os

VERSION = {version}

def serve(sock, address):
    while data := sock.recv(1000):
        sock.sendall(b"%d:" % VERSION + data)

def stay(sock, address):
    sock.sendall(b"%d" % os.getpid())
    while sock.recv(1000):
        pass
"""


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """Return a directory with a module of Python handlers, `serve` and `stay`."""
    (open_folder / "handlers.py").write_text(HANDLER.format(version=1))
    return open_folder


def python(folder: Path, options: str = "", name: str = "serve") -> str:
    """Return the line of a service that runs a function of the module."""
    return f"py 0/tcp bind=127.0.0.1 python=handlers:{name} python_path={folder} {options}\n"


class Controlled:
    """A daemon, and svcctl for it."""

    def __init__(self, start: Callable[..., Daemon], folder: Path, services: str, **settings: Any) -> None:
        self._path = folder / "control"
        self.daemon = start(services, "--control", str(self._path), **settings)

    def svcctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of svcctl."""
        command = [sys.executable, "-m", "svcd", "--control", str(self._path), *words]
        return preloaded.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)

    def ask(self, *words: str) -> Any:
        """Run a command of svcctl that succeeds, and return its JSON output."""
        done = self.svcctl(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


#: Kinds of services with a launcher.
HANDLERS = {
    "program": "server=/bin/cat",
    "logged": "server=/bin/cat stderr=log",
    "process": "python=handlers:serve python_path={folder}",
    "thread": "python=handlers:serve python_path={folder} model=thread",
}


def _handlers(folder: Path, options: str) -> str:
    """Return a service of each kind with the same options."""
    lines = (f"{kind} 0/tcp {handler.format(folder=folder)} {options}\n" for kind, handler in HANDLERS.items())
    return "@defaults bind=127.0.0.1\n" + "".join(lines)


def test_idle_launcher_ends_and_comes_back(start: Callable[..., Daemon], folder: Path) -> None:
    """It ends after launcher_idle without a handler, not before, and the next client is served by another one."""
    daemon = start(_handlers(folder, "launcher_idle=0.3s instances=none"))
    services = [f"{kind}/tcp" for kind in HANDLERS]
    clients = {service: [daemon.connect(service) for _ in range(3)] for service in services}
    for client in itertools.chain(*clients.values()):
        client.sendall(b"x")
        assert client.recv(10).endswith(b"x")
    launchers = {service: Process(daemon.launcher(service)) for service in services}
    # Three times its time with handlers.
    time.sleep(0.9)
    assert not daemon.wait_for(lambda line: " state=idle" in line, 0)
    for service, launcher in launchers.items():
        assert launcher.alive
        for client in clients[service]:
            assert exchange(client) == b""
    for service, launcher in launchers.items():
        daemon.wait_for(lambda line, pid=launcher.pid: f" pid={pid} state=idle" in line)  # type: ignore[misc]
        launcher.wait()
        assert exchange(daemon.connect(service), b"y").endswith(b"y")
    for service, launcher in launchers.items():
        assert daemon.launcher(service, 2) != launcher.pid
    assert not daemon.wait_for(lambda line: " state=lost " in line, 0)
    assert daemon.stop() == 0


def test_launcher_without_an_idle_time_stays(start: Callable[..., Daemon]) -> None:
    """With launcher_idle=none it stays without a handler."""
    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat launcher_idle=none\n")
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    launcher = Process(daemon.launcher("cat/tcp"))
    time.sleep(0.5)
    assert launcher.alive
    assert daemon.stop() == 0


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_clients_at_the_end_of_a_launcher(start: Callable[..., Daemon], folder: Path, reactor: str) -> None:
    """Each client is served, whenever it comes: the launchers end again and again meanwhile."""
    services = _handlers(folder, "launcher_idle=0.02s instances=none")
    daemon = start(services, twistd_arguments=["--reactor", reactor])

    def come(kind: str) -> None:
        address = ("127.0.0.1", daemon.port(f"{kind}/tcp"))
        for number in range(MANY_CLIENTS):
            question = b"%d" % number
            assert exchange(socket.create_connection(address, PATIENCE), question).endswith(question)
            # Around the time at which the launcher ends.
            time.sleep(random.uniform(0.01, 0.03))

    with ThreadPoolExecutor() as threads:
        list(threads.map(come, HANDLERS))
    for kind in HANDLERS:
        mark = f" launcher service={kind}/tcp "
        assert len(daemon.wait_for(lambda line, mark=mark: mark in line and " state=idle" in line, 5)) >= 5  # type: ignore[misc]
        assert {each["reason"] for each in daemon.wait_event("end", f"{kind}/tcp", MANY_CLIENTS)} == {"done"}
    assert not daemon.wait_for(lambda line: " state=lost " in line, 0)
    assert daemon.stop() == 0


def test_restart_of_a_launcher(start: Callable[..., Daemon], folder: Path) -> None:
    """svcctl restart imports the changed module; connections of the old launcher go on, and none is refused."""
    controlled = Controlled(start, folder, python(folder, "instances=none"))
    daemon = controlled.daemon
    old = daemon.connect("py/tcp")
    old.sendall(b"a")
    assert old.recv(10) == b"1:a"
    before = Process(daemon.launcher("py/tcp"))
    (folder / "handlers.py").write_text(HANDLER.format(version=22))
    result = controlled.ask("restart", "py")
    assert result == {"service": "py/tcp", "pid": daemon.launcher("py/tcp", 2), "before": before.pid}
    assert exchange(daemon.connect("py/tcp"), b"b") == b"22:b"
    old.sendall(b"c")
    assert old.recv(10) == b"1:c"
    assert before.alive
    assert exchange(old) == b""
    before.wait()
    # Several times while clients connect.
    for _ in range(3):
        clients = [daemon.connect("py/tcp") for _ in range(MANY_CLIENTS // 3)]
        controlled.ask("restart", "py/tcp")
        assert [exchange(client, b"d") for client in clients] == [b"22:d"] * len(clients)
    assert not daemon.wait_for(lambda line: " state=lost " in line or " refuse " in line, 0)
    assert daemon.stop() == 0


def test_restart_that_fails(start: Callable[..., Daemon], folder: Path) -> None:
    """The command prints the reason, and the old launcher goes on; a service without a launcher is an error."""
    controlled = Controlled(start, folder, python(folder) + "echo 0/tcp bind=127.0.0.1\n")
    daemon = controlled.daemon
    assert exchange(daemon.connect("py/tcp"), b"a") == b"1:a"
    launcher = daemon.launcher("py/tcp")
    (folder / "handlers.py").write_text("import no_such_module\n")
    failed = controlled.svcctl("restart", "py")
    assert failed.returncode == 1
    assert "no_such_module" in failed.stderr
    assert exchange(daemon.connect("py/tcp"), b"b") == b"1:b"
    assert Process(launcher).alive
    assert controlled.ask("show", "py")["state"] == "on"
    none = controlled.svcctl("restart", "echo")
    assert none.returncode == 1
    assert "has no launcher" in none.stderr
    assert controlled.svcctl("restart", "nothing").returncode == 1
    assert daemon.stop() == 0


@pytest.mark.parametrize("model", ["process", "thread"])
def test_reload_reports_changed_modules(start: Callable[..., Daemon], folder: Path, model: str) -> None:
    """Each reload reports it until the launcher is restarted; the module of a factory is in the daemon."""
    (folder / "helper.py").write_text("x = 1\n")
    with (folder / "handlers.py").open("a") as module:
        module.write("import helper\n")
    (folder / "made.py").write_text("from twisted.internet.protocol import Factory\nclass Made(Factory):\n    pass\n")
    services = python(folder, f"model={model}") + "made 0/tcp bind=127.0.0.1 factory=made:Made\n"
    controlled = Controlled(start, folder, services, env={"PYTHONPATH": f"{environment()['PYTHONPATH']}:{folder}"})
    daemon = controlled.daemon
    daemon.launcher("py/tcp")
    controlled.ask("reload")
    (folder / "helper.py").write_text("x = 1000\n")
    (folder / "made.py").write_text("class Made:\n    pass\n")
    controlled.ask("reload")
    (changed,) = daemon.wait_event("module-changed", "py/tcp")
    text = "module helper changed on disk; restart its launcher with svcctl restart py/tcp"
    assert changed["text"] == text
    (changed,) = daemon.wait_event("module-changed", "made/tcp")
    assert changed["text"] == "module made changed on disk; it runs in the daemon, so import it with svcctl upgrade"
    controlled.ask("restart", "py")
    controlled.ask("reload")
    daemon.wait_event("module-changed", "made/tcp", 2)
    assert len(daemon.wait_event("module-changed", "py/tcp")) == 1
    assert daemon.stop() == 0


FORGER = """
import os, socket, struct

def control():
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if found.type == socket.SOCK_SEQPACKET:
            return found
        found.close()

def serve(sock, address):
    kind = sock.recv(100)
    channel = control()
    sock.sendall(b"found")
    try:
        for number in range(1000, 500_000):
            if kind == b"started":
                channel.send(b"P" + struct.pack("=Qi", number, 1))
            elif kind == b"said":
                channel.send(b"T" + struct.pack("=Q", 0) + b"x" * 1000)
            else:
                channel.send(b"")
    except OSError:
        pass
    sock.recv(100)
"""


@pytest.mark.parametrize("kind", [b"started", b"said", b"empty"])
def test_handler_that_forges_reports(start: Callable[..., Daemon], folder: Path, kind: bytes) -> None:
    """A handler that writes to the launcher's socket ends the launcher, with one log line and no growth of memory."""
    (folder / "forger.py").write_text(FORGER)
    daemon = start(
        f"@defaults bind=127.0.0.1\nbad 0/tcp python=forger:serve python_path={folder} model=thread\n"
        "echo 0/tcp\ncat 0/tcp server=/bin/cat\n"
    )
    launcher = Process(daemon.launcher("bad/tcp"))
    cats = idle_cats(daemon, 5)
    before = daemon.memory()
    with daemon.connect("bad/tcp") as client:
        client.sendall(kind)
        assert client.recv(5, socket.MSG_WAITALL) == b"found"
        assert exchange(daemon.connect("echo/tcp"), b"x") == b"x"
        daemon.wait_for(lambda line: f" launcher service=bad/tcp pid={launcher.pid} state=lost " in line)
        launcher.wait()
        assert client.recv(1) == b""
    assert len([line for line in daemon.lines if "protocol error" in line]) == 1
    assert daemon.memory() - before < 4 * 1024**2
    still_echo(cats)
    with daemon.connect("bad/tcp") as client:
        client.sendall(b"nothing")
        daemon.launcher("bad/tcp", 2)
    assert daemon.stop() == 0


def test_zygote_that_is_killed_repeatedly(start: Callable[..., Daemon]) -> None:
    """It is restarted after longer and longer pauses; a launcher that waits for it is started right after it."""
    daemon = start("@defaults bind=127.0.0.1\ncat 0/tcp server=/bin/cat\necho 0/tcp\n")
    for count in range(1, 5):
        os.kill(daemon.zygote(count), signal.SIGKILL)
        daemon.wait_for(lambda line: " zygote " in line and " state=lost" in line, count)
        if count == 4:
            client = daemon.connect("cat/tcp")
    began = time.monotonic()
    assert exchange(client, b"x") == b"x"
    # Nothing of this counts as a failure of the launcher.
    assert not daemon.wait_for(lambda line: " launcher " in line and " state=lost" in line, 0)
    assert time.monotonic() - began < PATIENCE / 2
    assert daemon.stop() == 0


def test_abandoned_threads_are_bounded(start: Callable[..., Daemon], folder: Path) -> None:
    """A launcher with many threads that can't be ended is replaced, and ends with them."""
    (folder / "stuck.py").write_text(
        "import threading\ndef serve(sock, address):\n    sock.sendall(b'x')\n    threading.Event().wait()\n"
    )
    service = f"stuck 0/tcp bind=127.0.0.1 python=stuck:serve python_path={folder} model=thread session_timeout=0.2s"
    daemon = start(f"{service} instances=none\n")
    launcher = Process(daemon.launcher("stuck/tcp"))
    clients = [daemon.connect("stuck/tcp") for _ in range(40)]
    for client in clients:
        assert client.recv(1) == b"x"
    daemon.launcher("stuck/tcp", 2)
    launcher.wait()
    for client in clients:
        client.close()
    wait_until(lambda: not daemon.wait_for(lambda line: " state=lost " in line, 0), "nothing is lost")
    assert daemon.stop() == 0
