"""`svcctl upgrade`: a new daemon takes over, or the old daemon goes on unchanged."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.daemon import PATIENCE, Daemon, environment, exchange, fields, twistd
from tests.real.load import Load
from tests.real.processes import Process, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REACTORS = ["uv", "epoll"]
SERVICES = "@defaults bind=127.0.0.1\necho 0/tcp\nday 0/tcp daytime\necho 0/udp per_source_rate=none\n"
SERVICES += "cat 0/tcp server=/bin/cat\n"


def _svcctl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svcd", "--control", str(folder / "control"), *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 2)


def _upgrade(folder: Path, *words: str) -> dict[str, int]:
    done = _svcctl(folder, "upgrade", "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _ask(folder: Path, command: str, **arguments: object) -> dict[str, Any]:
    """Send a command to the control socket and return the answer, without a process."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE * 2)
        client.connect(str(folder / "control"))
        client.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
        with client.makefile("rb") as answers:
            found: dict[str, Any] = json.loads(answers.readline())
            return found


@pytest.fixture
def start_controlled(start: Callable[..., Daemon], open_folder: Path) -> Callable[..., Daemon]:
    """Return a function that starts a daemon with its control socket in the open folder."""

    def starter(services: str = SERVICES, **settings: object) -> Daemon:
        return start(services, "--control", str(open_folder / "control"), **settings)

    return starter


@pytest.mark.parametrize("reactor", REACTORS)
def test_new_daemon_takes_over(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """All kinds of sockets stay open; open connections go on in the old process, which ends with the last of them."""
    local = f"loc {open_folder}/loc/unix upper\nlog {open_folder}/log/unixgram echo\n"
    daemon = start_controlled(SERVICES + local, twistd_arguments=["--reactor", reactor])
    old = [daemon.connect("echo/tcp"), daemon.connect("cat/tcp")]
    for client in old:
        client.sendall(b"before")
        assert client.recv(100) == b"before"
    launcher = Process(daemon.launcher("cat/tcp"))
    found = _upgrade(open_folder)
    assert (found["before"], found["connections"]) == (daemon.process.pid, 2)
    assert found["pid"] not in (0, daemon.process.pid)
    assert _svcctl(open_folder, "status").stdout.startswith(f"svcd {_version()}, pid {found['pid']}, ")
    for service, question, answer in [("echo/tcp", b"a", b"a"), ("cat/tcp", b"b", b"b")]:
        assert exchange(daemon.connect(service), question) == answer
    assert exchange(daemon.connect("loc/unix", socket.AF_UNIX), b"c") == b"C"
    for service, family in [("echo/udp", socket.AF_INET), ("log/unixgram", socket.AF_UNIX)]:
        with daemon.connect(service, family) as client:
            client.send(b"d")
            assert client.recv(100) == b"d"
    assert daemon.launcher("cat/tcp", 2) != launcher.pid
    assert daemon.process.poll() is None
    assert launcher.alive
    for client in old:
        client.sendall(b"after")
        assert client.recv(100) == b"after"
        client.close()
    assert daemon.process.wait(PATIENCE) == 0
    launcher.wait()
    assert exchange(daemon.connect("loc/unix", socket.AF_UNIX), b"still") == b"STILL"
    assert daemon.wait_event("listen", "loc/unix", 2)[1]["origin"] == "store"
    assert _svcctl(open_folder, "stop").returncode == 0
    Process(found["pid"]).wait()
    assert list(open_folder.iterdir()) == []


def _version() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "svcd", "--version"], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.split()[1]


@pytest.mark.parametrize("reactor", REACTORS)
def test_late_proxy_header(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """A connection that was accepted before the upgrade is served by the old daemon after it."""
    services = "@defaults bind=127.0.0.1 proxy_protocol=127.0.0.1\necho 0/tcp\ncat 0/tcp server=/bin/cat\n"
    daemon = start_controlled(services, twistd_arguments=["--reactor", reactor])
    clients = [daemon.connect("echo/tcp"), daemon.connect("cat/tcp")]
    wait_until(lambda: len(_ask(open_folder, "connections")["result"]) == 2, "both connections are listed")
    found = _upgrade(open_folder)
    assert (found["before"], found["connections"]) == (daemon.process.pid, 2)
    for client in clients:
        with client:
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\nlate")
            assert client.recv(100) == b"late"
    assert daemon.process.wait(PATIENCE) == 0
    assert _svcctl(open_folder, "stop").returncode == 0
    Process(found["pid"]).wait()


def test_upgrade_of_an_upgraded_daemon(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """A daemon that has taken over is replaced while the first has a connection; --now ends connections."""
    daemon = start_controlled("echo 0/tcp bind=127.0.0.1 shutdown_timeout=0.3s\n")
    with daemon.connect("echo/tcp") as first:
        first.sendall(b"1")
        assert first.recv(1) == b"1"
        second = _upgrade(open_folder)
        third = _upgrade(open_folder, "--now")
        assert (third["before"], third["connections"]) == (second["pid"], 0)
        Process(second["pid"]).wait()
        assert daemon.process.poll() is None
        # SIGTERM ends the first daemon as usual; the daemon that serves is not affected.
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE) == 0
    with daemon.connect("echo/tcp") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        fourth = _upgrade(open_folder, "--now")
        assert fourth["connections"] == 1
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    Process(third["pid"]).wait()
    assert daemon.new_daemons == [second["pid"], third["pid"], fourth["pid"]]
    assert exchange(daemon.connect("echo/tcp"), b"bye") == b"bye"


@pytest.mark.parametrize("reactor", REACTORS)
def test_http_keep_alive(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """The next answer of the old daemon over HTTP closes the connection, so that no client stays with it."""
    daemon = start_controlled("status 0/tcp4\n", twistd_arguments=["--reactor", reactor])
    question = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with daemon.connect("status/tcp4") as client:
        client.sendall(question)
        assert b"connection: close" not in client.recv(4096).lower()
        _upgrade(open_folder)
        client.sendall(question)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer.lower()
    assert daemon.process.wait(PATIENCE) == 0
    assert exchange(daemon.connect("status/tcp4"), question).startswith(b"HTTP/1.1 200 ")


#: Program that reads from the socket until a datagram `end`.
WAITS = """
import os, socket
sock = socket.socket(fileno=os.dup(0))
question = b""
while question != b"end":
    assert os.get_blocking(0)
    question, peer = sock.recvfrom(1000)
    sock.sendto(b"%d" % os.getpid(), peer)
"""


@pytest.mark.parametrize("reactor", REACTORS)
def test_program_of_wait_yes_over_an_upgrade(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str
) -> None:
    """It keeps the socket until it ends; then the new daemon starts one. No datagram is lost or served twice."""
    (open_folder / "waits.py").write_text(WAITS)
    server = f"{sys.executable} -I -S {open_folder}/waits.py"
    daemon = start_controlled(
        f'it 0/udp4 bind=127.0.0.1 wait=yes server="{server}"\necho 0/tcp\n', twistd_arguments=["--reactor", reactor]
    )
    with daemon.connect("it/udp4") as client, daemon.connect("echo/tcp") as stays:
        stays.sendall(b"x")
        assert stays.recv(1) == b"x"

        def answer(question: bytes) -> int:
            client.send(question)
            return int(client.recv(100))

        first = answer(b"a")
        found = _upgrade(open_folder)
        assert [answer(b"b"), answer(b"c")] == [first, first]
        rows = {row["service"]: row for row in _ask(open_folder, "status")["result"]["services"]}
        assert (rows["it/udp4"]["state"], rows["it/udp4"]["connections"]) == ("on", 0)
        assert answer(b"end") == first
        second = answer(b"d")
        assert second != first
        assert daemon.process.poll() is None
        rows = {row["service"]: row for row in _ask(open_folder, "status")["result"]["services"]}
        assert (rows["it/udp4"]["state"], rows["it/udp4"]["connections"]) == ("on", 1)
        assert answer(b"end") == second
    assert daemon.process.wait(PATIENCE) == 0
    assert _ask(open_folder, "status")["result"]["pid"] == found["pid"]


#: Program that accepts until a client sends `end`.
ACCEPTS = """
import os, socket
listener = socket.socket(fileno=os.dup(0))
question = b""
while question != b"end":
    client, _ = listener.accept()
    question = client.recv(1000)
    client.sendall(b"%d" % os.getpid())
    client.close()
"""


@pytest.mark.parametrize("reactor", [*REACTORS, "asyncio"])
def test_programs_keep_their_sockets_over_upgrades(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str
) -> None:
    """No daemon starts a second program while the first lives, although the daemon that started it is killed."""
    (open_folder / "waits.py").write_text(WAITS)
    (open_folder / "accepts.py").write_text(ACCEPTS)
    nets = {"tcp": "0/tcp", "udp": "0/udp", "unix": f"{open_folder}/it.sock/unix"}
    lines = [
        f'it {where} wait=yes server="{sys.executable} -I -S {open_folder}/{"waits" if net == "udp" else "accepts"}.py"'
        for net, where in nets.items()
    ]
    text = "\n".join(["@defaults bind=127.0.0.1", *lines, "echo 0/tcp", ""])
    daemon = start_controlled(text, twistd_arguments=["--reactor", reactor])

    def answers(question: bytes, wanted: dict[str, int] | None = None, times: int = 1) -> dict[str, int]:
        for _ in range(times):
            found = {}
            for net in nets:
                family = socket.AF_UNIX if net == "unix" else socket.AF_INET
                with daemon.connect(f"it/{net}", family) as client:
                    client.sendall(question)
                    found[net] = int(client.recv(100))
            assert wanted is None or found == wanted
        return found

    first = answers(b"a")
    pids = [_upgrade(open_folder)["pid"]]
    answers(b"b", first, 2)
    # The program is known to the third daemon, too, when the second one has ended.
    pids.append(_upgrade(open_folder)["pid"])
    Process(pids[0]).wait()
    answers(b"d", first, 2)
    daemon.process.kill()
    daemon.process.wait(PATIENCE)
    pids.append(_upgrade(open_folder)["pid"])
    answers(b"f", first, 5)
    for net in nets:
        assert len(daemon.wait_event("accept", f"it/{net}")) == 1
    answers(b"end", first)
    for pid in first.values():
        Process(pid).wait()
    # These end by themselves, or the stop of the daemon would wait for shutdown_timeout.
    for net, pid in answers(b"end").items():
        assert pid not in (0, first[net])
    assert _ask(open_folder, "status")["result"]["pid"] == pids[-1]
    os.kill(pids[-1], signal.SIGTERM)
    Process(pids[-1]).wait()


OWN = "own 0/tcp factory=ours:make\n"
#: Failures of a new daemon: the services file, a module that it imports, the code of the answer, and its reason.
FAILURES = {
    "file": ("ecoh 0/tcp\n", "", "config", "did you mean 'echo'?"),
    "socket": ("more {taken}/tcp4 discard\n", "", "config", "Address already in use"),
    "exit": (OWN, "raise SystemExit('enough')", "config", "ends the program when it is imported"),
    "crash": (OWN, "import os; os.kill(os.getpid(), 9)", "refused", "SIGKILL"),
    "silence": (OWN, "import time; time.sleep(3600)", "refused", "not ready within 2 seconds"),
    "folder": (OWN, "", "refused", "can't start"),
}


def _import_from(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{folder}"}


def test_failed_upgrade_changes_nothing(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """The answer and the log have the messages of the new daemon, and the old daemon serves as before."""
    daemon = start_controlled(f"{SERVICES}loc {open_folder}/loc/unix echo mode=0600\n", env=_import_from(open_folder))
    for name, (text, module, code, reason) in FAILURES.items():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            services = text.replace("{taken}", str(taken.getsockname()[1]))
            if name in ("file", "folder"):
                services += f"loc {open_folder}/loc/unix echo mode=0666\n"
            daemon.file.write_text(services)
            (open_folder / "ours.py").write_text(module)
            if name == "folder":
                daemon.folder.rename(open_folder / "moved")
            found = _ask(open_folder, "upgrade", timeout=2 if name == "silence" else PATIENCE)
        assert (found["ok"], found.get("code")) == (False, code), found
        assert reason in found["error"]
        assert "Traceback" not in found["error"]
        assert exchange(daemon.connect("echo/tcp"), b"a") == b"a"
        assert exchange(daemon.connect("loc/unix", socket.AF_UNIX), b"b") == b"b"
        with daemon.connect("echo/udp") as client:
            client.send(b"c")
            assert client.recv(10) == b"c"
        assert (open_folder / "loc").stat().st_mode & 0o777 == 0o600
    done = _svcctl(open_folder, "upgrade")
    assert (done.returncode, done.stdout, "can't start" in done.stderr) == (1, "", True)
    assert _ask(open_folder, "status")["result"]["pid"] == daemon.process.pid
    daemon.wait_for(lambda line: " upgrade-failed " in line, len(FAILURES) + 1)
    assert len([line for line in daemon.lines if " ready services=" in line]) == 1
    assert daemon.stop() == 0
    assert not (open_folder / "loc").exists()


def test_upgrade_with_a_broken_service(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """As after a reload, the answer names the service, svcctl exits by 1, and the new daemon serves the others."""
    daemon = start_controlled("echo 0/tcp4 bind=127.0.0.1\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon.file.write_text(
            f"echo 0/tcp4 bind=127.0.0.1\nmore {taken.getsockname()[1]}/tcp4 discard bind=127.0.0.1\n"
        )
        done = _svcctl(open_folder, "upgrade")
        assert (done.returncode, "serves" in done.stdout) == (1, True)
        assert ("more/tcp4: can't listen" in done.stderr, "Address already in use" in done.stderr) == (True, True)
    assert exchange(daemon.connect("echo/tcp4"), b"hi") == b"hi"
    rows = {row["service"]: row["state"] for row in _ask(open_folder, "status")["result"]["services"]}
    assert rows["echo/tcp4"] == "on"


@contextlib.contextmanager
def _importing(
    start_controlled: Callable[..., Daemon], folder: Path, services: str
) -> Iterator[tuple[Daemon, socket.socket]]:
    """Start an upgrade whose new daemon imports while the file `wait` exists; return daemon and control client."""
    (folder / "marks.py").write_text(MARKS)
    daemon = start_controlled(services, env={**_import_from(folder), "MARKS": str(folder)})
    (folder / "wait").touch()
    marks = len(list(folder.glob("imported-*")))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(folder / "control"))
        client.sendall(b'{"command":"upgrade"}\n')
        wait_until(lambda: len(list(folder.glob("imported-*"))) > marks, "the module is imported")
        yield daemon, client


def test_upgrade_with_a_slow_import(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """The old daemon serves until the new daemon has imported its module, and no client is refused."""
    services = "echo 0/tcp4\nown 0/tcp4 factory=marks:make bind=127.0.0.1\n"
    with _importing(start_controlled, open_folder, services) as (daemon, client):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with daemon.connect("own/tcp4") as question:
                question.sendall(b"x")
                assert question.recv(1) == b"x"
        assert len([line for line in daemon.lines if " ready services=" in line]) == 1
        (open_folder / "wait").unlink()
        answer = json.loads(client.makefile("rb").readline())
    assert (answer["ok"], answer["result"]["faults"]) == (True, [])
    assert not any(" broken " in line for line in daemon.lines)


def test_upgrade_under_a_service_manager(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """Under a service manager the upgrade is refused, and the error names the alternative."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(open_folder / "notify"))
        start_controlled(env={"NOTIFY_SOCKET": str(open_folder / "notify")})
        done = _svcctl(open_folder, "upgrade")
        assert (done.returncode, "systemctl restart" in done.stderr) == (1, True)


@pytest.fixture
def background(open_folder: Path) -> Iterator[Callable[..., int]]:
    """Return a function that starts a daemon in the background, with a pid file and a log, and returns its pid."""

    def starter(services: str, *twistd_words: str) -> int:
        (open_folder / "services").write_text(services)
        words = twistd("--pidfile=my.pid", "--logfile=my.log", *twistd_words, "svcd", "--services=services")
        words += ["--control=control"]
        subprocess.run(words, cwd=open_folder, env=environment(), check=True, timeout=PATIENCE)
        return int((open_folder / "my.pid").read_text())

    yield starter
    for line in (open_folder / "my.log").read_text().splitlines():
        if " upgrade pid=" in line:
            _end(int(fields(line)["pid"]))
    if (open_folder / "my.pid").exists():
        _end(int((open_folder / "my.pid").read_text()))


def _end(pid: int) -> None:
    process = Process(pid)
    if process.alive:
        os.kill(pid, signal.SIGTERM)
        process.wait()


def _served(folder: Path, service: str, question: bytes) -> bytes:
    lines = [fields(line) for line in (folder / "my.log").read_text().splitlines()]
    address = next(line["address"] for line in lines if line["event"] == "listen" and line["service"] == service)
    host, _, port = address.rpartition(":")
    return exchange(socket.create_connection((host, int(port)), PATIENCE), question)


def test_upgrade_in_the_background(background: Callable[..., int], open_folder: Path) -> None:
    """The pid file has the new pid from the upgrade on, and both daemons write to the same log."""
    first = Process(background("echo 0/tcp bind=127.0.0.1\n"))
    found = _upgrade(open_folder)
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    first.wait()
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"
    (open_folder / "services").write_text("more 0/tcp daytime bind=192.0.2.1\n")
    done = _svcctl(open_folder, "upgrade")
    # The whole line, though the new daemon had left the terminal by then.
    assert (done.returncode, "more/tcp: can't listen on 192.0.2.1:0" in done.stderr) == (1, True), done.stderr
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    assert not (open_folder / "my.pid.new").exists()
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"
    log = (open_folder / "my.log").read_text()
    assert log.count(" ready services=1 ") == 2
    assert (log.count(" upgrade pid="), log.count(" upgrade-failed ")) == (1, 1)
    _end(found["pid"])
    assert not (open_folder / "my.pid").exists()


def test_endless_import_of_a_handler(background: Callable[..., int], open_folder: Path) -> None:
    """Neither the start in the background nor an upgrade waits for it, because launchers import it."""
    (open_folder / "endless.py").write_text("import time\ntime.sleep(3600)\n")
    endless = f"endless 0/tcp bind=127.0.0.1 python=endless:serve python_path={open_folder} start_timeout=1h\n"
    background("echo 0/tcp bind=127.0.0.1\n" + endless)
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"
    _upgrade(open_folder)
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"


@pytest.mark.usefixtures("as_root", "as_nobody")
def test_upgrade_after_root_was_given_up(background: Callable[..., int], open_folder: Path) -> None:
    """Sockets are handed over nevertheless; a new service that needs root fails the upgrade."""
    open_folder.chmod(0o777)
    text = "echo 0/tcp bind=127.0.0.1\n"
    background(text, "--uid=nobody")
    (open_folder / "my.log").chmod(0o666)
    first = Process(int((open_folder / "my.pid").read_text()))
    assert first.status("Uid").split() == ["65534"] * 4
    found = _upgrade(open_folder)
    first.wait()
    assert Process(found["pid"]).status("Uid").split() == ["65534"] * 4
    assert int((open_folder / "my.pid").read_text()) == found["pid"]
    (open_folder / "services").write_text(f"{text}cat 0/tcp bind=127.0.0.1 server=/bin/cat user=root\n")
    done = _svcctl(open_folder, "upgrade")
    assert (done.returncode, "only root can give this" in done.stderr) == (1, True), done.stderr
    assert _served(open_folder, "echo/tcp", b"hi") == b"hi"


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


#: Module that creates a file when it is imported, and then waits while the file `wait` exists.
MARKS = """
import os, pathlib, time
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo
folder = pathlib.Path(os.environ["MARKS"])
(folder / f"imported-{os.getpid()}").touch()
deadline = time.monotonic() + 60
while (folder / "wait").exists() and time.monotonic() < deadline:
    time.sleep(0.001)

def make():
    return Factory.forProtocol(Echo)
"""
#: Moments of the kill: when the new process exists, some seconds later, while it imports a module, when it is ready,
#: and when it answers.
MOMENTS: list[tuple[str, str | float]] = [("uv", each) for each in ("begun", 0.1, 0.3, "imports", "ready", "served")]
MOMENTS += [("epoll", "imports"), ("epoll", "served")]


class _Killed:
    """An upgrade during which one of both daemons is killed.

    Attributes:
        old: pid of the old daemon.
        answer: answer to the upgrade; empty if the connection was closed.
    """

    def __init__(
        self, start_controlled: Callable[..., Daemon], folder: Path, moment: str | float, which: str, **how: Any
    ) -> None:
        (folder / "marks.py").write_text(MARKS)
        local = f"loc {folder}/loc/unix upper\nown 0/tcp factory=marks:make\n"
        env = {**_import_from(folder), "MARKS": str(folder)}
        self.daemon = start_controlled("@defaults bind=127.0.0.1\necho 0/tcp\n" + local, env=env, **how)
        self.folder, self.old = folder, self.daemon.process.pid
        if moment == "imports":
            (folder / "wait").touch()
        marks = len(list(folder.glob("imported-*")))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(folder / "control"))
            client.sendall(b'{"command":"upgrade"}\n')
            wait_until(lambda: bool(_children(self.old)), "the new one is started")
            self.new = _children(self.old)[-1]
            self._wait(moment, marks)
            os.kill(self.old if which == "old" else self.new, signal.SIGKILL)
            (folder / "wait").unlink(missing_ok=True)
            with client.makefile("rb") as answers, contextlib.suppress(ConnectionResetError):
                self.answer = answers.readline()

    def _wait(self, moment: str | float, marks: int) -> None:
        if isinstance(moment, float):
            time.sleep(moment)
        elif moment == "imports":
            wait_until(lambda: len(list(self.folder.glob("imported-*"))) > marks, "the module is imported")
        elif moment != "begun":
            self.daemon.wait_for(lambda line: " ready services=" in line, 2)
            if moment == "served":
                wait_until(lambda: self._pid() == self.new, "the new one answers")

    def _pid(self) -> int:
        return int(_ask(self.folder, "status")["result"]["pid"])

    def check(self, pid: int) -> None:
        """Check that only the daemon with this pid serves, at all sockets."""
        wait_until(lambda: not Process(self.old + self.new - pid).alive, "the other one is gone")
        wait_until(self._answers, "it answers")
        for _ in range(5):
            assert self._pid() == pid
            assert exchange(self.daemon.connect("echo/tcp"), b"hi") == b"hi"
            assert exchange(self.daemon.connect("loc/unix", socket.AF_UNIX), b"hi") == b"HI"
            with self.daemon.connect("own/tcp") as client:
                client.sendall(b"hi")
                assert client.recv(2) == b"hi"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._pid() > 0
        return False


def test_reload_during_an_upgrade(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """It waits for the upgrade and gets the code busy, because the new daemon has to be asked."""
    (open_folder / "marks.py").write_text(MARKS)
    env = {**_import_from(open_folder), "MARKS": str(open_folder)}
    start_controlled("@defaults bind=127.0.0.1\necho 0/tcp\nown 0/tcp factory=marks:make\n", env=env)
    (open_folder / "wait").touch()
    marks = len(list(open_folder.glob("imported-*")))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.settimeout(PATIENCE)
            client.connect(str(open_folder / "control"))
        first.sendall(b'{"command":"upgrade"}\n')
        wait_until(lambda: len(list(open_folder.glob("imported-*"))) > marks, "the module is imported")
        second.sendall(b'{"id":1,"command":"status"}\n{"id":2,"command":"reload"}\n{"id":3,"command":"status"}\n')
        with first.makefile("rb") as upgraded, second.makefile("rb") as others:
            assert json.loads(others.readline())["ok"]
            (open_folder / "wait").unlink()
            assert json.loads(upgraded.readline())["ok"]
            answer = json.loads(others.readline())
            assert (answer["id"], answer["ok"], answer["code"]) == (2, False, "busy")
            assert "try again" in answer["error"]
    assert _svcctl(open_folder, "reload").returncode == 0


@pytest.mark.parametrize(("reactor", "moment"), MOMENTS)
def test_old_daemon_is_killed(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str, moment: str | float
) -> None:
    """If the old daemon is killed the new one, which has the sockets, takes over when it is ready."""
    upgrade = _Killed(start_controlled, open_folder, moment, "old", twistd_arguments=["--reactor", reactor])
    try:
        upgrade.check(upgrade.new)
        assert not any("Traceback" in line for line in upgrade.daemon.lines)
        assert _ask(open_folder, "stop")["ok"]
        Process(upgrade.new).wait()
        assert not (open_folder / "control").exists()
        assert not (open_folder / "loc").exists()
    finally:
        _end(upgrade.new)


@pytest.mark.parametrize(("reactor", "moment"), MOMENTS)
def test_new_daemon_is_killed(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str, moment: str | float
) -> None:
    """If the new daemon is killed before the answer the old one goes on, also when the new one has begun to serve."""
    upgrade = _Killed(start_controlled, open_folder, moment, "new", twistd_arguments=["--reactor", reactor])
    upgrade.check(upgrade.old)
    answer = json.loads(upgrade.answer)
    assert (answer["ok"], answer["code"]) == (False, "refused")
    assert _ask(open_folder, "upgrade")["ok"]
    assert upgrade.daemon.process.wait(PATIENCE) == 0


def test_stop_during_an_upgrade(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """SIGTERM during an upgrade ends the new daemon, too, which would take over from a killed one."""
    services = "own 0/tcp4 bind=127.0.0.1 factory=marks:make\n"
    with _importing(start_controlled, open_folder, services) as (daemon, client):
        new = Process(_children(daemon.process.pid)[-1])
        assert daemon.stop() == 0
        assert "the daemon is stopping" in json.loads(client.makefile("rb").readline())["error"]
    new.wait()
    assert not (open_folder / "control").exists()


def test_thousands_of_sockets(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """More than the default limit of open files, with names too long for an environment variable.

    Handlers get the limit of open files of the first daemon, whichever daemon starts them.
    """
    count, folder = 1500, open_folder
    lines = [f"{'name-' * 12}{number} {folder}/{number}/unix echo\n" for number in range(count)]
    lines += ["limit 0/tcp4 bind=127.0.0.1 server=\"/bin/sh -c 'ulimit -Sn; ulimit -Hn'\"\n"]

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))

    daemon = start_controlled("".join(lines), preexec_fn=few)
    for _ in range(2):
        found = _upgrade(open_folder)
        assert exchange(daemon.connect("limit/tcp4")) == b"1024\n4096\n"
        for number in (0, count - 1):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{folder}/{number}")
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        assert _ask(open_folder, "status")["result"]["pid"] == found["pid"]
    assert len([line for line in daemon.lines if " listen " in line and "origin=store" in line]) == 2 * (count + 1)


@pytest.mark.load
@pytest.mark.parametrize("reactor", REACTORS)
def test_ten_upgrades_under_load(start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """Under 64 clients in closed loops no connection is refused, reset or cut short; each datagram has one answer."""
    daemon = start_controlled(twistd_arguments=["--reactor", reactor])
    load = Load(daemon.port("echo/tcp"), daemon.port("day/tcp"), daemon.port("echo/udp"), pause=0.15)
    with load.going_on():
        for _ in range(10):
            assert _ask(open_folder, "upgrade")["ok"]
        daemon.file.write_text("ecoh 0/tcp\n")
        assert _ask(open_folder, "upgrade")["code"] == "config"
    assert load.wrong == []
    assert load.done > 100
    assert len(set(daemon.new_daemons)) == 10
    wait_until(lambda: not any(Process(pid).alive for pid in daemon.new_daemons[:-1]), "the old ones end")


def test_upgrade_to_an_empty_file_is_refused(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """A truncated services file is refused: the old daemon goes on, and the log has the reason."""
    daemon = start_controlled("echo 0/tcp bind=127.0.0.1\n")
    daemon.file.write_text("")
    done = _svcctl(open_folder, "upgrade")
    assert done.returncode != 0
    assert "no service is enabled in the services file" in done.stderr
    assert exchange(daemon.connect("echo/tcp"), b"a") == b"a"
