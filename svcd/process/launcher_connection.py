"""The daemon's socket to one launcher: reads its reports and checks each against what the launcher was sent."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from svcd.process.messages import MAX_PACKET, CheckModule, pack, parse_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator

    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor
    from svcd.process.launcher_protocol import LauncherProtocol
    from svcd.process.messages import Message

__all__ = ["LauncherConnection"]

#: Maximum number of packets that one call of doRead() reads.
_BATCH = 64
#: Upper bound of the packets that an exited launcher has left: the kernel keeps fewer for one socket.
_MAX_PACKETS = 4096


class _Owner(Protocol):
    def handle_reports(self, reports: Iterable[Message]) -> None:
        """Handle the reports of one packet."""

    def launcher_lost(self, reason: str) -> None:
        """Handle the exit of the launcher; calls close()."""

    def protocol_error(self, reason: str) -> None:
        """Handle a report that is not allowed now; calls close()."""

    def stop(self) -> None:
        """Handle the stop of the reactor."""


@implementer(IReadDescriptor)
class LauncherConnection:
    """The socket to a running launcher. Takes ownership of the socket.

    Args:
        reactor: watches the socket.
        sock: a SOCK_SEQPACKET socket.
        protocol: the state of this launcher.
        owner: handles the reports.
        name: the name of the service, for log messages.

    Attributes:
        sock: the socket, non-blocking.
        protocol: as given.
    """

    def __init__(
        self, reactor: FdReactor, sock: socket.socket, protocol: LauncherProtocol, owner: _Owner, name: str
    ) -> None:
        sock.setblocking(False)
        self._reactor = reactor
        self.sock = sock
        self.protocol = protocol
        self._owner = owner
        self._name = name
        self._closed = False
        reactor.addReader(self)

    def close(self) -> None:
        """Stop reading and close the socket, which ends the launcher after its last handler."""
        self._closed = True
        self._reactor.removeReader(self)
        self.sock.close()

    def check_module(self) -> None:
        """Request a check whether a module that the launcher has imported has changed on disk."""
        try:
            self.sock.send(pack(CheckModule()))
        except OSError:
            # The launcher is busy or has just exited; the next reload sends the request again.
            return
        self.protocol.module_check_sent()

    def doRead(self) -> None:
        """Read and handle up to _BATCH packets."""
        for _ in range(_BATCH):
            if not self._read_packet():
                return

    def read_all(self) -> None:
        """Read and handle all packets that an exited launcher has left."""
        all(self._read_packet() for _ in range(_MAX_PACKETS))

    def _read_packet(self) -> bool:
        """Read and handle one packet.

        Returns:
            Whether there may be another packet.
        """
        if self._closed:
            return False
        try:
            packet = self.sock.recv(MAX_PACKET + 1)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            # The launcher exited with messages unread. What it sent before follows this error (unix(7)).
            return True
        try:
            if not packet:
                self._end_of_reports()
                return False
            self._owner.handle_reports(self._checked(packet))
        except ValueError as error:
            self._owner.protocol_error(str(error))
        return True

    def _checked(self, packet: bytes) -> Iterator[Message]:
        """Yield the reports of a packet, each checked, until this connection is closed.

        Raises:
            ValueError: a report is not allowed now.
        """
        for report in parse_all(packet):
            if self._closed:
                return
            self.protocol.check(report)
            yield report

    def _end_of_reports(self) -> None:
        """Handle an empty packet: recv(2) returns one at the end of the launcher.

        Raises:
            ValueError: the launcher has not exited.
        """
        poll = select.poll()
        poll.register(self.sock, 0)
        if not any(events & select.POLLHUP for _, events in poll.poll(0)):
            raise ValueError("an empty packet")
        self._owner.launcher_lost("its process has ended")

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Handle the stop of the reactor."""
        self._owner.stop()

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 after close()."""
        return self.sock.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return self._name
