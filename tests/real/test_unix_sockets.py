"""Files of UNIX sockets, that of the control socket included: where they are, whose, and how they come back."""

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

from tests.real.daemon import PATIENCE, Daemon, environment, exchange
from tests.real.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def svcctl(control: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command for the daemon at a control socket."""
    command = [sys.executable, "-m", "svcd", "--control", str(control), *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


def _shout(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        return exchange(client, b"hi")


@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_a_unix_socket_comes_back(start: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """Whose file was removed, moved or replaced by a socket that nobody serves; who is connected notices nothing.

    Signals do it, and svcctl, as long as it finds the control socket. The control socket comes back first.
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


def test_a_unix_socket_that_can_not_come_back(start: Callable[..., Daemon], open_folder: Path) -> None:
    """A file that is no socket stands there: the service is broken and named, and comes back when the file is gone."""
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


def test_a_unix_socket_comes_back_with_an_upgrade(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The new daemon opens it at its place, and the old one does not take it away."""
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
def stranger(program: Callable[[str], str], as_nobody: list[str], as_root: None) -> Iterator[_Stranger]:  # noqa: ARG001
    """A user whose session has no folder of its own."""
    user = 1_000_000 + os.getpid()
    before = [program("setpriv"), f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    made = _Stranger(user, before)
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


class _Stranger:
    """A user with a number, and with nothing else."""

    def __init__(self, user: int, before: list[str]) -> None:
        self.user = user
        self.before = before
        self.folder = Path(f"/tmp/svcd-{user}")

    def svcctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command for the daemon at the usual place."""
        env = {name: value for name, value in environment().items() if name != "XDG_RUNTIME_DIR"}
        command = [*self.before, sys.executable, "-m", "svcd", *words]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=PATIENCE)

    def start(self, folder: Path) -> Daemon:
        """Start a daemon of this user."""
        env = {"XDG_RUNTIME_DIR": "", **{name: "" for name in os.environ if name.startswith("COVERAGE")}}
        services = "echo 0/tcp4 bind=127.0.0.1\n"
        return Daemon(folder, services, before=self.before, env=env, usual_control=True)


def test_without_a_session_there_is_a_folder_all_the_same(stranger: _Stranger, open_folder: Path) -> None:
    """It is the user's alone, svcctl finds it, and the socket goes with the daemon."""
    daemon = stranger.start(open_folder)
    try:
        assert stranger.svcctl("status").returncode == 0
        status = stranger.folder.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (stranger.user, 0o700)
        shutil.rmtree(stranger.folder)
        daemon.process.send_signal(signal.SIGHUP)
        wait_until((stranger.folder / "control").exists, "the control socket comes back")
        assert stranger.svcctl("reload").returncode == 0
        assert daemon.stop() == 0
        assert list(stranger.folder.iterdir()) == []
        done = stranger.svcctl("status")
        assert (done.returncode, f"{stranger.folder}/control" in done.stderr) == (69, True)
    finally:
        daemon.end()


@pytest.mark.parametrize("kind", ["another's", "open", "a link", "a file"])
def test_a_folder_that_others_could_have_made(stranger: _Stranger, open_folder: Path, kind: str) -> None:
    """The daemon serves without a control socket and says why, and svcctl does not ask whoever listens there."""
    if kind == "a file":
        stranger.folder.touch()
    elif kind == "a link":
        stranger.folder.symlink_to(open_folder)
    else:
        stranger.folder.mkdir(mode=0o777)
        stranger.folder.chmod(0o777 if kind == "another's" else 0o755)
    if kind != "another's":
        os.chown(stranger.folder, stranger.user, stranger.user, follow_symlinks=False)
    try:
        daemon = stranger.start(open_folder)
        try:
            (line,) = daemon.wait_for(lambda line: " problem " in line and "svcctl can't reach this daemon" in line)
            assert str(stranger.folder) in line
            assert exchange(daemon.connect("echo/tcp4"), b"x") == b"x"
            assert not (open_folder / "control").exists()
            done = stranger.svcctl("status")
            assert (done.returncode, str(stranger.folder) in done.stderr) == (69, True)
            assert daemon.stop() == 0
        finally:
            daemon.end()
    finally:
        if not stranger.folder.is_dir() or stranger.folder.is_symlink():
            stranger.folder.unlink()


@pytest.mark.usefixtures("as_root", "as_nobody")
def test_the_daemons_user_controls_it(start: Callable[..., Daemon], open_folder: Path, as_nobody: list[str]) -> None:
    """With --uid: the socket is that user's, also when it was removed and comes back; others are kept out."""
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
def test_nobody_looks_into_the_daemon(ordinary: Callable[..., Daemon], as_nobody: list[str]) -> None:
    """A handler that runs as the daemon's own user reads none of its memory, environment or descriptors."""
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
