"""Queue from the daemon to a launcher: connections to serve, and signals for their processes.

Nothing is lost if the launcher is busy or has exited: the next launcher gets the messages that it has not accepted.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from svcd.process.messages import Connection, Signal, pack, pack_fds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.process.launcher_protocol import LauncherProtocol

__all__ = ["MAX_WAITING", "LaunchQueue"]

#: Maximum number of connections that wait in the daemon for their process; others wait in the kernel, not accepted.
MAX_WAITING = 64
#: Number of lost launchers after which a connection is assumed to crash them.
_MAX_TRIES = 3
#: The pause before another attempt if the socket of the launcher is full, in seconds.
_RETRY_SECONDS = 0.02


class _QueuedConnection:
    """A connection that has no process yet.

    Attributes:
        packet: the message to the launcher.
        fds: open until the launcher reports the start: if the launcher is lost, the next one gets the descriptors.
        tries: the number of launchers that it was sent to.
    """

    __slots__ = ("fds", "packet", "tries")

    def __init__(self, packet: bytes, fds: tuple[int, ...]) -> None:
        self.packet = packet
        self.fds = fds
        self.tries = 0


class LaunchQueue:
    """Messages for the launcher of one service.

    Args:
        reactor: schedules retries.
    """

    def __init__(self, reactor: FdReactor) -> None:
        self._reactor = reactor
        self._waiting: dict[int, _QueuedConnection] = {}
        self._unsent: dict[int, _QueuedConnection] = {}
        self._signals: dict[int, Signal] = {}
        self._socket: socket.socket | None = None
        self._protocol: LauncherProtocol | None = None
        self._call: IDelayedCall | None = None

    def __bool__(self) -> bool:
        """Return whether there is a message for the next launcher."""
        return bool(self._waiting or self._signals)

    @property
    def full(self) -> bool:
        """Whether no more connections should be added."""
        return len(self._waiting) >= MAX_WAITING

    def add(self, connection_id: int, environment: bytes, fds: tuple[int, ...]) -> None:
        """Add a connection. Takes ownership of the descriptors."""
        waiting = _QueuedConnection(pack(Connection(connection_id, environment)), fds)
        self._waiting[connection_id] = self._unsent[connection_id] = waiting
        self._try_send()

    def drop(self, connection_id: int) -> bool:
        """Close the descriptors of a connection; return whether it was still queued."""
        waiting = self._waiting.pop(connection_id, None)
        self._unsent.pop(connection_id, None)
        if waiting is not None:
            for fd in waiting.fds:
                os.close(fd)
        return waiting is not None

    def cancel(self, connection_id: int) -> bool:
        """Drop a connection unless it was sent to a launcher, which then has to report its result.

        Returns:
            Whether no report is expected. Otherwise the connection will not be sent to another launcher.
        """
        if connection_id in self._unsent or connection_id not in self._waiting:
            self.drop(connection_id)
            return True
        self._waiting[connection_id].tries = _MAX_TRIES
        return False

    def signal(self, signal: Signal) -> None:
        """Add a signal for a process; it replaces a signal that was not sent yet."""
        self._signals[signal.connection_id] = signal
        self._try_send()

    def discard_signal(self, connection_id: int) -> None:
        """Remove the signal for a process that has exited."""
        self._signals.pop(connection_id, None)

    def pop_signals(self) -> list[Signal]:
        """Remove and return the signals that were not sent."""
        signals = list(self._signals.values())
        self._signals.clear()
        return signals

    def connect(self, launcher: socket.socket, protocol: LauncherProtocol) -> None:
        """Start sending to a launcher.

        Args:
            launcher: a non-blocking socket to the launcher.
            protocol: records the sent connections.
        """
        self._socket, self._protocol = launcher, protocol
        self._try_send()

    def resume(self) -> None:
        """Send queued connections after an answer of the launcher has made room."""
        if self._unsent:
            self._try_send()

    def disconnect(self) -> None:
        """Stop sending to a launcher that was idle."""
        self._socket = self._protocol = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def launcher_lost(self) -> Iterator[int]:
        """Stop sending to a lost launcher; close and yield the connections that were sent to too many launchers."""
        self.disconnect()
        for connection_id, waiting in list(self._waiting.items()):
            if waiting.tries >= _MAX_TRIES:
                self.drop(connection_id)
                yield connection_id
        self._unsent = dict(self._waiting)

    def move_unsent(self, other: LaunchQueue) -> None:
        """Move the connections that were sent to no launcher to another queue."""
        for connection_id, waiting in self._unsent.items():
            del self._waiting[connection_id]
            other._waiting[connection_id] = other._unsent[connection_id] = waiting
        self._unsent.clear()
        other._try_send()

    def close(self) -> Iterator[int]:
        """Close and yield all queued connections."""
        for connection_id in list(self._waiting):
            self.drop(connection_id)
            yield connection_id

    def _try_send(self) -> None:
        if self._socket is not None and self._protocol is not None and self._call is None:
            self._send(self._socket, self._protocol)

    def _retry(self) -> None:
        self._call = None
        self._try_send()

    def _send(self, launcher: socket.socket, protocol: LauncherProtocol) -> None:
        try:
            for connection_id, signal in list(self._signals.items()):
                launcher.send(pack(signal))
                del self._signals[connection_id]
            for connection_id, waiting in list(self._unsent.items()):
                if protocol.full:
                    break
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pack_fds(waiting.fds))]
                launcher.sendmsg([waiting.packet], rights)
                protocol.connection_sent(connection_id)
                waiting.tries += 1
                del self._unsent[connection_id]
        except (BrokenPipeError, ConnectionResetError):
            # The launcher has exited, which its reader is about to notice.
            return
        except OSError:
            # The socket is full, or the system lacks resources (ETOOMANYREFS, ENOBUFS).
            self._call = self._reactor.callLater(_RETRY_SECONDS, self._retry)
