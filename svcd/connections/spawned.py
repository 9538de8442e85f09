"""Connections that have processes of their own: numbered, counted, logged, ended in time. The daemon hands them over.

Nothing of such a connection stays in the daemon but a few numbers: its socket is its handler's. Only a client's that
speaks TLS does (svcd.tls.termination).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.wire.proxy_header import ProxyHeader


import signal
from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.access.admission import ConnectionSlot
from svcd.addresses import unmapped
from svcd.config.process_options import OUTPUT_RATE
from svcd.connections.lingering_close import send_banner
from svcd.connections.spawned_connection import ConnectionAddresses, ExitResult, SpawnedConnection
from svcd.connections.spawned_tls import SpawnedTls
from svcd.connections.tracker import ConnectionTracker
from svcd.errors import CommandError
from svcd.log.events import DROPPED, HANDLER_OUTPUT, MODULE_CHANGED, NO_SOCK_DIAG, log_event
from svcd.net.sock_diag import SocketView
from svcd.sockets.epoll_transports import adopter

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext
    from svcd.process.launcher_client import LauncherClient
    from svcd.process.messages import Ended
    from svcd.tls.service_tls import ServiceTls
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["QueuedClient", "SpawnedTracker"]


class SpawnedTracker(ConnectionTracker[SpawnedConnection]):
    """Keeps the connections of a spawned service, and hears from its launcher what becomes of them.

    Args:
        service, context, service_admission: as ConnectionTracker takes them.
        make_launcher_client: makes the client of the service's launcher, which reports to this tracker.
        tls: the TLS configuration of the service, which may be none.
    """

    _log = Logger()

    def __init__(
        self,
        service: Service,
        context: ConnectionContext,
        service_admission: ServiceAdmission,
        make_launcher_client: Callable[[SpawnedTracker], LauncherClient],
        tls: ServiceTls | None = None,
    ) -> None:
        super().__init__(service, context, service_admission)
        self._securing = None if tls is None else SpawnedTls(self, tls, adopter(self.reactor))
        self.launcher_client = make_launcher_client(self)
        self.view = SocketView(lambda why: log_event(self._log, NO_SOCK_DIAG, service=service.id, reason=why))
        self._rooms: list[Callable[[], None]] = []

    def retune(self, service: Service) -> None:
        """Let other options hold."""
        super().retune(service)
        self._tells_pid = "PID" in service.logged

    def relink(self, launcher_client: LauncherClient) -> None:
        """Have another launcher from now on; the one before goes when its last handler has ended."""
        before, self.launcher_client = self.launcher_client, launcher_client
        before.replace_by(launcher_client)

    def restart(self) -> Deferred[dict[str, object]]:
        """Start another launcher; when it is ready it serves, and the one before ends with its last handler.

        Returns:
            A Deferred with the pids of both, 0 for none. It fails with a CommandError when the new one can't begin, or
            when a reload has come first; the service goes on as before then.
        """
        before, launcher_client = self.launcher_client, self.launcher_client.make_replacement()
        old = before.pid

        def begun(pid: int) -> dict[str, object]:
            if self.launcher_client is not before:
                launcher_client.stop()
                raise CommandError("a reload has replaced the launcher meanwhile")
            self.relink(launcher_client)
            return {"pid": pid, "before": old}

        def failed(failure: Failure) -> Failure:
            launcher_client.stop()
            return failure

        return launcher_client.when_ready().addCallbacks(begun, failed)

    def begin(self) -> None:
        """Be ready for the first client: a launcher is forked in no time, but Python takes its time to import."""
        if self.service.runs == "python":
            self.launcher_client.ensure_launcher()

    def may_accept(self) -> int:
        """How many more connections may be taken in now."""
        return self.budget.room() if not self.launcher_client.full and self.service_admission.may_accept() else 0

    def when_room(self, resume: Callable[[], None]) -> Callable[[], None]:
        """Call this when more may be accepted than before; returns what ends that."""
        self._rooms.append(resume)
        return lambda: self._rooms.remove(resume)

    def take(self, descriptor: int, name: Any, family: int, relay: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve a connection; the descriptor is the keeper's to close from now on.

        Args:
            descriptor: blocking.
            name: the client's socket address.
            family: of the socket.
            relay: the header by which a proxy has said whose connection it is.
        """
        inet = isinstance(name, tuple)
        host, peer = self.client_of(descriptor, name)
        slot = self.service_admission.admit(host, self.clock())
        if not isinstance(slot, ConnectionSlot):
            if self.service_admission.should_queue(slot):
                QueuedClient(self, descriptor, name, family, relay)
            else:
                self.service_admission.refusals.reject(descriptor, slot, peer)
            return
        try:
            ends = ConnectionAddresses.of(descriptor, name, family, relay)
        except OSError:
            # The client is gone already, and leaves no trace.
            slot.release()
            os.close(descriptor)
            return
        if not inet:
            session = self._open(peer, slot)
            self._start(session, descriptor, ends)
            return
        session = self._open(peer, slot)
        session.before = 0 if relay is None else relay.size
        secures = self._securing is not None and self._securing.wanted
        if ends.real is not None and self.deadlines is not None and self.deadlines.times.looks and not secures:
            session.traced = self.view.trace(descriptor, family, *ends.real)
        if not (self.resolves or slot.needs_host_name):
            self._start(session, descriptor, ends)
            return
        ask = self.resolver.confirmed_host_of if slot.needs_host_name else self.resolver.host_of
        far = ask(unmapped(name[0]))
        # That of our own address is soon remembered, and costs nothing then.
        near = self.resolver.host_of(unmapped(ends.near[0])) if self.resolves else None
        far.addCallback(self._named, session, descriptor, ends, near)

    def _named(
        self,
        host: str | None,
        session: SpawnedConnection,
        descriptor: int,
        ends: ConnectionAddresses,
        near: Deferred[str | None] | None,
    ) -> None:
        """The client's name, or that it has none, is known."""
        if self.sessions.get(session.number) is not session:
            os.close(descriptor)
            return
        if session.slot.needs_host_name:
            refusal = session.slot.check_host_name(host)
            if refusal is not None:
                self._forget(session)
                self.service_admission.refusals.reject(descriptor, refusal, self.peer_text(ends.far[0], ends.far[1]))
                return
            self.counters.accepted += 1
        if near is None:
            self._start(session, descriptor, ends)
            return
        if host:
            session.host = self.quoted(host)
        near.addCallback(self._near_named, session, descriptor, ends, host)

    def _near_named(
        self, near: str | None, session: SpawnedConnection, descriptor: int, ends: ConnectionAddresses, host: str | None
    ) -> None:
        """The name of our own address, or that it has none, is known as well."""
        if self.sessions.get(session.number) is session:
            self._start(session, descriptor, ends, host, near)
        else:
            os.close(descriptor)

    def take_socket(
        self, descriptor: int, peer: str, environment: bytes, ended: Callable[[], None], slot: ConnectionSlot
    ) -> SpawnedConnection:
        """Let a process have a listening or a datagram socket itself.

        Args:
            descriptor: a copy, to be closed by the keeper.
            peer: who caused it, as far as that is known.
            environment: what the process is told of it.
            ended: called when the process has ended, or when there could be none.
            slot: of whom the entrance has admitted.
        """
        session = self._open(peer, slot)
        session.ended = ended
        self.hand_over(session, descriptor, environment)
        return session

    def _open(self, peer: str, slot: ConnectionSlot) -> SpawnedConnection:
        session = SpawnedConnection(self, next(self.connection_ids), self.quoted(peer), slot)
        if not slot.needs_host_name:
            self.counters.accepted += 1
        self.add(session)
        return session

    def _start(
        self,
        session: SpawnedConnection,
        descriptor: int,
        ends: ConnectionAddresses,
        host: str | None = None,
        near: str | None = None,
    ) -> None:
        environment = ends.environment(len(self.sessions), host, near)
        if self._securing is not None and self._securing.wanted:
            self._securing.begin(session, descriptor, ends, environment)
            return
        if self.service_admission.accept_banner:
            send_banner(descriptor, self.service_admission.accept_banner)
        self.hand_over(session, descriptor, environment)

    def hand_over(self, session: SpawnedConnection, descriptor: int, environment: bytes) -> None:
        """Let a connection have its process.

        Args:
            session: it.
            descriptor: what the process is to have; the link's to close from now on.
            environment: what the process is told of it.
        """
        if not self._tells_pid:
            session.tell_accept()
        session.launcher_client = self.launcher_client
        session.launcher_client.start(session.number, environment, descriptor)

    def process_started(self, number: int, pid: int) -> None:
        """A connection has its process, and the daemon its descriptor no more."""
        self.budget.release()
        session = self.sessions[number]
        session.pid = pid
        self.counters.process_started(self.clock() - session.started)
        session.tell_accept()

    def start_failed(self, number: int, errno: int) -> None:
        """A connection has no process and never will; it is closed."""
        session = self.sessions[number]
        if session.slot.needs_host_name:
            # Nobody let it in.
            self._forget(session)
            return
        if session.pid:
            self.counters.process_exited("")
        else:
            self.budget.release()
        if not session.cause:
            self.counters.failures += 1
        session.tell_accept()
        if errno:
            self.tell_failure(session, f"can't start it: {os.strerror(errno)}")
        self._over(session, ExitResult(session.cause or "failed"))

    def process_ended(self, report: Ended) -> None:
        """A process has ended by itself, or because it had to."""
        session = self.sessions[report.connection_id]
        killed = os.WIFSIGNALED(report.status)
        code = _signal_name(os.WTERMSIG(report.status)) if killed else str(os.WEXITSTATUS(report.status))
        self.counters.process_exited(code)
        if report.status and not session.cause:
            self.counters.failures += 1
        reason = session.cause or ("killed" if killed else "done")
        traffic = session.own(report.bytes_in), report.bytes_out
        self._over(session, ExitResult(reason, code, report.user, report.system, traffic))

    def process_lost(self, number: int) -> None:
        """A process that nobody watches any more; or nobody knows whether there is one."""
        session = self.sessions[number]
        if session.pid:
            self.counters.process_exited("")
        else:
            self.budget.release()
            session.tell_accept()
        self._over(session, ExitResult("unknown"))

    def stderr_line(self, number: int, text: bytes) -> None:
        """A process wrote something for the log."""
        session = self.sessions.get(number)
        values: dict[str, object] = {"text": text.decode(errors="backslashreplace")}
        if session is not None:
            values |= {"id": number, "pid": session.pid}
        log_event(self._log, HANDLER_OUTPUT, service=self.service.id, **values)

    def dropped(self, lines: int, size: int) -> None:
        """Processes wrote more for the log than stderr_rate allows."""
        rule = "stderr_rate=" + OUTPUT_RATE.write(self.service.options.stderr_rate)
        log_event(self._log, DROPPED, service=self.service.id, lines=lines, bytes=size, rule=rule)

    def module_changed(self, module: str) -> None:
        """A module that the launcher has imported has changed on disk."""
        text = f"module {module} changed on disk; restart its launcher with svcctl restart {self.service.id}"
        log_event(self._log, MODULE_CHANGED, service=self.service.id, text=text)

    def threads_stuck(self) -> None:
        """The launcher has many threads that go on without their connections: they end with it."""
        # Why it failed is in the log then.
        self.restart().addErrback(lambda failure: failure.trap(CommandError))

    def launcher_restarted(self) -> None:
        """There is a launcher in place of a lost one."""
        self.counters.restarts += 1

    def unavailable(self, problem: str) -> None:
        """The launcher can't serve, or can again."""
        self.counters.unavailable = problem

    def queue_drained(self) -> None:
        """The launcher has taken something."""
        for resume in self._rooms:
            resume()

    def _forget(self, session: SpawnedConnection) -> None:
        """A connection that was not let in leaves no trace."""
        session.tell_nothing()
        del self.sessions[session.number]
        self.budget.release()
        session.cancel()
        session.slot.release()
        self.notify_if_empty()

    def tell_failure(self, session: SpawnedConnection, reason: str) -> None:
        """Say why a connection could not be served."""
        session.tell_accept()
        if self.fail_line:
            values = {"peer": session.peer, "id": session.number, "reason": self.quoted(reason)}
            self.log_writer.write(self.fail_line % values)

    def _over(self, session: SpawnedConnection, outcome: ExitResult) -> None:
        """A connection has no process any more; one that the daemon has itself goes on until it is closed."""
        if session.pump is None or session.pump.closed:
            self.close(session, outcome)
        else:
            session.wind_up(session.pump, outcome)

    def close(self, session: SpawnedConnection, outcome: ExitResult) -> None:
        """A connection is over, and so is its process."""
        session.tell_accept()
        del self.sessions[session.number]
        session.cancel()
        if not self.sessions:
            self.view.close()
        seconds = self.clock() - session.started
        traffic = outcome.traffic if session.pump is None else session.pump.final_byte_counts
        more = {"exit": self.quoted(outcome.code), "user": outcome.user, "system": outcome.system, "pid": session.pid}
        self.log_end(session.number, session.peer, session.host, seconds, *traffic, outcome.reason, more)
        # After the line: somebody who waited for this may come in now.
        session.slot.release()
        if session.ended is not None:
            session.ended()
        self.notify_if_empty()


def _signal_name(number: int) -> str:
    """A signal as the log has it; most of the real-time ones have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


class QueuedClient:
    """A connection that waits until one of its service ends; it is not read meanwhile.

    Args:
        tracker: takes it when there is room.
        descriptor: of the connection.
        name: the client's socket address.
        family: of the socket.
        relay: the header by which a proxy has said whose connection it is.

    Attributes:
        started: by the keeper's clock, in seconds.
    """

    __slots__ = ("_descriptor", "_family", "_name", "_number", "_relay", "_tracker", "started")

    def __init__(
        self,
        tracker: SpawnedTracker,
        descriptor: int,
        name: Any,  # noqa: ANN401 - a socket address
        family: int,
        relay: ProxyHeader | None,
    ) -> None:
        self._tracker = tracker
        self._descriptor = descriptor
        self._name = name
        self._family = family
        self._relay = relay
        self._number = 0
        self.started = tracker.clock()
        tracker.pending[self] = None
        tracker.budget.acquire()
        tracker.service_admission.enqueue(self._again)

    @property
    def number(self) -> int:
        """The connection's number, which it has from when it is listed first."""
        self._number = self._number or next(self._tracker.connection_ids)
        return self._number

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        _, peer = self._tracker.client_of(self._descriptor, self._name)
        return self._tracker.facts(self, peer, state="room")

    def drain(self) -> None:
        """Nothing is owed to it."""
        self.abort("")

    def abort(self, _cause: str) -> None:
        """End it."""
        self._tracker.service_admission.dequeue(self._again)
        os.close(self._descriptor)
        self._tracker.budget.release()
        del self._tracker.pending[self]
        self._tracker.notify_if_empty()

    def _again(self) -> None:
        self._tracker.budget.release()
        del self._tracker.pending[self]
        try:
            self._tracker.take(self._descriptor, self._name, self._family, self._relay)
        finally:
            self._tracker.notify_if_empty()
