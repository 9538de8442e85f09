"""UDP ports: uvloop receives, and answers go out by the socket, so that an error is the sender's to know."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import udp
from twisted.internet.error import MessageLengthError
from twisted.logger import Logger

from svcd.net.twisted_addresses import scoped_host
from svcd.reactor.adopt import start_coroutine
from svcd.reactor.log_context import LOG_PREFIX

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, DatagramTransport
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from svcd.reactor.native import NativeReactor

__all__ = ["UDPPort", "UdpReceiver"]


class UdpReceiver:
    """asyncio's protocol to uvloop for one socket; hands on what comes until it is closed.

    uvloop can't pause a datagram transport. So it has a duplicate of the socket, which is closed to pause: what comes
    meanwhile waits in the kernel.

    Args:
        loop: a uvloop loop.
        sock: the bound socket; stays the caller's.
        prefix: what lines in the log begin with meanwhile.
        datagram_received: takes the data and the sender's socket address.
        error_received: takes an error that the socket reported.
    """

    __slots__ = ("_closed", "_loop", "_lost", "_on_closed", "_transport", "datagram_received", "error_received")

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        prefix: str,
        datagram_received: Callable[[bytes, Any], None],
        error_received: Callable[[OSError], None],
    ) -> None:
        self._closed = False
        self._loop = loop
        self._lost = False
        self._on_closed: Callable[[], None] | None = None
        self._transport: DatagramTransport | None = None
        self.datagram_received = datagram_received
        self.error_received = error_received
        LOG_PREFIX.set(prefix)
        start_coroutine(loop, loop.create_datagram_endpoint(lambda: self, sock=sock.dup()))

    def connection_made(self, transport: DatagramTransport) -> None:
        """Reading begins after this."""
        self._transport = transport
        if self._closed:
            transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """It is closed; the duplicate is, right after this."""
        self._transport = None
        self._lost = True
        if self._on_closed is not None:
            self._loop.call_soon(self._on_closed)

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call something in a later turn of the loop, when close() has closed the duplicate of the socket.

        Args:
            callback: called once; only the last one that was named before the end.
        """
        if self._lost:
            self._loop.call_soon(callback)
        else:
            self._on_closed = callback

    def close(self) -> None:
        """Hand on no more."""
        self._closed = True
        # One that is closed before its connection_made() reads for the rest of that turn of the loop, in any case.
        self.datagram_received = _lost
        if self._transport is not None:
            self._transport.abort()


def _lost(data: bytes, name: object) -> None:
    """Nobody is there to take a datagram."""


class UDPPort(udp.Port):
    """What listenUDP() and adoptDatagramPort() give.

    Datagrams longer than maxPacketSize are not cut. Peers are tuples of host and port; a link-local host has its
    interface with it, fe80::1%eth0, so that it can be answered.

    Attributes:
        datagrams: received.
        bytes_in: received.
        bytes_out: sent.
    """

    reactor: NativeReactor  # type: ignore[assignment]
    _log = Logger()
    _receiver: UdpReceiver | None = None
    # The receiver that was closed last: its duplicate of the socket may still be open.
    _retired: UdpReceiver | None = None
    # The sender of the last datagram, as the application has it and as the system has it.
    _peer: Any = None
    _name: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - udp.Port's
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self.datagrams = self.bytes_in = self.bytes_out = 0

    def startReading(self) -> None:
        """Receive."""
        if self._receiver is None:
            received = self._received if self.addressFamily == socket.AF_INET else self._received_by_6
            self.reactor.natives[self] = None
            self._receiver = UdpReceiver(self.reactor.loop, self.socket, self.logstr, received, self._refused)

    def stopReading(self) -> None:
        """Let datagrams wait in the kernel."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self.reactor.natives.pop(self, None)
            receiver.close()
            self._retired = receiver

    def _loseConnection(self) -> None:
        """End the port when no duplicate of its socket is open: whoever is told of the end may bind the port again."""
        self.stopReading()
        if self.connected and self._retired is not None:
            self._retired.when_closed(self.connectionLost)
        elif self.connected:
            self.reactor.loop.call_soon(self.connectionLost)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The port ends, or the reactor does."""
        self.stopReading()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    @property
    def reading(self) -> bool:
        """Whether datagrams are wanted."""
        return self._receiver is not None

    @property
    def writing(self) -> bool:
        """Never: what the kernel does not take is lost."""
        return False

    pause = stopReading

    def resume(self) -> None:
        """Receive again."""
        if self.connected:
            self.startReading()

    def _received(self, data: bytes, name: Any) -> None:  # noqa: ANN401 - a socket address
        self.datagrams += 1
        self.bytes_in += len(data)
        self._name = self._peer = name
        try:
            self.protocol.datagramReceived(data, name)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - the next datagram is not its fault
            self._log.failure("a datagram could not be served")

    def _received_by_6(self, data: bytes, name: Any) -> None:  # noqa: ANN401 - a socket address
        self.datagrams += 1
        self.bytes_in += len(data)
        host, port, _flow, scope = self._name = name
        self._peer = peer = (scoped_host(host, scope) if scope else host, port)
        try:
            self.protocol.datagramReceived(data, peer)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - the next datagram is not its fault
            self._log.failure("a datagram could not be served")

    def _refused(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED and self._connectedAddr:
            self.protocol.connectionRefused()

    def write(self, datagram: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Send a datagram. It is lost, as the network might lose it, when the kernel takes none.

        Args:
            datagram: what to send.
            addr: host, an address and no name, and port; None on a connected port.

        Raises:
            MessageLengthError: it is longer than a datagram can be.
            InvalidAddressError: the host is a name, or an address of the other IP version.
        """
        try:
            if addr is self._peer and addr is not None:
                # An answer: nothing has to be looked at again.
                self.bytes_out += self.socket.sendto(datagram, self._name)
            else:
                self.bytes_out += super().write(datagram, addr) or 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise MessageLengthError("message too long") from error
