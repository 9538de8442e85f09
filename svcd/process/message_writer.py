"""A launcher's word to the daemon."""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from typing import TYPE_CHECKING

from svcd.process.messages import Dropped, StderrLine, pack

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from svcd.process.messages import Message
    from svcd.process.stderr_limit import OutputLimit

__all__ = ["MessageWriter"]

#: What was noted does not wait when it is longer than so many bytes.
_LONGEST_NOTE = 4096
#: How many lines were dropped is told after so many seconds, not with each.
_DROPPED_SECONDS = 1.0


class MessageWriter:
    """Sends messages to the daemon, if it is still there.

    Args:
        control: to the daemon.
        limit: how much of what handlers write is sent; None for all.
        clock: seconds, monotonic.

    Attributes:
        due: by the clock, when the number of dropped lines is to be told; None if none was dropped.
    """

    def __init__(self, control: socket.socket, limit: OutputLimit | None, clock: Callable[[], float]) -> None:
        self._control = control
        self._noted = b""
        self._limit = limit
        self._clock = clock
        self._lock = allocate_lock()
        self._lines = self._bytes = 0
        self.due: float | None = None

    def tell(self, message: Message) -> None:
        """Tell it now; in a launcher with threads, any of them may."""
        self._send(pack(message))

    def say(self, number: int, text: bytes) -> None:
        """Tell what a handler wrote, within the limit; any thread may."""
        with self._lock:
            if self._limit is not None and not self._limit.take(len(text)):
                self._lines += 1
                self._bytes += len(text)
                self.due = self.due or self._clock() + _DROPPED_SECONDS
                return
        self.tell(StderrLine(number, text))

    def tell_dropped(self) -> None:
        """Tell how much was dropped, if it is time for that."""
        with self._lock:
            if self.due is None or self._clock() < self.due:
                return
            message, self.due = Dropped(self._lines, self._bytes), None
            self._lines = self._bytes = 0
        self.tell(message)

    def note(self, message: Message) -> None:
        """Tell it by the next flush(), in one packet with what else there is: each packet wakes the daemon."""
        self._noted += pack(message)
        if len(self._noted) > _LONGEST_NOTE:
            self.flush()

    def flush(self) -> None:
        """Send what was noted."""
        if self._noted:
            packet, self._noted = self._noted, b""
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(packet)
