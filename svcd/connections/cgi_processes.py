"""CgiProcesses: the processes of CGI programs of one HTTP service.

A program belongs to a request. Its connection stays with the daemon, which logs and counts it like the others of the
service; the numbers of programs are no ids of connections.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address

from svcd.connections.launcher_reports import LauncherReports
from svcd.connections.spawned_connection import KILL_SECONDS, LAST_KILL_SECONDS, signal_name
from svcd.log.events import FAIL, log_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IDelayedCall

    from svcd.config.service import Service
    from svcd.connections.context import ConnectionContext
    from svcd.process.launcher_client import LauncherClient
    from svcd.process.messages import Ended, Started
    from svcd.protocols.http.cgi_script import CgiScript

__all__ = ["CgiProcesses"]


class _Program:
    """A program from its order to the launcher to its end.

    Attributes:
        script: gets its events.
        launcher_client: starts it.
        since: the time of the order.
        counted: the number of its descriptors that the daemon has and counts.
        pid: its process; 0 before the start.
        ending: whether it is to end.
        killed: whether it got SIGKILL.
        timer: sends SIGKILL.
    """

    __slots__ = ("counted", "ending", "killed", "launcher_client", "pid", "script", "since", "timer")

    def __init__(self, script: CgiScript, launcher_client: LauncherClient, since: float, counted: int) -> None:
        self.script = script
        self.launcher_client = launcher_client
        self.since = since
        self.counted = counted
        self.pid = 0
        self.ending = self.killed = False
        self.timer: IDelayedCall | None = None


class CgiProcesses(LauncherReports):
    """Starts the CGI programs of a service (ScriptLauncher); its launcher reports to it (LauncherEvents).

    Args:
        service: the service.
        context: shared by all services.
        make_launcher_client: creates the client of the service's launcher, which reports to this object.

    Attributes:
        programs: the programs that run or are about to, by number.
        ended: called after the end of each program.
        reactor, descriptors: as of ScriptLauncher.
    """

    def __init__(
        self,
        service: Service,
        context: ConnectionContext,
        make_launcher_client: Callable[[CgiProcesses], LauncherClient],
    ) -> None:
        self.service = service
        self.counters = context.registry.counters(service.id)
        self.reactor = context.reactor
        self.descriptors = context.budget.share(service.id)
        self.launcher_client = make_launcher_client(self)
        self.programs: dict[int, _Program] = {}
        self.ended: Callable[[], None] = _no_op
        self._format_peer = context.log_writer.format_peer
        self._numbers = count(1)
        self._stopping = False

    def start(self, script: CgiScript, environment: bytes, *fds: int) -> int:
        """Start a program; see ScriptLauncher. The descriptors are counted until the program has them."""
        number = next(self._numbers)
        self.programs[number] = _Program(script, self.launcher_client, self.reactor.seconds(), len(fds))
        for _ in fds:
            self.descriptors.acquire()
        self.launcher_client.start(number, environment, *fds)
        return number

    def end(self, number: int) -> None:
        """End the process group of a program: SIGTERM, then SIGKILL; do nothing if the program has ended."""
        program = self.programs.get(number)
        if program is None or program.ending:
            return
        program.ending = True
        if program.pid:
            self._terminate(number, program)
        elif program.launcher_client.cancel(number):
            self.start_failed(number, 0)

    def failed(self, peer: IAddress, reason: str) -> None:
        """Log and count a request that a program has not served."""
        self.counters.failures += 1
        text = self._format_peer(peer.host, peer.port) if isinstance(peer, IPv4Address | IPv6Address) else "local"
        log_event(self._log, FAIL, service=self.service.id, peer=text, reason=reason)

    def abort(self) -> None:
        """End all programs: the service stops."""
        self._stopping = True
        for number in list(self.programs):
            self.end(number)

    def stop(self) -> None:
        """Stop the launcher, after the last program."""
        self.launcher_client.stop()

    def _terminate(self, number: int, program: _Program) -> None:
        program.launcher_client.signal(number, signal.SIGTERM)
        program.timer = self.reactor.callLater(self._kill_seconds, self._kill, number, program)

    def _kill(self, number: int, program: _Program) -> None:
        """Send SIGKILL, until the end of the program is reported; while the daemon stops once, then it is lost."""
        if program.killed and self._stopping:
            program.launcher_client.forget_connection(number)
            self.process_lost(number)
            return
        program.killed = True
        program.launcher_client.signal(number, signal.SIGKILL)
        program.timer = self.reactor.callLater(self._kill_seconds, self._kill, number, program)

    @property
    def _kill_seconds(self) -> float:
        return LAST_KILL_SECONDS if self._stopping else KILL_SECONDS

    # Reports of the launcher (svcd.process.launcher_client.LauncherEvents)

    def process_started(self, report: Started) -> None:
        """Handle the start of a program."""
        program = self.programs[report.connection_id]
        program.pid = report.pid
        self._release(program)
        self.counters.process_started(self.reactor.seconds() - program.since)
        if program.ending:
            self._terminate(report.connection_id, program)
        program.script.started(report)

    def start_failed(self, connection_id: int, errno: int) -> None:
        """Handle that a program can't be started."""
        program = self._remove(connection_id)
        program.script.start_failed(errno)
        self.ended()

    def process_ended(self, report: Ended) -> None:
        """Handle the end of a program."""
        status = report.status
        killed = os.WIFSIGNALED(status)
        self._over(
            report.connection_id, status, signal_name(os.WTERMSIG(status)) if killed else str(os.WEXITSTATUS(status))
        )

    def process_lost(self, connection_id: int) -> None:
        """Handle that the end of a program will not be reported."""
        self._over(connection_id, None, "")

    def _over(self, number: int, status: int | None, code: str) -> None:
        program = self._remove(number)
        if program.pid:
            self.counters.process_exited(code)
        self.counters.failed_exits += bool(status) and not program.ending
        program.script.ended(status)
        self.ended()

    def _remove(self, number: int) -> _Program:
        program = self.programs.pop(number)
        self._release(program)
        if program.timer is not None and program.timer.active():
            program.timer.cancel()
        return program

    def _release(self, program: _Program) -> None:
        for _ in range(program.counted):
            self.descriptors.release()
        program.counted = 0

    def stderr_line(self, connection_id: int, text: bytes) -> None:
        """Log a line that a program wrote to its standard error."""
        program = self.programs.get(connection_id)
        self.log_output(text, {} if program is None else {"pid": program.pid})

    def queue_drained(self) -> None:
        """Do nothing: the number of programs is limited, not the queue of the launcher."""


def _no_op() -> None:
    """Do nothing."""
