"""The port of tcpmux (RFC 1078): a client names a service, and its connection goes on as that service's.

The connection is the other service's as if it had accepted it: counted, limited and logged there. So nothing may be
read but the name: what a hasty client sends after it stays in the kernel for the service.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from svcd.model import unmapped
from svcd.policy.admission import Ticket
from svcd.transport.farewell import greet
from svcd.transport.keeper import Keeper
from svcd.wire.tcpinfo import SIZE as TCP_INFO_BYTES
from svcd.wire.tcpinfo import traffic as tcp_traffic
from svcd.wire.tcpmux import HELP, MOST, WELCOME, catalogue, question, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.interfaces import Names, Watcher
    from svcd.journal import Journal
    from svcd.transport.descriptors import DescriptorBudget
    from svcd.transport.entrance import Entrance
    from svcd.transport.proxied import Serve
    from svcd.wire.proxy import Header

__all__ = ["MuxKeeper", "NamelessClient"]

#: How long a client may take to name a service, in seconds.
PATIENCE = 10.0
#: How long to wait for the rest of a name that has only begun, in seconds.
_LOOK_AGAIN = 0.05
#: How long one that was answered may take to close, in seconds.
LINGER = 2.0


@implementer(IReadDescriptor)
class NamelessClient:
    """A client that has not named its service yet, or was told that there is none.

    Args:
        keeper: counts it.
        sock: its connection.
        peer: its socket address.
        number: of the connection.
        ticket: its right to be in, as long as it is tcpmux's.
        relay: the header by which a proxy has said whose connection it is.

    Attributes:
        number: the same.
        started: by the keeper's clock, in seconds.
        text: who it is, quoted as the log has it.
    """

    def __init__(
        self,
        keeper: MuxKeeper,
        sock: socket.socket,
        peer: Any,  # noqa: ANN401 - a socket address
        number: int,
        ticket: Ticket,
        relay: Header | None,
    ) -> None:
        self._keeper = keeper
        self._relay = relay
        self.ticket = ticket
        self._socket = sock
        self._peer = peer
        self._answered = ""
        self.started = keeper.clock()
        self._look: IDelayedCall | None = None
        self._call = keeper.reactor.callLater(PATIENCE, self._end, "timeout")
        self.number = number
        self.text = keeper.quoted(keeper.text_of(peer))
        keeper.reactor.addReader(self)

    def doRead(self) -> None:
        """The client says something, or has closed."""
        try:
            data = self._socket.recv(MOST) if self._answered else self._socket.recv(MOST, socket.MSG_PEEK)
            if not data:
                self._end("done")
            elif not self._answered:
                self._hear(data)
        except BlockingIOError:
            return
        except OSError:
            self._end("lost")

    def _hear(self, data: bytes) -> None:
        try:
            found = question(data)
        except ValueError as error:
            self._answer(refusal(str(error)), "failed")
            return
        if found is None:
            # What is only looked at would be ready again at once.
            self._keeper.reactor.removeReader(self)
            self._look = self._keeper.reactor.callLater(_LOOK_AGAIN, self._keeper.reactor.addReader, self)
            return
        name, size = found
        services = self._keeper.services()
        if name == HELP:
            self._answer(catalogue(list(services)), "done")
        elif name not in services:
            self._answer(refusal(f"there is no service {name}"), "failed")
        else:
            self._socket.recv(size)
            self._socket.send(WELCOME)
            self._socket.setblocking(True)
            descriptor = os.dup(self._socket.fileno())
            family, peer = int(self._socket.family), self._peer
            self._end("done")
            services[name](descriptor, peer, family, self._relay)

    def _answer(self, data: bytes, reason: str) -> None:
        """Say the last word. Closing at once could reset the connection before it arrives (RFC 1122, 4.2.2.13)."""
        self._answered = reason
        self._socket.send(data)
        self._socket.shutdown(socket.SHUT_WR)
        self._call.reset(LINGER)

    def _end(self, reason: str) -> None:
        for call in (self._call, self._look):
            if call is not None and call.active():
                call.cancel()
        keeper = self._keeper
        keeper.reactor.removeReader(self)
        self._socket.close()
        keeper.over(self, self._answered or reason, keeper.clock() - self.started)

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that its system has taken; None at a UNIX socket."""
        if self._socket.family == socket.AF_UNIX:
            return None
        found = tcp_traffic(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES))
        return found if found is None or self._relay is None else (found[0] - self._relay.size, found[1])

    def facts(self) -> dict[str, object]:
        """What is known of the connection."""
        return self._keeper.facts(self, self.text)

    def drain(self) -> None:
        """A client that has not asked yet is owed nothing."""
        self.cut("shutdown")

    def cut(self, cause: str) -> None:
        """End it now."""
        self._end(cause)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, after us."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return self._keeper.service.id


class MuxKeeper(Keeper[NamelessClient]):
    """Keeps the clients of tcpmux until they have named a service.

    Args:
        reactor: watches them.
        services: what can be asked for: by its name in small letters what takes a connection in.
        others: as Keeper takes them.
    """

    def __init__(
        self,
        reactor: Watcher,
        services: Callable[[], Mapping[str, Serve]],
        service: Service,
        journal: Journal,
        names: Names,
        budget: DescriptorBudget,
        numbers: Iterator[int],
        entrance: Entrance,
    ) -> None:
        super().__init__(service, journal, names, budget, numbers, entrance, {"pid": os.getpid()})
        self.reactor = reactor
        self.services = services

    def take(self, descriptor: int, peer: Any, family: int, relay: Header | None = None) -> None:  # noqa: ANN401 - a socket address
        """Listen to a client; the descriptor is the keeper's to close from now on. The arguments are those of Serve."""
        host = peer[0] if isinstance(peer, tuple) else ""
        ticket = self.entrance.admit(host, self.clock())
        if not isinstance(ticket, Ticket):
            self.entrance.turn_away(descriptor, ticket, self.text_of(peer))
        elif not ticket.awaits_name:
            self._listen(descriptor, peer, family, ticket, relay)
        else:
            # It is counted as open by its ticket, and its descriptor as used.
            self.budget.acquire()

            def named(name: str | None) -> None:
                self.budget.release()
                refusal = ticket.named(name)
                if refusal is None:
                    self._listen(descriptor, peer, family, ticket, relay)
                else:
                    self.entrance.turn_away(descriptor, refusal, self.text_of(peer))

            self.names.confirmed_host_of(unmapped(host)).addCallback(named)

    def text_of(self, peer: Any) -> str:  # noqa: ANN401 - a socket address
        """A client, as people write it."""
        return self.peer_text(peer[0], peer[1]) if isinstance(peer, tuple) else "local"

    def _listen(self, descriptor: int, peer: Any, family: int, ticket: Ticket, relay: Header | None) -> None:  # noqa: ANN401 - as take
        if self.entrance.welcome:
            greet(descriptor, self.entrance.welcome)
        sock = socket.socket(family, socket.SOCK_STREAM, fileno=descriptor)
        sock.setblocking(False)
        client = NamelessClient(self, sock, peer, next(self.numbers), ticket, relay)
        self.tally.accepted += 1
        self.begun(client)
        if self.accept_line:
            values = {"peer": client.text, "host": self.nameless, "id": client.number, "count": len(self.sessions)}
            self.journal.write(self.accept_line % values)

    def may_accept(self) -> bool:
        """Whether another client may be listened to now."""
        return not self.budget.exhausted and self.entrance.may_accept()

    def over(self, client: NamelessClient, reason: str, seconds: float) -> None:
        """A client was answered, is another service's, or has gone."""
        if self.sessions.pop(client.number, None) is None:
            return
        self.budget.release()
        self.tell_end(client.number, client.text, self.nameless, seconds, 0, 0, reason)
        client.ticket.release()
        self.left()
