"""SpawnedTracker: the connections of a service that are handled by processes of their own.

The daemon hands the socket of such a connection over to its process and keeps a small record. With TLS or WebSocket it
keeps the connection of the client as well (svcd.protocols.handler_pipe).
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from svcd.access.admission import ConnectionSlot
from svcd.addresses import unmapped
from svcd.connections.launcher_reports import LauncherReports
from svcd.connections.lingering_close import send_banner
from svcd.connections.spawned_connection import SpawnedConnection, SpawnedOwner, SpawnedState
from svcd.connections.spawned_handshakes import SpawnedHandshakes
from svcd.log.events import NO_SOCK_DIAG, log_event
from svcd.net.sock_diag import SocketView
from svcd.process.environment import ConnectionAddresses
from svcd.sockets.epoll_transports import adopter

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext
    from svcd.connections.service_websocket import ServiceWebSocket
    from svcd.process.launcher_client import LauncherClient
    from svcd.process.messages import Ended, Started
    from svcd.tls.service_tls import ServiceTls
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["QueuedClient", "SpawnedTracker"]


class SpawnedTracker(LauncherReports, SpawnedOwner):
    """Tracker of the connections of a spawned service; its launcher reports to it (LauncherEvents).

    Args:
        service, context, service_admission: as in ConnectionTracker.
        make_launcher_client: creates the client of the service's launcher, which reports to this tracker.
        tls: the TLS configuration of the service; None without TLS.
        websocket: the options of WebSocket of the service; None without WebSocket.
    """

    _log = Logger()

    def __init__(
        self,
        service: Service,
        context: ConnectionContext,
        service_admission: ServiceAdmission,
        make_launcher_client: Callable[[SpawnedTracker], LauncherClient],
        tls: ServiceTls | None = None,
        websocket: ServiceWebSocket | None = None,
    ) -> None:
        super().__init__(service, context, service_admission)
        self._handshakes = SpawnedHandshakes(self, tls, websocket, adopter(self.reactor))
        self.quoted_word = lru_cache(maxsize=None)(self.quoted)
        self.launcher_client = make_launcher_client(self)
        self.view = SocketView(lambda why: log_event(self._log, NO_SOCK_DIAG, service=service.id, reason=why))
        self._resume_callbacks: list[Callable[[], None]] = []

    def retune(self, service: Service) -> None:
        """Apply new options."""
        super().retune(service)
        self.logs_pid = "PID" in service.logged

    def start_early(self) -> None:
        """Start the launcher of a Python handler before the first client connects, as it has to import the handler."""
        if self.service.runs == "python":
            self.launcher_client.ensure_launcher()

    def may_accept(self) -> int:
        """Return how many more connections may be accepted now."""
        return self.budget.room() if not self.launcher_client.full and self.service_admission.may_accept() else 0

    def when_room(self, resume: Callable[[], None]) -> Callable[[], None]:
        """Call a function each time the launcher has room again; return a function that ends this."""
        self._resume_callbacks.append(resume)
        return lambda: self._resume_callbacks.remove(resume)

    def take(self, fd: int, sockaddr: Any, family: int, proxy_header: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Serve an accepted connection.

        Args:
            fd: the descriptor of the connection, blocking. Takes ownership of it.
            sockaddr: the client's socket address, from the PROXY header if it has one.
            family: the address family of the socket.
            proxy_header: the PROXY header.
        """
        host, peer = self.client_of(fd, sockaddr)
        slot = self.service_admission.admit(host, self.clock())
        if not isinstance(slot, ConnectionSlot):
            if self.service_admission.should_queue(slot):
                QueuedClient(self, fd, sockaddr, family, proxy_header)
            else:
                self.service_admission.refusals.reject(fd, slot, peer)
            return
        try:
            addresses = ConnectionAddresses.of(fd, sockaddr, family, proxy_header)
        except OSError:
            # The client has already closed the connection: nothing is logged.
            slot.release()
            os.close(fd)
            return
        connection = self._add(peer, slot)
        if not isinstance(sockaddr, tuple):
            self._start(connection, fd, addresses)
            return
        connection.proxy_header_size = 0 if proxy_header is None else proxy_header.size
        if (
            addresses.socket_local
            and self.timeout_sweeper is not None
            and self.timeout_sweeper.times.needs_traffic
            and not self._handshakes.required
        ):
            connection.diag_key = self.view.trace(fd, family, addresses.socket_local, addresses.socket_remote)
        if self.resolves or slot.needs_host_name:
            self._resolve(connection, fd, addresses)
        else:
            self._start(connection, fd, addresses)

    def _resolve(self, connection: SpawnedConnection, fd: int, addresses: ConnectionAddresses) -> None:
        """Look up the host name of the client, and with resolve=yes of the daemon's address, then continue."""
        ask = self.resolver.confirmed_host_of if connection.slot.needs_host_name else self.resolver.host_of
        remote = ask(unmapped(addresses.remote[0]))
        # The daemon's own address will soon be in the cache of the resolver.
        local = self.resolver.host_of(unmapped(addresses.local[0])) if self.resolves else None
        remote.addCallback(self._remote_named, connection, fd, addresses, local)

    def _remote_named(
        self,
        host: str | None,
        connection: SpawnedConnection,
        fd: int,
        addresses: ConnectionAddresses,
        local: Deferred[str | None] | None,
    ) -> None:
        """Admit or reject a connection by its client's host name, which may be None."""
        if connection.state is SpawnedState.CLOSED:
            os.close(fd)
            return
        if connection.slot.needs_host_name:
            refusal = connection.slot.check_host_name(host)
            if refusal is not None:
                connection.reject()
                self.service_admission.refusals.reject(fd, refusal, connection.peer)
                return
            self.counters.accepted += 1
        if local is None:
            self._start(connection, fd, addresses)
            return
        if host:
            connection.host = self.quoted(host)
        local.addCallback(self._local_named, connection, fd, addresses, host)

    def _local_named(
        self,
        local_host: str | None,
        connection: SpawnedConnection,
        fd: int,
        addresses: ConnectionAddresses,
        remote_host: str | None,
    ) -> None:
        """Start a connection; all its host names are known."""
        if connection.state is SpawnedState.CLOSED:
            os.close(fd)
        else:
            self._start(connection, fd, addresses, remote_host, local_host)

    def take_socket(
        self, fd: int, peer: str, environment: bytes, on_closed: Callable[[], None], slot: ConnectionSlot
    ) -> SpawnedConnection:
        """Pass a listening or a datagram socket to a process (wait=yes).

        Args:
            fd: the descriptor of the socket. Takes ownership of it.
            peer: address of the first client as text, as far as it is known; not quoted.
            environment: environment variables of the process.
            on_closed: called when the process has exited, or can't be started.
            slot: the admission of the process.
        """
        connection = self._add(peer, slot)
        connection.on_closed = on_closed
        connection.start(fd, environment)
        return connection

    def _add(self, peer: str, slot: ConnectionSlot) -> SpawnedConnection:
        connection = SpawnedConnection(self, next(self.connection_ids), peer, slot)
        if not slot.needs_host_name:
            self.counters.accepted += 1
        self.add(connection)
        return connection

    def _start(
        self,
        connection: SpawnedConnection,
        fd: int,
        addresses: ConnectionAddresses,
        remote_host: str | None = None,
        local_host: str | None = None,
    ) -> None:
        """Start the process of an admitted connection, after the handshakes that the service has."""
        environment = addresses.environment(len(self.connections), remote_host, local_host)
        if self._handshakes.required:
            self._handshakes.begin(connection, fd, addresses, environment)
            return
        if self.service_admission.accept_banner:
            send_banner(fd, self.service_admission.accept_banner)
        connection.start(fd, environment)

    # Reports of the launcher (svcd.process.launcher_events)

    def process_started(self, report: Started) -> None:
        """Handle the start of a connection's process."""
        self.connections[report.connection_id].process_started(report.pid)

    def start_failed(self, connection_id: int, errno: int) -> None:
        """Handle that the process of a connection can't be started."""
        self.connections[connection_id].start_failed(errno)

    def process_ended(self, report: Ended) -> None:
        """Handle the exit of a connection's process."""
        self.connections[report.connection_id].process_ended(report)

    def process_lost(self, connection_id: int) -> None:
        """Handle that the exit of a connection's process will not be reported."""
        self.connections[connection_id].process_lost()

    def stderr_line(self, connection_id: int, text: bytes) -> None:
        """Log a line that a process wrote to its standard error."""
        connection = self.connections.get(connection_id)
        known: dict[str, object] = {} if connection is None else {"id": connection_id, "pid": connection.pid}
        self.log_output(text, known)

    def queue_drained(self) -> None:
        """Resume accepting: the launcher has taken a connection from the queue."""
        for resume in self._resume_callbacks:
            resume()


class QueuedClient:
    """Connection that waits unread for room: it comes from a port that is not paused for its service, as with tcpmux.

    Args:
        tracker: takes the connection once there is room.
        fd: the descriptor of the connection. Takes ownership of it.
        sockaddr: the client's socket address.
        family: the address family of the socket.
        proxy_header: the PROXY header.

    Attributes:
        started: the time at which it was queued in seconds, by the tracker's clock.
    """

    __slots__ = ("_connection_id", "_family", "_fd", "_proxy_header", "_sockaddr", "_tracker", "started")

    def __init__(
        self,
        tracker: SpawnedTracker,
        fd: int,
        sockaddr: Any,  # noqa: ANN401 - a socket address
        family: int,
        proxy_header: ProxyHeader | None,
    ) -> None:
        self._tracker = tracker
        self._fd = fd
        self._sockaddr = sockaddr
        self._family = family
        self._proxy_header = proxy_header
        self._connection_id = 0
        self.started = tracker.clock()
        tracker.pending[self] = None
        tracker.budget.acquire()
        tracker.service_admission.enqueue(self._take_again)

    @property
    def connection_id(self) -> int:
        """The id of the connection while it waits, assigned when it is first listed."""
        self._connection_id = self._connection_id or next(self._tracker.connection_ids)
        return self._connection_id

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        _, peer = self._tracker.client_of(self._fd, self._sockaddr)
        return self._tracker.facts(self, peer, state="room")

    def drain(self) -> None:
        """Close the connection: there is no output to send."""
        self.abort("")

    def abort(self, _cause: str) -> None:
        """Close the connection."""
        self._tracker.service_admission.dequeue(self._take_again)
        os.close(self._fd)
        self._tracker.budget.release()
        del self._tracker.pending[self]
        self._tracker.notify_if_empty()

    def _take_again(self) -> None:
        self._tracker.budget.release()
        del self._tracker.pending[self]
        try:
            self._tracker.take(self._fd, self._sockaddr, self._family, self._proxy_header)
        finally:
            self._tracker.notify_if_empty()
