"""Who may do what: services of other users when root is given up; what nurseries and launchers can be made to do."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from svcd.handlers.messages import (
    LARGEST,
    ONE_DESCRIPTOR,
    Connection,
    Ended,
    Failed,
    Gone,
    Launch,
    Launched,
    Message,
    Ready,
    Signal,
    Started,
    Starting,
    pack,
    read,
)
from svcd.handlers.nurse import _CODE
from svcd.handlers.nursery import TABLE_DESCRIPTOR
from svcd.handlers.spec import Identity, Spec, dump
from tests.real.conftest import NOBODY
from tests.real.daemon import PATIENCE, exchange
from tests.real.processes import Process, all_gone, wait_until
from tests.real.test_spawned_deaths import idle_cats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon


@pytest.mark.usefixtures("as_root")
def test_root_is_given_up(start: Callable[..., Daemon]) -> None:
    """With --uid a service with user= has that user, also when its launcher was lost; others are the daemon's."""
    daemon = start(
        "own 0/tcp bind=127.0.0.1 server=/bin/cat\n"
        "other 0/tcp bind=127.0.0.1 server=/bin/cat user=daemon\n"
        "mighty 0/tcp bind=127.0.0.1 server=/bin/cat user=root\n",
        twistd_arguments=["--uid", str(NOBODY), "--gid", str(NOBODY)],
    )
    assert Process(daemon.process.pid).status("Uid").split() == [str(NOBODY)] * 4
    groups = sorted(os.getgrouplist("nobody", NOBODY))
    wanted = {"own": (NOBODY, NOBODY, groups), "other": (1, 1, []), "mighty": (0, 0, [])}
    for count in (1, 2):
        for name, (user, group, others) in wanted.items():
            (client,) = idle_cats(daemon, 1, f"{name}/tcp")
            child = Process(daemon.handlers(f"{name}/tcp", count)[-1])
            assert child.status("Uid").split() == [str(user)] * 4
            assert child.status("Gid").split() == [str(group)] * 4
            assert sorted(map(int, child.status("Groups").split())) == others
            assert child.parent == daemon.launcher(f"{name}/tcp", count)
            assert exchange(client) == b""
            daemon.wait_event("end", f"{name}/tcp", count)
            os.kill(daemon.launcher(f"{name}/tcp", count), signal.SIGKILL)
            daemon.wait_for(lambda line, mark=f" launcher service={name}/tcp ": mark in line and "lost" in line, count)  # type: ignore[misc]
    assert daemon.stop() == 0


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_a_reload_after_root_was_given_up(start: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """What needs no new right can change, and a service can go and come back; else its old form goes on.

    The refusal says that a restart is needed. An upgrade would lose these services, and says so, too.
    """
    line = "other 0/tcp bind=127.0.0.1 server=/bin/cat user=daemon"
    first = f"@defaults bind=127.0.0.1\necho 0/tcp\n{line}\nmighty 0/tcp server=/bin/cat user=root\n"
    services = open_folder / "services"
    services.write_text(first)
    daemon = start(
        None,
        "--services",
        str(services),
        twistd_arguments=["--uid", str(NOBODY), "--gid", str(NOBODY), "--reactor", reactor],
    )
    count = served = 0

    def reload(text: str) -> str:
        nonlocal count
        services.write_text(text)
        daemon.process.send_signal(signal.SIGHUP)
        count += 1
        return daemon.wait_for(lambda line: " reload " in line, count)[-1]

    def check(user: int = 1) -> dict[str, str]:
        nonlocal served
        port = int(daemon.addresses("other/tcp")[-1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            served += 1
            pid = daemon.handlers("other/tcp", served)[-1]
            assert Process(pid).status("Uid").split() == [str(user)] * 4
        return daemon.wait_event("end", "other/tcp", served)[-1]

    check()
    changes = [
        "instances=7 description=mine only_from=127.0.0.1",
        "stderr=log",
        "log_on_success=HOST,PID,EXIT,TRAFFIC",
        "",
    ]
    for options in changes:
        assert "changed=1" in (told := reload(first.replace(line, f"{line} {options}")))
        assert "broken=0" in told
        assert ("in" in check()) == ("TRAFFIC" in options)
    for text in (first.replace(line, ""), first):
        assert "broken=0" in reload(text)
    daemon.wait_event("listen", "other/tcp", 2)
    check()
    for change in ("server=/bin/sh", "user=root", "env=A=b", "umask=000"):
        name = change.partition("=")[0]
        words = " ".join(word for word in line.split() if not word.startswith(f"{name}="))
        assert "broken=1" in reload(first.replace(line, f"{words} {change}"))
        broken = daemon.wait_event("broken", "other/tcp")[-1]
        assert "spawn-as-users.conf" in broken["reason"]
        assert "restart svcd" in broken["reason"]
        check()
    reload(first)
    assert "broken=1" in reload(f"{first}new 0/tcp server=/bin/cat user=daemon\n")
    assert daemon.stop() == 0


class Nursery:
    """A nursery that the test has started, as a daemon does, and everything that it has said."""

    def __init__(self, *specs: Spec) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        with theirs, os.fdopen(os.memfd_create("services"), "r+b") as table:
            table.write(dump(specs))
            table.flush()

            def give() -> None:
                os.dup2(table.fileno(), TABLE_DESCRIPTOR)

            code = _CODE.format(root=str(Path(svcd.__file__).parent.parent))
            words = [sys.executable, "-I", "-S", "-c", code]
            self.process = subprocess.Popen(
                words, stdin=theirs.fileno(), preexec_fn=give, pass_fds=[TABLE_DESCRIPTOR], env={}
            )

    def ask(self, packet: bytes) -> None:
        """Say something to it."""
        self.socket.send(packet)

    def hear(self) -> tuple[Message, socket.socket | None]:
        """What it says next, and the launcher's socket if there is one."""
        packet, rights, _, _ = self.socket.recvmsg(LARGEST, socket.CMSG_SPACE(ONE_DESCRIPTOR.size))
        if not rights:
            return read(packet), None
        launcher = socket.socket(fileno=ONE_DESCRIPTOR.unpack(rights[0][2])[0])
        launcher.settimeout(PATIENCE)
        return read(packet), launcher

    def end(self) -> None:
        """Leave it, as a daemon does that ends."""
        self.socket.close()
        assert self.process.wait(PATIENCE) == 0


CAT = Spec("cat/tcp", Identity(), {"A": "1"}, "/bin/cat", ("cat",))


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    """A nursery with a table of one service."""
    made = Nursery(CAT)
    yield made
    made.end()


def test_a_nursery_does_what_its_table_says(nursery: Nursery) -> None:
    """Junk, orders for others and rows that it has not get no process; an order for its row does."""
    junk = [
        b"",
        b"L",
        b"L\0",
        b"Lshort and long at once",
        b"\xff" * 1000,
        pack(Launch(0)) + b"x",
        pack(Connection(1, b"A=1")),
    ]
    junk += [pack(Signal(1, os.getpid(), signal.SIGKILL)), pack(Gone(1, 1)), pack(Ready(b"/bin/sh")), b"x" * LARGEST]
    for packet in junk:
        if packet:
            nursery.ask(packet)
    with contextlib.suppress(OSError):
        # A descriptor that it has not asked for is dropped.
        nursery.socket.sendmsg([b"?"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ONE_DESCRIPTOR.pack(2))])
    for row in (1, 2**32 - 1):
        nursery.ask(pack(Launch(row)))
        assert nursery.hear() == (Launched(row, 0, errno.EINVAL), None)
    process = Process(nursery.process.pid)
    assert process.children() == []
    few = len(process.descriptors())
    nursery.ask(pack(Launch(0)))
    launched, launcher = nursery.hear()
    assert isinstance(launched, Launched)
    assert launcher is not None
    with launcher:
        assert read(launcher.recv(LARGEST)) == Ready()
        assert process.children() == [launched.pid]
        # Its own copies of the sockets are closed when it has told of them.
        wait_until(lambda: len(process.descriptors()) == few, "the nursery closes what it has given away")
    assert nursery.hear() == (Gone(launched.pid, 0), None)


def test_a_launcher_passes_on_what_belongs_to_a_connection(nursery: Nursery) -> None:
    """What steers a program's loading or comes from elsewhere is dropped from a connection's environment."""
    nursery.ask(pack(Launch(0)))
    launched, launcher = nursery.hear()
    assert isinstance(launched, Launched)
    assert launcher is not None
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    variables = (
        b"PROTO=TCP\0TCPREMOTEIP=192.0.2.1\0REMOTE_HOST=x\0LD_PRELOAD=/tmp/x.so\0PATH=/tmp\0A=2\0IFS=x\0=\0PROTOX=1"
    )
    with launcher, ours:
        assert read(launcher.recv(LARGEST)) == Ready()
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ONE_DESCRIPTOR.pack(theirs.fileno()))]
            launcher.sendmsg([pack(Connection(7, variables))], rights)
            assert read(launcher.recv(LARGEST)) == Starting(7)
            started = read(launcher.recv(LARGEST))
        assert isinstance(started, Started)
        child = Process(started.pid)
        # Its socket is its own: signals go to handlers alone.
        for pid in (0, -1, launched.pid):
            launcher.send(pack(Signal(99, pid, signal.SIGKILL)))
        ours.sendall(b"?")
        assert ours.recv(1) == b"?"
        assert child.environment() == {"A": "1", "PROTO": "TCP", "TCPREMOTEIP": "192.0.2.1", "REMOTE_HOST": "x"}
        assert list(child.descriptors()) == [0, 1, 2]
        # Without a descriptor there is nothing to serve.
        launcher.send(pack(Connection(8, b"")))
        assert read(launcher.recv(LARGEST)) == Failed(8, errno.EMFILE)
        ours.shutdown(socket.SHUT_WR)
        ended = read(launcher.recv(LARGEST))
        assert isinstance(ended, Ended)
        assert ended[:2] == (7, 0)
    # With its daemon it ends.
    assert nursery.hear() == (Gone(launched.pid, 0), None)


def test_a_nursery_hears_of_orphans(nursery: Nursery) -> None:
    """A handler whose launcher was killed is the nursery's: it may end it, tells its end, and leaves no zombie."""
    nursery.ask(pack(Launch(0)))
    launched, launcher = nursery.hear()
    assert isinstance(launched, Launched)
    assert launcher is not None
    ours, theirs = socket.socketpair()
    with launcher, ours:
        assert read(launcher.recv(LARGEST)) == Ready()
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ONE_DESCRIPTOR.pack(theirs.fileno()))]
            launcher.sendmsg([pack(Connection(7, b""))], rights)
        assert read(launcher.recv(LARGEST)) == Starting(7)
        started = read(launcher.recv(LARGEST))
        assert isinstance(started, Started)
        # While it has a launcher, it is the launcher's to end; and a launcher is no handler.
        for pid in (started.pid, launched.pid, 0, -1):
            nursery.ask(pack(Signal(7, pid, signal.SIGKILL)))
        launcher.send(pack(Connection(8, b"")))
        read(launcher.recv(LARGEST))
        os.kill(launched.pid, signal.SIGKILL)
        assert nursery.hear() == (Gone(launched.pid, signal.SIGKILL), None)
        nursery.ask(pack(Signal(7, started.pid, signal.SIGSTOP)))
        nursery.ask(pack(Signal(7, started.pid, signal.SIGTERM)))
        assert nursery.hear() == (Gone(started.pid, signal.SIGTERM), None)
    assert Process(nursery.process.pid).children() == []


def test_a_launcher_that_can_not_become_its_user(nursery: Nursery) -> None:
    """A launcher that can't have its identity runs nothing: it says why, and ends."""
    nursery.end()
    row = Identity(user=1, group=1, groups=()) if os.geteuid() else Identity(folder="/nowhere")
    nursery.__init__(CAT._replace(identity=row))  # type: ignore[misc]
    nursery.ask(pack(Launch(0)))
    launched, launcher = nursery.hear()
    assert isinstance(launched, Launched)
    assert launcher is not None
    with launcher:
        ready = read(launcher.recv(LARGEST))
        assert isinstance(ready, Ready)
        assert b"can't take" in ready.problem
        assert launcher.recv(LARGEST) == b""
    assert nursery.hear() == (Gone(launched.pid, os.EX_CONFIG << 8), None)
    all_gone([Process(launched.pid)])
