"""Upgrades without processes: sockets of the old daemon, pid file and time limits."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
from twisted.internet.defer import maybeDeferred
from twisted.python import usage

from svcd.config.endpoints import DesiredServices, check
from svcd.connections.wait_port import WaitPort
from svcd.control.commands import Commands
from svcd.daemon import twistd
from svcd.daemon.twistd import Twistd, check_account
from svcd.errors import CommandError, StoppingError
from svcd.model import ConfigProblem, SourceLocation
from svcd.sockets.acquire import FdStore, SocketPool
from svcd.sockets.activation import InheritedSocket
from svcd.supervisor import upgrader as upgrading
from svcd.supervisor.broken_services import BrokenService
from svcd.supervisor.daemon_account import FOLLOWS_USER
from svcd.supervisor.reload import Reloader
from svcd.supervisor.upgrader import Upgrader
from svcd.upgrade.channel import CHANNEL_VARIABLE, OldDaemon
from svcd.upgrade.handover import HANDOVER_VARIABLE, Handover, write_handover
from svcd.upgrade.new_daemon import CommandLine
from tests.doubles import FakeFiles, FakeMachine, LogCatcher, ManagerDouble, config_of, open_all, unused_port
from tests.unit.test_supervisor import _Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = CommandLine(("svcd",), "/", {}, (1024, 4096), foreground=True)


class _FakeNewDaemon:
    """New daemon controlled by the test."""

    def __init__(
        self, _reactor: object, _program: CommandLine, sockets: list[Any], upgrade_listener: Any, unanswered: Any
    ) -> None:
        self.unanswered = unanswered
        self.names = [name for name, _ in sockets]
        self.upgrade_listener = upgrade_listener
        self.alive = True
        self.faults = ["more/tcp: can't listen"]
        self.calls: list[str] = []

    def send_go(self, held: Any) -> None:
        """Record the call."""
        self.calls.append(f"go {held}")

    def release(self) -> bool:
        """Record the call."""
        self.calls.append("leave")
        return self.alive

    def kill(self) -> str:
        """Record the call."""
        self.calls.append("end")
        return "last words"


class _FakeListener:
    """ExtraListener that records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return no sockets."""
        return []

    def suspend(self) -> None:
        """Record the call."""
        self.calls.append("suspend")

    def resume(self) -> None:
        """Record the call."""
        self.calls.append("resume")

    def close_sockets(self) -> None:
        """Record the call."""
        self.calls.append("close_sockets")


class _Runner:
    """ProcessOwner that records its calls."""

    def __init__(self) -> None:
        self.upgrade_blocker = ""
        self.calls: list[str] = []

    def upgraded(self) -> None:
        """Record the call."""
        self.calls.append("replaced")

    def upgrade_failed(self) -> None:
        """Record the call."""
        self.calls.append("kept")


class _OldDaemon:
    """Old daemon, which an upgrade replaces."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "echo"
        self.daemon = _Daemon(f"echo {self.path}/unix mode=0600\necho 0/udp4 bind=127.0.0.1\n")
        self.daemon.start()
        self.made: list[_FakeNewDaemon] = []
        self.stopped: list[bool] = []
        self.runner, self.listener = _Runner(), _FakeListener()

        def make(*arguments: Any) -> _FakeNewDaemon:
            self.made.append(_FakeNewDaemon(*arguments))
            return self.made[-1]

        monkeypatch.setattr(upgrading, "NewDaemon", make)
        supervisor = self.daemon.supervisor
        self._first = supervisor.endpoints
        self.reloader = Reloader(
            supervisor,
            lambda _path: DesiredServices(supervisor.endpoints),
            maybeDeferred,
            lambda services: DesiredServices(tuple(each for each in self._first if each.service in services)),
        )
        self.upgrader = Upgrader(
            self.daemon.reactor, supervisor, self.reloader, PROGRAM, self.runner, self.stopped.append
        )
        self.upgrader.also.append(self.listener)
        self.answers: list[Any] = []

    def upgrade(self, **how: Any) -> _FakeNewDaemon:
        """Begin an upgrade; its result is added to `answers`."""
        self.upgrader.upgrade(**how).addBoth(self.answers.append)
        return self.made[-1]

    @property
    def reason(self) -> str:
        """The error text of the last upgrade."""
        error = self.answers[-1].value
        assert isinstance(error, CommandError)
        return str(error)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_OldDaemon]:
    """An old daemon with a UNIX stream socket and a UDP socket."""
    made = _OldDaemon(tmp_path, monkeypatch)
    yield made
    made.daemon.supervisor.stop_listening()


def test_a_new_daemon_takes_over(old: _OldDaemon) -> None:
    """The old daemon accepts until the new daemon is ready, leaves its socket files, and then stops."""
    status = old.path.stat()
    new = old.upgrade(now=True)
    assert new.names == [
        f"svcd/{status.st_dev:x}.{status.st_ino:x}/echo/unix%40{old.path}",
        "svcd/-/echo/udp4%40127.0.0.1%3A0",
    ]
    assert len(old.daemon.ports) == 2
    new.upgrade_listener.new_daemon_ready()
    assert (new.calls, old.listener.calls, old.daemon.ports) == (["go {}"], ["suspend"], [])
    new.upgrade_listener.new_daemon_serves(4711, frozenset())
    assert (old.answers, old.listener.calls, old.runner.calls) == ([], ["suspend"], [])
    with LogCatcher() as log:
        old.daemon.reactor.advance(0.5)
    faults = ["more/tcp: can't listen"]
    assert old.answers == [{"pid": 4711, "before": os.getpid(), "connections": 0, "faults": faults}]
    (event,) = log.named("upgrade")
    assert (event["pid"], event["connections"]) == (4711, 0)
    assert (old.listener.calls[-1], old.runner.calls) == ("close_sockets", ["replaced"])
    assert old.path.is_socket()
    old.daemon.reactor.advance(0)
    assert old.stopped == [False]
    old.daemon.reactor.advance(100)
    assert len(old.answers) == 1


def test_late_new_daemon_is_killed(old: _OldDaemon) -> None:
    """A new daemon that is not ready in time is killed; the old daemon accepts all the time."""
    new = old.upgrade(seconds=5)
    old.daemon.reactor.advance(4.9)
    assert not old.answers
    with LogCatcher() as log:
        old.daemon.reactor.advance(0.2)
    assert old.reason == "last words\nthe new daemon did not start: it was not ready within 5 seconds"
    assert [event["text"] for event in log.named("problem")] == ["last words"]
    assert [event["reason"] for event in log.named("upgrade-failed")] == ["it was not ready within 5 seconds"]
    assert (new.calls, old.listener.calls, old.runner.calls) == (["end"], [], ["kept"])
    assert len(old.daemon.ports) == 2


def test_new_daemon_lost_before_it_serves(old: _OldDaemon) -> None:
    """If the new daemon exits before it serves, the old daemon accepts again and restores its permissions."""
    new = old.upgrade()
    new.upgrade_listener.new_daemon_ready()
    old.path.chmod(0o666)
    new.upgrade_listener.new_daemon_lost("it was ended by SIGKILL", "", -9)
    assert old.reason == "the new daemon did not start: it was ended by SIGKILL"
    assert old.answers[-1].value.code == "refused"
    assert old.listener.calls == ["suspend", "resume"]
    assert len(old.daemon.ports) == 2
    assert old.path.stat().st_mode & 0o777 == 0o600
    # The old daemon removes its socket files at the stop again.
    old.daemon.supervisor.stop_listening()
    assert not old.path.exists()


class _Port(WaitPort):
    """Port whose socket a process holds, or is about to hold."""

    busy = True
    process = 0

    def __init__(self, old: _OldDaemon) -> None:
        listener = old.daemon.supervisor.listeners_of("echo/udp4")[0]
        super().__init__(old.daemon.reactor, listener.opened.socket, None)  # type: ignore[arg-type]
        listener._attach = lambda _port: lambda: None
        listener.port = self
        self.inode = listener.inode
        self.calls: list[str] = []

    def withdraw(self) -> None:
        """Record the call."""
        self.calls.append("withdraw")

    def dismiss(self) -> None:
        """Record the call."""
        self.calls.append("dismiss")

    def resume(self) -> None:
        """Do nothing."""


def test_process_with_a_socket_is_handed_over(old: _OldDaemon) -> None:
    """The new daemon gets the pid of a process with a socket; the process is ended if no service has the socket."""
    port = _Port(old)
    port.process = 815
    new = old.upgrade()
    new.upgrade_listener.new_daemon_ready()
    assert new.calls == [f"go {{{port.inode}: 815}}"]
    new.upgrade_listener.new_daemon_serves(4711, frozenset({port.inode, 1}))
    assert port.calls == []
    old.daemon.reactor.advance(0.5)
    assert port.calls == ["dismiss"]


def test_upgrade_waits_for_a_process_that_is_being_started(old: _OldDaemon) -> None:
    """The new daemon serves once the pid is known, or the start of the process has been cancelled."""
    port = _Port(old)
    new = old.upgrade(seconds=5)
    new.upgrade_listener.new_daemon_ready()
    old.daemon.reactor.advance(0.5)
    assert new.calls == []
    assert set(port.calls) == {"withdraw"}
    port.busy = False
    old.daemon.reactor.advance(0.1)
    assert new.calls == ["go {}"]


def test_a_process_that_is_never_started_ends_the_upgrade(old: _OldDaemon) -> None:
    """The upgrade fails after its time limit; the old daemon continues."""
    _Port(old)
    new = old.upgrade(seconds=5)
    new.upgrade_listener.new_daemon_ready()
    old.daemon.reactor.pump([0.1] * 60)
    assert new.calls == ["end"]
    assert "not ready within 5 seconds" in old.reason


@pytest.mark.parametrize(("status", "code"), [(78, "config"), (71, "config"), (1, "refused")])
def test_error_code_by_exit_status_of_the_new_daemon(old: _OldDaemon, status: int, code: str) -> None:
    """The exit status of the new daemon tells errors of the configuration from others."""
    old.upgrade().upgrade_listener.new_daemon_lost(f"it has ended, with status {status}", "why", status)
    assert old.answers[-1].value.code == code


def test_stop_when_the_new_daemon_is_ready(old: _OldDaemon) -> None:
    """If the old daemon is stopped while the new daemon starts, both stop."""
    new = old.upgrade()
    old.daemon.supervisor.stop_listening()
    new.upgrade_listener.new_daemon_ready()
    assert "the daemon is stopping" in old.reason
    assert new.calls == ["end"]
    assert old.upgrader.upgrade().addBoth(old.answers.append)
    assert old.reason == str(StoppingError())


@pytest.mark.parametrize("ready", [False, True])
def test_stop_kills_a_new_daemon_that_does_not_serve(old: _OldDaemon, ready: bool) -> None:
    """The stop kills a new daemon at any time before it serves; it would take over otherwise."""
    new = old.upgrade()
    if ready:
        new.upgrade_listener.new_daemon_ready()
    old.upgrader.stopService()
    assert (new.calls[-1], "the daemon is stopping" in old.reason) == ("end", True)
    old.daemon.reactor.advance(100)
    assert len(old.answers) == 1


def test_stop_spares_a_new_daemon_that_serves(old: _OldDaemon) -> None:
    """A new daemon that serves has the pid file: the stop applies to the old daemon only."""
    new = old.upgrade()
    new.upgrade_listener.new_daemon_ready()
    new.upgrade_listener.new_daemon_serves(4711, frozenset())
    old.upgrader.stopService()
    assert (new.calls, old.answers[-1]["pid"]) == (["go {}", "leave"], 4711)


def test_new_daemon_lost_in_its_probation(old: _OldDaemon) -> None:
    """If the new daemon exits right after it began to serve, the old daemon still has its sockets and continues."""
    new = old.upgrade()
    new.upgrade_listener.new_daemon_ready()
    new.upgrade_listener.new_daemon_serves(4711, frozenset())
    new.alive = False
    old.daemon.reactor.advance(0.5)
    assert (old.answers, old.daemon.ports) == ([], [])
    new.upgrade_listener.new_daemon_lost("it has ended as soon as it served", "", 1)
    assert "as soon as it served" in old.reason
    assert (old.listener.calls, old.runner.calls) == (["suspend", "resume"], ["kept"])
    assert len(old.daemon.ports) == 2


def test_nothing_changes_during_an_upgrade(old: _OldDaemon) -> None:
    """enable and disable wait until an upgrade ends: they work after a failed one and fail after a successful one."""
    commands = Commands(old.daemon.supervisor, old.reloader, old.upgrader, old.stopped.append, {})
    table = commands.table()
    answers: list[Any] = []
    new = old.upgrade()
    for command in ("disable", "enable"):
        cast("Any", table[command](service="echo/udp4")).addBoth(answers.append)
    assert (answers, len(old.daemon.ports)) == ([], 2)
    new.upgrade_listener.new_daemon_lost("it has ended, with status 1", "", 1)
    assert {answer["state"] for answer in answers} == {"disabled", "on"}
    assert len(old.daemon.ports) == 2
    new = old.upgrade()
    cast("Any", table["disable"](service="echo/udp4")).addBoth(answers.append)
    new.upgrade_listener.new_daemon_ready()
    new.upgrade_listener.new_daemon_serves(4711, frozenset())
    old.daemon.reactor.advance(0.5)
    assert answers[-1].value.code == "busy"


def test_reload_waits_for_an_upgrade(old: _OldDaemon) -> None:
    """A reload waits until an upgrade ends, and fails if the daemon has been replaced."""
    new = old.upgrade()
    done: list[Any] = []
    old.reloader.reload().addBoth(done.append)
    assert not done
    new.upgrade_listener.new_daemon_ready()
    new.upgrade_listener.new_daemon_serves(4711, frozenset())
    old.daemon.reactor.advance(0.5)
    assert done[0].value.code == "busy"


def test_upgrade_is_refused(old: _OldDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade is refused for an invalid time, a supervised process and a program that can't be started."""
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(CommandError, match="the timeout of an upgrade is at most"):
            old.upgrader.upgrade(seconds=seconds)
    old.runner.upgrade_blocker = "no"
    old.upgrader.upgrade().addBoth(old.answers.append)
    assert old.reason == "no"
    old.runner.upgrade_blocker = ""

    def no_more(*_arguments: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied", "/bin/python")

    monkeypatch.setattr(upgrading, "NewDaemon", no_more)
    old.upgrader.upgrade().addBoth(old.answers.append)
    assert old.reason == "a new daemon can't be started: /bin/python: Permission denied"
    assert len(old.daemon.ports) == 2


def test_shared_socket_pool_keeps_files_of_the_old_daemon(tmp_path: Path) -> None:
    """A new daemon removes no socket file that the old one may need, and can listen next to the sockets of the old."""
    # The port has to be free on all addresses.
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", unused_port())) as narrow:
        local.bind(str(tmp_path / "gone"))
        local.listen()
        status = (tmp_path / "gone").stat()
        names = [f"svcd/{status.st_dev:x}.{status.st_ino:x}/gone", "svcd/-/"]
        socket_pool = SocketPool(
            InheritedSocket(name, each.dup()) for name, each in zip(names, (local, narrow), strict=True)
        )
        store = FdStore(ManagerDouble())
        store.shared = True
        text = f"echo {narrow.getsockname()[1]}/tcp4\n"
        endpoints, _ = check(config_of(text), FakeFiles(), FakeMachine())
        (opened,) = open_all(endpoints, socket_pool, store)
        assert opened.address == f"0.0.0.0:{narrow.getsockname()[1]}"
        assert (tmp_path / "gone").exists()
        with LogCatcher() as log:
            store.stop_sharing()
        assert len(log.named("leftover")) == 2
        assert not (tmp_path / "gone").exists()
        opened.close()


def test_control_socket_is_identified_by_its_file(tmp_path: Path) -> None:
    """The control socket is identified by device and inode, as another file may be at its path now."""
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(path)
        local.listen()
        status = (tmp_path / "control").stat()
        name = f"svcd/{status.st_dev:x}.{status.st_ino:x}/control"
        assert SocketPool([InheritedSocket("svcd/1.1/control", local)]).take_control(path) is None
        assert SocketPool([InheritedSocket(name, local)]).take_control(f"{path}2") is None
        socket_pool = SocketPool([InheritedSocket(name, local)])
        assert socket_pool.take_control(path) is local
        assert socket_pool.take_control(path) is None


def test_pid_file_of_the_new_daemon(tmp_path: Path) -> None:
    """The new daemon has a pid file of its own until it serves; twistd removes the one that its options name."""
    path = tmp_path / "svcd.pid"
    path.write_text("1")
    new: dict[str, Any] = {"pidfile": str(path), "uid": os.geteuid(), "gid": None}
    Twistd.use_temporary_pid_file(new)
    assert new == {"pidfile": f"{path}.new", "uid": None, "gid": None, FOLLOWS_USER: os.geteuid() != 0}
    (tmp_path / "svcd.pid.new").write_text("2")
    Twistd(new).take_over()
    assert (path.read_text(), new["pidfile"], [each.name for each in tmp_path.iterdir()]) == (
        "2",
        str(path),
        [path.name],
    )
    old = {"pidfile": str(path)}
    twistd = Twistd(old)
    (tmp_path / "svcd.pid.new").write_text("3")
    twistd.upgrade_failed()
    assert (path.read_text(), [each.name for each in tmp_path.iterdir()]) == (str(os.getpid()), [path.name])
    twistd.upgraded()
    assert old["pidfile"] == ""
    twistd.upgrade_failed()


def test_pid_file_that_can_not_be_replaced_is_logged(tmp_path: Path) -> None:
    """The daemon serves without the configured pid file, and removes its own one at the end."""
    options = {"pidfile": str(tmp_path / "svcd.pid.new")}
    with LogCatcher() as log:
        Twistd(options).take_over()
    (event,) = log.named("problem")
    assert event["text"] == f"the pid file {tmp_path}/svcd.pid can't be replaced: No such file or directory"
    assert options == {"pidfile": str(tmp_path / "svcd.pid.new")}


def test_new_daemon_gives_up_root_as_configured() -> None:
    """If the old daemon did not give up root, the new daemon does so as configured."""
    options = {"pidfile": "", "uid": os.geteuid() + 1, "gid": None}
    Twistd.use_temporary_pid_file(options)
    assert options["uid"] == os.geteuid() + 1


def test_supervised_process_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """upgrade_blocker is set under a service manager, under systemd without notifications, and after a chroot."""
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    for name in ("container", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(twistd, "_CONTAINER_FILES", ())
    assert Twistd({}).upgrade_blocker == ""
    assert "systemctl restart" in Twistd({}, managed=True).upgrade_blocker
    assert "chroot" in Twistd({"chroot": "/srv"}).upgrade_blocker
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "1")
    assert Twistd({}).upgrade_blocker == ""
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert "systemctl restart" in Twistd({}).upgrade_blocker


def test_main_process_of_a_container_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """upgrade_blocker is set for PID 1, and in the foreground for the child of a small init."""
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    monkeypatch.setattr(twistd, "_CONTAINER_FILES", (str(tmp_path / "mark"),))
    monkeypatch.setattr(twistd, "_CONTAINER_VARIABLES", ())
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert Twistd({"nodaemon": True}).upgrade_blocker == ""
    (tmp_path / "mark").touch()
    assert "restart the container" in Twistd({"nodaemon": True}).upgrade_blocker
    assert Twistd({"nodaemon": True}, new_daemon=True).upgrade_blocker == ""
    assert Twistd({"nodaemon": False}).upgrade_blocker == ""
    monkeypatch.setattr(os, "getppid", lambda: 7)
    assert Twistd({"nodaemon": True}).upgrade_blocker == ""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert "docker restart" in Twistd({}, managed=True).upgrade_blocker


def test_unknown_user_is_a_usage_error() -> None:
    """An unknown uid is reported in one line, as twistd reports usage errors; a uid with a gid needs no entry."""
    check_account({"uid": None})
    check_account({"uid": 0})
    for user in (4_000_000_017, -5, 1 << 70):
        with pytest.raises(usage.UsageError, match=f"--uid {user}: there is no such user"):
            check_account({"uid": user})
    check_account({"uid": os.geteuid(), "gid": os.getegid()})


@pytest.mark.parametrize("text", ["", "1", "2 3 4", "x y z"])
def test_handover_of_another_process_is_ignored(text: str) -> None:
    """A handover variable for another process, or with an invalid value, is removed and ignored."""
    environment = {CHANNEL_VARIABLE: text, "HOME": "/"}
    assert OldDaemon.from_environment(environment, 1) is None
    assert environment == {"HOME": "/"}


def test_upgrade_with_services_that_need_root_is_refused(old: _OldDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --uid an upgrade fails while a service with user= runs, and the answer has the reason."""
    problem = ConfigProblem(SourceLocation("services", 3, 7), "user: only root can give this")
    monkeypatch.setattr(old.daemon.supervisor, "lost_rights", lambda: [problem])
    old.upgrader.upgrade().addBoth(old.answers.append)
    assert (old.made, "services:3:7: user: only root can give this" in old.reason) == ([], True)


def test_names_without_address_are_handed_over(old: _OldDaemon) -> None:
    """The new daemon gets the names without an address, and need not wait for their lookups."""
    text = "a 7/tcp4 echo bind=later0,127.0.0.1\nb 8/tcp4 echo bind=other0 access_zone=UTC access_times=0:00-23:59"
    config = config_of(text)
    machine = FakeMachine(names={"other0": ["127.0.0.1"]}, zones=frozenset())
    endpoints, problems = check(config, FakeFiles(), machine)
    faulty = DesiredServices.checked(config.enabled, endpoints, problems).faulty
    found = {each.service.id: BrokenService(each.service, each.endpoints, each.problems) for each in faulty}
    assert sorted(found) == ["a/tcp4", "b/tcp4"]
    old.daemon.supervisor.broken.update(found)
    given = old.upgrade().unanswered
    assert given == {"later0"}
    file = write_handover({"names": [], "open_files": (1, 2), "unanswered": list(given)})
    environment = {HANDOVER_VARIABLE: str(file)}
    assert Handover.from_environment(environment) == Handover((), (1, 2), frozenset({"later0"}))
    # The handover of an older version.
    file = write_handover({"names": [], "open_files": (1, 2)})
    assert Handover.from_environment({HANDOVER_VARIABLE: str(file)}) == Handover((), (1, 2))
