"""tcpmux (RFC 1078): a client names a service, and its connection is handed over to that service.

The named service counts, limits and logs the connection as if it had accepted it. So only the name may be read: data
after it stays in the kernel for the service.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.access.admission import ConnectionSlot
from svcd.addresses import unmapped
from svcd.connections.lingering_close import send_banner
from svcd.connections.tracker import ConnectionTracker
from svcd.net.stream_sockets import socket_traffic
from svcd.wire.tcpmux import HELP, MOST, WELCOME, catalogue, question, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

    from svcd.access.rules import Refusal
    from svcd.config.service import Service
    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.context import ConnectionContext
    from svcd.interfaces import ConnectionHandler
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["TcpmuxClient", "TcpmuxTracker"]

#: Limit of the time until a client has named a service, in seconds, including the lookup of its host name.
NAME_TIMEOUT = 10.0
#: Limit of the time until a client closes after an answer, in seconds.
LINGER = 2.0
#: Limit of clients that have not named a service, and the divisor of the daemon's descriptors that limits them further.
_MAX_CLIENTS = 1024
_SHARE = 4


@implementer(IReadDescriptor)
class TcpmuxClient:
    """Client that has not named a service yet, or that was sent an answer.

    Bytes before the line end belong to the name, so they are read from the socket: peeked bytes would make it readable
    again at once. Bytes after the line end stay in the kernel for the service.

    Args:
        tracker: tracks the client.
        sock: the socket of the connection.
        peer: the client's socket address.
        connection_id: the id of the connection.
        slot: the admission of the connection by tcpmux.
        proxy_header: the PROXY header.

    Attributes:
        connection_id: as given.
        started: time of accept in seconds, by the tracker's clock.
        text: the client's address as text, not quoted.
    """

    _log = Logger()

    def __init__(
        self,
        tracker: TcpmuxTracker,
        sock: socket.socket,
        peer: Any,  # noqa: ANN401 - a socket address
        connection_id: int,
        slot: ConnectionSlot,
        proxy_header: ProxyHeader | None,
    ) -> None:
        self._tracker = tracker
        self._proxy_header = proxy_header
        self.slot = slot
        self._socket = sock
        self._peer = peer
        self._seen = b""
        self._answered = ""
        self._ended = False
        self.started = tracker.clock()
        self._call = tracker.reactor.callLater(NAME_TIMEOUT, self._end, "timeout")
        self.connection_id = connection_id
        self.text = tracker.client_of(sock.fileno(), peer)[1]

    def listen(self) -> None:
        """Start reading the name of the service."""
        self._tracker.reactor.addReader(self)

    def host_name_found(self, name: str | None) -> None:
        """Admit or refuse the client by its host name, which may be None."""
        if self._ended:
            return
        refusal = self.slot.check_host_name(name)
        if refusal is None:
            self._tracker.unlogged -= 1
            self._tracker.start_client(self)
            return
        fd, peer = os.dup(self._socket.fileno()), self._peer
        self._close()
        self._tracker.reject_client(self, fd, refusal, peer)

    def greet(self, text: bytes) -> None:
        """Send the banner."""
        send_banner(self._socket.fileno(), text)

    def doRead(self) -> None:
        """Read the name, or handle the close by the client."""
        try:
            if self._answered:
                if not self._socket.recv(MOST):
                    self._end("done")
                return
            data = self._socket.recv(MOST - len(self._seen), socket.MSG_PEEK)
            if data:
                self._data_received(data)
            else:
                self._end("done")
        except BlockingIOError:
            return
        except OSError:
            self._end("lost")

    def _data_received(self, data: bytes) -> None:
        try:
            found = question(self._seen + data)
        except ValueError as error:
            self._answer(refusal(str(error)), "failed")
            return
        if found is None:
            self._socket.recv(len(data))
            self._seen += data
            return
        name, size = found
        services = self._tracker.offered()
        if name == HELP:
            self._answer(catalogue(list(services)), "done")
        elif name not in services:
            self._answer(refusal(f"there is no service {name}"), "failed")
        else:
            self._socket.recv(size - len(self._seen))
            self._socket.send(WELCOME)
            self._hand_over(services[name])

    def _hand_over(self, handler: ConnectionHandler) -> None:
        """Hand the connection over to its service, which counts it before tcpmux stops counting it."""
        self._tracker.reactor.removeReader(self)
        self._socket.setblocking(True)
        try:
            handler(os.dup(self._socket.fileno()), self._peer, int(self._socket.family), self._proxy_header)
        except Exception:  # noqa: BLE001 - an error of one connection ends that connection only
            self._log.failure("a connection could not be served")
        finally:
            self._end("done")

    def _answer(self, data: bytes, reason: str) -> None:
        """Send an answer and shut down; a close could reset the connection before it arrives (RFC 1122, 4.2.2.13)."""
        self._answered = reason
        self._socket.send(data)
        self._socket.shutdown(socket.SHUT_WR)
        self._call.reset(LINGER)

    def _end(self, reason: str) -> None:
        self._close()
        tracker = self._tracker
        tracker.client_ended(self, self._answered or reason, tracker.clock() - self.started)

    def _close(self) -> None:
        self._ended = True
        if self._call.active():
            self._call.cancel()
        self._tracker.reactor.removeReader(self)
        self._socket.close()

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes received from the client, and those acknowledged by its system; None at a UNIX socket."""
        if self._socket.family == socket.AF_UNIX:
            return None
        found = socket_traffic(self._socket)
        return found if found is None or self._proxy_header is None else (found[0] - self._proxy_header.size, found[1])

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        state = "closing" if self._answered else "host-name" if self.slot.needs_host_name else "service-name"
        return self._tracker.facts(self, self.text, state=state)

    def drain(self) -> None:
        """Close the connection: there is no output to send before a service is named."""
        self.abort("shutdown")

    def abort(self, cause: str) -> None:
        """Close the connection now."""
        self._end(cause)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the connection has been closed before the reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return self._tracker.service.id


class TcpmuxTracker(ConnectionTracker[TcpmuxClient]):
    """Tracks the clients of tcpmux until they have named a service.

    Args:
        service, context, service_admission: as in ConnectionTracker.
        services: returns the offered services, as connection handlers by name in lower case.
    """

    def __init__(
        self,
        service: Service,
        context: ConnectionContext,
        service_admission: ServiceAdmission,
        services: Callable[[], Mapping[str, ConnectionHandler]],
    ) -> None:
        super().__init__(service, context, service_admission, {"pid": os.getpid()})
        self.offered = services
        self._max_clients = max(1, min(_MAX_CLIENTS, self.budget.limit // _SHARE))

    def take(self, fd: int, peer: Any, family: int, proxy_header: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Handle an accepted connection (ConnectionHandler): read the name of a service. Takes ownership of fd."""
        host, text = self.client_of(fd, peer)
        slot = self.service_admission.admit(host, self.clock())
        if not isinstance(slot, ConnectionSlot):
            self.service_admission.refusals.reject(fd, slot, text)
            return
        if len(self.connections) >= self._max_clients:
            # The client that has waited longest is closed: a working client names its service at once.
            next(iter(self.connections.values())).abort("timeout")
        sock = socket.socket(family, socket.SOCK_STREAM, fileno=fd)
        sock.setblocking(False)
        client = TcpmuxClient(self, sock, peer, next(self.connection_ids), slot, proxy_header)
        self.add(client)
        if slot.needs_host_name:
            self.unlogged += 1
            self.resolver.confirmed_host_of(unmapped(host)).addCallback(client.host_name_found)
        else:
            self.start_client(client)

    def start_client(self, client: TcpmuxClient) -> None:
        """Send the banner to an admitted client, log it, and start reading the name of the service."""
        if self.service_admission.accept_banner:
            client.greet(self.service_admission.accept_banner)
        self.counters.accepted += 1
        if self.accept_line:
            count = len(self.connections) - self.unlogged
            values = {
                "peer": self.quoted(client.text),
                "host": self.no_value,
                "id": client.connection_id,
                "count": count,
            }
            self.log_writer.write(self.accept_line % values)
        client.listen()

    def reject_client(self, client: TcpmuxClient, fd: int, refusal: Refusal, peer: Any) -> None:  # noqa: ANN401 - a socket address
        """Refuse a client because of its host name; it gets a refuse line and no accept line."""
        self._remove(client)
        self.service_admission.refusals.reject(fd, refusal, self.client_of(fd, peer)[1])

    def may_accept(self) -> int:
        """Return how many more clients may be accepted now."""
        return self.budget.room() if self.service_admission.may_accept() else 0

    def close(self) -> None:
        """Keep the offered services for the connected clients; the listeners are about to be closed."""
        offered = dict(self.offered())
        self.offered = lambda: offered

    def client_ended(self, client: TcpmuxClient, reason: str, seconds: float) -> None:
        """Handle the end of a client: it was answered, handed over or lost."""
        if client.connection_id not in self.connections:
            return
        if client.slot.needs_host_name:
            self._remove(client)
            return
        del self.connections[client.connection_id]
        self.budget.release()
        self.log_end(client.connection_id, client.text, self.no_value, seconds, 0, 0, reason)
        client.slot.release()
        self.notify_if_empty()

    def _remove(self, client: TcpmuxClient) -> None:
        """Remove a client that was not admitted."""
        self.unlogged -= 1
        del self.connections[client.connection_id]
        self.budget.release()
        client.slot.release()
        self.notify_if_empty()
