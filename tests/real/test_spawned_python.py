"""Python handlers in real processes and threads."""

from __future__ import annotations

import json
import re
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment, exchange, twistd
from tests.real.processes import Process, all_gone, wait_until
from tests.real.test_twistd import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

MODULE = """
import json, os, socketserver, subprocess, sys, threading, time

class Lines(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%s %s" % (self.client_address[0].encode(), line))

class Outer:
    class Inner(Lines):
        pass

def call(sock, address):
    sock.sendall(json.dumps([address[0], address[1], sock.gettimeout()]).encode())

def fail(sock, address):
    sock.sendall(b"before")
    raise RuntimeError("not today:\\n\\u2603")

def leave(sock, address):
    sys.exit(3)

def complain(sock, address):
    sys.exit("a complaint")

def vanish(sock, address):
    os._exit(4)

def files(sock, address):
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink("/proc/self/fd/" + name)
        except FileNotFoundError:
            pass
    sock.recv(1)
    sock.sendall(json.dumps([found, dict(os.environ)]).encode())

def say(sock, address):
    print("one line")
    print("snow: \\u2603", file=sys.stderr)
    sock.recv(1)

def child(sock, address):
    ended = subprocess.run(["/bin/sh", "-c", "echo from sh; exit 7"], stdout=subprocess.PIPE)
    sock.sendall(b"%d %s" % (ended.returncode, ended.stdout))

def stay(sock, address):
    sock.sendall(b"!")
    while True:
        time.sleep(1000)
"""

#: Exit statuses in the log, of handlers in processes and in threads.
MODELS = ("process", "thread")


@pytest.fixture
def serve(start: Callable[..., Daemon], open_folder: Path) -> Callable[..., Daemon]:
    """Return a function that starts a daemon with a service for each of some handlers, by default in both models."""
    (open_folder / "ours.py").write_text(MODULE)

    def begin(*names: str, models: tuple[str, ...] = MODELS, options: str = "", **settings: object) -> Daemon:
        lines = [
            f"{name.lower().replace('.', '')}-{model} 0/tcp bind=127.0.0.1 python=ours:{name} model={model} "
            f"python_path={open_folder} {options}\n"
            for name in names
            for model in models
        ]
        return start("".join(lines), **settings)

    return begin


def test_kinds_of_handlers(serve: Callable[..., Daemon]) -> None:
    """A socketserver handler, a nested one and a function serve connections, in processes and in threads."""
    daemon = serve("Lines", "Outer.Inner", "call")
    for model in MODELS:
        for name in ("lines", "outerinner"):
            assert exchange(daemon.connect(f"{name}-{model}/tcp"), b"a\nb\n") == b"127.0.0.1 a\n127.0.0.1 b\n"
        client = daemon.connect(f"call-{model}/tcp")
        port = client.getsockname()[1]
        assert json.loads(exchange(client)) == ["127.0.0.1", port, None]
        (end,) = daemon.wait_event("end", f"call-{model}/tcp")
        assert (end["reason"], end["exit"]) == ("done", "0")
        same = end["pid"] == str(daemon.launcher(f"call-{model}/tcp"))
        assert same == (model == "thread")
    assert daemon.stop() == 0


def test_ways_to_end(serve: Callable[..., Daemon]) -> None:
    """An exception is one line of the log with its traceback, and ends only that connection; so does sys.exit."""
    daemon = serve("fail", "leave", "complain")
    for model in MODELS:
        for count in (1, 2):
            assert exchange(daemon.connect(f"fail-{model}/tcp")) == b"before"
            said = daemon.wait_event("output", f"fail-{model}/tcp", count)
            assert said[-1]["text"].startswith("Traceback (most recent call last):\n")
            assert said[-1]["text"].rstrip().endswith("RuntimeError: not today:\n\u2603")
            end = daemon.wait_event("end", f"fail-{model}/tcp", count)[-1]
            assert (end["id"], end["exit"], end["reason"]) == (said[-1]["id"], "1", "done")
        assert len(said) == 2
        assert exchange(daemon.connect(f"leave-{model}/tcp")) == b""
        assert daemon.wait_event("end", f"leave-{model}/tcp")[0]["exit"] == "3"
        assert exchange(daemon.connect(f"complain-{model}/tcp")) == b""
        assert daemon.wait_event("output", f"complain-{model}/tcp")[0]["text"] == "a complaint"
        assert daemon.wait_event("end", f"complain-{model}/tcp")[0]["exit"] == "1"
    assert daemon.stop() == 0


def test_os_exit(serve: Callable[..., Daemon]) -> None:
    """os._exit ends the process of a handler; in a thread it ends the launcher, and a new launcher is started."""
    daemon = serve("vanish", "call")
    assert exchange(daemon.connect("vanish-process/tcp")) == b""
    assert daemon.wait_event("end", "vanish-process/tcp")[0]["exit"] == "4"
    for count in (1, 2):
        assert exchange(daemon.connect("vanish-thread/tcp")) == b""
        end = daemon.wait_event("end", "vanish-thread/tcp", count)[-1]
        assert (end["reason"], end["exit"]) == ("done", "4")
    assert exchange(daemon.connect("call-thread/tcp")) != b""
    assert daemon.stop() == 0


def test_output_of_handlers(serve: Callable[..., Daemon]) -> None:
    """The output of a handler is in the log while it runs, line by line."""
    daemon = serve("say")
    for model in MODELS:
        with daemon.connect(f"say-{model}/tcp"):
            said = daemon.wait_event("output", f"say-{model}/tcp", 2)
            assert [each["text"] for each in said] == ["one line", "snow: \u2603"]
            assert ("pid" in said[0]) == (model == "process")
    assert daemon.stop() == 0


def test_children_of_handlers(serve: Callable[..., Daemon]) -> None:
    """A handler gets the exit status of its child process."""
    daemon = serve("child")
    for model in MODELS:
        assert {exchange(daemon.connect(f"child-{model}/tcp")) for _ in range(5)} == {b"7 from sh\n"}
    assert daemon.stop() == 0


def _leads_its_session(process: Process) -> bool:
    return process.session == process.pid


def test_descriptors_of_a_handler(serve: Callable[..., Daemon]) -> None:
    """The process of a handler has no descriptors of its launcher or of other connections."""
    daemon = serve("files", models=("process",), options="env=A=1")
    clients = [daemon.connect("files-process/tcp") for _ in range(5)]
    handlers = [Process(pid) for pid in daemon.handlers("files-process/tcp", 5)]
    for handler in handlers:
        # The accept line may be written before the process has left the session of its launcher.
        wait_until(partial(_leads_its_session, handler), "a session of its own")
    for client in clients:
        port = client.getsockname()[1]
        opened, variables = json.loads(exchange(client, b"?"))
        # Its input is empty, its output goes to the log, and one descriptor is the connection.
        assert sorted(map(int, opened))[:3] == [0, 1, 2]
        assert opened["0"] == "/dev/null"
        assert opened["1"] == opened["2"]
        assert opened["1"].startswith("pipe:")
        others = [target for number, target in opened.items() if int(number) > 2]
        assert len(others) == 1
        assert others[0].startswith("socket:")
        assert variables["TCPREMOTEPORT"] == str(port)
        assert (variables["A"], variables["SVCD_SERVICE"]) == ("1", "files-process")
    assert daemon.stop() == 0


def test_hundred_threads(serve: Callable[..., Daemon]) -> None:
    """Threads of the launcher serve a hundred connections at once."""
    daemon = serve("Lines", models=("thread",), options="instances=none")
    clients = [daemon.connect("lines-thread/tcp") for _ in range(100)]
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
    for number, client in enumerate(clients):
        assert client.recv(100) == b"127.0.0.1 %d\n" % number
    launcher = Process(daemon.launcher("lines-thread/tcp"))
    assert set(daemon.handlers("lines-thread/tcp", 100)) == {launcher.pid}
    assert int(launcher.status("Threads")) == 101
    many = len(launcher.descriptors())
    for client in clients:
        assert exchange(client) == b""
    daemon.wait_event("end", "lines-thread/tcp", 100)
    assert len(launcher.descriptors()) == many - 100
    assert daemon.stop() == 0


def test_handlers_that_never_return(serve: Callable[..., Daemon]) -> None:
    """session_timeout ends the connection of a handler that never returns; it does not delay the stop of the daemon."""
    daemon = serve("stay", options="session_timeout=0.3")
    clients = [daemon.connect(f"stay-{model}/tcp") for model in MODELS]
    for model, client in zip(MODELS, clients, strict=True):
        with client:
            assert client.recv(1) == b"!"
            assert client.recv(1) == b""
        (end,) = daemon.wait_event("end", f"stay-{model}/tcp")
        # A thread can't be ended: its connection is shut down, and the launcher stops waiting for it.
        expected = ("session", "SIGTERM" if model == "process" else "SIGKILL")
        assert (end["reason"], end["exit"]) == expected
    launchers = [Process(daemon.launcher(f"stay-{model}/tcp")) for model in MODELS]
    begun = time.monotonic()
    assert daemon.stop() == 0
    all_gone(launchers)
    assert time.monotonic() - begun < 5


def test_modules_are_found(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The module of a handler may be in PYTHONPATH of the daemon; python_path= precedes it."""
    (open_folder / "first").mkdir()
    (open_folder / "first" / "theirs.py").write_text("ANSWER = b'the first'\n")
    (open_folder / "theirs.py").write_text("ANSWER = b'the second'\n")
    (open_folder / "ours.py").write_text("import theirs\ndef call(sock, address): sock.sendall(theirs.ANSWER)\n")
    path = f"{environment()['PYTHONPATH']}:{open_folder}"
    daemon = start(
        "one 0/tcp bind=127.0.0.1 python=ours:call\n"
        f"two 0/tcp bind=127.0.0.1 python=ours:call python_path={open_folder}/first\n",
        env={"PYTHONPATH": path},
    )
    assert exchange(daemon.connect("one/tcp")) == b"the second"
    assert exchange(daemon.connect("two/tcp")) == b"the first"
    assert daemon.stop() == 0


def test_modules_that_can_not_be_imported(tmp_path: Path) -> None:
    """A module that can't be imported is a fault; the check reports its line and the reason."""
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "fine.py").write_text("text = 'x'\n")
    (tmp_path / "services").write_text(
        f"@defaults python_path={tmp_path}\na 0/tcp python=broken:f\nb 0/tcp python=fine:f\nc 0/tcp python=fine:text\n"
    )
    done = run(*twistd("-n", "--pidfile=", "svcd", "--check", "--services", "services"), folder=tmp_path)
    assert done.returncode == 1
    text = done.stdout + done.stderr
    assert re.search(r"services:2:\d+: .*broken:f.*No module named 'nothing_of_this_name'", text)
    assert re.search(r"services:3:\d+: .*fine:f.*has no attribute 'f'", text)
    assert re.search(r"services:4:\d+: .*fine:text", text)


def test_return_of_a_handler_closes_the_connection(serve: Callable[..., Daemon]) -> None:
    """The return of a handler closes the connection at once, whatever else the launcher does."""
    daemon = serve("call")
    for model in MODELS:
        with socket.create_connection(("127.0.0.1", daemon.port(f"call-{model}/tcp")), PATIENCE) as client:
            while client.recv(4096):
                pass
            daemon.wait_event("end", f"call-{model}/tcp")
    assert daemon.stop() == 0
