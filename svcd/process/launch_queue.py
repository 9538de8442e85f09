"""What a launcher is to be told, in the daemon: connections to be served, and signals for their processes.

None is lost because the launcher is busy, or gone: the next one gets what it has not taken.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from svcd.process.messages import FD_STRUCT, Connection, Signal, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.process.launcher_protocol import LauncherProtocol

__all__ = ["MAX_WAITING", "LaunchQueue"]

#: So many connections at most wait in the daemon for their process; more wait in the kernel, not accepted.
MAX_WAITING = 64
#: A connection whose launcher was lost so often before it could be started is what kills it.
_MAX_TRIES = 3
#: A launcher that has no room for another order is asked again after so many seconds.
_RETRY_SECONDS = 0.02


class _QueuedConnection:
    """A connection that has no process yet.

    Attributes:
        packet: what the launcher is told of it.
        fd: ours until the launcher has started something: what a lost one has not is given to the next.
        tries: how many launchers were told.
    """

    __slots__ = ("fd", "packet", "tries")

    def __init__(self, packet: bytes, fd: int) -> None:
        self.packet = packet
        self.fd = fd
        self.tries = 0


class LaunchQueue:
    """The orders for one service's launcher.

    Args:
        reactor: for the time.
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
        """Whether there are any for the next launcher."""
        return bool(self._waiting or self._signals)

    @property
    def full(self) -> bool:
        """Whether no more connections should come."""
        return len(self._waiting) >= MAX_WAITING

    def add(self, connection_id: int, environment: bytes, fd: int) -> None:
        """A connection is to be served; its descriptor is ours to close from now on."""
        waiting = _QueuedConnection(pack(Connection(connection_id, environment)), fd)
        self._waiting[connection_id] = self._unsent[connection_id] = waiting
        self._try_send()

    def drop(self, connection_id: int) -> bool:
        """Close our copy of a connection; returns whether it was still waiting."""
        waiting = self._waiting.pop(connection_id, None)
        self._unsent.pop(connection_id, None)
        if waiting is not None:
            os.close(waiting.fd)
        return waiting is not None

    def signal(self, signal: Signal) -> None:
        """A process is to get a signal; what it has not been sent before is superseded."""
        self._signals[signal.connection_id] = signal
        self._try_send()

    def discard_signal(self, connection_id: int) -> None:
        """A process has ended, and gets no signal any more."""
        self._signals.pop(connection_id, None)

    def pop_signals(self) -> list[Signal]:
        """Give up the signals that were not sent."""
        signals = list(self._signals.values())
        self._signals.clear()
        return signals

    def connect(self, launcher: socket.socket, protocol: LauncherProtocol) -> None:
        """There is a launcher that takes orders.

        Args:
            launcher: a non-blocking socket to it.
            protocol: told of what is sent.
        """
        self._socket, self._protocol = launcher, protocol
        self._try_send()

    def resume(self) -> None:
        """Send what waits for the launcher's answers to others; it has answered."""
        if self._unsent:
            self._try_send()

    def disconnect(self) -> None:
        """There is none any more, when there was nothing to do for it."""
        self._socket = self._protocol = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def launcher_lost(self) -> Iterator[int]:
        """There is none any more. Yields the connections that too many were told of; they are closed."""
        self.disconnect()
        for connection_id, waiting in list(self._waiting.items()):
            if waiting.tries >= _MAX_TRIES:
                self.drop(connection_id)
                yield connection_id
        self._unsent = dict(self._waiting)

    def move_unsent(self, other: LaunchQueue) -> None:
        """Give the connections that no launcher was told of to another one's orders."""
        for connection_id, waiting in self._unsent.items():
            del self._waiting[connection_id]
            other._waiting[connection_id] = other._unsent[connection_id] = waiting
        self._unsent.clear()
        other._try_send()

    def close(self) -> Iterator[int]:
        """There will be none. Yields the connections that waited; they are closed."""
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
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD_STRUCT.pack(waiting.fd))]
                launcher.sendmsg([waiting.packet], rights)
                protocol.connection_sent(connection_id)
                waiting.tries += 1
                del self._unsent[connection_id]
        except (BrokenPipeError, ConnectionResetError):
            # It has ended, which whoever listens to it is about to hear.
            return
        except OSError:
            # It has no room for more, or the system has not (ETOOMANYREFS, ENOBUFS).
            self._call = self._reactor.callLater(_RETRY_SECONDS, self._retry)
