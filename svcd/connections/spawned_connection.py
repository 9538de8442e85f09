"""SpawnedConnection: a connection that is handled by a process of its own, from its accept line to its end line."""

from __future__ import annotations

import os
import signal
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from svcd.connections.tracker import ConnectionTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.admission import ConnectionSlot
    from svcd.net.sock_diag import SocketView
    from svcd.process.launcher_client import LauncherClient
    from svcd.process.messages import Ended
    from svcd.protocols.handler_pipe import PipedConnection

__all__ = [
    "KILL_SECONDS",
    "LAST_KILL_SECONDS",
    "TRANSITIONS",
    "ExitResult",
    "SpawnedConnection",
    "SpawnedOwner",
    "SpawnedState",
    "close_status",
    "signal_name",
]

#: Time between SIGTERM and SIGKILL for a process group, in seconds.
KILL_SECONDS = 2.0
#: The same while the daemon stops, which must be complete 2 s after shutdown_timeout; the daemon then also waits as
#: long after SIGKILL.
LAST_KILL_SECONDS = 0.75


class ExitResult(NamedTuple):
    """How the process of a connection ended.

    Attributes:
        reason: the reason of the end line.
        code: exit status, or name of the signal.
        user, system: CPU time in seconds.
        traffic: bytes received from the client and sent to it, as counted by the launcher; -1 if not counted.
    """

    reason: str
    code: str = "-"
    user: float = 0.0
    system: float = 0.0
    traffic: tuple[int, int] = (-1, -1)


class SpawnedState(Enum):
    """States of a SpawnedConnection."""

    #: Admitted, or waiting for its host name; host names are looked up if needed.
    ACCEPTED = "accepted"
    #: The daemon does the handshakes of TLS and WebSocket.
    HANDSHAKE = "handshake"
    #: Handed over to the launcher.
    STARTING = "starting"
    #: The process runs.
    RUNNING = "running"
    #: The process group got SIGTERM.
    TERMINATING = "terminating"
    #: The process group got SIGKILL.
    KILLING = "killing"
    #: There is no process any more, or there will be none; the remaining output is sent to the client.
    CLOSING = "closing"
    #: No longer tracked; the end line is written.
    CLOSED = "closed"


_BEFORE_PROCESS = (SpawnedState.ACCEPTED, SpawnedState.HANDSHAKE, SpawnedState.STARTING)
#: The states that may follow each state.
TRANSITIONS = {
    SpawnedState.ACCEPTED: (SpawnedState.HANDSHAKE, SpawnedState.STARTING, SpawnedState.CLOSED),
    SpawnedState.HANDSHAKE: (SpawnedState.STARTING, SpawnedState.CLOSING, SpawnedState.CLOSED),
    SpawnedState.STARTING: (SpawnedState.RUNNING, SpawnedState.CLOSING, SpawnedState.CLOSED),
    SpawnedState.RUNNING: (SpawnedState.TERMINATING, SpawnedState.CLOSING, SpawnedState.CLOSED),
    SpawnedState.TERMINATING: (SpawnedState.KILLING, SpawnedState.CLOSING, SpawnedState.CLOSED),
    SpawnedState.KILLING: (SpawnedState.CLOSING, SpawnedState.CLOSED),
    SpawnedState.CLOSING: (SpawnedState.CLOSED,),
    SpawnedState.CLOSED: (),
}
#: The states as in `svcctl connections`; the TlsTerminator gives the state of a handshake.
_STATE_NAMES = {
    SpawnedState.ACCEPTED: "host-name",
    SpawnedState.HANDSHAKE: "starting",
    SpawnedState.STARTING: "starting",
    SpawnedState.CLOSING: "closing",
}


class SpawnedOwner(ConnectionTracker["SpawnedConnection"]):
    """Tracker of spawned connections: the part that a connection and its TLS handshake use.

    Attributes:
        launcher_client: starts the processes of new connections.
        logs_pid: whether the accept line has the pid, and so waits for the process.
        view: reads byte counts from the kernel.
        quoted_word: quotes an exit status, the name of a signal or a TLS version, and caches it: there are few.
    """

    launcher_client: LauncherClient
    logs_pid: bool
    view: SocketView
    quoted_word: Callable[[str], str]


class SpawnedConnection:
    """A connection and its process, as a state machine.

    ::

        ACCEPTED --------------------------+
           | TLS                           | no TLS
           v           handshake done      v
        HANDSHAKE --------------------> STARTING
                                           | process_started
                                           v
                                        RUNNING
                                           | abort, also before RUNNING: SIGTERM
                                           v
                                        TERMINATING
                                           | timer: SIGKILL
                                           v
                                        KILLING (timer: SIGKILL again; at the stop of the daemon process_lost)

    process_ended, process_lost or start_failed ends the process. abort() before RUNNING has the effect of start_failed,
    unless the connection was sent to the launcher: then abort() waits for the report about its process, as long as for
    a process between SIGTERM and SIGKILL. Each of these leads from any state to CLOSING if the daemon still has the
    connection of the client, else to CLOSED. client_closed leads from CLOSING and HANDSHAKE to CLOSED; in the other
    states the connection stays open until its process ends. reject() leads from ACCEPTED to CLOSED without a log line.

    Each connection becomes CLOSED once; this state is final. The service's share of descriptors counts the connection
    until RUNNING, or until its end if that is earlier; after that its TlsTerminator counts its own descriptors.

    Args:
        owner: tracks the connection.
        connection_id: the id of the connection.
        peer: the client's address as text; not quoted.
        slot: the admission of the connection.

    Attributes:
        state: the state.
        connection_id, peer, slot: as given.
        host: the client's host name, quoted.
        started: time of accept in seconds, by the owner's clock.
        pid: the pid of the process; 0 before RUNNING.
        cause: the reason of the first abort().
        launcher_client: controls the process; None before STARTING.
        on_closed: called when the connection is CLOSED.
        diag_key: identifies the socket for SocketView; empty if byte counts are not read from the kernel.
        terminator: the connection of the client, which the daemon keeps with TLS or WebSocket; None without them.
        tls_fields: TLS version and subject of the client certificate, quoted.
        proxy_header_size: size of the PROXY header in bytes, which the kernel counts as traffic.
    """

    __slots__ = (
        "_accept_pending", "_daemon_stops", "_owner", "_result", "_timer", "cause", "connection_id", "diag_key",
        "host", "launcher_client", "on_closed", "peer", "pid", "proxy_header_size", "slot", "started", "state",
        "terminator", "tls_fields",
    )  # fmt: skip

    def __init__(self, owner: SpawnedOwner, connection_id: int, peer: str, slot: ConnectionSlot) -> None:
        self._owner = owner
        self.slot = slot
        self.state = SpawnedState.ACCEPTED
        self._accept_pending = True
        owner.unlogged += 1
        self._timer: IDelayedCall | None = None
        self._daemon_stops = False
        self._result: ExitResult | None = None
        self.connection_id = connection_id
        self.peer = peer
        self.host = owner.no_value
        self.started = owner.clock()
        self.pid = 0
        self.launcher_client: LauncherClient | None = None
        self.cause = ""
        self.on_closed: Callable[[], None] | None = None
        self.diag_key = b""
        self.terminator: PipedConnection | None = None
        self.tls_fields = owner.no_value, owner.no_value
        self.proxy_header_size = 0

    def _enter(self, state: SpawnedState) -> None:
        """Change the state; release the descriptor and cancel the timer of the state before."""
        if self.state in _BEFORE_PROCESS and state not in _BEFORE_PROCESS:
            self._owner.budget.release()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.state = state

    # Start of the process

    def begin_handshake(self, terminator: PipedConnection) -> None:
        """Hand the connection over to a protocol that does its handshakes: ACCEPTED -> HANDSHAKE."""
        self._enter(SpawnedState.HANDSHAKE)
        self.terminator = terminator

    def start(self, fd: int, environment: bytes) -> None:
        """Hand the connection over to the launcher: ACCEPTED, HANDSHAKE -> STARTING.

        Args:
            fd: the descriptor for the process. Takes ownership of it.
            environment: environment variables about the connection.
        """
        if not self._owner.logs_pid:
            self.log_accept()
        self._enter(SpawnedState.STARTING)
        self.launcher_client = launcher_client = self._owner.launcher_client
        launcher_client.start(self.connection_id, environment, fd)

    def process_started(self, pid: int) -> None:
        """Handle the start of the process: STARTING -> RUNNING."""
        timer = self._timer
        self._enter(SpawnedState.RUNNING)
        self.pid = pid
        self._owner.counters.process_started(self._owner.clock() - self.started)
        self.log_accept()
        if self.cause and timer is not None and self.launcher_client is not None:
            # abort() was called before and waits for this report.
            self._terminate(self.launcher_client, max(timer.getTime() - self._owner.reactor.seconds(), 0))

    # End of the connection

    def reject(self) -> None:
        """Remove a connection that was not admitted, without a log line: ACCEPTED -> CLOSED."""
        owner = self._owner
        self._skip_accept()
        self._enter(SpawnedState.CLOSED)
        del owner.connections[self.connection_id]
        self.slot.release()
        owner.notify_if_empty()

    def start_failed(self, errno: int) -> None:
        """Handle that there is no process and will be none.

        Args:
            errno: the reason why it can't be started; 0 for no fail line.
        """
        if not self.cause:
            self._owner.counters.failures += 1
        self.log_accept()
        if errno:
            self.log_failure(f"can't start it: {os.strerror(errno)}")
        self._process_over(ExitResult(self.cause or "failed"))

    def process_ended(self, report: Ended) -> None:
        """Handle the exit of the process."""
        killed = os.WIFSIGNALED(report.status)
        code = signal_name(os.WTERMSIG(report.status)) if killed else str(os.WEXITSTATUS(report.status))
        if report.status and not self.cause:
            self._owner.counters.failed_exits += 1
        reason = self.cause or ("killed" if killed else "done")
        traffic = self._client_bytes(report.bytes_in), report.bytes_out
        self._process_over(ExitResult(reason, code, report.user, report.system, traffic), code)

    def process_lost(self) -> None:
        """Handle that the exit of the process will not be reported, or that its start was not reported."""
        self._process_over(ExitResult("unknown"))

    def _process_over(self, result: ExitResult, code: str = "") -> None:
        """Close the connection, with TLS after the output of the process is sent: -> CLOSING, CLOSED."""
        if self.pid:
            self._owner.counters.process_exited(code)
        self.log_accept()
        terminator = self.terminator
        if terminator is None or terminator.closed:
            self._close(result)
            return
        was_terminating = self.state is SpawnedState.TERMINATING
        self._enter(SpawnedState.CLOSING)
        self._result = result
        terminator.set_outcome(*close_status(result, stops=self._daemon_stops))
        if not self.cause:
            terminator.end()
        elif was_terminating:
            # It ended after SIGTERM, and may have written output before that.
            self._timer = self._owner.reactor.callLater(self._kill_seconds, terminator.abort)
            terminator.end(linger=False)
        else:
            terminator.abort()

    def client_closed(self) -> None:
        """Handle the end of a client's connection that the daemon keeps: HANDSHAKE, CLOSING -> CLOSED."""
        terminator, owner = self.terminator, self._owner
        if terminator is not None and terminator.failure_text:
            owner.counters.failures += not self.cause
            self.log_failure(terminator.failure_text)
        if self._result is not None:
            self._close(self._result)
        elif self.state is SpawnedState.HANDSHAKE:
            self._close(ExitResult("handshake"))

    def drain(self) -> None:
        """Prepare for the stop of the daemon; abort the connection if it will not get a process soon.

        A running process is not stopped here: only the process itself can tell when its output is complete.
        """
        self._daemon_stops = True
        if self.pid and self.terminator is not None and self.terminator.websocket is not None:
            # The client is told, as browsers expect it; for the process its input ends.
            self.terminator.websocket.drain()
        if not self.pid and (self.launcher_client is None or self.launcher_client.failing):
            self.abort("shutdown")

    def abort(self, cause: str, kill_after: float | None = None) -> None:
        """End the connection: SIGTERM to its process group, then SIGKILL; at once if it can't have a process yet.

        Args:
            cause: the reason of the end line.
            kill_after: time from SIGTERM to SIGKILL in seconds; None for KILL_SECONDS, or LAST_KILL_SECONDS while
                the daemon stops.
        """
        seconds = self._kill_seconds if kill_after is None else kill_after
        if self.cause:
            # A second call may shorten the time, but not extend it.
            timer = self._timer
            if timer is not None and timer.active() and timer.getTime() > self._owner.reactor.seconds() + seconds:
                timer.reset(seconds)
            return
        if self.state is SpawnedState.CLOSED:
            return
        self.cause = cause
        launcher_client = self.launcher_client
        if self._result is not None and self.terminator is not None:
            self._result = self._result._replace(reason=cause)
            self.terminator.abort()
        elif self.slot.needs_host_name:
            self.reject()
        elif launcher_client is None:
            self.start_failed(0)
        elif self.pid:
            self._terminate(launcher_client, seconds)
        elif launcher_client.cancel(self.connection_id):
            self.start_failed(0)
        else:
            # The connection was sent to the launcher: it may have a process, whose pid is in the report.
            self._timer = self._owner.reactor.callLater(seconds, self._report_timed_out, launcher_client)

    def _terminate(self, launcher_client: LauncherClient, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after `seconds`: RUNNING -> TERMINATING."""
        self._enter(SpawnedState.TERMINATING)
        launcher_client.signal(self.connection_id, signal.SIGTERM)
        self._timer = self._owner.reactor.callLater(seconds, self._kill, launcher_client)

    def _report_timed_out(self, launcher_client: LauncherClient) -> None:
        """Close an aborted connection without a report in time; a process that is reported later is killed."""
        launcher_client.drop(self.connection_id)
        self.start_failed(0)

    @property
    def _kill_seconds(self) -> float:
        return LAST_KILL_SECONDS if self._daemon_stops else KILL_SECONDS

    def _kill(self, launcher_client: LauncherClient) -> None:
        """Send SIGKILL: TERMINATING -> KILLING. While the daemon stops it is sent once; then the process is lost."""
        if self.state is SpawnedState.KILLING and self._daemon_stops:
            # The process did not end, or its launcher did not report it.
            launcher_client.forget_connection(self.connection_id)
            self.process_lost()
            return
        if self.state is SpawnedState.TERMINATING:
            self._enter(SpawnedState.KILLING)
        launcher_client.signal(self.connection_id, signal.SIGKILL)
        self._timer = self._owner.reactor.callLater(self._kill_seconds, self._kill, launcher_client)

    def _close(self, result: ExitResult) -> None:
        """Write the end line and release everything: -> CLOSED."""
        owner = self._owner
        self.log_accept()
        self._enter(SpawnedState.CLOSED)
        del owner.connections[self.connection_id]
        if owner.view.is_open and not owner.connections:
            owner.view.close()
        seconds = owner.clock() - self.started
        traffic = result.traffic if self.terminator is None else self.terminator.final_byte_counts
        fields = {"exit": owner.quoted_word(result.code), "user": result.user, "system": result.system, "pid": self.pid}
        owner.log_end(self.connection_id, self.peer, self.host, seconds, *traffic, result.reason, fields)
        # After the end line: this may admit a queued connection.
        self.slot.release()
        if self.on_closed is not None:
            self.on_closed()
        owner.notify_if_empty()

    # Log lines and display

    def log_accept(self) -> None:
        """Write the accept line if it is not written yet."""
        owner = self._owner
        if not self._accept_pending:
            return
        self._skip_accept()
        if not owner.accept_line:
            return
        version, subject = self.tls_fields
        count = len(owner.connections) - owner.unlogged
        peer = owner.log_writer.quoted_text(self.peer)
        values = {"peer": peer, "host": self.host, "id": self.connection_id, "count": count, "pid": self.pid,
                  "tls": version, "subject": subject}  # fmt: skip
        owner.log_writer.write(owner.accept_line % values)

    def _skip_accept(self) -> None:
        if self._accept_pending:
            self._accept_pending = False
            self._owner.unlogged -= 1

    def log_failure(self, reason: str) -> None:
        """Write a fail line, after the accept line."""
        owner = self._owner
        self.log_accept()
        if owner.fail_line:
            values = {
                "peer": owner.log_writer.quoted_text(self.peer),
                "id": self.connection_id,
                "reason": owner.quoted(reason),
            }
            owner.log_writer.write(owner.fail_line % values)

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes received from the client, and those acknowledged by its system; None if they are unknown."""
        if self.terminator is not None:
            return self.terminator.byte_counts()
        found = self._owner.view.traffic(self.diag_key) if self.diag_key else None
        return found and (self._client_bytes(found[0]), found[1])

    def _client_bytes(self, count: int) -> int:
        """Return the number of received bytes without the PROXY header; -1 if the count is unknown."""
        return max(count - self.proxy_header_size, 0) if count > 0 else count

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        more = {} if self.terminator is None else self.terminator.info(subject=self._owner.logs_subject)
        shown = _STATE_NAMES.get(self.state, "open")
        return self._owner.facts(self, self.peer, **{"pid": self.pid, "state": shown, **more})


def close_status(result: ExitResult, *, stops: bool) -> tuple[int, str]:
    """Return the status and the reason of the Close frame that a WebSocket client gets (RFC 6455, section 7.4.1)."""
    if result.reason == "shutdown" or (stops and result.reason == "done"):
        return 1001, "the service stops"
    if result.reason in ("kicked", "session", "idle", "first_byte"):
        return 1008, f"ended by the server: {result.reason}"
    if result.reason == "killed":
        return 1011, f"killed by {result.code}"
    if result.reason == "done":
        return (1000, "") if result.code == "0" else (1011, f"exit status {result.code}")
    return 1011, "the handler could not be run"


def signal_name(number: int) -> str:
    """Return the name of a signal as in the log; most real-time signals have only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
