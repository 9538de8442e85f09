"""The port of a datagram service: it reads questions, lets the rules decide, and sends answers of a bounded length."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from svcd.metrics.counters import LiveTraffic
from svcd.net.peer_credentials import CREDENTIALS_BYTES, UNIXPeer, unpack_credentials
from svcd.net.udp_batch import LARGEST_DATAGRAM, available, batch_for, pktinfo_option, source_control
from svcd.sockets.ports import BATCH, BasePort

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.protocol import DatagramProtocol

    from svcd.access.datagrams import DatagramFilter
    from svcd.access.rules import Refusal
    from svcd.interfaces import FdReactor

__all__ = ["DatagramPort", "datagram_port"]

#: At a UNIX socket nobody has a port.
_NO_PORT = 65_535
#: The room for the control messages of a datagram, in bytes.
_CONTROL = 256
# As a number: to put it together each time takes longer than the call. recv(2)
_NOW = int(socket.MSG_DONTWAIT)
#: How many senders a port knows by their socket addresses; then they are learned anew. About 300 bytes each.
_MOST_PEERS = 4096
#: ip(7), ipv6(7): family, port, flow, address and scope; port and flow are in the order of the network.
_SOCKADDR_IN6 = struct.Struct("=HHI16sI")


def datagram_port(
    reactor: FdReactor,
    sock: socket.socket,
    protocol: DatagramProtocol,
    answering: DatagramFilter,
    refused: Callable[[Refusal, str, int], None],
    clock: Callable[[], float] = time.monotonic,
    ready: Callable[[], bool] = lambda: True,
) -> DatagramPort:
    """Make the port for a datagram socket: one that works in batches, where that is possible. See DatagramPort."""
    batched = sock.family != socket.AF_UNIX and available()
    return (BatchedDatagramPort if batched else DatagramPort)(reactor, sock, protocol, answering, refused, clock, ready)


@implementer(IListeningPort)
class DatagramPort(BasePort):
    """Reads and writes the datagrams of a socket; peers are socket addresses as the system gives them.

    An answer comes from the address that was asked, also where the socket is bound to a wildcard address (RFC 1123,
    section 4.1.2.4, says so for TFTP; clients drop any other).

    Args:
        reactor: watches the socket.
        sock: the bound socket.
        protocol: takes the datagrams, and answers them at once.
        answering: says which are answered, and how long an answer may be.
        refused: told of each that is not, and the address and port it came from. At a UNIX socket the port is -1, and
            the address the sender's user as in `uid:1000`, if rules count by user, or empty.
        clock: seconds, monotonic.
        ready: asked when reading begins; until it is so and resume() is called, datagrams wait in the kernel.

    Attributes:
        datagrams: received.
        ignored: of these, the ones that were not answered because the rules say so.
        bytes_in, bytes_out: received and sent.
    """

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        protocol: DatagramProtocol,
        answering: DatagramFilter,
        refused: Callable[[Refusal, str, int], None] = lambda _refusal, _host, _port: None,
        clock: Callable[[], float] = time.monotonic,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(reactor, sock)
        self._ready = ready
        self._protocol = protocol
        self._answering = answering
        self._refused = refused
        self._clock = clock
        self._inet = sock.family != socket.AF_UNIX
        # Whether the destination address is asked for: a socket with an address of its own answers from that.
        self._pktinfo = self._inet and sock.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104 - nothing is bound here
        # Whether the kernel is asked for the sender's user; it costs a little, so only where users are counted.
        self._passcred = not self._inet and answering.counts_sources
        # What the present question brought: the control messages and the greatest length of its answer, and its user.
        self._control: list[tuple[int, int, bytes]] = []
        self._user = ""
        self._most = 0
        self.datagrams = self.ignored = self.bytes_in = self.bytes_out = 0
        self._before = LiveTraffic()

    def go_on_from(self, other: DatagramPort) -> None:
        """Count on where the port before on the same socket has stopped."""
        self.datagrams, self.ignored = other.datagrams, other.ignored
        self.bytes_in, self.bytes_out = other.bytes_in, other.bytes_out
        self._before = LiveTraffic(self.bytes_in, self.bytes_out, self.datagrams)

    def traffic(self) -> LiveTraffic:
        """What this port has carried, without those before it."""
        before = self._before
        return LiveTraffic(
            self.bytes_in - before.bytes_in, self.bytes_out - before.bytes_out, self.datagrams - before.datagrams
        )

    def startListening(self) -> None:
        """Begin."""
        if self._pktinfo:
            self.socket.setsockopt(*pktinfo_option(self.socket.family), 1)
        if not self._inet:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, self._passcred)
        self._protocol.makeConnection(self)  # type: ignore[arg-type]
        super().startListening()

    def resume(self) -> None:
        """Go on, if the rules are ready."""
        if self._ready():
            super().resume()

    def stopListening(self) -> Deferred[None]:
        """Stop."""
        if self.connected:
            self._protocol.doStop()
        return super().stopListening()

    def doRead(self) -> None:
        """Read what waits."""
        receive = self._receive_with_control if self._pktinfo or self._passcred else self._receive
        # A token that comes while a batch is read is there for the next one.
        now = self._clock()
        for _ in range(BATCH):
            if not self.connected:
                return
            try:
                data, peer = receive()
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for an earlier answer; the next datagram is not its fault.
                continue
            self._take(data, peer, now)

    def _receive(self) -> tuple[bytes, Any]:
        return self.socket.recvfrom(LARGEST_DATAGRAM + 1, _NOW)

    def _receive_with_control(self) -> tuple[bytes, Any]:
        data, control, _flags, peer = self.socket.recvmsg(LARGEST_DATAGRAM + 1, _CONTROL, _NOW)
        if self._inet:
            self._control = source_control(self.socket.family, control)
        else:
            self._user = _user_of(control)
        return data, peer

    def _take(self, data: bytes, peer: Any, now: float) -> None:  # noqa: ANN401 - a socket address
        """Let a question be answered, if the rules allow it."""
        self.datagrams += 1
        self.bytes_in += len(data)
        if not peer:
            # An unbound UNIX socket asked: there is no way to answer.
            return
        if len(data) > LARGEST_DATAGRAM:
            # Of a UNIX socket's, which may be longer, the end is lost: no answer is better than a wrong one.
            self.ignored += 1
            return
        answering = self._answering
        host, port = (peer[0], peer[1]) if self._inet else (self._user, _NO_PORT)
        refusal = answering.refusal(host, port, now)
        if refusal is not None:
            self.ignored += 1
            self._refused(refusal, host, port if self._inet else -1)
            return
        self._most = answering.max_answer(len(data))
        try:
            self._protocol.datagramReceived(data, peer)
        except Exception:  # noqa: BLE001 - the next datagram is not its fault
            self._log.failure("a datagram could not be served")

    def write(self, data: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Send an answer, cut to what the question allows, or lose it as the network might."""
        if len(data) > self._most:
            data = data[: self._most]
        try:
            self.bytes_out += (
                self.socket.sendmsg([data], self._control, _NOW, addr)
                if self._control
                else self.socket.sendto(data, _NOW, addr)
            )
        except OSError:
            # The queue is full, or the peer is gone.
            return


class BatchedDatagramPort(DatagramPort):
    """The same for UDP with recvmmsg(2) and sendmmsg(2): the answers to a batch are sent when all of it is read."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - DatagramPort's
        super().__init__(*arguments)
        family = self.socket.family
        self._batch = batch_for(family, pktinfo=self._pktinfo)
        self._peer_of = _ipv6_peer if family == socket.AF_INET6 else _ipv4_peer
        # By the socket addresses that the kernel writes.
        self._peers: dict[bytes, Any] = {}
        # The question that is being answered: its data, its sender and its number in the batch, -1 once it is answered.
        self._question = b""
        self._peer: Any = None
        self._index = -1

    def doRead(self) -> None:
        """Read what waits, and answer it."""
        if not self.connected:
            return
        batch, descriptor, peers = self._batch, self.socket.fileno(), self._peers
        try:
            found = batch.receive(descriptor)
        except OSError:
            # An ICMP error for an earlier answer; what waits behind it has the next turn.
            return
        decide, received, now = self._answering.refusal, self._protocol.datagramReceived, self._clock()
        self.datagrams += len(found)
        index = -1
        for data, name in found:
            index += 1
            self.bytes_in += len(data)
            peer = peers.get(name)
            if peer is None:
                peer = self._learn(name)
            refusal = decide(peer[0], peer[1], now)
            if refusal is not None:
                self.ignored += 1
                self._refused(refusal, peer[0], peer[1])
                continue
            self._peer, self._index, self._question = peer, index, data
            try:
                received(data, peer)
            except Exception:  # noqa: BLE001 - the next datagram is not its fault
                self._log.failure("a datagram could not be served")
        self._index = -1
        self.bytes_out += batch.send(descriptor)

    def _learn(self, name: bytes) -> Any:  # noqa: ANN401 - a socket address
        if len(self._peers) >= _MOST_PEERS:
            self._peers.clear()
        peer = self._peers[name] = self._peer_of(name)
        return peer

    def write(self, data: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Note the answer to the present question, cut to what that allows; any other datagram is sent at once."""
        index = self._index
        if index < 0 or addr is not self._peer:
            super().write(data, addr)
            return
        self._index = -1
        if len(data) > len(self._question):
            data = data[: self._answering.max_answer(len(self._question))]
        self._batch.answer(index, data)


def _user_of(control: list[tuple[int, int, bytes]]) -> str:
    """The sender's user by SCM_CREDENTIALS (unix(7)), as addresses.address_number() reads it; empty without one."""
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return UNIXPeer(None, unpack_credentials(data[:CREDENTIALS_BYTES])).user
    return ""


def _ipv4_peer(name: bytes) -> tuple[str, int]:
    """A sockaddr_in as the socket module has it."""
    return socket.inet_ntop(socket.AF_INET, name[4:8]), int.from_bytes(name[2:4], "big")


def _ipv6_peer(name: bytes) -> tuple[str, int, int, int]:
    """A sockaddr_in6 as the socket module has it."""
    _, port, flow, address, scope = _SOCKADDR_IN6.unpack(name)
    return socket.inet_ntop(socket.AF_INET6, address), socket.ntohs(port), socket.ntohl(flow), scope
