"""Queries over UDP: each is repeated until it is answered, since datagrams get lost."""

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

__all__ = ["MOST_BYTES", "UdpQuery", "ask_once", "questions"]

#: The largest datagram over IPv4 (RFC 768 in RFC 791's 65,535 bytes).
MOST_BYTES = 65_507
#: The time to the first repetition of a question, in seconds; it doubles each time (RFC 8085, section 3.1.3).
_FIRST_PAUSE = 1.0


async def questions(reactor: Reactor, target: Target) -> UdpQuery:
    """Return a UdpQuery for a server.

    Raises:
        UnavailableError: its name has no address.
    """
    looked_up = lookup(reactor, target.host, target.port, target.family, "UDP")
    addresses = await within(reactor, target.timeout, looked_up, f"{target.host} was not looked up")
    return UdpQuery(reactor, target, addresses)


async def ask_once(reactor: Reactor, target: Target, question: bytes) -> bytes:
    """Send one question to a server and return the answer.

    Raises:
        UnavailableError, UsageError: as in UdpQuery.ask; or the name of the server has no address.
    """
    asked = await questions(reactor, target)
    try:
        return await asked.ask(question)
    finally:
        asked.close()


class UdpQuery:
    """Queries to a server, at its first address that does not refuse.

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
            UnavailableError: there is no answer in time, or no listener.
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
    """A socket that is connected to one address, so that the kernel drops datagrams from others."""

    transport: Any
    closed = False

    def __init__(self) -> None:
        self._waiting: Deferred[bytes] | None = None
        # The repetitions of the question; the answers to the one before that may still come, and their text.
        self._in_vain = self._stale = 0
        self._last = b""

    @classmethod
    def open(cls, reactor: Reactor, address: Address) -> _Socket:
        """Open a socket to an address."""
        made = cls()
        reactor.listenUDP(0, made, interface="::" if ":" in address.host else "", maxPacketSize=65_536)
        made.transport.connect(address.host, address.port)
        return made

    def ask(self, question: bytes) -> Deferred[bytes]:
        """Send a question and return the answer; after a cancel it may be repeated.

        Fails with ConnectionRefusedError.
        """
        self._waiting = Deferred(self._give_up)
        waiting = self._waiting
        self.transport.write(question)
        return waiting

    def _give_up(self, _: object) -> None:
        self._waiting = None
        self._in_vain += 1

    def datagramReceived(self, datagram: bytes, _: object) -> None:
        """Take an answer of the server."""
        waiting = self._waiting
        if waiting is None:
            return
        if self._stale and datagram == self._last:
            self._stale -= 1
            return
        self._waiting, self._last = None, datagram
        self._stale, self._in_vain = self._in_vain, 0
        waiting.callback(datagram)

    def connectionRefused(self) -> None:
        """Handle the ICMP message that no process listens."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(ConnectionRefusedError())

    def stopProtocol(self) -> None:
        """Handle the close of the socket: the epoll reactor closes it where connectionRefused() should be called."""
        self.closed = True
        self.connectionRefused()
