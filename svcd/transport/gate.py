"""The gate: every connection passes it, is numbered, counted and logged, and leaves by it.

The gate stands between a transport and the service's protocol for the first and the last step only: data goes
straight to the protocol's own dataReceived, so a byte pays nothing for it.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory
from zope.interface import implementer

from svcd.metrics import Flow
from svcd.model import unmapped
from svcd.policy.admission import Ticket
from svcd.policy.answers import Reason, Refusal
from svcd.transport.farewell import Farewell
from svcd.transport.keeper import Keeper
from svcd.transport.local import credentials
from svcd.transport.visitor import Visitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IProtocolFactory
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.interfaces import Names
    from svcd.journal import Journal
    from svcd.transport.descriptors import DescriptorBudget
    from svcd.transport.entrance import Entrance

__all__ = ["Gate", "GateKeeper"]

_INET = (IPv4Address, IPv6Address)
_UNWANTED = Refusal(Reason.SERVICE, "the service wants no connection")


@implementer(IProtocol)
class Gate:
    """One connection's way in and out.

    Attributes:
        number: the connection's, since the daemon started.
        started: by the keeper's clock, in seconds.
    """

    __slots__ = ("_accept", "_cause", "_heard_all", "_host", "_keeper", "_protocol", "_ticket", "_who", "dataReceived",
                 "number", "started", "transport")  # fmt: skip

    def __init__(self, keeper: GateKeeper, protocol: IProtocol, client: IAddress, ticket: Ticket) -> None:
        self._keeper = keeper
        self._protocol = protocol
        self._ticket = ticket
        self._cause = ""
        self._host = keeper.nameless
        # A line that waits for the client's name: its time and its values.
        self._accept: tuple[str, dict[str, object]] | None = None
        self._heard_all = False
        # The transport's own, so that it costs no memory; a UNIX socket's client is known as text later.
        self._who: IAddress | str = client
        self.dataReceived: Callable[[bytes], None] = protocol.dataReceived

    @property
    def peer(self) -> str:
        """Who it is, quoted as the log has it. Made for each line: kept, it would cost more than the gate's half."""
        who, keeper = self._who, self._keeper
        return keeper.quoted_peer(who.host, who.port) if isinstance(who, _INET) else str(who)

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """The connection is there."""
        keeper = self._keeper
        self.transport = transport
        if not isinstance(self._who, _INET):
            self._who = keeper.quoted("pid:{}/uid:{}".format(*credentials(transport.getHandle())))
        self.started = keeper.clock()
        self.number = next(keeper.numbers)
        keeper.tally.accepted += 1
        keeper.begun(self)
        if keeper.accept_line:
            values: dict[str, object] = {"peer": self.peer, "id": self.number, "count": len(keeper.sessions)}
            if keeper.resolves:
                # The line waits for the name, a bounded time, and the client does not wait for either.
                self._accept = keeper.journal.stamp(), values
                host = getattr(transport.getPeer(), "host", None)
                found = keeper.names.host_of(host) if host else succeed(None)
                found.addCallback(self._named)
            else:
                keeper.journal.write(keeper.accept_line % values)
        if keeper.entrance.welcome:
            transport.write(keeper.entrance.welcome)
        try:
            self._protocol.makeConnection(transport)
        except BaseException:
            self._cause = "error"
            raise
        # A protocol may have put its own, faster way in place.
        self.dataReceived = self._protocol.dataReceived

    def connectionMade(self) -> None:
        """Never called: makeConnection passes on the transport."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        keeper = self._keeper
        try:
            del keeper.sessions[self.number]
            keeper.budget.release()
            self._protocol.connectionLost(reason)
        finally:
            try:
                self._tell_end(reason)
            finally:
                # After the line: somebody who waited for this may come in now.
                self._ticket.release()
                keeper.left()

    def _tell_end(self, reason: Failure) -> None:
        keeper = self._keeper
        self._tell_accept()
        # A service that could not serve this client says why.
        failure = getattr(self._protocol, "failure_text", "")
        if failure:
            self._cause = self._cause or "failed"
            keeper.tally.failures += 1
        if failure and keeper.fail_line:
            values = {"peer": self.peer, "id": self.number, "reason": keeper.quoted(failure)}
            keeper.journal.write(keeper.fail_line % values)
        seconds, word = keeper.clock() - self.started, self._cause or self._reason(reason)
        if not (keeper.end_line or keeper.tally.watched):
            # Nobody wants to know more, and the kernel need not be asked.
            keeper.tally.end_unseen(word, seconds)
            return
        carried = getattr(self.transport, "bytes_in", 0), getattr(self.transport, "bytes_out", 0)
        keeper.tell_end(self.number, self.peer, self._host, seconds, *carried, word)

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that were taken on its side; None if nobody counts them."""
        return getattr(self.transport, "traffic", None)

    def facts(self) -> dict[str, object]:
        """What is known of the connection."""
        moved = {"in": getattr(self.transport, "bytes_in", 0), "out": getattr(self.transport, "bytes_out", 0)}
        return self._keeper.facts(self, self.peer, **moved)

    def drain(self) -> None:
        """Ask the service to end the connection as soon as nothing is owed to the client."""
        drain = getattr(self._protocol, "drain", None)
        if drain is not None:
            drain()

    def cut(self, cause: str) -> None:
        """End the connection now, whatever is under way; the log says the cause."""
        self._cause = self._cause or cause
        self.transport.abortConnection()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return self._keeper.service.id

    def _named(self, host: str | None) -> None:
        if host:
            self._host = self._keeper.quoted(host)
        self._tell_accept()

    def _tell_accept(self) -> None:
        if self._accept is not None:
            (stamp, values), self._accept = self._accept, None
            keeper = self._keeper
            values["host"] = self._host
            keeper.journal.write(keeper.accept_line % values, stamp)

    def _reason(self, failure: Failure) -> str:
        if failure.type is ConnectionDone:
            return "done"
        if failure.check(ConnectionAborted):
            return "aborted"
        if not failure.check(ConnectionLost):
            return "error"
        # At a UNIX socket's orderly end poll(2) says POLLHUP, which Twisted takes for a loss.
        local = not isinstance(self.transport.getPeer(), _INET)
        return "done" if local and self._heard_all else "lost"


@implementer(IHalfCloseableProtocol)
class _HalfCloseableGate(Gate):
    """For a protocol that answers half-closed clients."""

    __slots__ = ()

    def readConnectionLost(self) -> None:
        """The client will send no more."""
        self._heard_all = True
        self._protocol.readConnectionLost()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """Our side is closed."""
        self._protocol.writeConnectionLost()  # type: ignore[attr-defined]


class GateKeeper(Keeper[Gate], Factory):
    """The factory of one service's gates; all listeners of the service share it.

    Args:
        factory: builds the service's protocols.
        others: as Keeper takes them.
    """

    noisy = False

    def __init__(
        self,
        service: Service,
        factory: IProtocolFactory,
        journal: Journal,
        names: Names,
        budget: DescriptorBudget,
        numbers: Iterator[int],
        entrance: Entrance,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(service, journal, names, budget, numbers, entrance, {"pid": os.getpid()}, clock)
        self._factory = factory

    def serve_by(self, factory: IProtocolFactory) -> None:
        """Let another factory build the protocols of new connections."""
        before, self._factory = self._factory, factory
        for _ in range(self.numPorts):
            factory.doStart()
            before.doStop()

    def doStart(self) -> None:
        """A listener begins; with the first the service's factory does."""
        self.numPorts += 1
        self._factory.doStart()

    def doStop(self) -> None:
        """A listener is gone; with the last the service's factory stops."""
        self.numPorts -= 1
        self._factory.doStop()

    def flow(self) -> Flow:
        """What the open connections have carried so far."""
        transports = [gate.transport for gate in self.sessions.values()]
        return Flow(*(sum(getattr(each, name, 0) for each in transports) for name in ("bytes_in", "bytes_out")))

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:  # type: ignore[override]
        """A gate with the service's protocol behind it, who has to wait or gets a last word; or None to close."""
        found = self.ask(addr)
        if isinstance(found, Ticket) and found.awaits_name:
            name = self.name_of(addr)
            if not name.called:
                return Visitor(self, addr, found, name)
            # It was known.
            found = found.named(cast("str | None", name.result)) or found
        if isinstance(found, Ticket):
            return self.let_in(addr, found)
        if self.entrance.waits(found):
            return Visitor(self, addr, None)
        self.refused(found, addr)
        entrance = self.entrance
        return Farewell(entrance.farewells, entrance.farewell) if entrance.farewell else None

    def ask(self, addr: IAddress) -> Ticket | Refusal:
        """Ask the door."""
        return self.entrance.admit(addr.host if isinstance(addr, _INET) else "", self.clock())

    def let_in(self, addr: IAddress, ticket: Ticket) -> Gate | None:
        """The gate of somebody who has a ticket; None, and the ticket is void, if the service wants no connection."""
        try:
            protocol = self._factory.buildProtocol(addr)
        except BaseException:
            ticket.release()
            raise
        if protocol is None:
            ticket.release()
            self.refused(_UNWANTED, addr)
            return None
        kind = _HalfCloseableGate if IHalfCloseableProtocol.providedBy(protocol) else Gate
        return kind(self, protocol, addr, ticket)

    def refused(self, refusal: Refusal, addr: IAddress) -> None:
        """Somebody is not let in."""
        peer = self.peer_text(addr.host, addr.port) if isinstance(addr, _INET) else "local"
        self.entrance.refused(refusal, peer)

    def name_of(self, addr: IAddress) -> Deferred[str | None]:
        """The client's confirmed name."""
        return self.names.confirmed_host_of(unmapped(addr.host)) if isinstance(addr, _INET) else succeed(None)
