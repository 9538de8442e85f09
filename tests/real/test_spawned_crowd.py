"""Two thousand handlers at once, and no leaks after them."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import exchange
from tests.real.processes import Process, wait_until
from tests.real.test_spawned_deaths import idle_cats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

MANY = 2000


@pytest.fixture
def many() -> Iterator[int]:
    """Return a number of handlers within the limits of the machine; the soft limit of descriptors is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    count = MANY
    for limit in (hard, processes if os.geteuid() else resource.RLIM_INFINITY):
        if limit != resource.RLIM_INFINITY and limit < MANY + 500:
            count = 1000
    if hard != resource.RLIM_INFINITY and hard < count + 200:
        pytest.skip(f"the hard limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def counts(daemon: Daemon) -> dict[str, int]:
    """Return the numbers of open descriptors of daemon, zygote and launcher."""
    launcher = daemon.launcher("cat/tcp")
    processes = {"daemon": daemon.process.pid, "zygote": daemon.zygote(), "launcher": launcher}
    return {name: len(Process(pid).descriptors()) for name, pid in processes.items()}


@pytest.mark.load
@pytest.mark.parametrize("options", ["", "stderr=log log_on_success=PID,TRAFFIC"])
def test_two_thousand_handlers(start: Callable[..., Daemon], many: int, options: str) -> None:
    """All run at once and answer; after their end all their descriptors and processes are gone."""
    if options:
        # The launcher keeps a pipe and a copy of the socket of each.
        many //= 4
    daemon = start(f"cat 0/tcp bind=127.0.0.1 server=/bin/cat instances=none backlog=4096 {options}\n")
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    daemon.wait_event("end", "cat/tcp")
    before = counts(daemon)
    clients = idle_cats(daemon, many)
    launcher, zygote = Process(daemon.launcher("cat/tcp")), Process(daemon.zygote())
    assert len(launcher.children()) == many
    assert launcher.kilobytes("Pss") < 12 * 1024
    for client in clients:
        client.close()
    daemon.wait_event("end", "cat/tcp", many + 1)
    assert counts(daemon) == before
    assert launcher.children() == []
    assert zygote.children() == [launcher.pid]
    assert launcher.kilobytes("Pss") < 12 * 1024
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    assert daemon.stop() == 0


@pytest.mark.load
def test_second_signal_ends_many_handlers(start: Callable[..., Daemon], many: int) -> None:
    """A second SIGTERM ends all handlers, though the socket to the launcher has no room for an order for each."""
    many = min(many, 600)
    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat instances=none backlog=4096 shutdown_timeout=1h\n")
    clients = idle_cats(daemon, many)
    daemon.handlers("cat/tcp", many)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_event("close", "cat/tcp")
    assert daemon.stop() == 0
    for client in clients:
        with client:
            assert client.recv(1) == b""
    ends = daemon.wait_event("end", "cat/tcp", many)
    assert {(end["reason"], end["exit"]) for end in ends} == {("shutdown", "SIGTERM")}


def test_launcher_without_descriptors(start: Callable[..., Daemon]) -> None:
    """A launcher without descriptors closes new connections and reports that; it serves again when it has some."""
    few = 100

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))

    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat stderr=log instances=none\n", preexec_fn=limit)
    served, refused = [], 0
    for _ in range(few + 10):
        client = daemon.connect("cat/tcp")
        client.sendall(b"x")
        try:
            answer = client.recv(1)
        except ConnectionResetError:
            answer = b""
        if answer:
            served.append(client)
        else:
            client.close()
            refused += 1
    assert 70 < len(served) < few
    fails = daemon.wait_event("fail", "cat/tcp", refused)
    assert {fail["reason"] for fail in fails} == {"can't start it: Too many open files"}
    launcher = daemon.launcher("cat/tcp")
    for client in served:
        assert exchange(client) == b""
    daemon.wait_event("end", "cat/tcp", len(served) + refused)
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    assert daemon.launcher("cat/tcp") == launcher
    assert daemon.stop() == 0


def tasks_of(user: int) -> int:
    """Return the number of threads of a user on this machine."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == user:
                count += len(list((folder / "task").iterdir()))
        except OSError:
            continue
    return count


def test_launcher_that_can_not_fork(ordinary: Callable[..., Daemon]) -> None:
    """A launcher that can't fork closes new connections and reports that; it serves again when it can fork."""
    user = os.geteuid() or 65534

    def limit() -> None:
        most = tasks_of(user) + 40
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))

    daemon = ordinary("cat 0/tcp bind=127.0.0.1 server=/bin/cat instances=none\n", preexec_fn=limit)
    served = []
    for _ in range(80):
        client = daemon.connect("cat/tcp")
        client.sendall(b"x")
        try:
            if client.recv(1):
                served.append(client)
                continue
        except ConnectionResetError:
            pass
        client.close()
        break
    else:
        pytest.skip("there is no limit of processes here")
    (fail,) = daemon.wait_event("fail", "cat/tcp")
    assert fail["reason"] == "can't start it: Resource temporarily unavailable"
    for client in served:
        assert exchange(client) == b""
    daemon.wait_event("end", "cat/tcp", len(served) + 1)
    wait_until(lambda: tasks_of(user) < 10_000, "the processes are counted")
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    assert daemon.stop() == 0


@pytest.mark.parametrize("way", ["", "rlimit_cpu=100"])
def test_program_that_is_removed(start: Callable[..., Daemon], open_folder: Path, way: str) -> None:
    """If the program was removed while the daemon runs the connection is closed, and the log has the reason."""
    program = open_folder / "program"
    program.symlink_to("/bin/cat")
    daemon = start(f"cat 0/tcp bind=127.0.0.1 server={program} {way}\n")
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    daemon.wait_event("end", "cat/tcp")
    program.unlink()
    for count in (1, 2):
        with daemon.connect("cat/tcp") as client:
            assert client.recv(1) == b""
        fails = daemon.wait_event("fail", "cat/tcp", count)
        assert [fail["reason"] for fail in fails] == ["can't start it: No such file or directory"] * count
        assert daemon.wait_event("end", "cat/tcp", count + 1)[-1]["reason"] == "failed"
    program.symlink_to("/bin/cat")
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    assert daemon.stop() == 0
