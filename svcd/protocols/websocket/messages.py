"""Modes of websocket=: how messages of the client become bytes of a program, and its output becomes messages.

lines: a message is a line in each direction. A line feed is added to a message of the client; line feeds within it
stay, so that it is several lines to the program. Of a line of output the line feed is removed, with a carriage return
before it; output after the last line feed is sent at the end. A message of the client is passed on as a whole.

text: messages are pieces of a stream of text, in UTF-8; a message of output ends with a whole character. binary:
messages are pieces of a stream of bytes; the client may send text as well.

In output as text, bytes that are not UTF-8 become U+FFFD, the replacement character.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from svcd.wire.websocket_frames import CloseCode, Opcode, WebSocketError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.wire.websocket_frames import Frame

#: A number: comparisons with members of enumerations take longer.
_BINARY = int(Opcode.BINARY)

__all__ = ["MODES", "BinaryMessages", "LineMessages", "MessageMode", "TextMessages"]


class MessageMode:
    """A mode on one connection.

    Args:
        most: the largest message in bytes.
    """

    __slots__ = ("_most",)

    opcode = Opcode.TEXT
    #: Whether messages of the client may be binary.
    takes_binary = False

    def __init__(self, most: int) -> None:
        self._most = most

    def to_program(self, frame: Frame) -> bytes:
        """Return the bytes for a piece of a message of the client; empty to wait for the rest.

        Raises:
            WebSocketError: 1003, a binary message where only text is taken.
        """
        if frame.opcode == Opcode.BINARY and not self.takes_binary:
            raise WebSocketError(CloseCode.UNSUPPORTED_DATA, "the service takes text only")
        return frame.payload

    def from_program(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that output makes complete.

        Raises:
            WebSocketError: 1009, a message is too big.
        """
        raise NotImplementedError

    def rest(self) -> bytes:
        """Return the last message at the end of the output; empty if there is none."""
        return b""


class LineMessages(MessageMode):
    """Mode lines."""

    __slots__ = ("_incomplete", "_received")

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._received, self._incomplete = bytearray(), bytearray()

    def to_program(self, frame: Frame) -> bytes:
        """Return a message of the client as a line, once it is complete."""
        opcode, data, finished = frame
        if opcode == _BINARY:
            return super().to_program(frame)
        if not finished:
            self._received += data
            return b""
        if self._received:
            data, self._received = bytes(self._received) + data, bytearray()
        return data + b"\n"

    def from_program(self, data: bytes) -> Iterator[bytes]:
        """Yield the complete lines of output."""
        *lines, last = data.split(b"\n")
        if lines and self._incomplete:
            self._keep(lines[0])
            lines[0], self._incomplete = bytes(self._incomplete), bytearray()
        # In the order of the output: the lines before a line that is too big are sent.
        for line in lines:
            yield self._text(line)
        if last:
            self._keep(last)

    def _keep(self, data: bytes) -> None:
        self._incomplete += data
        self._check(len(self._incomplete))

    def rest(self) -> bytes:
        """Return a last line without a line feed."""
        line, self._incomplete = bytes(self._incomplete), bytearray()
        return self._text(line) if line else b""

    def _check(self, size: int) -> None:
        if size > self._most:
            reason = f"a line of output has more than {self._most} bytes (websocket_max_message)"
            raise WebSocketError(CloseCode.TOO_BIG, reason)

    def _text(self, line: bytes) -> bytes:
        self._check(len(line))
        line = line.removesuffix(b"\r")
        return line if line.isascii() else line.decode(errors="replace").encode()


class TextMessages(MessageMode):
    """Mode text."""

    __slots__ = ("_decoder",)

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def from_program(self, data: bytes) -> Iterator[bytes]:
        """Yield output in pieces that end with a character."""
        for at in range(0, len(data), self._most):
            text = self._decoder.decode(data[at : at + self._most])
            if text:
                yield text.encode()

    def rest(self) -> bytes:
        """Return the replacement of an incomplete character."""
        return self._decoder.decode(b"", final=True).encode()


class BinaryMessages(MessageMode):
    """Mode binary."""

    __slots__ = ()

    opcode = Opcode.BINARY
    takes_binary = True

    def from_program(self, data: bytes) -> Iterator[bytes]:
        """Yield output in pieces."""
        for at in range(0, len(data), self._most):
            yield data[at : at + self._most]


#: The modes by the words of websocket=.
MODES: dict[str, type[MessageMode]] = {"lines": LineMessages, "text": TextMessages, "binary": BinaryMessages}
