"""`svcctl upgrade` that fails or is interrupted: exactly one daemon goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.daemon import PATIENCE, exchange
from tests.real.processes import Process, wait_until
from tests.real.upgrades import MARKS, SERVICES, ask, children, end_process, import_from, importing, svcctl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll"]

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


def test_failed_upgrade_changes_nothing(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """The answer and the log have the messages of the new daemon, and the old daemon serves as before."""
    daemon = start_controlled(f"{SERVICES}loc {open_folder}/loc/unix echo mode=0600\n", env=import_from(open_folder))
    for name, (text, module, code, reason) in FAILURES.items():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            services = text.replace("{taken}", str(taken.getsockname()[1]))
            if name in ("file", "folder"):
                services += f"loc {open_folder}/loc/unix echo mode=0666\n"
            daemon.file.write_text(services)
            (open_folder / "ours.py").write_text(module)
            if name == "folder":
                daemon.folder.rename(open_folder / "moved")
            found = ask(open_folder, "upgrade", timeout=2 if name == "silence" else PATIENCE)
        assert (found["ok"], found.get("code")) == (False, code), found
        assert reason in found["error"]
        assert "Traceback" not in found["error"]
        assert exchange(daemon.connect("echo/tcp"), b"a") == b"a"
        assert exchange(daemon.connect("loc/unix", socket.AF_UNIX), b"b") == b"b"
        with daemon.connect("echo/udp") as client:
            client.send(b"c")
            assert client.recv(10) == b"c"
        assert (open_folder / "loc").stat().st_mode & 0o777 == 0o600
    done = svcctl(open_folder, "upgrade")
    assert (done.returncode, done.stdout, "can't start" in done.stderr) == (1, "", True)
    assert ask(open_folder, "status")["result"]["pid"] == daemon.process.pid
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
        done = svcctl(open_folder, "upgrade")
        assert (done.returncode, "serves" in done.stdout) == (1, True)
        assert ("more/tcp4: can't listen" in done.stderr, "Address already in use" in done.stderr) == (True, True)
    assert exchange(daemon.connect("echo/tcp4"), b"hi") == b"hi"
    rows = {row["service"]: row["state"] for row in ask(open_folder, "status")["result"]["services"]}
    assert rows["echo/tcp4"] == "on"


def test_upgrade_under_a_service_manager(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """Under a service manager the upgrade is refused, and the error names the alternative."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(open_folder / "notify"))
        start_controlled(SERVICES, env={"NOTIFY_SOCKET": str(open_folder / "notify")})
        done = svcctl(open_folder, "upgrade")
        assert (done.returncode, "systemctl restart" in done.stderr) == (1, True)


def test_upgrade_to_an_empty_file_is_refused(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """A truncated services file is refused: the old daemon goes on, and the log has the reason."""
    daemon = start_controlled("echo 0/tcp bind=127.0.0.1\n")
    daemon.file.write_text("")
    done = svcctl(open_folder, "upgrade")
    assert done.returncode != 0
    assert "no service is enabled in the services file" in done.stderr
    assert exchange(daemon.connect("echo/tcp"), b"a") == b"a"


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
        env = {**import_from(folder), "MARKS": str(folder)}
        self.daemon = start_controlled("@defaults bind=127.0.0.1\necho 0/tcp\n" + local, env=env, **how)
        self.folder, self.old = folder, self.daemon.process.pid
        if moment == "imports":
            (folder / "wait").touch()
        marks = len(list(folder.glob("imported-*")))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(folder / "control"))
            client.sendall(b'{"command":"upgrade"}\n')
            wait_until(lambda: bool(children(self.old)), "the new one is started")
            self.new = children(self.old)[-1]
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
        return int(ask(self.folder, "status")["result"]["pid"])

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
    env = {**import_from(open_folder), "MARKS": str(open_folder)}
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
    assert svcctl(open_folder, "reload").returncode == 0


@pytest.mark.parametrize(("reactor", "moment"), MOMENTS)
def test_old_daemon_is_killed(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str, moment: str | float
) -> None:
    """If the old daemon is killed the new one, which has the sockets, takes over when it is ready."""
    upgrade = _Killed(start_controlled, open_folder, moment, "old", twistd_arguments=["--reactor", reactor])
    try:
        upgrade.check(upgrade.new)
        assert not any("Traceback" in line for line in upgrade.daemon.lines)
        assert ask(open_folder, "stop")["ok"]
        Process(upgrade.new).wait()
        assert not (open_folder / "control").exists()
        assert not (open_folder / "loc").exists()
    finally:
        end_process(upgrade.new)


@pytest.mark.parametrize(("reactor", "moment"), MOMENTS)
def test_new_daemon_is_killed(
    start_controlled: Callable[..., Daemon], open_folder: Path, reactor: str, moment: str | float
) -> None:
    """If the new daemon is killed before the answer the old one goes on, also when the new one has begun to serve."""
    upgrade = _Killed(start_controlled, open_folder, moment, "new", twistd_arguments=["--reactor", reactor])
    upgrade.check(upgrade.old)
    answer = json.loads(upgrade.answer)
    assert (answer["ok"], answer["code"]) == (False, "refused")
    assert ask(open_folder, "upgrade")["ok"]
    assert upgrade.daemon.process.wait(PATIENCE) == 0


def test_stop_during_an_upgrade(start_controlled: Callable[..., Daemon], open_folder: Path) -> None:
    """SIGTERM during an upgrade ends the new daemon, too, which would take over from a killed one."""
    services = "own 0/tcp4 bind=127.0.0.1 factory=marks:make\n"
    with importing(start_controlled, open_folder, services) as (daemon, client):
        new = Process(children(daemon.process.pid)[-1])
        assert daemon.stop() == 0
        assert "the daemon is stopping" in json.loads(client.makefile("rb").readline())["error"]
    new.wait()
    assert not (open_folder / "control").exists()
