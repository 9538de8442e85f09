"""The port of tcpmux (RFC 1078): a client names a service, and its connection goes on as that service's.

The connection is the other service's as if it had accepted it: counted, limited and logged there. So nothing may be
read but the name: what a hasty client sends after it stays in the kernel for the service.
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
from svcd.net.tcp_info import socket_traffic
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

#: How long a client may take to name a service, in seconds; the look-up of its host name is part of that.
PATIENCE = 10.0
#: How long one that was answered may take to close, in seconds.
LINGER = 2.0
#: The most clients that wait at a time, and the divisor of the daemon's descriptors that limits them further.
_MOST_CLIENTS = 1024
_SHARE = 4


@implementer(IReadDescriptor)
class TcpmuxClient:
    """A client that has not named its service yet, or was told that there is none.

    Bytes without a line end all belong to the name, so they are taken from the socket: bytes that are only looked at
    would make the socket readable again at once. Bytes behind the line end stay in the kernel for the service.

    Args:
        tracker: counts it.
        sock: its connection.
        peer: its socket address.
        number: of the connection.
        slot: its right to be in, as long as it is tcpmux's.
        relay: the header by which a proxy has said whose connection it is.

    Attributes:
        number: the same.
        started: by the keeper's clock, in seconds.
        text: who it is, quoted as the log has it.
    """

    _log = Logger()

    def __init__(
        self,
        tracker: TcpmuxTracker,
        sock: socket.socket,
        peer: Any,  # noqa: ANN401 - a socket address
        number: int,
        slot: ConnectionSlot,
        relay: ProxyHeader | None,
    ) -> None:
        self._tracker = tracker
        self._relay = relay
        self.slot = slot
        self._socket = sock
        self._peer = peer
        self._seen = b""
        self._answered = ""
        self._ended = False
        self.started = tracker.clock()
        self._call = tracker.reactor.callLater(PATIENCE, self._end, "timeout")
        self.number = number
        self.text = tracker.quoted(tracker.client_of(sock.fileno(), peer)[1])

    def listen(self) -> None:
        """Read the name of the service."""
        self._tracker.reactor.addReader(self)

    def named(self, name: str | None) -> None:
        """Decide by the client's host name, or by the lack of one, whether it is let in."""
        if self._ended:
            return
        refusal = self.slot.check_host_name(name)
        if refusal is None:
            self._tracker.untold -= 1
            self._tracker.let_in(self)
            return
        descriptor, peer = os.dup(self._socket.fileno()), self._peer
        self._close()
        self._tracker.turn_away(self, descriptor, refusal, peer)

    def greet(self, text: bytes) -> None:
        """Send the banner."""
        send_banner(self._socket.fileno(), text)

    def doRead(self) -> None:
        """The client says something, or has closed."""
        try:
            if self._answered:
                if not self._socket.recv(MOST):
                    self._end("done")
                return
            data = self._socket.recv(MOST - len(self._seen), socket.MSG_PEEK)
            if data:
                self._hear(data)
            else:
                self._end("done")
        except BlockingIOError:
            return
        except OSError:
            self._end("lost")

    def _hear(self, data: bytes) -> None:
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

    def _hand_over(self, serve: ConnectionHandler) -> None:
        """Give the connection to its service, which counts it before tcpmux does not any more."""
        self._tracker.reactor.removeReader(self)
        self._socket.setblocking(True)
        try:
            serve(os.dup(self._socket.fileno()), self._peer, int(self._socket.family), self._relay)
        except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
            self._log.failure("a connection could not be served")
        finally:
            self._end("done")

    def _answer(self, data: bytes, reason: str) -> None:
        """Say the last word. Closing at once could reset the connection before it arrives (RFC 1122, 4.2.2.13)."""
        self._answered = reason
        self._socket.send(data)
        self._socket.shutdown(socket.SHUT_WR)
        self._call.reset(LINGER)

    def _end(self, reason: str) -> None:
        self._close()
        tracker = self._tracker
        tracker.over(self, self._answered or reason, tracker.clock() - self.started)

    def _close(self) -> None:
        self._ended = True
        if self._call.active():
            self._call.cancel()
        self._tracker.reactor.removeReader(self)
        self._socket.close()

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its system has taken; None at a UNIX socket."""
        if self._socket.family == socket.AF_UNIX:
            return None
        found = socket_traffic(self._socket)
        return found if found is None or self._relay is None else (found[0] - self._relay.size, found[1])

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        state = "closing" if self._answered else "host-name" if self.slot.needs_host_name else "service-name"
        return self._tracker.facts(self, self.text, state=state)

    def drain(self) -> None:
        """A client that has not asked yet is owed nothing."""
        self.abort("shutdown")

    def abort(self, cause: str) -> None:
        """End it now."""
        self._end(cause)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, after us."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return self._tracker.service.id


class TcpmuxTracker(ConnectionTracker[TcpmuxClient]):
    """Keeps the clients of tcpmux until they have named a service.

    Args:
        service, context, service_admission: as ConnectionTracker takes them.
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
        self._most = max(1, min(_MOST_CLIENTS, self.budget.limit // _SHARE))

    def take(self, descriptor: int, peer: Any, family: int, relay: ProxyHeader | None = None) -> None:  # noqa: ANN401 - a socket address
        """Listen to a client; the descriptor is the keeper's to close from now on. The arguments are those of Serve."""
        host, text = self.client_of(descriptor, peer)
        slot = self.service_admission.admit(host, self.clock())
        if not isinstance(slot, ConnectionSlot):
            self.service_admission.refusals.reject(descriptor, slot, text)
            return
        if len(self.sessions) >= self._most:
            # A client that means to name a service does so at once: the one that has waited longest goes.
            next(iter(self.sessions.values())).abort("timeout")
        sock = socket.socket(family, socket.SOCK_STREAM, fileno=descriptor)
        sock.setblocking(False)
        client = TcpmuxClient(self, sock, peer, next(self.connection_ids), slot, relay)
        self.add(client)
        if slot.needs_host_name:
            self.untold += 1
            self.resolver.confirmed_host_of(unmapped(host)).addCallback(client.named)
        else:
            self.let_in(client)

    def let_in(self, client: TcpmuxClient) -> None:
        """Log a client that is admitted, and read its question."""
        if self.service_admission.accept_banner:
            client.greet(self.service_admission.accept_banner)
        self.counters.accepted += 1
        if self.accept_line:
            count = len(self.sessions) - self.untold
            values = {"peer": client.text, "host": self.nameless, "id": client.number, "count": count}
            self.log_writer.write(self.accept_line % values)
        client.listen()

    def turn_away(self, client: TcpmuxClient, descriptor: int, refusal: Refusal, peer: Any) -> None:  # noqa: ANN401 - a socket address
        """Refuse a client for its host name; as it was never let in, the log has a refuse line of it alone."""
        self._remove(client)
        self.service_admission.refusals.reject(descriptor, refusal, self.client_of(descriptor, peer)[1])

    def may_accept(self) -> int:
        """How many more clients may be listened to now."""
        return self.budget.room() if self.service_admission.may_accept() else 0

    def close(self) -> None:
        """Keep what is offered now for the clients that are here, when its listeners are about to be closed."""
        offered = dict(self.offered())
        self.offered = lambda: offered

    def over(self, client: TcpmuxClient, reason: str, seconds: float) -> None:
        """A client was answered, is another service's, or has gone."""
        if client.number not in self.sessions:
            return
        if client.slot.needs_host_name:
            self._remove(client)
            return
        del self.sessions[client.number]
        self.budget.release()
        self.log_end(client.number, client.text, self.nameless, seconds, 0, 0, reason)
        client.slot.release()
        self.notify_if_empty()

    def _remove(self, client: TcpmuxClient) -> None:
        """Forget a client that was not let in."""
        self.untold -= 1
        del self.sessions[client.number]
        self.budget.release()
        client.slot.release()
        self.notify_if_empty()
