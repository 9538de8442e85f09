"""Questions over UDP: each is asked again until it is answered, since datagrams get lost."""

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
#: After so many seconds a question is asked again, and after twice as many each time (RFC 8085, section 3.1.3).
_FIRST_PAUSE = 1.0


async def questions(reactor: Reactor, target: Target) -> UdpQuery:
    """A socket to ask a server through.

    Raises:
        UnavailableError: its name has no address.
    """
    looked_up = lookup(reactor, target.host, target.port, target.family, "UDP")
    addresses = await within(reactor, target.timeout, looked_up, f"{target.host} was not looked up")
    return UdpQuery(reactor, target, addresses)


async def ask_once(reactor: Reactor, target: Target, question: bytes) -> bytes:
    """The answer to the only question for a server.

    Raises:
        UnavailableError, UsageError: as of Questions.ask; or the server's name has no address.
    """
    asked = await questions(reactor, target)
    try:
        return await asked.ask(question)
    finally:
        asked.close()


class UdpQuery:
    """Asks a server, by its first address that does not refuse.

    Args:
        reactor: where.
        target: the server.
        addresses: of it, at least one.
    """

    def __init__(self, reactor: Reactor, target: Target, addresses: Sequence[Address]) -> None:
        self._reactor = reactor
        self._target = target
        self._addresses = list(addresses)
        self._socket: _Socket | None = None

    async def ask(self, question: bytes) -> bytes:
        """The answer to a question.

        Raises:
            UnavailableError: none came in time, or nobody listens.
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
        """Have done with it."""
        connected, self._socket = self._socket, None
        if connected is not None and not connected.closed:
            connected.transport.stopListening()


class _Socket(DatagramProtocol):
    """A socket that is connected to one address, so that the kernel lets nobody else answer."""

    transport: Any
    closed = False

    def __init__(self) -> None:
        self._waiting: Deferred[bytes] | None = None
        # How often the question was asked in vain; how many answers to the one before may still come, and their text.
        self._in_vain = self._stale = 0
        self._last = b""

    @classmethod
    def open(cls, reactor: Reactor, address: Address) -> _Socket:
        """Make one."""
        made = cls()
        reactor.listenUDP(0, made, interface="::" if ":" in address.host else "", maxPacketSize=65_536)
        made.transport.connect(address.host, address.port)
        return made

    def ask(self, question: bytes) -> Deferred[bytes]:
        """The answer; fails with ConnectionRefusedError. Once it is cancelled, the question may be repeated."""
        self._waiting = Deferred(self._give_up)
        waiting = self._waiting
        self.transport.write(question)
        return waiting

    def _give_up(self, _: object) -> None:
        self._waiting = None
        self._in_vain += 1

    def datagramReceived(self, datagram: bytes, _: object) -> None:
        """The server has answered."""
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
        """The server's machine has said that nobody listens."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(ConnectionRefusedError())

    def stopProtocol(self) -> None:
        """The socket is gone: the epoll reactor closes one for what connectionRefused should be told."""
        self.closed = True
        self.connectionRefused()
