"""An upgrade: the daemon's own program is started once more, gets all its sockets, and takes its place."""

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

#: How long the new daemon may take until it is ready, in seconds, unless somebody says otherwise; and at most.
PATIENCE = 60.0
_MOST_PATIENCE = 3600.0
#: How long a process that is being started may take until its pid is asked for again, in seconds.
_PAUSE = 0.02
#: So long the new daemon has to serve before the old one closes its sockets, in seconds. If it ends before, by a
#: mistake that shows only then, the old one goes on.
_PROBATION = 0.5
#: With these it says that the services file, or a socket that it asks for, is the reason.
_FILE_MISTAKES = (os.EX_CONFIG, os.EX_OSERR)


class ExtraListener(Protocol):
    """Something else that listens."""

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Its sockets, by the names under which the new daemon knows them."""

    def rest(self) -> None:
        """Accept nobody any more."""

    def go_on(self) -> None:
        """Accept as before."""

    def leave(self) -> None:
        """Close the sockets, which are another one's now."""


class ProcessOwner(Protocol):
    """Who runs the daemon's process."""

    @property
    def upgrade_blocker(self) -> str:
        """Why this process can't be replaced by another one; empty if it can."""

    def upgraded(self) -> None:
        """It was: what its end would take away is the other one's now."""

    def upgrade_failed(self) -> None:
        """It was not after all."""


class _Attempt(NamedTuple):
    """An upgrade that is under way."""

    answer: Deferred[dict[str, object]]
    new_daemon: NewDaemon
    now: bool
    seconds: float
    timer: IDelayedCall
    began: float
    #: Of the new daemon, once it serves; then the timer is for its probation.
    pid: int = 0
    #: The inodes of sockets that processes have and none of its services asks for.
    unserved: frozenset[int] = frozenset()


class Upgrader(Service):
    """Replaces the daemon, one attempt after the other, and not during a reload; as a Twisted service it stops with it.

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
        """Let a new daemon take this one's place.

        Args:
            now: end the connections that this one has within their shutdown_timeout; else they last as long as they do.
            seconds: how long the new one may take until it is ready.

        Returns:
            A Deferred with the pids of both, how many connections this one still has, and the faults that keep services
            of the new one from being served. It fails with a CommandError
            when nothing has changed; the log has said why then.
        """
        if not 0 < seconds <= _MOST_PATIENCE:
            raise CommandError(f"a new daemon may have up to {_MOST_PATIENCE:.0f} seconds to be ready")
        return self._reloader.alone(self._begin, now, seconds)

    def _begin(self, now: bool, seconds: float) -> Deferred[dict[str, object]]:
        if self._supervisor.registry.state == "stopping":
            raise StoppingError
        if self._runner.upgrade_blocker:
            raise CommandError(self._runner.upgrade_blocker)
        lost = self._supervisor.roots_alone()
        if lost:
            raise CommandError("\n".join(map(str, ["the new daemon could not start these services again", *lost])))
        sockets = [
            (listener.opened.handed_name, listener.opened.socket) for listener in self._supervisor.listeners_of()
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
        """It has our sockets, and could serve: we accept nobody any more, and it begins."""
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
        """Let the new daemon serve, once each process that has a socket is known by its pid."""
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
        """It serves, and we only have the sockets open, until it has done so for a while."""
        asked = self._asked
        assert asked is not None  # noqa: S101 - nobody else says so
        asked.timer.cancel()
        timer = self._reactor.callLater(_PROBATION, self._leave)
        self._asked = asked._replace(pid=pid, unserved=unserved, timer=timer)

    def _leave(self) -> None:
        """It is done: what is left for us are the connections that we have."""
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
        """End a new daemon that does not serve yet: it would go on in place of this one. One that serves goes on."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._asked is not None and self._asked.pid:
            self._asked.timer.cancel()
            self._leave()
        elif self._asked is not None:
            self._fail("the daemon was told to stop", self._asked.new_daemon.kill())

    def new_daemon_lost(self, reason: str, text: str, exit_status: int) -> None:
        """It could not."""
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
        """Go on as if nothing had been; it may have changed options of the sockets, which are the same."""
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
