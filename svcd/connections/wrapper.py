"""The gate: every connection passes it, is numbered, counted and logged, and leaves by it.

The gate stands between a transport and the service's protocol for the first and the last step only: data goes
straight to the protocol's own dataReceived, so a byte pays nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from zope.interface import implementer

from svcd.net.peer_credentials import UNIXPeer, credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from svcd.access.admission import ConnectionSlot
    from svcd.connections.tracker import ConnectionTracker

__all__ = ["ConnectionWrapper", "HalfCloseableWrapper"]

_INET = (IPv4Address, IPv6Address)


@implementer(IProtocol)
class ConnectionWrapper:
    """One connection's way in and out.

    Attributes:
        number: the connection's, since the daemon started.
        started: by the keeper's clock, in seconds.
    """

    __slots__ = (
        "_accept",
        "_cause",
        "_client",
        "_heard_all",
        "_host",
        "_protocol",
        "_slot",
        "_tracker",
        "dataReceived",
        "number",
        "started",
        "transport",
    )  # fmt: skip

    def __init__(
        self, tracker: ConnectionTracker[Any], protocol: IProtocol, client: IAddress, slot: ConnectionSlot
    ) -> None:
        self._tracker = tracker
        self._protocol = protocol
        self._slot = slot
        self._cause = ""
        self._host = tracker.nameless
        # A line that waits for the client's name: its template and its values.
        self._accept: tuple[str, dict[str, object]] | None = None
        self._heard_all = False
        # The address object of the transport, so that it takes no memory of its own.
        self._client: Any = client
        self.dataReceived: Callable[[bytes], None] = protocol.dataReceived

    @property
    def peer(self) -> str:
        """The client's address as text, made when it is needed: kept, it would take more memory than the wrapper."""
        client = self._client
        return self._tracker.peer_text(client.host, client.port) if isinstance(client, _INET) else client.text

    @property
    def _quoted_peer(self) -> str:
        client, tracker = self._client, self._tracker
        return tracker.quoted_peer(client.host, client.port) if isinstance(client, _INET) else tracker.quoted(self.peer)

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """The connection is there."""
        tracker = self._tracker
        self.transport = transport
        if not isinstance(self._client, (*_INET, UNIXPeer)):
            self._client = UNIXPeer(None, credentials(transport.getHandle()))
        self.started = tracker.clock()
        self.number = next(tracker.connection_ids)
        tracker.counters.accepted += 1
        tracker.add(self)
        if tracker.accept_line:
            self._came({"peer": self._quoted_peer, "id": self.number, "count": len(tracker.sessions) - tracker.untold})
        if tracker.service_admission.accept_banner:
            self._greet(transport, tracker.service_admission.accept_banner)
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
        tracker = self._tracker
        try:
            self._tell_accept()
            del tracker.sessions[self.number]
            tracker.budget.release()
            self._protocol.connectionLost(reason)
        finally:
            try:
                self._tell_end(reason)
            finally:
                # After the line: somebody who waited for this may come in now.
                self._slot.release()
                tracker.notify_if_empty()

    def _tell_end(self, reason: Failure) -> None:
        tracker = self._tracker
        # A service that could not serve this client says why.
        failure = getattr(self._protocol, "failure_text", "")
        if failure:
            self._cause = self._cause or self._failure_word()
            tracker.counters.failures += 1
        if failure and tracker.fail_line:
            values = {"peer": self._quoted_peer, "id": self.number, "reason": tracker.quoted(failure)}
            tracker.log_writer.write(tracker.fail_line % values)
        # Or why it has ended the connection itself.
        self._cause = self._cause or getattr(self._protocol, "end_reason", "")
        seconds, word = tracker.clock() - self.started, self._cause or self._reason(reason)
        if not (tracker.end_line or tracker.counters.watched):
            # Nobody wants to know more, and the kernel need not be asked.
            tracker.counters.end_uncounted(word, seconds)
            return
        carried = getattr(self.transport, "bytes_in", 0), getattr(self.transport, "bytes_out", 0)
        tracker.log_end(self.number, self.peer, self._host, seconds, *carried, word)

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that came from the client, and bytes that were taken on its side; None if nobody counts them."""
        return getattr(self.transport, "traffic", None)

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        moved = {"in": getattr(self.transport, "bytes_in", 0), "out": getattr(self.transport, "bytes_out", 0)}
        return self._tracker.facts(self, self.peer, **moved)

    def drain(self) -> None:
        """Ask the service to end the connection as soon as nothing is owed to the client."""
        drain = getattr(self._protocol, "drain", None)
        if drain is not None:
            drain()

    def abort(self, cause: str) -> None:
        """End the connection now, whatever is under way; the log says the cause."""
        self._cause = self._cause or cause
        self.transport.abortConnection()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return self._tracker.service.id

    def _came(self, values: dict[str, object]) -> None:
        tracker = self._tracker
        if tracker.resolves:
            # The line waits for the name, a bounded time, and the client does not wait for either.
            self._tell_later(values)
            self._ask_name()
        else:
            tracker.log_writer.write(tracker.accept_line % values)

    def _ask_name(self) -> None:
        host = getattr(self.transport.getPeer(), "host", None)
        found = self._tracker.resolver.host_of(host) if host else succeed(None)
        found.addCallback(self._named)

    def _named(self, host: str | None) -> None:
        if host:
            self._host = self._tracker.quoted(host)
        self._tell_accept()

    def _tell_later(self, values: dict[str, object]) -> None:
        self._tracker.untold += 1
        self._accept = self._tracker.accept_line, values

    def _tell_accept(self) -> None:
        """Write the accept line that waits, if any: with the time of now, and the count of now."""
        tracker = self._tracker
        if self._accept is not None:
            (line, values), self._accept = self._accept, None
            tracker.untold -= 1
            values |= {"host": self._host, "count": len(tracker.sessions) - tracker.untold}
            if tracker.accept_line:
                tracker.log_writer.write(line % values)

    def _greet(self, transport: Any, welcome: bytes) -> None:  # noqa: ANN401 - as makeConnection
        transport.write(welcome)

    def _failure_word(self) -> str:
        return "failed"

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
class HalfCloseableWrapper(ConnectionWrapper):
    """For a protocol that answers half-closed clients."""

    __slots__ = ()

    def readConnectionLost(self) -> None:
        """The client will send no more."""
        self._heard_all = True
        self._protocol.readConnectionLost()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """Our side is closed."""
        self._protocol.writeConnectionLost()  # type: ignore[attr-defined]
