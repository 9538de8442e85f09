"""UDP ports: uvloop receives; the socket object sends, so that write() raises the errors of its datagram."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import udp
from twisted.internet.error import MessageLengthError
from twisted.logger import Logger

from svcd.net.twisted_addresses import scoped_host
from svcd.reactor.acceptor import start_coroutine
from svcd.reactor.log_context import LOG_PREFIX

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, DatagramTransport
    from collections.abc import Callable

    from twisted.python.failure import Failure

    from svcd.reactor.native import NativeReactor

__all__ = ["UDPPort", "UdpReceiver"]


class UdpReceiver:
    """Asyncio protocol that receives the datagrams of a socket until it is closed.

    uvloop can't pause a datagram transport. So it gets a duplicate of the socket, which is closed for a pause;
    datagrams wait in the kernel meanwhile.

    Args:
        loop: the uvloop loop.
        sock: the bound socket. The caller keeps ownership.
        prefix: the prefix of log lines in its callbacks.
        datagram_received: called with the data and the sender's socket address.
        error_received: called with an error that the socket reported.
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
        """Store the transport; uvloop starts reading after this."""
        self._transport = transport
        if self._closed:
            transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """Handle the close of the transport; uvloop closes the duplicate right after this."""
        self._transport = None
        self._lost = True
        if self._on_closed is not None:
            self._loop.call_soon(self._on_closed)

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call a function in a later iteration of the loop, after close() has closed the duplicate of the socket.

        Args:
            callback: the function, called once; it replaces that of an earlier call.
        """
        if self._lost:
            self._loop.call_soon(callback)
        else:
            self._on_closed = callback

    def close(self) -> None:
        """Stop receiving, and close the duplicate of the socket."""
        self._closed = True
        # A transport that is closed before connection_made() still reads in that iteration of the loop.
        self.datagram_received = _discard
        if self._transport is not None:
            self._transport.abort()


def _discard(data: bytes, sockaddr: object) -> None:
    """Drop a datagram that arrives after the close."""


class UDPPort(udp.Port):
    """Port that listenUDP() and adoptDatagramPort() return.

    Datagrams longer than maxPacketSize are not truncated. Peers are tuples of host and port; a link-local host includes
    its interface, fe80::1%eth0, so that it can be answered.

    Attributes:
        datagrams: the number of received datagrams.
        bytes_in: the bytes received.
        bytes_out: the bytes sent.
    """

    reactor: NativeReactor  # type: ignore[assignment]
    _log = Logger()
    _receiver: UdpReceiver | None = None
    # The last receiver that was closed; its duplicate of the socket may still be open.
    _retired: UdpReceiver | None = None
    # The sender of the last datagram, in the forms of the application and of the system.
    _peer: Any = None
    _sockaddr: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - udp.Port's
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self.datagrams = self.bytes_in = self.bytes_out = 0

    def startReading(self) -> None:
        """Start receiving."""
        if self._receiver is None:
            received = self._received if self.addressFamily == socket.AF_INET else self._received_by_6
            self.reactor.natives[self] = None
            self._receiver = UdpReceiver(self.reactor.loop, self.socket, self.logstr, received, self._refused)

    def stopReading(self) -> None:
        """Stop receiving: datagrams wait in the kernel."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self.reactor.natives.pop(self, None)
            receiver.close()
            self._retired = receiver

    def _loseConnection(self) -> None:
        """Close the port when no duplicate of its socket is open, so that the address can be bound after the close."""
        self.stopReading()
        if self.connected and self._retired is not None:
            self._retired.when_closed(self.connectionLost)
        elif self.connected:
            self.reactor.loop.call_soon(self.connectionLost)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Handle the close of the port, or the stop of the reactor."""
        self.stopReading()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    @property
    def reading(self) -> bool:
        """Whether the port receives datagrams."""
        return self._receiver is not None

    @property
    def writing(self) -> bool:
        """Whether there is unsent output: always False, since a datagram that the kernel does not take is lost."""
        return False

    pause = stopReading

    def resume(self) -> None:
        """Resume receiving, if the port listens."""
        if self.connected:
            self.startReading()

    def _received(self, data: bytes, sockaddr: Any) -> None:  # noqa: ANN401 - a socket address
        self.datagrams += 1
        self.bytes_in += len(data)
        self._sockaddr = self._peer = sockaddr
        try:
            self.protocol.datagramReceived(data, sockaddr)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - an error of one datagram must not stop the next
            self._log.failure("a datagram could not be served")

    def _received_by_6(self, data: bytes, sockaddr: Any) -> None:  # noqa: ANN401 - a socket address
        self.datagrams += 1
        self.bytes_in += len(data)
        host, port, _flow, scope = self._sockaddr = sockaddr
        self._peer = peer = (scoped_host(host, scope) if scope else host, port)
        try:
            self.protocol.datagramReceived(data, peer)
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - an error of one datagram must not stop the next
            self._log.failure("a datagram could not be served")

    def _refused(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED and self._connectedAddr:
            self.protocol.connectionRefused()

    def write(self, datagram: bytes, addr: Any = None) -> None:  # noqa: ANN401 - a socket address
        """Send a datagram; it is lost if the kernel does not take it.

        Args:
            datagram: the data.
            addr: the host as an address, and the port; None on a connected port.

        Raises:
            MessageLengthError: the data is longer than a datagram can be.
            InvalidAddressError: the host is a name, or an address of the other IP version.
        """
        try:
            if addr is self._peer and addr is not None:
                # For an answer to the last datagram, the address is known to be valid.
                self.bytes_out += self.socket.sendto(datagram, self._sockaddr)
            else:
                self.bytes_out += super().write(datagram, addr) or 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise MessageLengthError("message too long") from error
