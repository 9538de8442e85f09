"""What keepers of connections share: numbers, counts, and the lines of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred

from svcd.connections.timeouts import Timed, Timeouts, TimeoutSweeper
from svcd.log.events import ACCEPT, END, FAIL
from svcd.net.peer_credentials import unix_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext

__all__ = ["ConnectionTracker", "TrackedConnection", "UnadmittedConnection", "cancelling"]

#: Which fields of the lines each word of log_on_success stands for.
_LOGGED = {
    "PID": {"pid"},
    "HOST": {"peer", "host"},
    "EXIT": {"reason"},
    "DURATION": {"seconds"},
    "TRAFFIC": {"in", "out"},
}
#: And for processes of their own.
_LOGGED_SPAWNED = {**_LOGGED, "EXIT": {"reason", "exit", "user", "system"}}
_NOTHING: Mapping[str, object] = {}
#: Why a connection ended, in a word.
_REASONS = ("done", "lost", "aborted", "error", "failed", "killed", "unknown", "kicked", "timeout", "shutdown",
            "idle", "first_byte", "session", "handshake", "request", "keepalive", "send", "evicted")  # fmt: skip


class Numbered(Protocol):
    """A connection that can be listed."""

    @property
    def started(self) -> float:
        """When it began, by the keeper's clock, in seconds."""

    @property
    def number(self) -> int:
        """The connection's number, since the daemon started."""


class TrackedConnection(Timed, Protocol):
    """An open connection, as far as its end is concerned."""

    def info(self) -> dict[str, object]:
        """What is known of the connection."""

    def drain(self) -> None:
        """End as soon as nothing is owed to the client."""


class UnadmittedConnection(Protocol):
    """A connection that is not let in yet."""

    @property
    def number(self) -> int:
        """The connection's number, by which it is listed; once it is let in it has another one."""

    def info(self) -> dict[str, object]:
        """What is known of the connection."""

    def drain(self) -> None:
        """End: nothing is owed to the client."""

    def abort(self, cause: str, /) -> None:
        """End now."""


SessionT = TypeVar("SessionT", bound=TrackedConnection)


class ConnectionTracker(Generic[SessionT]):
    """Numbers and counts the connections of one service, whichever of its listeners they come by.

    Args:
        service: the service.
        context: shared by all services.
        service_admission: admits or refuses connections.
        constants: values of the log lines that are the same for all connections.

    Attributes:
        sessions: the open connections by number.
        pending: those that are not let in yet, in the order in which they came.
        deadlines: of the connections; None if they may last as long as they like.
        untold: how many of the open connections have an accept line that is still to be written.
        reactor, log_writer, resolver, connection_ids, clock: those of the context.
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
        self.sessions: dict[int, SessionT] = {}
        self.pending: dict[UnadmittedConnection, None] = {}
        self.untold = 0
        self.deadlines: TimeoutSweeper | None = None
        self._call_later: Callable[[float, Callable[[], None]], object] | None = None
        self.quoted = log_writer.quoted
        self.peer_text = log_writer.format_peer
        self.quoted_peer = log_writer.quoted_peer
        # Quoted once for all connections.
        self.nameless = log_writer.quoted("-")
        self.reasons = {word: log_writer.quoted(word) for word in _REASONS}
        self._constants = constants
        self._waiting: list[Deferred[None]] = []
        self.retune(service)

    def retune(self, service: Service) -> None:
        """Let the service's options, perhaps other ones than before, hold for what happens from now on."""
        self.service = service
        self.resolves = service.options.resolve
        # What the log does not say of clients nobody else shows either.
        self.tells_peer = "HOST" in service.logged
        chosen = self._chosen(service)
        self.tells_subject = "subject" in chosen
        values = {"service": service.id, **self._constants}
        fixed = {name: value for name, value in values.items() if name in chosen}
        variables = chosen - fixed.keys()
        template = self.log_writer.template
        self.accept_line, self.end_line = (
            template(event, fixed, variables) if service.logged else "" for event in (ACCEPT, END)
        )
        self.fail_line = template(FAIL, {"service": service.id}, ("peer", "id", "reason"))
        self._set_deadlines()

    def _chosen(self, service: Service) -> set[str]:
        """The fields of the lines that tell of the service's connections."""
        words = _LOGGED_SPAWNED if service.spawned else _LOGGED
        chosen = {"service", "id", "count"}.union(*(words[word] for word in service.logged))
        if not self.resolves or self.log_writer.anonymize:
            chosen.discard("host")
        if service.tls:
            chosen.add("tls")
            if service.options.tls_client_ca is not None and self.tells_peer and not self.log_writer.anonymize:
                chosen.add("subject")
        return chosen

    def start_timeouts(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        """End connections when their deadlines pass, from now on.

        Args:
            call_later: the reactor's.
        """
        self._call_later = call_later
        self._set_deadlines()

    def _set_deadlines(self) -> None:
        times = Timeouts.of(self.service.options)
        if self.deadlines is not None:
            self.deadlines.retune(times)
        elif times.interval and self._call_later is not None:
            self.deadlines = TimeoutSweeper(times, self.sessions, self.clock, self._call_later)

    def client_of(self, descriptor: int, name: Any) -> tuple[str, str]:  # noqa: ANN401 - a socket address
        """The client of an accepted connection: as its entrance is asked for it, and as log lines have it.

        Args:
            descriptor: of the connection.
            name: the socket address of the client; a proxy may have said it.
        """
        if isinstance(name, tuple):
            return name[0], self.peer_text(name[0], name[1])
        peer = unix_peer(descriptor, name)
        return peer.user, peer.text

    def add(self, session: SessionT) -> None:
        """Count a connection; who ends it takes it out again, of `sessions` and of the budget."""
        self.sessions[session.number] = session
        self.budget.acquire()
        if self.deadlines is not None:
            self.deadlines.wake()

    def facts(self, session: Numbered, peer: str, **more: object) -> dict[str, object]:
        """Return the fields of a connection in `svcctl connections`; peer is the client's address as text."""
        seconds = round(self.clock() - session.started, 3)
        return {"id": session.number, "peer": peer, "seconds": seconds, "state": "open", **more}

    def log_end(
        self,
        number: int,
        peer: str,
        host: str,
        seconds: float,
        bytes_in: int,
        bytes_out: int,
        reason: str,
        more: Mapping[str, object] = _NOTHING,
    ) -> None:
        """Count a connection that is over, and write its line.

        Args:
            number: the connection's.
            peer: the client's address as text; not quoted.
            host: its name, the same.
            seconds: how long it lasted.
            bytes_in: what came from it; -1 if nobody knows.
            bytes_out: what went to it, the same.
            reason: why it ended, one word of those in `reasons`.
            more: other fields of the line.
        """
        self.counters.end(reason, seconds, bytes_in, bytes_out, peer if self.tells_peer else "")
        if self.end_line:
            values = {
                "peer": self.log_writer.quoted_text(peer),
                "host": host,
                "id": number,
                "in": bytes_in,
                "out": bytes_out,
                "seconds": seconds,
                "reason": self.reasons[reason],
                "count": len(self.sessions) - self.untold,
                **more,
            }
            self.log_writer.write(self.end_line % values)

    def all_connections(self) -> list[SessionT | UnadmittedConnection]:
        """All connections, those that wait to be let in first."""
        return [*self.pending, *self.sessions.values()]

    def when_empty(self) -> Deferred[None]:
        """Fires when no connection is open, at once if none is."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        self.notify_if_empty()
        return waiting

    def notify_if_empty(self) -> None:
        """A connection may have been the last."""
        if self._waiting and not (self.sessions or self.pending):
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)


def cancelling(call: IDelayedCall) -> Callable[[object], None]:
    """A callback that calls a timed call off, if it is not made yet."""

    def call_off(_result: object) -> None:
        if call.active():
            call.cancel()

    return call_off
