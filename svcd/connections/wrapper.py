"""ConnectionWrapper: admission, counts and log lines of a connection that is served in the daemon.

The wrapper is between the transport and the service's protocol for the first and the last event only: the transport
calls the dataReceived method of the protocol itself, so the wrapper adds no cost per byte.
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
_KNOWN_CLIENTS = (*_INET, UNIXPeer)


@implementer(IProtocol)
class ConnectionWrapper:
    """Protocol between the transport and the service's protocol: logs, counts and limits a connection.

    Attributes:
        connection_id: the id of the connection, unique since the start of the daemon.
        started: time of accept in seconds, by the tracker's clock.
    """

    __slots__ = (
        "_accept",
        "_cause",
        "_client",
        "_host",
        "_input_closed",
        "_protocol",
        "_slot",
        "_tracker",
        "connection_id",
        "dataReceived",
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
        self._host = tracker.no_value
        # The template and the values of an accept line that waits for the client's host name.
        self._accept: tuple[str, dict[str, object]] | None = None
        self._input_closed = False
        # The address object is that of the transport, which saves memory.
        self._client: Any = client
        self.dataReceived: Callable[[bytes], None] = protocol.dataReceived

    @property
    def peer(self) -> str:
        """The client's address as text; it is not stored, as it would take more memory than the wrapper."""
        client = self._client
        return self._tracker.format_peer(client.host, client.port) if isinstance(client, _INET) else client.text

    @property
    def _quoted_peer(self) -> str:
        client, tracker = self._client, self._tracker
        return tracker.quoted_peer(client.host, client.port) if isinstance(client, _INET) else tracker.quoted(self.peer)

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Count and log the connection, and connect the service's protocol."""
        tracker = self._tracker
        self.transport = transport
        if not isinstance(self._client, _KNOWN_CLIENTS):
            self._client = UNIXPeer(None, credentials(transport.getHandle()))
        self.started = tracker.clock()
        self.connection_id = next(tracker.connection_ids)
        tracker.counters.accepted += 1
        tracker.add(self)
        if tracker.accept_line:
            self._log_accept(
                {
                    "peer": self._quoted_peer,
                    "id": self.connection_id,
                    "count": len(tracker.connections) - tracker.unlogged,
                }
            )
        if tracker.service_admission.accept_banner:
            self._send_banner(transport, tracker.service_admission.accept_banner)
        try:
            self._protocol.makeConnection(transport)
        except BaseException:
            self._cause = "error"
            raise
        # The protocol may have set a faster method.
        self.dataReceived = self._protocol.dataReceived

    def connectionMade(self) -> None:
        """Do nothing: makeConnection() passes on the transport."""

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection: write its lines and release its slot."""
        tracker = self._tracker
        try:
            self._log_pending_accept()
            del tracker.connections[self.connection_id]
            tracker.budget.release()
            self._protocol.connectionLost(reason)
        finally:
            try:
                self._log_end(reason)
            finally:
                # After the end line: this may admit a queued connection.
                self._slot.release()
                tracker.notify_if_empty()

    def _log_end(self, reason: Failure) -> None:
        tracker = self._tracker
        # failure_text of a protocol is the reason why it could not serve the client.
        failure = getattr(self._protocol, "failure_text", "")
        if failure:
            self._cause = self._cause or self._failure_word()
            tracker.counters.failures += 1
        if failure and tracker.fail_line:
            values = {"peer": self._quoted_peer, "id": self.connection_id, "reason": tracker.quoted(failure)}
            tracker.log_writer.write(tracker.fail_line % values)
        # end_reason of a protocol is the reason for which it closed the connection itself.
        self._cause = self._cause or getattr(self._protocol, "end_reason", "")
        seconds, word = tracker.clock() - self.started, self._cause or self._reason(reason)
        if not (tracker.end_line or tracker.counters.watched):
            # No byte counts are logged, which saves the system calls.
            tracker.counters.end_uncounted(word, seconds)
            return
        carried = getattr(self.transport, "bytes_in", 0), getattr(self.transport, "bytes_out", 0)
        tracker.log_end(self.connection_id, self.peer, self._host, seconds, *carried, word)

    def traffic(self) -> tuple[int, int] | None:
        """Return the bytes received from the client, and those acknowledged by its system; None if they are unknown."""
        return getattr(self.transport, "traffic", None)

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        moved = {"in": getattr(self.transport, "bytes_in", 0), "out": getattr(self.transport, "bytes_out", 0)}
        return self._tracker.facts(self, self.peer, **moved)

    def drain(self) -> None:
        """Close the connection as soon as the client has all output; the protocol decides when."""
        drain = getattr(self._protocol, "drain", None)
        if drain is not None:
            drain()

    def abort(self, cause: str) -> None:
        """Close the connection now and discard unsent data; cause is the reason of the end line."""
        self._cause = self._cause or cause
        self.transport.abortConnection()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return self._tracker.service.id

    def _log_accept(self, values: dict[str, object]) -> None:
        tracker = self._tracker
        if tracker.resolves:
            # The line waits for the name for a limited time; the client is served meanwhile.
            self._defer_accept(values)
            self._look_up_name()
        else:
            tracker.log_writer.write(tracker.accept_line % values)

    def _look_up_name(self) -> None:
        host = getattr(self.transport.getPeer(), "host", None)
        found = self._tracker.resolver.host_of(host) if host else succeed(None)
        found.addCallback(self._host_name_found)

    def _host_name_found(self, host: str | None) -> None:
        if host:
            self._host = self._tracker.quoted(host)
        self._log_pending_accept()

    def _defer_accept(self, values: dict[str, object]) -> None:
        self._tracker.unlogged += 1
        self._accept = self._tracker.accept_line, values

    def _log_pending_accept(self) -> None:
        """Write the deferred accept line, if there is one, with the current time and count."""
        tracker = self._tracker
        if self._accept is not None:
            (line, values), self._accept = self._accept, None
            tracker.unlogged -= 1
            values |= {"host": self._host, "count": len(tracker.connections) - tracker.unlogged}
            if tracker.accept_line:
                tracker.log_writer.write(line % values)

    def _send_banner(self, transport: Any, welcome: bytes) -> None:  # noqa: ANN401 - as makeConnection
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
        # At the orderly end of a UNIX socket poll(2) reports POLLHUP, which Twisted reports as ConnectionLost.
        local = not isinstance(self.transport.getPeer(), _INET)
        return "done" if local and self._input_closed else "lost"


@implementer(IHalfCloseableProtocol)
class HalfCloseableWrapper(ConnectionWrapper):
    """Wrapper of a protocol that handles half-close."""

    __slots__ = ()

    def readConnectionLost(self) -> None:
        """Handle the end of the client's input."""
        self._input_closed = True
        self._protocol.readConnectionLost()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """Handle the close of the write side."""
        self._protocol.writeConnectionLost()  # type: ignore[attr-defined]
