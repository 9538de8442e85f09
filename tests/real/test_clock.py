"""Steps of the wall clock, made by libfaketime, do not disturb the log, timeouts and listeners."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, exchange, fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

#: Bound for what takes 0.2 s or 1 s on an idle machine, in seconds: far less than a step.
SOON = 10.0
STEPS = {"-1d": -86_400, "+1d": 86_400, "-1h": -3600, "+1h": 3600}


class _WallClock:
    """The wall clock of processes that have `env` in their environment."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._file = folder / "faketime"
        self.set("+0")
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, step: str) -> None:
        """Step the clock to an offset from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{step}\n")
        new.rename(self._file)


@pytest.fixture
def wall(tmp_path: Path) -> _WallClock:
    """Return a wall clock that can be stepped."""
    for folder in ("/usr/lib", "/usr/local/lib"):
        for library in Path(folder).glob("**/faketime/libfaketimeMT.so.1"):
            return _WallClock(tmp_path, library)
    pytest.skip("libfaketime is not installed")


def _moment(line: str) -> float:
    return datetime.datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()


def _soon(began: float) -> None:
    assert time.monotonic() - began < SOON


def test_steps_of_the_clock(start: Callable[..., Daemon], wall: _WallClock) -> None:
    """After each step lines are written soon and with the new time, idle_timeout holds, daytime has the new date.

    The daemons of all reactors have the same clock.
    """
    services = "@defaults bind=127.0.0.1\necho 0/tcp idle_timeout=2s\ndaytime 0/tcp date_format=iso8601\n"
    reactors = ["uv", "epoll", "asyncio"]
    daemons = [start(services, env=wall.env, twistd_arguments=["--reactor", reactor]) for reactor in reactors]
    for count, (step, moved) in enumerate(STEPS.items(), 1):
        with contextlib.ExitStack() as stack:
            clients = []
            for daemon in daemons:
                idle = stack.enter_context(daemon.connect("echo/tcp"))
                idle.sendall(b"x")
                assert idle.recv(1) == b"x"
                clients.append(idle)
            wall.set(step)
            began = time.monotonic()
            for idle in clients:
                with pytest.raises(ConnectionResetError):
                    idle.recv(1)
            _soon(began)
        for daemon in daemons:
            end = daemon.wait_for(lambda line: " end service=echo/tcp " in line, count)[-1]
            _soon(began)
            assert fields(end)["reason"] == "idle"
            assert 1.9 < float(fields(end)["seconds"]) < SOON
            assert abs(_moment(end) - time.time() - moved) < 60
            answer = exchange(daemon.connect("daytime/tcp")).decode().strip()
            assert abs(_moment(answer) - time.time() - moved) < 60
    for daemon in daemons:
        assert daemon.stop() == 0


@pytest.mark.parametrize("step", ["-1d", "+1d"])
def test_paused_listeners_resume(start: Callable[..., Daemon], wall: _WallClock, step: str) -> None:
    """A daemon that is out of descriptors when the clock steps accepts again when some are free."""

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    daemon = start("echo 0/tcp bind=127.0.0.1\n", env=wall.env, preexec_fn=few)
    clients = [daemon.connect("echo/tcp") for _ in range(100)]
    daemon.wait_for(lambda line: " pause reason=descriptors " in line)
    wall.set(step)
    began = time.monotonic()
    for client in clients:
        client.close()
    with socket.create_connection(("127.0.0.1", daemon.port("echo/tcp")), PATIENCE) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    daemon.wait_for(lambda line: " resume reason=descriptors " in line)
    _soon(began)
    assert daemon.stop() == 0


@pytest.fixture
def zoned(program: Callable[[str], str], tmp_path: Path) -> tuple[list[str], Callable[[str], None]]:
    """Return the start of a command line with an /etc/localtime of its own, and a function that sets its zone."""
    known, copy = Path("/etc/localtime"), tmp_path / "localtime"
    changes = itertools.count()

    def link(name: str) -> None:
        try:
            copy.write_bytes((Path("/usr/share/zoneinfo") / name).read_bytes())
        except FileNotFoundError:
            pytest.skip(f"no zone {name} here")
        # tzset(3) does not read a file again whose inode and modification time in seconds are the same.
        os.utime(copy, (next(changes),) * 2)

    link("UTC")
    if not known.exists():
        pytest.skip("no /etc/localtime here")
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]
    script = f'mount --bind "$0" {known.resolve()} && exec "$@"'
    words = [program("unshare"), *flags, "sh", "-c", script, str(copy)]
    tried = subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mounts of one's own here: {tried.stderr.strip()}")
    return words, link


#: A handler for both process and thread models.
ZONE = "import time\ndef serve(sock, address):\n    sock.sendall(time.strftime('%z').encode())\n"


def test_reload_reads_the_time_zone_again(
    start: Callable[..., Daemon], open_folder: Path, zoned: tuple[list[str], Callable[[str], None]]
) -> None:
    """The log, daytime, access_times and Python handlers use the new time zone of the machine, as explain does."""
    before, link = zoned
    (open_folder / "zone.py").write_text(ZONE)
    now = datetime.datetime.now(datetime.UTC)
    # The span includes the time in Tokyo, nine hours ahead, and not the time in UTC.
    hour = (now.hour + 9) % 24
    span = f"{hour}:00-{(hour + 2) % 24}:00"
    services = f"""@defaults bind=127.0.0.1
daytime 0/tcp date_format=iso8601
day 0/tcp echo access_times={span}
night 0/udp echo access_times={span}
process 0/tcp python=zone:serve python_path={open_folder}
thread 0/tcp python=zone:serve python_path={open_folder} model=thread
"""
    handlers = ["process/tcp", "thread/tcp"]
    daemon = start(services, before=[*before, "env", "-u", "TZ"])
    assert exchange(daemon.connect("daytime/tcp")).strip().endswith(b"+00:00")
    with daemon.connect("day/tcp") as client:
        assert client.recv(1) == b""
    assert [exchange(daemon.connect(name)) for name in handlers] == [b"+0000"] * 2
    link("Asia/Tokyo")
    assert exchange(daemon.connect("daytime/tcp")).strip().endswith(b"+00:00")
    daemon.process.send_signal(signal.SIGHUP)
    (line,) = daemon.wait_for(lambda line: " reload " in line)
    assert line.split(" ", 1)[0].endswith("+09:00")
    assert exchange(daemon.connect("daytime/tcp")).strip().endswith(b"+09:00")
    assert exchange(daemon.connect("day/tcp"), b"x") == b"x"
    with daemon.connect("night/udp") as client:
        client.send(b"x")
        assert client.recv(10) == b"x"
    assert [exchange(daemon.connect(name)) for name in handlers] == [b"+0900"] * 2
    assert daemon.stop() == 0
