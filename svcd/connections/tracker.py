"""ConnectionTracker: ids, counts and log lines of the connections of one service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred

from svcd.connections.timeouts import TimedConnection, Timeouts, TimeoutSweeper
from svcd.log.events import ACCEPT, END, FAIL
from svcd.net.peer_credentials import unix_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext

__all__ = ["ConnectionTracker", "TrackedConnection", "UnadmittedConnection", "cancelling"]

#: The fields of log lines, by word of log_on_success.
_LOGGED = {
    "PID": {"pid"},
    "HOST": {"peer", "host"},
    "EXIT": {"reason"},
    "DURATION": {"seconds"},
    "TRAFFIC": {"in", "out"},
}
#: The same for spawned services.
_LOGGED_SPAWNED = {**_LOGGED, "EXIT": {"reason", "exit", "user", "system"}}
_NOTHING: Mapping[str, object] = {}
#: The reasons of end lines.
_REASONS = ("done", "lost", "aborted", "error", "failed", "killed", "unknown", "kicked", "timeout", "shutdown",
            "idle", "first_byte", "session", "handshake", "request", "keepalive", "send", "evicted")  # fmt: skip


class ListedConnection(Protocol):
    """A connection that `svcctl connections` can list."""

    @property
    def started(self) -> float:
        """The time of accept in seconds, by the tracker's clock."""

    @property
    def connection_id(self) -> int:
        """The id of the connection, unique since the start of the daemon."""


class TrackedConnection(TimedConnection, Protocol):
    """An open connection of a tracker."""

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""

    def drain(self) -> None:
        """Close the connection as soon as the client has all output."""


class UnadmittedConnection(Protocol):
    """A connection that is accepted and not admitted yet."""

    @property
    def connection_id(self) -> int:
        """The id under which the connection is listed; an admitted connection gets another one."""

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""

    def drain(self) -> None:
        """Close the connection: there is no output to send."""

    def abort(self, cause: str, /) -> None:
        """Close the connection now."""


ConnectionT = TypeVar("ConnectionT", bound=TrackedConnection)


class ConnectionTracker(Generic[ConnectionT]):
    """Tracks the connections of one service, from all of its listeners.

    Args:
        service: the service.
        context: shared by all services.
        service_admission: admits or refuses connections.
        constants: values of the log lines that are the same for all connections.

    Attributes:
        connections: the open connections by id.
        pending: the connections that are not admitted yet, in the order of accept.
        timeout_sweeper: closes connections after their timeouts; None without timeouts.
        programs: processes that may outlive their connections; the tracker is not empty while there is one.
        unlogged: the number of open connections whose accept line is not written yet.
        reactor, log_writer, resolver, connection_ids, clock: as in the context.
        budget: the service's share of the descriptors.
    """

    def __init__(
        self,
        service: Service,
        context: ConnectionContext,
        service_admission: ServiceAdmission,
        constants: Mapping[str, object] = _NOTHING,
    ) -> None:
        self.reactor = context.reactor
        self.log_writer = log_writer = context.log_writer
        self.resolver = context.resolver
        self.budget = context.budget.share(service.id)
        self.connection_ids = context.connection_ids
        self.clock = context.clock
        self.service_admission = service_admission
        self.counters = service_admission.counters
        self.connections: dict[int, ConnectionT] = {}
        self.pending: dict[UnadmittedConnection, None] = {}
        self.programs: Collection[object] = ()
        self.unlogged = 0
        self.timeout_sweeper: TimeoutSweeper | None = None
        self._call_later: Callable[[float, Callable[[], None]], object] | None = None
        self.quoted = log_writer.quoted
        self.format_peer = log_writer.format_peer
        self.quoted_peer = log_writer.quoted_peer
        # Quoted once for all connections.
        self.no_value = log_writer.quoted("-")
        self.reasons = {word: log_writer.quoted(word) for word in _REASONS}
        self._constants = constants
        self._waiting: list[Deferred[None]] = []
        self.retune(service)

    def retune(self, service: Service) -> None:
        """Apply the options of the service, and create the templates of its log lines."""
        self.service = service
        self.resolves = service.options.resolve
        # The status page shows the same fields of clients as the log.
        self.logs_peer = "HOST" in service.logged
        chosen = self._logged_fields(service)
        self.logs_subject = "subject" in chosen
        values = {"service": service.id, **self._constants}
        fixed = {name: value for name, value in values.items() if name in chosen}
        variables = chosen - fixed.keys()
        template = self.log_writer.template
        self.accept_line, self.end_line = (
            template(event, fixed, variables) if service.logged else "" for event in (ACCEPT, END)
        )
        self.fail_line = template(FAIL, {"service": service.id}, ("peer", "id", "reason"))
        self._apply_timeouts()

    def _logged_fields(self, service: Service) -> set[str]:
        """Return the fields of the service's log lines."""
        words = _LOGGED_SPAWNED if service.spawned else _LOGGED
        chosen = {"service", "id", "count"}.union(*(words[word] for word in service.logged))
        if not self.resolves or self.log_writer.anonymize:
            chosen.discard("host")
        if service.tls:
            chosen.add("tls")
            if service.options.tls_client_ca is not None and self.logs_peer and not self.log_writer.anonymize:
                chosen.add("subject")
        return chosen

    def start_timeouts(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        """Start applying the timeouts.

        Args:
            call_later: callLater of the reactor.
        """
        self._call_later = call_later
        self._apply_timeouts()

    def _apply_timeouts(self) -> None:
        times = Timeouts.of(self.service.options)
        if self.timeout_sweeper is not None:
            self.timeout_sweeper.retune(times)
        elif times.interval and self._call_later is not None:
            self.timeout_sweeper = TimeoutSweeper(times, self.connections, self.clock, self._call_later)

    def client_of(self, fd: int, sockaddr: Any) -> tuple[str, str]:  # noqa: ANN401 - a socket address
        """Return the client of an accepted connection: the host for admission, and the address as text, not quoted.

        Args:
            fd: the descriptor of the connection; borrowed.
            sockaddr: the client's socket address, from the PROXY header if it has one.
        """
        if isinstance(sockaddr, tuple):
            return sockaddr[0], self.format_peer(sockaddr[0], sockaddr[1])
        peer = unix_peer(fd, sockaddr)
        return peer.user, peer.text

    def add(self, connection: ConnectionT) -> None:
        """Add an open connection; its end removes it from `connections` and releases the budget."""
        self.connections[connection.connection_id] = connection
        self.budget.acquire()
        if self.timeout_sweeper is not None:
            self.timeout_sweeper.wake()

    def facts(self, connection: ListedConnection, peer: str, **more: object) -> dict[str, object]:
        """Return the fields of a connection in `svcctl connections`; peer is the client's address as text."""
        seconds = round(self.clock() - connection.started, 3)
        return {"id": connection.connection_id, "peer": peer, "seconds": seconds, "state": "open", **more}

    def log_end(
        self,
        connection_id: int,
        peer: str,
        host: str,
        seconds: float,
        bytes_in: int,
        bytes_out: int,
        reason: str,
        more: Mapping[str, object] = _NOTHING,
    ) -> None:
        """Count a closed connection, and write its end line.

        Args:
            connection_id: the id of the connection.
            peer: the client's address as text; not quoted.
            host: the client's host name, quoted.
            seconds: the duration in seconds.
            bytes_in: bytes received from the client; -1 if unknown.
            bytes_out: bytes sent to the client; -1 if unknown.
            reason: one of `reasons`.
            more: other fields of the line.
        """
        self.counters.end(reason, seconds, bytes_in, bytes_out, peer if self.logs_peer else "")
        if self.end_line:
            values = {
                "peer": self.log_writer.quoted_text(peer),
                "host": host,
                "id": connection_id,
                "in": bytes_in,
                "out": bytes_out,
                "seconds": seconds,
                "reason": self.reasons[reason],
                "count": len(self.connections) - self.unlogged,
                **more,
            }
            self.log_writer.write(self.end_line % values)

    def all_connections(self) -> list[ConnectionT | UnadmittedConnection]:
        """Return all connections, the pending ones first."""
        return [*self.pending, *self.connections.values()]

    def when_empty(self) -> Deferred[None]:
        """Return a Deferred that fires when there is no connection and no program, at once if there is none."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        self.notify_if_empty()
        return waiting

    def notify_if_empty(self) -> None:
        """Fire the Deferreds of when_empty() if there is no connection; call it after each end of one or a program."""
        if self._waiting and not (self.connections or self.pending or self.programs):
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)


def cancelling(call: IDelayedCall) -> Callable[[object], None]:
    """Return a callback that cancels a delayed call, if it is still pending."""

    def cancel(_result: object) -> None:
        if call.active():
            call.cancel()

    return cancel
