"""The stop of a real daemon: it ends in time, whatever hangs, and a second signal ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment, twistd
from tests.real.processes import Process, all_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

#: Tolerance for a loaded machine, in seconds, beyond the bound of shutdown_timeout plus 2 s.
SLACK = 3.0
#: Service that echoes a word and then lets hang what the word names: a pool thread, a thread or the event loop.
STUCK = """
import threading, time
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

def rest():
    time.sleep(600)

class Stuck(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)
        if data == b"pool":
            deferToThread(rest)
        elif data == b"thread":
            threading.Thread(target=rest, name="Rester").start()
        elif data == b"loop":
            from twisted.internet import reactor
            reactor.callLater(0.1, rest)

def make(options):
    return Factory.forProtocol(Stuck)
"""


@pytest.fixture
def stuck(start: Callable[..., Daemon], tmp_path: Path) -> Callable[..., Daemon]:
    """Return a function that starts a daemon of which a part hangs: `pool`, `thread` or `loop`."""
    (tmp_path / "stuck.py").write_text(STUCK)
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"

    def starter(how: bytes, reactor: str = "uv", timeout: str = "1s") -> Daemon:
        services = f"stuck 0/tcp bind=127.0.0.1 factory=stuck:make shutdown_timeout={timeout}\n"
        daemon = start(services, env={"PYTHONPATH": path}, twistd_arguments=["--reactor", reactor])
        with daemon.connect("stuck/tcp") as client:
            client.sendall(how)
            assert client.recv(100) == how
        return daemon

    return starter


def _check_stop(seconds: float, *daemons: Daemon) -> None:
    """Send SIGTERM to daemons; they have to exit with status 0 in time."""
    began = time.monotonic()
    for daemon in daemons:
        daemon.process.send_signal(signal.SIGTERM)
    for daemon in daemons:
        # Processes that it leaves behind may have its standard output open.
        assert daemon.process.wait(PATIENCE) == 0
    assert time.monotonic() - began < seconds + SLACK


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_stop_ends_in_time_whatever_hangs(stuck: Callable[..., Daemon], reactor: str) -> None:
    """A call in the thread pool or the event loop, or a thread, hangs: the process ends, and the log has the reason."""
    hanging = {b"pool": "PoolThread", b"thread": "Rester", b"loop": "main thread"}
    daemons = {thread: stuck(how, reactor) for how, thread in hanging.items()}
    # Before the event loop hangs its daemon could end in good order.
    time.sleep(0.3)
    _check_stop(3, *daemons.values())
    for thread, daemon in daemons.items():
        (line,) = daemon.wait_for(lambda line: " problem " in line)
        assert "the stop takes too long, so the process ends; still running: " in line
        assert thread in line
        assert " in rest (" in line


def test_second_signal_ends_the_daemon_at_once(stuck: Callable[..., Daemon]) -> None:
    """A second SIGTERM ends a daemon that hangs, however long shutdown_timeout is."""
    daemon = stuck(b"pool", timeout="1h")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for(lambda line: " stop " in line)
    _check_stop(1, daemon)


def test_stop_during_a_reload_that_hangs(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A reload whose thread hangs does not hold up the stop."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    services = "@defaults shutdown_timeout=1s\necho 0/tcp bind=127.0.0.1\n"
    daemon = start(services, env={"PYTHONPATH": f"{tmp_path}:{environment()['PYTHONPATH']}"})
    daemon.file.write_text(f"{services}slow 0/tcp factory=slow:make\n")
    threads = Path(f"/proc/{daemon.process.pid}/task")
    before = len(list(threads.iterdir()))
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + SLACK
    while len(list(threads.iterdir())) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    _check_stop(3, daemon)


def test_pid_file_is_removed(tmp_path: Path) -> None:
    """A daemon in the background whose stop hangs removes its pid file."""
    (tmp_path / "services").write_text("stuck 0/tcp bind=127.0.0.1 factory=stuck:make shutdown_timeout=0s\n")
    # The factory is made when the process is in the background.
    (tmp_path / "stuck.py").write_text(STUCK.replace("    return ", "    deferToThread(rest)\n    return "))
    pid_file, log = tmp_path / "pid", tmp_path / "log"
    words = twistd("--pidfile", str(pid_file), "--logfile", str(log), "svcd", "--control", "")
    env = environment(PYTHONPATH=f"{tmp_path}:{environment()['PYTHONPATH']}")
    subprocess.run([*words, "--services", "services"], cwd=tmp_path, env=env, check=True, stdin=subprocess.DEVNULL)
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 2 + SLACK
    while "still running: " not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while pid_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_handler_that_ignores_sigterm(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """It holds up the daemon for 2 s at most, also if its launcher is stopped; launcher and handler end, too."""
    script = tmp_path / "stubborn"
    script.write_text("#!/bin/sh\ntrap '' TERM\necho up\nwhile :; do sleep 1; done\n")
    script.chmod(0o755)
    daemons = [start(f"stubborn 0/tcp bind=127.0.0.1 server={script} shutdown_timeout=1s\n") for _ in range(2)]
    with contextlib.ExitStack() as stack:
        processes = []
        for daemon in daemons:
            client = stack.enter_context(daemon.connect("stubborn/tcp"))
            assert client.recv(3) == b"up\n"
            processes.append(Process(daemon.launcher("stubborn/tcp")))
            processes.append(Process(daemon.handlers("stubborn/tcp")[0]))
        os.kill(processes[0].pid, signal.SIGSTOP)
        try:
            _check_stop(3, *daemons)
            all_gone(processes)
        finally:
            for process in processes:
                if process.alive:
                    os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["TERM", "KILL", "reload"])
def test_launcher_whose_import_does_not_end(start: Callable[..., Daemon], tmp_path: Path, how: str) -> None:
    """It ends with its daemon, however the daemon ends, and with its service."""
    begun = f"open('{tmp_path}/' + str(os.getpid()), 'w').close()"
    (tmp_path / "endless.py").write_text(f"import os, time\n{begun}\ntime.sleep(3600)\n")
    text = "echo 0/tcp4 bind=127.0.0.1\n"
    line = f"endless 0/tcp4 bind=127.0.0.1 python=endless:serve python_path={tmp_path} start_timeout=1h\n"
    daemon = start(text + line)

    def importing() -> list[int]:
        children = Process(daemon.process.pid).children()
        launchers = [each for child in children for each in Process(child).children()]
        return [each for each in launchers if (tmp_path / str(each)).exists()]

    wait_until(lambda: bool(importing()), "the import")
    launcher = Process(importing()[0])
    if how == "reload":
        daemon.file.write_text(text)
        daemon.process.send_signal(signal.SIGHUP)
    else:
        daemon.process.send_signal(getattr(signal, f"SIG{how}"))
    launcher.wait()
