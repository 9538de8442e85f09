"""The daemon's client of a launcher: sends connections, passes events on, restarts a lost launcher.

A launcher has the rights of its handlers, so its reports are checked against the sent messages
(svcd.process.launcher_protocol). A report that is not allowed ends the launcher, as a crash does.
"""

from __future__ import annotations

from signal import SIGKILL
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from svcd.errors import CommandError
from svcd.log.events import LAUNCHER, LAUNCHER_LOST, log_event
from svcd.process.backoff import Backoff
from svcd.process.launch_queue import MAX_WAITING, LaunchQueue
from svcd.process.launcher_connection import LauncherConnection
from svcd.process.launcher_protocol import LauncherProtocol
from svcd.process.messages import (
    Changed,
    Dropped,
    Ended,
    Failed,
    Idle,
    Ready,
    Signal,
    Started,
    StderrLine,
)
from svcd.process.signals import process_exists
from svcd.process.stderr import OutputLimit

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.process.messages import Message
    from svcd.process.spec import LaunchSpec

__all__ = ["MAX_WAITING", "LauncherClient", "LauncherEvents", "LauncherSource"]

#: Slack in bytes for output that waited in the socket of the launcher, which holds less than this.
_SOCKET_LINES, _SOCKET_BYTES = 1024, 1024 * 1024
#: Number of threads that can't be ended after which a launcher is replaced.
_MAX_STUCK_THREADS = 32


class LauncherSource(Protocol):
    """Starts the launchers of one service, and signals handlers whose launcher was lost."""

    def launch(self, launcher_client: LauncherClient) -> None:
        """Start a launcher; call attach() of the client with its socket, or launcher_lost() on failure."""

    def signal(self, signal: Signal) -> None:
        """Send a signal to a handler whose launcher was lost."""

    def kill(self, pid: int) -> None:
        """Kill a launcher that breaks the protocol."""

    def make_replacement(self, events: LauncherEvents) -> LauncherClient:
        """Return another client for the same service."""
        ...


class LauncherEvents(Protocol):
    """Receiver of events about the connections of a service."""

    def process_started(self, report: Started) -> None:
        """Handle the start of a connection's process."""

    def process_ended(self, report: Ended) -> None:
        """Handle the exit of a connection's process."""

    def start_failed(self, connection_id: int, errno: int) -> None:
        """Handle a connection that was closed because its process could not be started."""

    def process_lost(self, connection_id: int) -> None:
        """Handle a connection whose process may still run, but whose exit can't be observed any more."""

    def stderr_line(self, connection_id: int, text: bytes) -> None:
        """Handle a line of a process's standard error for the log."""

    def dropped(self, lines: int, size: int) -> None:
        """Handle the loss of output beyond stderr_rate: the numbers of lines and of bytes."""

    def module_changed(self, module: str) -> None:
        """Handle a change on disk of a module that the launcher has imported."""

    def threads_stuck(self) -> None:
        """Handle a launcher with too many threads that can't be ended; it should be replaced."""

    def launcher_restarted(self) -> None:
        """Handle the start of a launcher in place of a lost one."""

    def unavailable(self, problem: str) -> None:
        """Handle the reason why the launcher can't serve; empty once it can again."""

    def queue_drained(self) -> None:
        """Handle that more connections may be started."""


class LauncherClient:
    """The daemon's client of one service's launcher.

    Args:
        reactor: watches descriptors and time.
        spec: the launch spec of the service.
        source: starts its launchers.
        events: receives events about connections.

    Attributes:
        ready: whether there is a launcher that can serve.
        stopped: whether stop() was called, or the client was replaced and its last connection has ended.
        pids: the pids of the launcher's running handlers, by connection id.
        orphaned: the pids of handlers whose launcher was lost, by connection id.
    """

    _log = Logger()

    def __init__(self, reactor: FdReactor, spec: LaunchSpec, source: LauncherSource, events: LauncherEvents) -> None:
        self._reactor = reactor
        self._service = spec.name
        self.spec = spec
        self._source = source
        self._events = events
        self._connection: LauncherConnection | None = None
        self._pid = 0
        self._since = 0.0
        self.ready = self._failing = False
        self._requested = self._was_started = False
        self._replacement: LauncherClient | None = None
        self.stopped = False
        self._backoff = Backoff()
        self._retry: IDelayedCall | None = None
        self._start_timer: IDelayedCall | None = None
        self._problem = ""
        self._queue = LaunchQueue(reactor)
        self._ready_deferred: Deferred[int] | None = None
        self._stuck = 0
        self._zygote_runs = False
        self.pids: dict[int, int] = {}
        self.orphaned: dict[int, int] = {}

    @property
    def full(self) -> bool:
        """Whether no more connections may be started now."""
        return self._queue.full

    def start(self, connection_id: int, environment: bytes, *fds: int) -> None:
        """Start a process for a connection. Takes ownership of the descriptors, at most MAX_FDS."""
        self._queue.add(connection_id, environment, fds)
        self.ensure_launcher()

    def drop(self, connection_id: int) -> bool:
        """Close a connection that has no process yet; return whether it had none."""
        if self._queue.drop(connection_id):
            return True
        return self._replacement is not None and self._replacement.drop(connection_id)

    def cancel(self, connection_id: int) -> bool:
        """Close a connection that was not sent to a launcher yet.

        Returns:
            Whether no event of the connection will follow. Otherwise it may have a process, and an event follows:
            process_started, start_failed or process_lost.
        """
        if not self._queue.cancel(connection_id):
            return False
        return self._replacement is None or self._replacement.cancel(connection_id)

    def signal(self, connection_id: int, signal_number: int) -> None:
        """Send a signal to the process group of a connection."""
        if connection_id in self.pids:
            self._queue.signal(Signal(connection_id, self.pids[connection_id], signal_number))
        elif connection_id in self.orphaned:
            self._source.signal(Signal(connection_id, self.orphaned[connection_id], signal_number))
        elif self._replacement is not None:
            self._replacement.signal(connection_id, signal_number)

    @property
    def failing(self) -> bool:
        """Whether the last launcher was lost or could not start, and no other one runs yet."""
        return self._failing if self._replacement is None else self._replacement.failing

    def make_replacement(self) -> LauncherClient:
        """Return another client for the same service, which starts a new launcher."""
        return self._source.make_replacement(self._events)

    def when_ready(self) -> Deferred[int]:
        """Start a launcher before a connection needs it.

        Returns:
            A Deferred that fires with the pid of the launcher when it is ready, or fails with a CommandError.
        """
        self._ready_deferred = Deferred()
        self.ensure_launcher()
        return self._ready_deferred

    @property
    def pid(self) -> int:
        """The pid of the launcher; 0 without one."""
        return self._pid

    def check_module(self) -> None:
        """Request a report from the launcher if a module that it has imported has changed on disk."""
        if self.ready and self.spec.handler and self._connection is not None:
            self._connection.check_module()

    def forget_connection(self, connection_id: int) -> None:
        """Stop tracking the process of a connection."""
        self.pids.pop(connection_id, None)
        self.orphaned.pop(connection_id, None)
        if self._replacement is not None:
            self._replacement.forget_connection(connection_id)

    def ensure_launcher(self) -> None:
        """Start a launcher if there is none and none is starting."""
        if self._connection is None and not self._requested and self._retry is None and not self.stopped:
            self._requested = True
            self._source.launch(self)

    def attach(self, sock: socket.socket, pid: int) -> None:
        """Use a newly started launcher. Takes ownership of the socket."""
        self._requested = False
        if self.stopped:
            sock.close()
            return
        if self._was_started:
            self._events.launcher_restarted()
        self._was_started = True
        self._pid = pid
        self._zygote_runs = True
        self._stuck = 0
        protocol = LauncherProtocol(
            self._output_limit(), announced=not (self.spec.threads or self.spec.cgi), cgi=bool(self.spec.cgi)
        )
        self._since = self._reactor.seconds()
        self._start_timer = self._reactor.callLater(self.spec.start_timeout, self._start_timed_out)
        self._connection = LauncherConnection(self._reactor, sock, protocol, self, self._service)

    def _start_timed_out(self) -> None:
        """Kill a launcher whose handler import does not finish."""
        self._start_timer = None
        self._source.kill(self._pid)
        self._start_failed(f"its import takes longer than start_timeout={self.spec.start_timeout:g}s")

    def handle_reports(self, reports: Iterable[Message]) -> None:
        """Handle the reports of one packet."""
        for report in reports:
            self._handle_report(report)
        self._queue.resume()

    def protocol_error(self, reason: str) -> None:
        """Kill a launcher that has sent a report that is not allowed."""
        # Before launcher_lost(), which resets the pid.
        self._source.kill(self._pid)
        self.launcher_lost(f"protocol error: {reason}")

    def _handle_report(self, report: Message) -> None:
        match report:
            case Started() | Ended() | Failed():
                self._handle_result(report)
            case StderrLine(connection_id, text):
                self._events.stderr_line(connection_id, text)
            case Dropped(lines, size):
                self._events.dropped(lines, size)
            case Changed(module):
                self._events.module_changed(module.decode(errors="replace"))
            case Ready(problem):
                self._handle_ready(problem.decode(errors="replace"))
            case Idle():
                self._handle_idle()

    def _handle_result(self, report: Started | Ended | Failed) -> None:
        match report:
            case Started(connection_id, pid):
                self.pids[connection_id] = pid
                if self._release_connection(connection_id):
                    self._events.process_started(report)
                else:
                    # The connection was dropped meanwhile; its process is ended here, as nothing else would do it.
                    self._queue.signal(Signal(connection_id, pid, SIGKILL))
                    del self.pids[connection_id]
                    self._stop_if_done()
            case Failed(connection_id, errno):
                if self._release_connection(connection_id):
                    self._events.start_failed(connection_id, errno)
                self._stop_if_done()
            case Ended(connection_id):
                self._queue.discard_signal(connection_id)
                if connection_id in self.pids:
                    self._count_stuck(report, self.pids.pop(connection_id))
                    self._events.process_ended(report)
                self._stop_if_done()

    def _count_stuck(self, report: Ended, pid: int) -> None:
        """Count threads that can't be ended: a handler in a thread is reported as killed when it is abandoned."""
        if pid == self._pid and report.status == SIGKILL:
            self._stuck += 1
            if self._stuck == _MAX_STUCK_THREADS:
                self._events.threads_stuck()

    def _handle_idle(self) -> None:
        """Close the socket of an idle launcher, which ends it; the next connection starts another one."""
        if self._queue or self._connection is None or not self._connection.protocol.idle:
            # A connection was queued or sent meanwhile.
            return
        log_event(self._log, LAUNCHER, service=self._service, pid=self._pid, state="idle")
        self._close_connection()
        self._queue.disconnect()
        self.ready = self._was_started = False
        self._pid = 0

    def _start_failed(self, problem: str) -> None:
        """Report a launcher that can't serve; schedule another start after a pause, also without a waiting client."""
        self._problem = problem
        if self._ready_deferred is None:
            # Otherwise the former launcher serves until this one is ready.
            self._events.unavailable(problem)
        self.launcher_lost(problem)

    def _handle_ready(self, problem: str) -> None:
        if problem:
            self._start_failed(problem)
            return
        self._stop_timer()
        self._problem = ""
        self._events.unavailable("")
        log_event(self._log, LAUNCHER, service=self._service, pid=self._pid, state="ready")
        self.ready, self._failing = True, False
        assert self._connection is not None  # noqa: S101 - the report came from it
        self._queue.connect(self._connection.sock, self._connection.protocol)
        self._fire_ready(self._pid)

    def _fire_ready(self, result: int | CommandError) -> None:
        awaited, self._ready_deferred = self._ready_deferred, None
        if awaited is None:
            return
        if isinstance(result, int):
            awaited.callback(result)
        else:
            awaited.errback(result)

    def _output_limit(self) -> OutputLimit | None:
        """Return a limit that a launcher within its own limit can't exceed; None for no limit."""
        spec = self.spec
        if not spec.stderr_lines:
            return None
        seconds = self._reactor.seconds
        return OutputLimit(spec.stderr_lines, spec.stderr_bytes, seconds, _SOCKET_LINES, _SOCKET_BYTES)

    def _stop_timer(self) -> None:
        if self._start_timer is not None:
            self._start_timer.cancel()
            self._start_timer = None

    def _close_connection(self) -> None:
        self._stop_timer()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _release_connection(self, connection_id: int) -> bool:
        """Close the daemon's descriptor of a connection that the launcher has; return whether it was still queued."""
        was_full = self.full
        if not self.drop(connection_id):
            return False
        if was_full:
            self._events.queue_drained()
        return True

    def launcher_lost(self, reason: str) -> None:
        """Handle the loss of a launcher, or a failed start; schedule another start after a pause."""
        self._requested = self.ready = False
        self._failing = True
        self.orphaned |= self.pids
        self.pids.clear()
        if not self._zygote_runs:
            self._drop_orphans()
        starting = [] if self._connection is None else self._connection.protocol.starting
        self._close_connection()
        for signal in self._queue.pop_signals():
            if signal.connection_id in self.orphaned:
                self._source.signal(signal)
        unknown = [connection_id for connection_id in starting if self._queue.drop(connection_id)]
        given_up = list(self._queue.launcher_lost())
        if self.stopped:
            return
        pause = self._backoff.pause(self._reactor.seconds() - self._since if self._pid else 0.0)
        log_event(
            self._log, LAUNCHER_LOST, service=self._service, pid=self._pid, state="lost", reason=reason, retry=pause
        )
        self._pid = 0
        self._retry = self._reactor.callLater(pause, self._retry_start)
        for connection_id in given_up:
            self._events.start_failed(connection_id, 0)
        for connection_id in unknown:
            # The connection may have a process; another launcher must not start a second one.
            self._events.process_lost(connection_id)
        self._fire_ready(CommandError(reason))
        if self._replacement is not None:
            self.replace_by(self._replacement)

    def _retry_start(self) -> None:
        """Start another launcher if it is needed, and report orphaned processes whose exit was not reported."""
        self._retry = None
        for connection_id, pid in list(self.orphaned.items()):
            if not process_exists(pid):
                # The launcher was killed after it had reaped the process and before it could report the exit.
                del self.orphaned[connection_id]
                self._events.process_lost(connection_id)
        # Without work the launcher is started by the next connection, unless the last start failed.
        if self._queue or self._problem:
            self.ensure_launcher()

    def replace_by(self, replacement: LauncherClient) -> None:
        """Move to another client, with the queued connections; this launcher exits after its last handler."""
        self._replacement = replacement
        self._queue.move_unsent(replacement._queue)
        if replacement._queue:
            replacement.ensure_launcher()
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        """Stop if this client was replaced and has no connection left, including dropped ones without a report."""
        awaits_report = self._connection is not None and self._connection.protocol.unanswered
        if self._replacement is not None and not (awaits_report or self._queue or self.pids or self.orphaned):
            self.stop()

    def zygote_lost(self) -> None:
        """Report the handlers of lost launchers as lost: only the zygote could report their exit."""
        self._zygote_runs = False
        self._drop_orphans()

    def _drop_orphans(self) -> None:
        orphans, self.orphaned = self.orphaned, {}
        for connection_id in orphans:
            self._events.process_lost(connection_id)

    def orphan_exited(self, pid: int, status: int) -> None:
        """Handle the exit of a handler without launcher, or of a launcher with its threads."""
        if self._connection is not None and (pid == self._pid or pid in self.pids.values()):
            # The socket of the launcher was closed before its children became orphans: all its reports come first.
            self._connection.read_all()
        for connection_id in [connection_id for connection_id, known in self.orphaned.items() if known == pid]:
            del self.orphaned[connection_id]
            self._queue.discard_signal(connection_id)
            self._events.process_ended(Ended(connection_id, status))
        self._stop_if_done()

    def stop(self) -> None:
        """Close the connections without a process, and the socket of the launcher, which ends it."""
        if self.stopped:
            return
        self.stopped = True
        self._drop_orphans()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for connection_id in self._queue.close():
            self._events.start_failed(connection_id, 0)
        if self._pid and not self.ready:
            # The module is still being imported, possibly without end: the launcher does not notice its socket's end.
            self._source.kill(self._pid)
        self.launcher_lost("")
        self._fire_ready(CommandError("the service is about to end"))
