"""Port of a datagram service: it reads datagrams, applies the access rules, and sends answers of a bounded length."""

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

#: The port number of senders to a UNIX socket, which have no port.
_NO_PORT = 65_535
#: The size of the buffer for the control messages of a datagram, in bytes.
_CONTROL = 256
# A flag of recv(2), as an int: operations on the enumeration take longer than the system call.
_NOW = int(socket.MSG_DONTWAIT)
#: The maximum number of cached sender addresses, decoded, with about 300 bytes each; a full cache is cleared.
_MAX_PEERS = 4096
#: struct sockaddr_in6 (ipv6(7)): family, port, flow, address and scope; port and flow are in network byte order.
_SOCKADDR_IN6 = struct.Struct("=HHI16sI")


def datagram_port(
    reactor: FdReactor,
    sock: socket.socket,
    protocol: DatagramProtocol,
    datagram_filter: DatagramFilter,
    refused: Callable[[Refusal, str, int], None],
    ready: Callable[[], bool] = lambda: True,
) -> DatagramPort:
    """Return a port for a datagram socket; it reads in batches if that is possible. See DatagramPort."""
    batched = sock.family != socket.AF_UNIX and available()
    return (BatchedDatagramPort if batched else DatagramPort)(reactor, sock, protocol, datagram_filter, refused, ready)


@implementer(IListeningPort)
class DatagramPort(BasePort):
    """Port of a datagram socket; peers are socket addresses in the system's form.

    The source address of an answer is the destination address of the question, even if the socket is bound to a
    wildcard address (RFC 1123, section 4.1.2.4, requires it for TFTP; clients drop any other answer).

    Args:
        reactor: watches the socket.
        sock: the bound socket.
        protocol: handles the datagrams, and answers them at once.
        datagram_filter: decides which datagrams are answered, and limits the length of an answer.
        refused: called with each refusal, and the address and port of the sender. For a UNIX socket the port is -1, and
            the address is the sender's user, such as `uid:1000`, if rules count by user, otherwise empty.
        ready: returns whether reading may start. While it returns False, resume() does nothing, and datagrams wait in
            the kernel.

    Attributes:
        clock: returns seconds, monotonic.
        datagrams: the number of received datagrams.
        ignored: the number of these that the rules refused.
        bytes_in: the bytes received.
        bytes_out: the bytes sent.
    """

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        protocol: DatagramProtocol,
        datagram_filter: DatagramFilter,
        refused: Callable[[Refusal, str, int], None] = lambda _refusal, _host, _port: None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(reactor, sock)
        self._ready = ready
        self._protocol = protocol
        self._filter = datagram_filter
        self._refused = refused
        self.clock: Callable[[], float] = time.monotonic
        self._inet = sock.family != socket.AF_UNIX
        # Whether the kernel adds the destination address to datagrams: not for a socket bound to a specific address.
        self._pktinfo = self._inet and sock.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104 - nothing is bound here
        # Whether the kernel adds the sender's user; it takes time, so only if rules count by user.
        self._passcred = not self._inet and datagram_filter.counts_sources
        # Of the current datagram: the control messages and the maximum length of its answer, and its sender's user.
        self._control: list[tuple[int, int, bytes]] = []
        self._user = ""
        self._max_answer = 0
        self.datagrams = self.ignored = self.bytes_in = self.bytes_out = 0
        self._before = LiveTraffic()

    def continue_counts(self, other: DatagramPort) -> None:
        """Start the counters at the values of the former port of the same socket."""
        self.datagrams, self.ignored = other.datagrams, other.ignored
        self.bytes_in, self.bytes_out = other.bytes_in, other.bytes_out
        self._before = LiveTraffic(self.bytes_in, self.bytes_out, self.datagrams)

    def traffic(self) -> LiveTraffic:
        """Return the traffic of this port, excluding that of former ports of the socket."""
        before = self._before
        return LiveTraffic(
            self.bytes_in - before.bytes_in, self.bytes_out - before.bytes_out, self.datagrams - before.datagrams
        )

    def startListening(self) -> None:
        """Set the socket options, connect the protocol, and start reading if the rules are ready."""
        if self._pktinfo:
            self.socket.setsockopt(*pktinfo_option(self.socket.family), 1)
        if not self._inet:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, self._passcred)
        self._protocol.makeConnection(self)  # type: ignore[arg-type]
        super().startListening()

    def resume(self) -> None:
        """Resume reading, if the rules are ready."""
        if self._ready():
            super().resume()

    def stopListening(self) -> Deferred[None]:
        """Stop the protocol and reading."""
        if self.connected:
            self._protocol.doStop()
        return super().stopListening()

    def doRead(self) -> None:
        """Read the waiting datagrams, up to a batch, and answer them."""
        receive = self._receive_with_control if self._pktinfo or self._passcred else self._receive
        # All datagrams of a batch have the same time, so tokens added meanwhile count for the next batch.
        now = self.clock()
        for _ in range(BATCH):
            if not self.connected:
                return
            try:
                data, peer = receive()
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error belongs to an earlier answer and does not affect the next datagram.
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
        """Pass a datagram to the protocol, if the rules allow it."""
        self.datagrams += 1
        self.bytes_in += len(data)
        if not peer:
            # A datagram from an unbound UNIX socket can't be answered.
            return
        if len(data) > LARGEST_DATAGRAM:
            # A datagram of a UNIX socket may be longer than the buffer. It is truncated then, and is not answered.
            self.ignored += 1
            return
        host, port = (peer[0], peer[1]) if self._inet else (self._user, _NO_PORT)
        refusal = self._filter.refusal(host, port, now)
        if refusal is not None:
            self.ignored += 1
            self._refused(refusal, host, port if self._inet else -1)
            return
        self._max_answer = self._filter.max_answer(len(data))
        try:
            self._protocol.datagramReceived(data, peer)
        except Exception:  # noqa: BLE001 - an error of a datagram must not stop the next
            self._log.failure("a datagram could not be served")

    def write(self, data: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Send an answer, truncated to the length that the rules allow; it is lost if the kernel does not take it."""
        if len(data) > self._max_answer:
            data = data[: self._max_answer]
        try:
            self.bytes_out += (
                self.socket.sendmsg([data], self._control, _NOW, addr)
                if self._control
                else self.socket.sendto(data, _NOW, addr)
            )
        except OSError:
            # The queue is full, or the peer has closed its socket.
            return


class BatchedDatagramPort(DatagramPort):
    """UDP port with recvmmsg(2) and sendmmsg(2): the answers to a batch are sent after the whole batch was handled."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - DatagramPort's
        super().__init__(*arguments)
        family = self.socket.family
        self._batch = batch_for(family, pktinfo=self._pktinfo)
        self._peer_of = _ipv6_peer if family == socket.AF_INET6 else _ipv4_peer
        # The decoded addresses of senders, by struct sockaddr.
        self._peers: dict[bytes, Any] = {}
        # The current datagram: its data, its sender and its index in the batch, -1 after it was answered.
        self._question = b""
        self._peer: Any = None
        self._index = -1

    def doRead(self) -> None:
        """Read a batch of datagrams, answer them, and send the answers."""
        if not self.connected:
            return
        batch, descriptor, peers = self._batch, self.socket.fileno(), self._peers
        try:
            found = batch.receive(descriptor)
        except OSError:
            # An ICMP error belongs to an earlier answer; the waiting datagrams are read in the next iteration.
            return
        decide, received, now = self._filter.refusal, self._protocol.datagramReceived, self.clock()
        self.datagrams += len(found)
        index = -1
        for data, sockaddr in found:
            index += 1
            self.bytes_in += len(data)
            peer = peers.get(sockaddr)
            if peer is None:
                peer = self._decode(sockaddr)
            refusal = decide(peer[0], peer[1], now)
            if refusal is not None:
                self.ignored += 1
                self._refused(refusal, peer[0], peer[1])
                continue
            self._peer, self._index, self._question = peer, index, data
            try:
                received(data, peer)
            except Exception:  # noqa: BLE001 - an error of one datagram must not stop the next
                self._log.failure("a datagram could not be served")
        self._index = -1
        self.bytes_out += batch.send(descriptor)

    def _decode(self, sockaddr: bytes) -> Any:  # noqa: ANN401 - a socket address
        if len(self._peers) >= _MAX_PEERS:
            self._peers.clear()
        peer = self._peers[sockaddr] = self._peer_of(sockaddr)
        return peer

    def write(self, data: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Add an answer to the current datagram to the batch, truncated; send any other datagram at once."""
        index = self._index
        if index < 0 or addr is not self._peer:
            super().write(data, addr)
            return
        self._index = -1
        if len(data) > len(self._question):
            data = data[: self._filter.max_answer(len(self._question))]
        self._batch.answer(index, data)


def _user_of(control: list[tuple[int, int, bytes]]) -> str:
    """Return the sender's user from SCM_CREDENTIALS (unix(7)), as `uid:1000`; empty without this control message."""
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return UNIXPeer(None, unpack_credentials(data[:CREDENTIALS_BYTES])).user
    return ""


def _ipv4_peer(sockaddr: bytes) -> tuple[str, int]:
    """Return a struct sockaddr_in in the form of the socket module."""
    return socket.inet_ntop(socket.AF_INET, sockaddr[4:8]), int.from_bytes(sockaddr[2:4], "big")


def _ipv6_peer(sockaddr: bytes) -> tuple[str, int, int, int]:
    """Return a struct sockaddr_in6 in the form of the socket module."""
    _, port, flow, address, scope = _SOCKADDR_IN6.unpack(sockaddr)
    return socket.inet_ntop(socket.AF_INET6, address), socket.ntohs(port), socket.ntohl(flow), scope
