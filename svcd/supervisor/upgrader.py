"""Upgrade: the old daemon starts its program again; the new daemon gets all sockets and replaces the old daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from svcd.errors import CommandError, StoppingError, reason_of
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

__all__ = ["READY_TIMEOUT", "ExtraListener", "ProcessOwner", "Upgrader"]

#: Time limit for the new daemon to become ready, in seconds: the default and the maximum.
READY_TIMEOUT = 60.0
_MAX_READY_TIMEOUT = 3600.0
#: Interval of checks for the pid of a process that is being started, in seconds.
_PID_CHECK_INTERVAL = 0.02
#: How long the new daemon must serve before the old daemon closes its sockets, in seconds. If the new daemon exits
#: before that, by an error that occurs only in service, the old daemon continues.
_PROBATION = 0.5
#: Exit statuses of a new daemon that mean an error in the services file or in a socket.
_CONFIG_STATUSES = (os.EX_CONFIG, os.EX_OSERR)


class ExtraListener(Protocol):
    """Listener outside the services, such as the control socket."""

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return its sockets, each with its handover name."""

    def suspend(self) -> None:
        """Stop accepting."""

    def resume(self) -> None:
        """Accept again."""

    def close_sockets(self) -> None:
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
    #: The pid of the new daemon once it serves, else 0; `timer` then ends its probation.
    pid: int = 0
    #: The inodes of sockets that processes hold and the new daemon has no service for.
    unserved: frozenset[int] = frozenset()


class Upgrader(Service):
    """Replaces the daemon by a new one: one attempt at a time, and not during a reload.

    Args:
        reactor: watches descriptors and time.
        supervisor: runs the services.
        reloader: prevents reloads during an attempt.
        program: the command line of the daemon.
        runner: the owner of the daemon's process.
        stop: stops the daemon; with True only after the last connection has ended.

    Attributes:
        also: listeners outside the services.
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
        self._attempt: _Attempt | None = None
        self._suspended = False
        self.also: list[ExtraListener] = []

    def upgrade(self, *, now: bool = False, seconds: float = READY_TIMEOUT) -> Deferred[dict[str, object]]:
        """Start a new daemon that replaces this one.

        Args:
            now: drain the connections of the old daemon and abort them after their shutdown_timeout; by default they
                stay open until they end by themselves.
            seconds: the time limit for the new daemon to become ready, in seconds.

        Returns:
            A Deferred with the pids of both daemons, the number of connections of the old daemon, and the faults of
            services that the new daemon can't serve. It fails with a CommandError if nothing has changed; the reason is
            logged then.
        """
        if not 0 < seconds <= _MAX_READY_TIMEOUT:
            raise CommandError(f"the timeout of an upgrade is at most {_MAX_READY_TIMEOUT:.0f} seconds")
        return self._reloader.run_exclusively(self._begin, now, seconds)

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
            raise CommandError(f"a new daemon can't be started: {reason_of(error)}") from error
        timer = self._reactor.callLater(seconds, self._timed_out)
        self._attempt = _Attempt(Deferred(), new_daemon, now, seconds, timer, self._reactor.seconds())
        return self._attempt.answer

    def new_daemon_ready(self) -> None:
        """Stop accepting in the old daemon, and tell the new daemon, which has all sockets, to serve."""
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - only a new daemon of an attempt calls this
        if self._supervisor.registry.state == "stopping":
            self._fail("the daemon is stopping", attempt.new_daemon.kill())
            return
        self._suspended = True
        self._supervisor.store.shared = True
        for listener in self._supervisor.listeners_of():
            listener.suspend()
        for each in self.also:
            each.suspend()
        self._send_go(attempt)

    def _send_go(self, attempt: _Attempt) -> None:
        """Tell the new daemon to serve once the pid of each process that holds a socket is known."""
        if attempt is not self._attempt:
            return
        starting = [port for _, port in self._supervisor.wait_ports() if port.busy and not port.process]
        for port in starting:
            port.withdraw()
        if any(port.busy for port in starting):
            self._reactor.callLater(_PID_CHECK_INTERVAL, self._send_go, attempt)
            return
        held = {listener.inode: port.process for listener, port in self._supervisor.wait_ports() if port.busy}
        attempt.new_daemon.send_go(held)

    def new_daemon_serves(self, pid: int, unserved: frozenset[int]) -> None:
        """Begin the probation of the new daemon, which serves now; this daemon keeps its sockets open meanwhile."""
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - only a new daemon of an attempt calls this
        attempt.timer.cancel()
        timer = self._reactor.callLater(_PROBATION, self._complete)
        self._attempt = attempt._replace(pid=pid, unserved=unserved, timer=timer)

    def _complete(self) -> None:
        """Complete the upgrade: close the sockets of the old daemon, which keeps its connections."""
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - the timer is cancelled at the end of the attempt
        if not attempt.new_daemon.release():
            return
        self._attempt, pid = None, attempt.pid
        for listener, port in self._supervisor.wait_ports():
            if listener.inode in attempt.unserved:
                port.dismiss()
        self._supervisor.stop_listening()
        for each in self.also:
            each.close_sockets()
        connections = self._supervisor.connections
        log_event(
            self._log,
            UPGRADE,
            pid=pid,
            connections=connections,
            seconds=round(self._reactor.seconds() - attempt.began, 3),
        )
        self._runner.upgraded()
        result = {"pid": pid, "before": os.getpid(), "connections": connections, "faults": attempt.new_daemon.faults}
        attempt.answer.callback(result)
        self._reactor.callLater(0, self._stop, not attempt.now)

    def stopService(self) -> None:
        """Complete an upgrade in probation; kill a new daemon that does not serve yet, or it would replace this one."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._attempt is not None and self._attempt.pid:
            self._attempt.timer.cancel()
            self._complete()
        elif self._attempt is not None:
            self._fail("the daemon is stopping", self._attempt.new_daemon.kill())

    def new_daemon_lost(self, reason: str, text: str, exit_status: int) -> None:
        """Continue in the old daemon: the new daemon has exited."""
        self._fail(reason, text, "config" if exit_status in _CONFIG_STATUSES else "refused")

    def _timed_out(self) -> None:
        assert self._attempt is not None  # noqa: S101 - the timer is cancelled at the end of the attempt
        text = self._attempt.new_daemon.kill()
        self._fail(f"it was not ready within {self._attempt.seconds:g} seconds", text)

    def _fail(self, reason: str, text: str, code: str = "refused") -> None:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None  # noqa: S101 - an attempt ends only once
        if attempt.timer.active():
            attempt.timer.cancel()
        self._resume_serving()
        for line in text.splitlines():
            log_event(self._log, PROBLEM, text=line)
        log_event(self._log, UPGRADE_FAILED, reason=reason)
        attempt.answer.errback(CommandError(f"{text}\nthe new daemon did not start: {reason}".strip(), code))

    def _resume_serving(self) -> None:
        """Accept again, and restore the options of the shared sockets, which the new daemon may have changed."""
        for listener in self._supervisor.listeners_of():
            listener.opened.reapply()
        if self._suspended:
            self._suspended = False
            self._supervisor.store.shared = False
            for listener in self._supervisor.listeners_of():
                listener.resume()
            for each in self.also:
                each.resume()
        self._runner.upgrade_failed()
