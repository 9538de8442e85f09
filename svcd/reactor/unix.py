"""UNIX socket transports: they count bytes, since the kernel does not, and send descriptors (SCM_RIGHTS)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.error import FileDescriptorOverrun
from twisted.internet.interfaces import IFileDescriptorReceiver, ITCPTransport, ITLSTransport, IUNIXTransport
from twisted.internet.unix import Server
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.reactor.starttls import StartTLS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["UNIXTransport"]

#: The number of unsent descriptors above which a push producer is paused.
_MAX_WAITING_FDS = 64


@implementer(IUNIXTransport, ITCPTransport, ITLSTransport)
class UNIXTransport(StartTLS):
    """Transport of a UNIX socket connection.

    A protocol that receives descriptors (IFileDescriptorReceiver) gets Twisted's own transport instead, since libuv
    does not read ancillary data.

    Attributes:
        bytes_in: the bytes received from the client.
        bytes_out: the bytes written to uvloop for the client.
    """

    __slots__ = ("_fds", "_received", "_unsent", "_writable", "bytes_in", "bytes_out")

    _family = socket.AF_UNIX

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - UvTransport's
        super().__init__(*arguments)
        self.bytes_in = self.bytes_out = 0
        # Descriptors to send, each with a byte of the output, and the output that waits for them.
        self._fds: list[int] = []
        self._unsent = b""
        self._writable: socket.socket | None = None

    @property
    def data_received(self) -> Callable[[bytes], None]:
        """The function that counts input and passes it to the protocol; see UvTransport."""
        self._received = super().data_received
        return self._count

    @property
    def traffic(self) -> tuple[int, int] | None:
        """The bytes received from the client, and the bytes that the kernel has taken for it; None after the end."""
        if not self.connected:
            return None
        return self.bytes_in, self.bytes_out - len(self._unsent) - self._uv.get_write_buffer_size()

    def _count(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self._received(data)

    def _direct(self) -> Callable[[bytes], None]:
        return self._write_and_count

    def _write_and_count(self, data: bytes) -> None:
        self._uv.write(data)
        self.bytes_out += len(data)

    def _connect_protocol(self) -> None:
        if IFileDescriptorReceiver.providedBy(self._protocol):
            # Twisted's own transport uses a duplicate of the descriptor.
            sock = self._raw_handle().dup()
            sock.setblocking(False)
            self._refuse()
            protocol: Any = self._protocol
            transport = Server(sock, protocol, self.hostname, self.server, self.sessionno, self.reactor)
            self._call(lambda: protocol.makeConnection(transport))
        else:
            super()._connect_protocol()

    def _forget(self) -> None:
        self._stop_waiting()
        del self._received
        super()._forget()

    @property
    def hostname(self) -> Any:  # noqa: ANN401 - a path, or None
        """The path of the client's socket; most clients have none."""
        return self._peer.name

    @property
    def client(self) -> tuple[Any, ...]:
        """The client's socket address, as for Twisted's transports."""
        return self._peer.name, None

    def getHost(self) -> Any:  # noqa: ANN401 - a UNIXAddress, which ITCPTransport does not allow
        """Return the address of the listening socket."""
        return UNIXAddress(self._raw_handle().getsockname())

    def getTcpNoDelay(self) -> bool:
        """Return False: only TCP has the option, but protocols read it on any transport."""
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing: only TCP has the option, but protocols set it on any transport."""

    def sendFileDescriptor(self, fileno: int) -> None:
        """Send a copy of a descriptor with the next byte that is written.

        Args:
            fileno: the descriptor. The caller keeps ownership, and it must stay open until it is sent.
        """
        if not self.connected or self._eof_sent:
            return
        self._fds.append(fileno)
        self._send_by(self._write_with_fds)
        if len(self._fds) > _MAX_WAITING_FDS and self.producer is not None and self.streamingProducer:
            self._full = True
            self._call(self.producer.pauseProducing)

    def loseConnection(self, _reason: object = None) -> None:
        """Close the connection when all data is written; a descriptor without a byte of output is lost."""
        if not self._fds or self.disconnecting or not self.connected:
            super().loseConnection()
        elif self._unsent:
            self.disconnecting = True
            self._uv.pause_reading()
        else:
            self._failure = Failure(FileDescriptorOverrun())
            self._uv.abort()

    @property
    def writing(self) -> bool:
        """Whether there is unsent output."""
        return bool(self._unsent) or super().writing

    def _send_eof(self) -> None:
        if not self._unsent:
            super()._send_eof()

    def _write_with_fds(self, data: bytes) -> None:
        self._unsent += data
        self.bytes_out += len(data)
        self._send_fds()

    def _send_fds(self) -> None:
        """Send as many descriptors as the kernel takes, once the buffer of uvloop is empty."""
        if not self.connected:
            return
        full = bool(self._uv.get_write_buffer_size())
        while self._fds and self._unsent and not full:
            try:
                socket.send_fds(self._raw_handle(), [self._unsent[:1]], self._fds[:1])
            except BlockingIOError:
                full = True
            except OSError as error:
                self._fail(Failure(error))
                return
            else:
                del self._fds[0]
                self._unsent = self._unsent[1:]
        if self._fds and self._unsent:
            self._wait()
        elif not self._fds:
            self._all_sent()

    def _all_sent(self) -> None:
        unsent, self._unsent = self._unsent, b""
        self._stop_waiting()
        self._uv.write(unsent)
        self._send_by(self._direct())
        if self.disconnecting:
            self._uv.close()
        elif self._ending:
            self._send_eof()
        elif self._full and not self._uv.get_write_buffer_size():
            self.resume_writing()

    def _wait(self) -> None:
        """Continue when the kernel takes more. A duplicate is watched, since uvloop owns the original descriptor."""
        if self._writable is None:
            self._writable = self._raw_handle().dup()
            self.reactor.loop.add_writer(self._writable, self._send_fds)

    def _stop_waiting(self) -> None:
        if self._writable is not None:
            self.reactor.loop.remove_writer(self._writable)
            self._writable.close()
            self._writable = None
