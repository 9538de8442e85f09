"""What a launcher is to be told, in the daemon: connections to be served, and signals for their processes.

None is lost because the launcher is busy, or gone: the next one gets what it has not taken.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from svcd.process.messages import ONE_DESCRIPTOR, Connection, Signal, pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import FdReactor
    from svcd.process.launcher_protocol import LauncherProtocol

__all__ = ["MOST_WAITING", "LaunchQueue"]

#: So many connections at most wait in the daemon for their process; more wait in the kernel, not accepted.
MOST_WAITING = 64
#: A connection whose launcher was lost so often before it could be started is what kills it.
_MOST_TRIES = 3
#: A launcher that has no room for another order is asked again after so many seconds.
_PAUSE = 0.02


class _Waiting:
    """A connection that has no process yet.

    Attributes:
        packet: what the launcher is told of it.
        descriptor: ours until the launcher has started something: what a lost one has not is given to the next.
        tries: how many launchers were told.
    """

    __slots__ = ("descriptor", "packet", "tries")

    def __init__(self, packet: bytes, descriptor: int) -> None:
        self.packet = packet
        self.descriptor = descriptor
        self.tries = 0


class LaunchQueue:
    """The orders for one service's launcher.

    Args:
        reactor: for the time.
    """

    def __init__(self, reactor: FdReactor) -> None:
        self._reactor = reactor
        self._waiting: dict[int, _Waiting] = {}
        self._unsent: dict[int, _Waiting] = {}
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
        return len(self._waiting) >= MOST_WAITING

    def add(self, number: int, environment: bytes, descriptor: int) -> None:
        """A connection is to be served; its descriptor is ours to close from now on."""
        waiting = _Waiting(pack(Connection(number, environment)), descriptor)
        self._waiting[number] = self._unsent[number] = waiting
        self._soon()

    def drop(self, number: int) -> bool:
        """Close our copy of a connection; returns whether it was still waiting."""
        waiting = self._waiting.pop(number, None)
        self._unsent.pop(number, None)
        if waiting is not None:
            os.close(waiting.descriptor)
        return waiting is not None

    def signal(self, signal: Signal) -> None:
        """A process is to get a signal; what it has not been sent before is superseded."""
        self._signals[signal.number] = signal
        self._soon()

    def forget(self, number: int) -> None:
        """A process has ended, and gets no signal any more."""
        self._signals.pop(number, None)

    def take_signals(self) -> list[Signal]:
        """Give up the signals that were not sent."""
        signals = list(self._signals.values())
        self._signals.clear()
        return signals

    def serve(self, launcher: socket.socket, protocol: LauncherProtocol) -> None:
        """There is a launcher that takes orders.

        Args:
            launcher: a non-blocking socket to it.
            protocol: told of what is sent.
        """
        self._socket, self._protocol = launcher, protocol
        self._soon()

    def go_on(self) -> None:
        """Send what waits for the launcher's answers to others; it has answered."""
        if self._unsent:
            self._soon()

    def lose_none(self) -> None:
        """There is none any more, when there was nothing to do for it."""
        self._socket = self._protocol = None
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def lose(self) -> Iterator[int]:
        """There is none any more. Yields the connections that too many were told of; they are closed."""
        self.lose_none()
        for number, waiting in list(self._waiting.items()):
            if waiting.tries >= _MOST_TRIES:
                self.drop(number)
                yield number
        self._unsent = dict(self._waiting)

    def hand_over(self, new_daemon: LaunchQueue) -> None:
        """Give the connections that no launcher was told of to another one's orders."""
        for number, waiting in self._unsent.items():
            del self._waiting[number]
            new_daemon._waiting[number] = new_daemon._unsent[number] = waiting
        self._unsent.clear()
        new_daemon._soon()

    def close(self) -> Iterator[int]:
        """There will be none. Yields the connections that waited; they are closed."""
        for number in list(self._waiting):
            self.drop(number)
            yield number

    def _soon(self) -> None:
        if self._socket is not None and self._protocol is not None and self._call is None:
            self._send(self._socket, self._protocol)

    def _again(self) -> None:
        self._call = None
        self._soon()

    def _send(self, launcher: socket.socket, protocol: LauncherProtocol) -> None:
        try:
            for number, signal in list(self._signals.items()):
                launcher.send(pack(signal))
                del self._signals[number]
            for number, waiting in list(self._unsent.items()):
                if protocol.full:
                    break
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ONE_DESCRIPTOR.pack(waiting.descriptor))]
                launcher.sendmsg([waiting.packet], rights)
                protocol.sent(number)
                waiting.tries += 1
                del self._unsent[number]
        except (BrokenPipeError, ConnectionResetError):
            # It has ended, which whoever listens to it is about to hear.
            return
        except OSError:
            # It has no room for more, or the system has not (ETOOMANYREFS, ENOBUFS).
            self._call = self._reactor.callLater(_PAUSE, self._again)
