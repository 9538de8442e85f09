"""Queries over UDP: a question is repeated until the answer arrives, since datagrams may be lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as PatienceError
from twisted.internet.protocol import DatagramProtocol

from svcd.clients.connect import within
from svcd.clients.lookup import lookup
from svcd.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svcd.clients.lookup import Address
    from svcd.clients.target import Reactor, Target

__all__ = ["MOST_BYTES", "UdpQuery", "ask_once", "open_query"]

#: The largest datagram over IPv4 (RFC 768 in RFC 791's 65,535 bytes).
MOST_BYTES = 65_507
#: The time until the first repetition of a question, in seconds; it doubles each time (RFC 8085, section 3.1.3).
_FIRST_PAUSE = 1.0


async def open_query(reactor: Reactor, target: Target) -> UdpQuery:
    """Look up the addresses of a server, and return a UdpQuery for it.

    Raises:
        UnavailableError: its name has no address, or the lookup takes too long.
    """
    looked_up = lookup(reactor, target.host, target.port, target.family, "UDP")
    addresses = await within(reactor, target.timeout, looked_up, f"{target.host} was not looked up")
    return UdpQuery(reactor, target, addresses)


async def ask_once(reactor: Reactor, target: Target, question: bytes) -> bytes:
    """Send a single question to a server and return the answer.

    Raises:
        UnavailableError, UsageError: as open_query() and UdpQuery.ask().
    """
    query = await open_query(reactor, target)
    try:
        return await query.ask(question)
    finally:
        query.close()


class UdpQuery:
    """Queries to a server, at its first address that does not refuse datagrams.

    Args:
        reactor: makes the socket.
        target: the server.
        addresses: the addresses of the server, at least one.
    """

    def __init__(self, reactor: Reactor, target: Target, addresses: Sequence[Address]) -> None:
        self._reactor = reactor
        self._target = target
        self._addresses = list(addresses)
        self._socket: _Socket | None = None

    async def ask(self, question: bytes) -> bytes:
        """Send a question and return the answer.

        Raises:
            UnavailableError: there is no answer in time, or all addresses refuse.
            UsageError: the question does not fit into a datagram.
        """
        if len(question) > MOST_BYTES:
            raise UsageError(f"{len(question)} bytes do not fit into a datagram: it takes {MOST_BYTES} at most")
        deadline = self._reactor.seconds() + self._target.timeout
        pause = _FIRST_PAUSE
        while (left := deadline - self._reactor.seconds()) > 0:
            if self._socket is None or self._socket.closed:
                self._socket = _Socket.open(self._reactor, self._addresses[0])
            answer = self._socket.ask(question)
            try:
                return await answer.addTimeout(min(pause, left), self._reactor)
            except PatienceError:
                pause *= 2
            except ConnectionRefusedError:
                self.close()
                if len(self._addresses) == 1:
                    raise UnavailableError(f"can't reach {self._target} over UDP: Connection refused") from None
                del self._addresses[0]
        raise UnavailableError(f"{self._target} has not answered over UDP within {self._target.timeout:g} s")

    def close(self) -> None:
        """Close the socket."""
        connected, self._socket = self._socket, None
        if connected is not None and not connected.closed:
            connected.transport.stopListening()


class _Socket(DatagramProtocol):
    """Socket that is connected to an address, so that the kernel drops datagrams from other addresses."""

    transport: Any
    closed = False

    def __init__(self) -> None:
        self._waiting: Deferred[bytes] | None = None
        # The number of unanswered sends of the current question. The number of answers to the previous question that
        # may still arrive, and their content.
        self._unanswered = self._stale = 0
        self._last = b""

    @classmethod
    def open(cls, reactor: Reactor, address: Address) -> _Socket:
        """Open a socket to an address."""
        protocol = cls()
        reactor.listenUDP(0, protocol, interface="::" if ":" in address.host else "", maxPacketSize=65_536)
        protocol.transport.connect(address.host, address.port)
        return protocol

    def ask(self, question: bytes) -> Deferred[bytes]:
        """Send a question; return a Deferred with the answer. After its cancellation the question may be repeated.

        The Deferred fails with ConnectionRefusedError if no process listens.
        """
        self._waiting = Deferred(self._cancelled)
        waiting = self._waiting
        self.transport.write(question)
        return waiting

    def _cancelled(self, _: object) -> None:
        self._waiting = None
        self._unanswered += 1

    def datagramReceived(self, datagram: bytes, _: object) -> None:
        """Handle an answer; drop late answers to the previous question."""
        waiting = self._waiting
        if waiting is None:
            return
        if self._stale and datagram == self._last:
            self._stale -= 1
            return
        self._waiting, self._last = None, datagram
        self._stale, self._unanswered = self._unanswered, 0
        waiting.callback(datagram)

    def connectionRefused(self) -> None:
        """Handle the ICMP error of a port without a listener."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(ConnectionRefusedError())

    def stopProtocol(self) -> None:
        """Handle the close of the socket, by which the epoll reactor reports a refused datagram."""
        self.closed = True
        self.connectionRefused()
