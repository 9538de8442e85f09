"""Privileges: services of other users after root is given up, and the orders that zygotes and launchers refuse."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from svcd.process.launch_options import launcher_options
from svcd.process.messages import (
    FD_STRUCT,
    MAX_PACKET,
    ChildExited,
    Connection,
    Ended,
    Failed,
    LauncherStarted,
    Message,
    Ready,
    Signal,
    Started,
    Starting,
    StartLauncher,
    pack,
    parse,
)
from svcd.process.spec import LaunchSpec, ProcessCredentials, ResourceLimit, dump
from svcd.process.zygote import TABLE_FD
from svcd.process.zygote_client import _CODE
from tests.real.conftest import NOBODY
from tests.real.daemon import PATIENCE, environment, exchange
from tests.real.processes import Process, all_gone, wait_until
from tests.real.test_spawned_deaths import idle_cats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon


@pytest.mark.usefixtures("as_root")
def test_root_is_given_up(start: Callable[..., Daemon]) -> None:
    """With --uid a service with user= runs as that user, also with a new launcher; others run as the daemon's user."""
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


#: A port that only root can open, and that is not in use.
LOW_PORT = 871
#: Options that a daemon without root can't apply for a service with user=.
REFUSED = [
    "server=/bin/sh",
    "user=root",
    "env=LD_PRELOAD=/tmp/x.so",
    "umask=0000",
    "nice=-1",
    "cwd=/tmp",
    "group=root",
    "rlimit_cpu=61s",
]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("reactor", ["uv", "epoll"])
def test_reload_after_root_was_given_up(start: Callable[..., Daemon], open_folder: Path, reactor: str) -> None:
    """Changes without new privileges apply, and a service can be removed and restored; otherwise its old form goes on.

    The refusal has the location of the option that changed, and asks for a restart.
    """
    line = "other 0/tcp bind=127.0.0.1 server=/bin/cat user=daemon env=X=y umask=027 rlimit_cpu=60"
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

    def check(options: str = "") -> dict[str, str]:
        nonlocal served
        port = int(daemon.addresses("other/tcp")[-1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            served += 1
            pid = daemon.handlers("other/tcp", served)[-1]
            process = Process(pid)
            assert process.status("Uid").split() == ["1"] * 4
            assert process.status("Umask").strip() == ("0077" if "umask=077" in options else "0027")
            assert process.status("NoNewPrivs").strip() == ("1" if "no_new_privs" in options else "0")
            assert os.getpriority(os.PRIO_PROCESS, pid) - usual == (5 if "nice=5" in options else 0)
            limits = process.limits()
            assert limits["cpu time"] == (("40",) * 2 if "rlimit_cpu=40" in options else ("60",) * 2)
            assert (limits["open files"] == ("32", "32")) == ("rlimit_nofile=32" in options)
            assert process.environment()["X"] == "y"
        return daemon.wait_event("end", "other/tcp", served)[-1]

    usual = os.getpriority(os.PRIO_PROCESS, daemon.process.pid)
    check()
    changes = [
        "instances=7 description=mine only_from=127.0.0.1",
        "stderr=log",
        "log_on_success=HOST,PID,EXIT,TRAFFIC",
        "umask=077 nice=5 no_new_privs=yes rlimit_cpu=40 rlimit_nofile=32",
        "stderr=log umask=077 nice=5 rlimit_cpu=40 rlimit_nofile=32",
        "",
    ]
    for options in changes:
        assert "changed=1" in (told := reload(first.replace(line, _changed(line, options))))
        assert "broken=0" in told
        assert ("in" in check(options)) == ("TRAFFIC" in options)
    for text in (first.replace(line, ""), first):
        assert "broken=0" in reload(text)
    daemon.wait_event("listen", "other/tcp", 2)
    check()
    for times, change in enumerate(REFUSED, 1):
        text = first.replace(line, _changed(line, change))
        assert "broken=1" in reload(text)
        reason = daemon.wait_event("broken", "other/tcp", times)[-1]["reason"]
        name, _, value = change.partition("=")
        number = next(n for n, each in enumerate(text.splitlines(), 1) if each.startswith("other "))
        column = text.splitlines()[number - 1].index(change) + len(name) + 2
        place = (
            f"{services}:{number}:{column}: {name}: {value} gives handlers rights that they did not have at the start; "
        )
        assert reason.startswith(place)
        assert "spawn-as-users.conf" in reason
        assert "restart svcd" in reason
        check()
    reload(first)
    assert "broken=1" in reload(f"{first}new 0/tcp server=/bin/cat user=daemon\n")
    assert daemon.stop() == 0


@pytest.mark.usefixtures("as_root")
def test_low_port_after_root_was_given_up(start: Callable[..., Daemon], open_folder: Path) -> None:
    """It can't be opened any more: the reason asks for a restart, for new and restored services and for retries."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= LOW_PORT:
        pytest.skip("every user can open low ports here")
    services = open_folder / "services"
    first = "@defaults bind=127.0.0.1\necho 0/tcp\n"
    services.write_text(first)
    daemon = start(None, "--services", str(services), twistd_arguments=["--uid", str(NOBODY)])
    services.write_text(f"{first}low {LOW_PORT}/tcp echo\nlocal /svcd-test-{os.getpid()}/unix echo\n")
    daemon.process.send_signal(signal.SIGHUP)
    for service in ("low/tcp", "local/unix"):
        reason = daemon.wait_event("broken", service)[0]["reason"]
        assert "Permission denied; root was given up at the start (--uid, " in reason
        assert "restart svcd" in reason
        assert "--port-offset" not in reason
    assert daemon.stop() == 0


@pytest.mark.usefixtures("as_root")
def test_a_python_that_the_user_can_not_execute(start: Callable[..., Daemon], open_folder: Path) -> None:
    """A launcher and a new daemon can't be started then; the reasons name the file."""
    # As an interpreter below /root: it was started as root.
    private = open_folder / "private"
    python = private / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    cfg = Path(sys.prefix) / "pyvenv.cfg"
    if cfg.exists():
        (private / "pyvenv.cfg").write_text(cfg.read_text())
        (private / "lib").symlink_to(Path(sys.prefix) / "lib")
    private.chmod(0o700)
    services, control = open_folder / "services", open_folder / "control"
    services.write_text("@defaults bind=127.0.0.1\necho 0/tcp\n")
    daemon = start(
        None,
        *("--services", str(services), "--control", str(control)),
        before=["/bin/sh", "-c", 'shift; exec "$0" "$@"', str(python)],
        twistd_arguments=["--uid", str(NOBODY)],
    )
    services.write_text("@defaults bind=127.0.0.1\necho 0/tcp\ncat 0/tcp server=/bin/cat\n")
    daemon.process.send_signal(signal.SIGHUP)
    reason = daemon.wait_event("broken", "cat/tcp")[0]["reason"]
    assert f"can't start its launcher: {python}: Permission denied" in reason
    words = [sys.executable, "-m", "svcd", "--control", str(control), "upgrade"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert f"a new daemon can't be started: {python}: Permission denied" in done.stderr
    assert daemon.stop() == 0


def _changed(line: str, options: str) -> str:
    """Return a line with other values of some options."""
    names = {word.partition("=")[0] for word in options.split()}
    return " ".join([*(word for word in line.split() if word.partition("=")[0] not in names), *options.split()])


class Zygote:
    """A zygote that the test has started as a daemon does, and its reports."""

    def __init__(self, *specs: LaunchSpec) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE)
        with theirs, os.fdopen(os.memfd_create("services"), "r+b") as table:
            table.write(dump(specs))
            table.flush()

            def give() -> None:
                os.dup2(table.fileno(), TABLE_FD)

            code = _CODE.format(root=str(Path(svcd.__file__).parent.parent))
            words = [sys.executable, "-I", "-S", "-c", code]
            self.process = subprocess.Popen(words, stdin=theirs.fileno(), preexec_fn=give, pass_fds=[TABLE_FD], env={})

    def send(self, packet: bytes) -> None:
        """Send an order."""
        self.socket.send(packet)

    def receive(self) -> tuple[Message, socket.socket | None]:
        """Return the next report, and the socket of the launcher if the report has one."""
        packet, rights, _, _ = self.socket.recvmsg(MAX_PACKET, socket.CMSG_SPACE(FD_STRUCT.size))
        if not rights:
            return parse(packet), None
        launcher = socket.socket(fileno=FD_STRUCT.unpack(rights[0][2])[0])
        launcher.settimeout(PATIENCE)
        return parse(packet), launcher

    def end(self) -> None:
        """Close its socket, as a daemon does that ends."""
        self.socket.close()
        assert self.process.wait(PATIENCE) == 0


CAT = LaunchSpec("cat/tcp", ProcessCredentials(), {"A": "1"}, "/bin/cat", ("cat",))


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    """Return a zygote with a table of one service."""
    made = Zygote(CAT)
    yield made
    made.end()


def test_zygote_starts_services_of_its_table(zygote: Zygote) -> None:
    """Junk, orders for other roles and for absent rows start no process; an order for a row of the table does."""
    junk = [
        b"",
        b"L",
        b"L\0",
        b"Lshort and long at once",
        b"\xff" * 1000,
        pack(StartLauncher(0)) + b"x",
        pack(Connection(1, b"A=1")),
    ]
    junk += [
        pack(Signal(1, os.getpid(), signal.SIGKILL)),
        pack(ChildExited(1, 1)),
        pack(Ready(b"/bin/sh")),
        b"x" * MAX_PACKET,
    ]
    for packet in junk:
        if packet:
            zygote.send(packet)
    with contextlib.suppress(OSError):
        # An unexpected descriptor is closed.
        zygote.socket.sendmsg([b"?"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD_STRUCT.pack(2))])
    for row in (1, 2**32 - 1):
        zygote.send(pack(StartLauncher(row)))
        assert zygote.receive() == (LauncherStarted(row, 0, errno.EINVAL), None)
    process = Process(zygote.process.pid)
    assert process.children() == []
    few = len(process.descriptors())
    zygote.send(pack(StartLauncher(0)))
    launched, launcher = zygote.receive()
    assert isinstance(launched, LauncherStarted)
    assert launcher is not None
    with launcher:
        assert parse(launcher.recv(MAX_PACKET)) == Ready()
        assert process.children() == [launched.pid]
        # It closes its copies of the sockets after the report.
        wait_until(lambda: len(process.descriptors()) == few, "the zygote closes what it has given away")
    assert zygote.receive() == (ChildExited(launched.pid, 0), None)


@pytest.mark.parametrize(
    "change",
    [
        {"nice": -1},
        {"nice": 2**31 - 1},
        {"umask": 0o002},
        {"no_new_privs": False},
        {"handler_limits": (ResourceLimit(resource.RLIMIT_CPU, 60, 61),)},
        {"handler_limits": ()},
    ],
)
def test_zygote_limits_orders_to_its_table(zygote: Zygote, change: dict[str, object]) -> None:
    """Orders for more privileges than in the table are refused with an errno; orders for fewer are executed."""
    zygote.end()
    limits = (ResourceLimit(resource.RLIMIT_CPU, 60, 60),)
    identity = ProcessCredentials(umask=0o022, no_new_privs=True, handler_limits=limits)
    row = CAT._replace(identity=identity)
    zygote.__init__(row)  # type: ignore[misc]
    wanted = row._replace(identity=identity._replace(**change))  # type: ignore[arg-type]
    zygote.send(pack(StartLauncher(0, launcher_options(wanted))))
    assert zygote.receive() == (LauncherStarted(0, 0, errno.EPERM), None)
    assert Process(zygote.process.pid).children() == []
    less = identity._replace(umask=0o077, nice=3, handler_limits=(ResourceLimit(resource.RLIMIT_CPU, 7, 8),))
    zygote.send(pack(StartLauncher(0, launcher_options(row._replace(identity=less)))))
    launched, launcher = zygote.receive()
    assert isinstance(launched, LauncherStarted)
    assert launcher is not None
    with launcher:
        assert parse(launcher.recv(MAX_PACKET)) == Ready()
        process = Process(launched.pid)
        assert process.status("Umask").strip() == "0077"
        assert os.getpriority(os.PRIO_PROCESS, launched.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert zygote.receive() == (ChildExited(launched.pid, 0), None)


def test_launcher_filters_the_environment(zygote: Zygote) -> None:
    """Variables that change the loading of programs, or are not of a connection, are dropped from its environment."""
    zygote.send(pack(StartLauncher(0)))
    launched, launcher = zygote.receive()
    assert isinstance(launched, LauncherStarted)
    assert launcher is not None
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    variables = (
        b"PROTO=TCP\0TCPREMOTEIP=192.0.2.1\0REMOTE_HOST=x\0LD_PRELOAD=/tmp/x.so\0PATH=/tmp\0A=2\0IFS=x\0=\0PROTOX=1"
    )
    with launcher, ours:
        assert parse(launcher.recv(MAX_PACKET)) == Ready()
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD_STRUCT.pack(theirs.fileno()))]
            launcher.sendmsg([pack(Connection(7, variables))], rights)
            assert parse(launcher.recv(MAX_PACKET)) == Starting(7)
            started = parse(launcher.recv(MAX_PACKET))
        assert isinstance(started, Started)
        child = Process(started.pid)
        # It sends signals to handlers only.
        for pid in (0, -1, launched.pid):
            launcher.send(pack(Signal(99, pid, signal.SIGKILL)))
        ours.sendall(b"?")
        assert ours.recv(1) == b"?"
        assert child.environment() == {"A": "1", "PROTO": "TCP", "TCPREMOTEIP": "192.0.2.1", "REMOTE_HOST": "x"}
        assert list(child.descriptors()) == [0, 1, 2]
        # An order without a descriptor starts no handler.
        launcher.send(pack(Connection(8, b"")))
        assert parse(launcher.recv(MAX_PACKET)) == Failed(8, errno.EMFILE)
        ours.shutdown(socket.SHUT_WR)
        ended = parse(launcher.recv(MAX_PACKET))
        assert isinstance(ended, Ended)
        assert ended[:2] == (7, 0)
    # It ends with its daemon.
    assert zygote.receive() == (ChildExited(launched.pid, 0), None)


def test_zygote_reaps_orphans(zygote: Zygote) -> None:
    """A handler whose launcher was killed becomes a child of the zygote, which can kill it, and reports its exit."""
    zygote.send(pack(StartLauncher(0)))
    launched, launcher = zygote.receive()
    assert isinstance(launched, LauncherStarted)
    assert launcher is not None
    ours, theirs = socket.socketpair()
    with launcher, ours:
        assert parse(launcher.recv(MAX_PACKET)) == Ready()
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD_STRUCT.pack(theirs.fileno()))]
            launcher.sendmsg([pack(Connection(7, b""))], rights)
        assert parse(launcher.recv(MAX_PACKET)) == Starting(7)
        started = parse(launcher.recv(MAX_PACKET))
        assert isinstance(started, Started)
        # The zygote does not end a handler that has a launcher, and no launcher.
        for pid in (started.pid, launched.pid, 0, -1):
            zygote.send(pack(Signal(7, pid, signal.SIGKILL)))
        launcher.send(pack(Connection(8, b"")))
        parse(launcher.recv(MAX_PACKET))
        # The zygote executes its orders in sequence: after a later order it has read these.
        zygote.send(pack(StartLauncher(0)))
        other, its_socket = zygote.receive()
        assert isinstance(other, LauncherStarted)
        assert its_socket is not None
        its_socket.close()
        assert zygote.receive() == (ChildExited(other.pid, 0), None)
        os.kill(launched.pid, signal.SIGKILL)
        assert zygote.receive() == (ChildExited(launched.pid, signal.SIGKILL), None)
        zygote.send(pack(Signal(7, started.pid, signal.SIGSTOP)))
        zygote.send(pack(Signal(7, started.pid, signal.SIGTERM)))
        assert zygote.receive() == (ChildExited(started.pid, signal.SIGTERM), None)
    assert Process(zygote.process.pid).children() == []


def test_launcher_that_can_not_change_its_user(zygote: Zygote) -> None:
    """A launcher that can't set its credentials runs nothing: it reports the reason, and ends."""
    zygote.end()
    row = ProcessCredentials(user=1, group=1, groups=()) if os.geteuid() else ProcessCredentials(folder="/nowhere")
    zygote.__init__(CAT._replace(identity=row))  # type: ignore[misc]
    zygote.send(pack(StartLauncher(0)))
    launched, launcher = zygote.receive()
    assert isinstance(launched, LauncherStarted)
    assert launcher is not None
    with launcher:
        ready = parse(launcher.recv(MAX_PACKET))
        assert isinstance(ready, Ready)
        assert b"can't set" in ready.problem
        assert launcher.recv(MAX_PACKET) == b""
    assert zygote.receive() == (ChildExited(launched.pid, os.EX_CONFIG << 8), None)
    all_gone([Process(launched.pid)])
