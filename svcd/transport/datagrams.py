"""The port of a datagram service: it reads questions, lets the rules decide, and sends answers of a bounded length."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from svcd.metrics import Flow
from svcd.transport.port import BATCH, Port

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.protocol import DatagramProtocol

    from svcd.interfaces import Watcher
    from svcd.policy.answers import Refusal
    from svcd.policy.datagrams import Answering

__all__ = ["DatagramPort"]

#: The largest datagram there is, in bytes.
_LARGEST = 65_535
#: At a UNIX socket nobody has a port.
_NO_PORT = 65_535


@implementer(IListeningPort)
class DatagramPort(Port):
    """Reads and writes the datagrams of a socket; peers are socket addresses as the system gives them.

    Args:
        reactor: watches the socket.
        sock: the bound socket, non-blocking.
        protocol: takes the datagrams, and answers them at once.
        answering: says which are answered, and how long an answer may be.
        refused: told of each that is not, and the address and port it came from; an empty one at a UNIX socket.
        clock: seconds, monotonic.

    Attributes:
        datagrams: received.
        ignored: of these, the ones that were not answered because the rules say so.
        bytes_in, bytes_out: received and sent.
    """

    def __init__(
        self,
        reactor: Watcher,
        sock: socket.socket,
        protocol: DatagramProtocol,
        answering: Answering,
        refused: Callable[[Refusal, str, int], None] = lambda _refusal, _host, _port: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(reactor, sock)
        self._protocol = protocol
        self._answering = answering
        self._refused = refused
        self._clock = clock
        self._inet = sock.family != socket.AF_UNIX
        # How long the answer to the present question may be.
        self._most = 0
        self.datagrams = self.ignored = self.bytes_in = self.bytes_out = 0
        self._before = Flow()

    def go_on_from(self, other: DatagramPort) -> None:
        """Count on where the port before on the same socket has stopped."""
        self.datagrams, self.ignored = other.datagrams, other.ignored
        self.bytes_in, self.bytes_out = other.bytes_in, other.bytes_out
        self._before = Flow(self.bytes_in, self.bytes_out, self.datagrams)

    def flow(self) -> Flow:
        """What this port has carried, without those before it."""
        before = self._before
        return Flow(
            self.bytes_in - before.bytes_in, self.bytes_out - before.bytes_out, self.datagrams - before.datagrams
        )

    def startListening(self) -> None:
        """Begin."""
        self._protocol.makeConnection(self)  # type: ignore[arg-type]
        super().startListening()

    def stopListening(self) -> Deferred[None]:
        """Stop."""
        if self.connected:
            self._protocol.doStop()
        return super().stopListening()

    def doRead(self) -> None:
        """Read what waits."""
        receive, decide, longest = self.socket.recvfrom, self._answering.refusal, self._answering.most
        # A token that comes while a batch is read is there for the next one.
        now = self._clock()
        for _ in range(BATCH):
            if not self.connected:
                return
            try:
                data, peer = receive(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for an earlier answer; the next datagram is not its fault.
                continue
            self.datagrams += 1
            self.bytes_in += len(data)
            if not peer:
                # An unbound UNIX socket asked: there is no way to answer.
                continue
            refusal = decide(peer[0], peer[1], now) if self._inet else decide("", _NO_PORT, now)
            if refusal is not None:
                self.ignored += 1
                self._refused(refusal, *(peer[:2] if self._inet else ("", 0)))
                continue
            self._most = longest(len(data))
            try:
                self._protocol.datagramReceived(data, peer)
            except Exception:  # noqa: BLE001 - the next datagram is not its fault
                self._log.failure("a datagram could not be served")

    def write(self, data: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Send an answer, cut to what the question allows, or lose it as the network might."""
        if len(data) > self._most:
            data = data[: self._most]
        try:
            self.bytes_out += self.socket.sendto(data, addr)
        except OSError:
            # The queue is full, or the peer is gone.
            return
