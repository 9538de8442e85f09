"""Files of UNIX sockets and of the control socket: paths, owners, and how they are restored."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real import preloaded
from tests.real.daemon import PATIENCE, Daemon, environment, exchange
from tests.real.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def svcctl(control: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of svcctl for the daemon at a control socket."""
    command = [sys.executable, "-m", "svcd", "--control", str(control), *words]
    return preloaded.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


def _shout(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        return exchange(client, b"hi")


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_unix_socket_is_restored(start: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """A socket file that was removed, moved or replaced by an unused socket is restored; open connections go on.

    A signal restores it, and svcctl does while the control socket exists. The control socket is restored first.
    """
    path, control, gram = open_folder / "u.sock", open_folder / "control", open_folder / "g.sock"
    services = f"up {path}/unix upper\ncat {open_folder}/c.sock/unix server=/bin/cat\necho {gram}/unixgram\n"
    daemon = start(services, "--control", str(control), twistd_arguments=["--reactor", reactor])
    with socket.socket(socket.AF_UNIX) as stays:
        stays.connect(str(path))
        stays.sendall(b"a")
        assert stays.recv(1) == b"A"
        for each in (path, control, gram, open_folder / "c.sock"):
            each.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(lambda line: " reload " in line)
        assert _shout(path) == b"HI"
        assert _shout(open_folder / "c.sock") == b"hi"
        with daemon.connect("echo/unixgram", socket.AF_UNIX) as client:
            client.send(b"x")
            assert client.recv(10) == b"x"
        path.rename(open_folder / "moved")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
        assert svcctl(control, "diff").stdout == f"- up/unix on {path}\n+ up/unix on {path}\n"
        assert svcctl(control, "reload").returncode == 0
        assert svcctl(control, "reload").stdout == "reloaded: nothing has changed\n"
        assert _shout(path) == b"HI"
        stays.sendall(b"b")
        assert stays.recv(1) == b"B"
    assert daemon.stop() == 0
    assert sorted(each.name for each in open_folder.iterdir()) == ["moved"]


def test_unix_socket_that_can_not_be_restored(start: Callable[..., Daemon], open_folder: Path) -> None:
    """If another file has its path the service is broken, and recovers when that file is removed."""
    path, control = open_folder / "u.sock", open_folder / "control"
    daemon = start(f"up {path}/unix upper\necho 0/tcp4 bind=127.0.0.1\n", "--control", str(control))
    path.unlink()
    path.write_text("mine")
    control.unlink()
    control.write_text("mine, too")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " broken service=up/unix " in line)
    daemon.wait_for(lambda line: " problem " in line and "svcctl can't reach this daemon" in line)
    assert exchange(daemon.connect("echo/tcp4"), b"x") == b"x"
    assert path.read_text() == "mine"
    path.unlink()
    control.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload " in line, 2)
    assert _shout(path) == b"HI"
    assert svcctl(control, "status").returncode == 0


def test_upgrade_restores_a_unix_socket(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The new daemon opens it at its path, and the old daemon does not remove it."""
    path, control = open_folder / "u.sock", open_folder / "control"
    daemon = start(f"up {path}/unix upper\n", "--control", str(control))
    path.unlink()
    assert svcctl(control, "upgrade").returncode == 0
    assert daemon.process.wait(PATIENCE) == 0
    assert _shout(path) == b"HI"
    control.unlink()
    os.kill(daemon.new_daemons[-1], signal.SIGHUP)
    wait_until(control.exists, "the control socket comes back")
    path.unlink()
    assert svcctl(control, "upgrade").returncode == 0
    assert _shout(path) == b"HI"


@pytest.fixture
def sessionless(program: Callable[[str], str], as_nobody: list[str], as_root: None) -> Iterator[_Sessionless]:  # noqa: ARG001
    """Return a user without a runtime directory."""
    user = 1_000_000 + os.getpid()
    before = [program("setpriv"), f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    made = _Sessionless(user, before)
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


class _Sessionless:
    """A user with a uid, without a runtime directory."""

    def __init__(self, user: int, before: list[str]) -> None:
        self.user = user
        self.before = before
        self.folder = Path(f"/tmp/svcd-{user}")

    def svcctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of svcctl for the daemon at the default path."""
        env = {name: value for name, value in environment().items() if name != "XDG_RUNTIME_DIR"}
        command = [*self.before, sys.executable, "-m", "svcd", *words]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=PATIENCE)

    def start(self, folder: Path) -> Daemon:
        """Start a daemon of this user."""
        env = {"XDG_RUNTIME_DIR": "", **{name: "" for name in os.environ if name.startswith("COVERAGE")}}
        services = "echo 0/tcp4 bind=127.0.0.1\n"
        return Daemon(folder, services, before=self.before, env=env, usual_control=True)


def test_control_socket_without_a_runtime_directory(sessionless: _Sessionless, open_folder: Path) -> None:
    """Its directory is accessible only to the user, svcctl finds it, and the stop removes the socket."""
    daemon = sessionless.start(open_folder)
    try:
        assert sessionless.svcctl("status").returncode == 0
        status = sessionless.folder.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (sessionless.user, 0o700)
        shutil.rmtree(sessionless.folder)
        daemon.process.send_signal(signal.SIGHUP)
        wait_until((sessionless.folder / "control").exists, "the control socket comes back")
        assert sessionless.svcctl("reload").returncode == 0
        assert daemon.stop() == 0
        assert list(sessionless.folder.iterdir()) == []
        done = sessionless.svcctl("status")
        assert (done.returncode, f"{sessionless.folder}/control" in done.stderr) == (69, True)
    finally:
        daemon.end()


@pytest.mark.parametrize("kind", ["another's", "open", "a link", "a file"])
def test_untrusted_directory_of_the_control_socket(sessionless: _Sessionless, open_folder: Path, kind: str) -> None:
    """The daemon serves without a control socket and logs the reason, and svcctl does not connect there."""
    if kind == "a file":
        sessionless.folder.touch()
    elif kind == "a link":
        sessionless.folder.symlink_to(open_folder)
    else:
        sessionless.folder.mkdir(mode=0o777)
        sessionless.folder.chmod(0o777 if kind == "another's" else 0o755)
    if kind != "another's":
        os.chown(sessionless.folder, sessionless.user, sessionless.user, follow_symlinks=False)
    try:
        daemon = sessionless.start(open_folder)
        try:
            (line,) = daemon.wait_for(lambda line: " problem " in line and "svcctl can't reach this daemon" in line)
            assert str(sessionless.folder) in line
            assert exchange(daemon.connect("echo/tcp4"), b"x") == b"x"
            assert not (open_folder / "control").exists()
            done = sessionless.svcctl("status")
            assert (done.returncode, str(sessionless.folder) in done.stderr) == (69, True)
            assert daemon.stop() == 0
        finally:
            daemon.end()
    finally:
        if not sessionless.folder.is_dir() or sessionless.folder.is_symlink():
            sessionless.folder.unlink()


@pytest.mark.usefixtures("as_root", "as_nobody")
def test_control_socket_of_the_daemons_user(
    start: Callable[..., Daemon], open_folder: Path, as_nobody: list[str]
) -> None:
    """With --uid that user owns the socket, also after it was restored; other users are refused."""
    control = open_folder / "control"
    daemon = start(
        "echo 0/tcp4 bind=127.0.0.1\n", "--control", str(control), twistd_arguments=["--uid=nobody", "--gid=nogroup"]
    )
    command = [sys.executable, "-m", "svcd", "--control", str(control), "status"]
    for _ in range(2):
        status = control.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (65534, 0o600)
        for before in ([], as_nobody):
            done = subprocess.run(
                [*before, *command], cwd="/", env=environment(), capture_output=True, timeout=PATIENCE
            )
            assert done.returncode == 0, done.stderr
        control.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(control.exists, "the control socket comes back")


@pytest.mark.usefixtures("as_root")
def test_handlers_can_not_read_the_daemon(ordinary: Callable[..., Daemon], as_nobody: list[str]) -> None:
    """A handler with the daemon's user can't read the memory, environment or descriptors of the daemon."""
    code = "import os, sys\nfor name in sys.argv[2:]:\n"
    code += "    try:\n        os.listdir(f'/proc/{sys.argv[1]}/fd') if name == 'fd' else "
    code += "open(f'/proc/{sys.argv[1]}/{name}', 'rb')\n"
    code += "    except OSError as error:\n        print(name, error.strerror)\n"
    daemon = ordinary("cat 0/tcp4 bind=127.0.0.1 server=/bin/cat\n")
    with daemon.connect("cat/tcp4") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        words = [*as_nobody, sys.executable, "-c", code, str(daemon.process.pid), "mem", "environ", "fd", "maps"]
        done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=PATIENCE)
        assert done.stdout == "".join(f"{name} Permission denied\n" for name in ("mem", "environ", "fd", "maps"))
