"""Upgrade: the old daemon starts its program again; the new daemon gets all sockets and takes its place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from svcd.errors import CommandError, StoppingError
from svcd.log.events import PROBLEM, UPGRADE, UPGRADE_FAILED, log_event
from svcd.upgrade.new_daemon import NewDaemon

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.supervisor.reload import Reloader
    from svcd.supervisor.supervisor import Supervisor
    from svcd.upgrade.new_daemon import CommandLine

__all__ = ["PATIENCE", "ExtraListener", "ProcessOwner", "Upgrader"]

#: How long the new daemon may take until it is ready, in seconds: the default and the maximum.
PATIENCE = 60.0
_MOST_PATIENCE = 3600.0
#: The time between checks for the pid of a process that is being started, in seconds.
_PAUSE = 0.02
#: How long the new daemon has to serve before the old daemon closes its sockets, in seconds. If the new daemon exits
#: before, by an error that shows only then, the old daemon goes on.
_PROBATION = 0.5
#: Exit statuses of a new daemon that mean an error in the services file or in a socket.
_FILE_MISTAKES = (os.EX_CONFIG, os.EX_OSERR)


class ExtraListener(Protocol):
    """Listener outside the services, such as the control socket."""

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return its sockets, with the names under which the new daemon knows them."""

    def rest(self) -> None:
        """Stop accepting."""

    def go_on(self) -> None:
        """Accept again."""

    def leave(self) -> None:
        """Close the sockets, which the new daemon has now."""


class ProcessOwner(Protocol):
    """Owner of the daemon's process (twistd)."""

    @property
    def upgrade_blocker(self) -> str:
        """The reason why this process can't be replaced by a new daemon; empty if it can."""

    def upgraded(self) -> None:
        """Note that the new daemon serves: it now owns the files that this process would remove at its exit."""

    def upgrade_failed(self) -> None:
        """Note that the upgrade has failed."""


class _Attempt(NamedTuple):
    """Upgrade in progress."""

    answer: Deferred[dict[str, object]]
    new_daemon: NewDaemon
    now: bool
    seconds: float
    timer: IDelayedCall
    began: float
    #: The pid of the new daemon, once it serves; then the timer is for its probation.
    pid: int = 0
    #: The inodes of sockets that processes hold and the new daemon has no service for.
    unserved: frozenset[int] = frozenset()


class Upgrader(Service):
    """Replaces the daemon, in one attempt at a time and never during a reload.

    Args:
        reactor: watches descriptors and time.
        supervisor: has the services.
        reloader: changes them.
        program: how the daemon was started.
        runner: runs its process.
        stop: ends the daemon; with True only after the last connection has ended.

    Attributes:
        also: what else listens.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: FdReactor,
        supervisor: Supervisor,
        reloader: Reloader,
        program: CommandLine,
        runner: ProcessOwner,
        stop: Callable[[bool], None],
    ) -> None:
        self._reactor = reactor
        self._supervisor = supervisor
        self._reloader = reloader
        self._program = program
        self._runner = runner
        self._stop = stop
        self._asked: _Attempt | None = None
        self._resting = False
        self.also: list[ExtraListener] = []

    def upgrade(self, *, now: bool = False, seconds: float = PATIENCE) -> Deferred[dict[str, object]]:
        """Start a new daemon that takes the place of this one.

        Args:
            now: end the connections of the old daemon within their shutdown_timeout; else they last until they end.
            seconds: how long the new daemon may take until it is ready.

        Returns:
            A Deferred with the pids of both daemons, the number of connections of the old daemon, and the reasons why
            the new daemon can't serve some services. It fails with a CommandError when nothing has changed; the log has
            the reason then.
        """
        if not 0 < seconds <= _MOST_PATIENCE:
            raise CommandError(f"a new daemon may have up to {_MOST_PATIENCE:.0f} seconds to be ready")
        return self._reloader.alone(self._begin, now, seconds)

    def _begin(self, now: bool, seconds: float) -> Deferred[dict[str, object]]:
        if self._supervisor.registry.state == "stopping":
            raise StoppingError
        if self._runner.upgrade_blocker:
            raise CommandError(self._runner.upgrade_blocker)
        lost = self._supervisor.lost_rights()
        if lost:
            raise CommandError("\n".join(map(str, ["the new daemon could not start these services again", *lost])))
        sockets = [
            (listener.opened.handover_name, listener.opened.socket) for listener in self._supervisor.listeners_of()
        ]
        sockets += [each for also in self.also for each in also.sockets()]
        try:
            new_daemon = NewDaemon(
                self._reactor, self._program, sockets, self, self._supervisor.broken.unanswered_names
            )
        except OSError as error:
            raise CommandError(f"a new daemon can't be started: {error.strerror}") from error
        timer = self._reactor.callLater(seconds, self._late)
        self._asked = _Attempt(Deferred(), new_daemon, now, seconds, timer, self._reactor.seconds())
        return self._asked.answer

    def new_daemon_ready(self) -> None:
        """Stop accepting in the old daemon, and let the new daemon serve, which has all sockets."""
        asked = self._asked
        assert asked is not None  # noqa: S101 - nobody else says so
        if self._supervisor.registry.state == "stopping":
            self._fail("the daemon was told to stop", asked.new_daemon.kill())
            return
        self._resting = True
        self._supervisor.store.shared = True
        for listener in self._supervisor.listeners_of():
            listener.rest()
        for each in self.also:
            each.rest()
        self._go(asked)

    def _go(self, asked: _Attempt) -> None:
        """Let the new daemon serve once the pid of each process that holds a socket is known."""
        if asked is not self._asked:
            return
        starting = [port for _, port in self._supervisor.wait_ports() if port.busy and not port.process]
        for port in starting:
            port.withdraw()
        if any(port.busy for port in starting):
            self._reactor.callLater(_PAUSE, self._go, asked)
            return
        held = {listener.inode: port.process for listener, port in self._supervisor.wait_ports() if port.busy}
        asked.new_daemon.send_go(held)

    def new_daemon_serves(self, pid: int, unserved: frozenset[int]) -> None:
        """Begin the probation of the new daemon, which serves; the old daemon keeps its sockets open meanwhile."""
        asked = self._asked
        assert asked is not None  # noqa: S101 - nobody else says so
        asked.timer.cancel()
        timer = self._reactor.callLater(_PROBATION, self._leave)
        self._asked = asked._replace(pid=pid, unserved=unserved, timer=timer)

    def _leave(self) -> None:
        """Complete the upgrade: close the sockets of the old daemon, which keeps its connections."""
        asked = self._asked
        assert asked is not None  # noqa: S101 - it is cancelled when it is over
        if not asked.new_daemon.release():
            return
        self._asked, pid = None, asked.pid
        for listener, port in self._supervisor.wait_ports():
            if listener.inode in asked.unserved:
                port.dismiss()
        self._supervisor.stop_listening()
        for each in self.also:
            each.leave()
        connections = self._supervisor.connections
        log_event(
            self._log,
            UPGRADE,
            pid=pid,
            connections=connections,
            seconds=round(self._reactor.seconds() - asked.began, 3),
        )
        self._runner.upgraded()
        result = {"pid": pid, "before": os.getpid(), "connections": connections, "faults": asked.new_daemon.faults}
        asked.answer.callback(result)
        self._reactor.callLater(0, self._stop, not asked.now)

    def stopService(self) -> None:
        """Kill a new daemon that does not serve yet, since it would go on in place of this one."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._asked is not None and self._asked.pid:
            self._asked.timer.cancel()
            self._leave()
        elif self._asked is not None:
            self._fail("the daemon was told to stop", self._asked.new_daemon.kill())

    def new_daemon_lost(self, reason: str, text: str, exit_status: int) -> None:
        """Go on after the new daemon has exited."""
        self._fail(reason, text, "config" if exit_status in _FILE_MISTAKES else "refused")

    def _late(self) -> None:
        assert self._asked is not None  # noqa: S101 - it is cancelled when it is over
        text = self._asked.new_daemon.kill()
        self._fail(f"it was not ready within {self._asked.seconds:g} seconds", text)

    def _fail(self, reason: str, text: str, code: str = "refused") -> None:
        asked, self._asked = self._asked, None
        assert asked is not None  # noqa: S101 - it can be over only once
        if asked.timer.active():
            asked.timer.cancel()
        self._take_back()
        for line in text.splitlines():
            log_event(self._log, PROBLEM, text=line)
        log_event(self._log, UPGRADE_FAILED, reason=reason)
        asked.answer.errback(CommandError(f"{text}\nthe new daemon did not come up: {reason}".strip(), code))

    def _take_back(self) -> None:
        """Accept again; the new daemon may have changed options of the shared sockets."""
        for listener in self._supervisor.listeners_of():
            listener.opened.reapply()
        if self._resting:
            self._resting = False
            self._supervisor.store.shared = False
            for listener in self._supervisor.listeners_of():
                listener.go_on()
            for each in self.also:
                each.go_on()
        self._runner.upgrade_failed()
