"""A launcher's word to the daemon."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from svcd.handlers.messages import pack

if TYPE_CHECKING:
    import socket

    from svcd.handlers.messages import Message

__all__ = ["Telling"]

#: What was noted does not wait when it is longer than so many bytes.
_LONGEST_NOTE = 4096


class Telling:
    """Sends messages to the daemon, if it is still there.

    Args:
        control: to the daemon.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._noted = b""

    def tell(self, message: Message) -> None:
        """Tell it now; in a launcher with threads, any of them may."""
        self._send(pack(message))

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
