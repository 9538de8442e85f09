"""WebSocket frames from bytes and to bytes (RFC 6455, section 5), for the server.

`FrameReader.feed()` takes bytes in pieces; `receive()` returns the next piece of a message or the next control frame,
None if more bytes are needed, and raises WebSocketError for invalid input. It is called again and again, so that a
receiver that is busy leaves the rest in the buffer. A message has at most `most` bytes, after decompression.

wsproto does the protocol. A frame that has a whole message of less than 64 KiB, not compressed, as most frames, is read
and written here: an echo of 64 bytes takes 3.3 µs instead of 21.6 µs, which is more than all other work for it.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, RsvBits

if TYPE_CHECKING:
    from wsproto.events import Event
    from wsproto.frame_protocol import FrameDecoder, FrameProtocol
    from wsproto.frame_protocol import Opcode as WsprotoOpcode

    from svcd.wire.websocket_handshake import DeflateOffer

__all__ = ["CloseCode", "Frame", "FrameReader", "Opcode", "WebSocketError"]

#: The largest piece of a frame that is passed to wsproto at once, in bytes.
_SLICE = 65_536
_FIN, _MASKED, _LENGTH = 0x80, 0x80, 0x7F
_MASK_BYTES = 4
#: Size of the shortest frame of a client, in bytes: its head and its mask.
_SHORTEST = 2 + _MASK_BYTES
#: Values of the length field that mean a length in the next two or eight bytes.
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_CONTROL = 0x08
#: The most bytes of a close reason (section 5.5): 125 less those of the status.
_MOST_REASON = 123


class Opcode(IntEnum):
    """Kinds of frames (section 5.2)."""

    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Status codes of Close frames that svcd sends (section 7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_TEXT = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011


class WebSocketError(Exception):
    """Error: the client breaks the protocol or a limit. The connection is closed with a status.

    Args:
        code: the status of the Close frame.
        reason: the reason.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Frame(NamedTuple):
    """A piece of a message, or a control frame.

    Attributes:
        opcode: its kind; that of the message also for the later pieces.
        payload: its content. The text of a message is valid UTF-8 as a whole, and each piece ends with a character.
        finished: whether it is the last piece of its message.
    """

    opcode: int
    payload: bytes
    finished: bool = True


#: First bytes of messages in one frame, and of those that are compressed.
_TEXT_MESSAGE = _FIN | Opcode.TEXT
_MESSAGES = (_TEXT_MESSAGE, _FIN | Opcode.BINARY)
_COMPRESSED = 0x40
_SHORT_HEADS = {
    first: [bytes((first, size)) for size in range(_TWO_BYTES)]
    for first in (*_MESSAGES, *(first | _COMPRESSED for first in _MESSAGES))
}
_TOO_BIG = "the message has more than {} bytes (websocket_max_message)"
_NOT_UTF8 = "the text is not valid UTF-8"
_REASONS: dict[int, str] = {CloseCode.TOO_BIG: _TOO_BIG}
#: What the sender of a compressed message leaves out at its end (RFC 7692, section 7.2.1).
_TAIL = b"\x00\x00\xff\xff"
_GREATEST_WINDOW = 15


class PerMessageDeflate(Extension):
    """permessage-deflate (RFC 7692) without context takeover, for wsproto.

    In contrast to that of wsproto, it decompresses no more than a message may have, so that a small message does not
    take a thousand times its size in memory, and a control frame within a message does not end its compression.

    Args:
        most: the largest message of the client, in bytes after decompression.
        offer: the parameters.
    """

    name = "permessage-deflate"

    def __init__(self, most: int, offer: DeflateOffer) -> None:
        self._most = most
        self._server_window = offer.server_window or _GREATEST_WINDOW
        # The decompressor of the current message, None if it is not compressed; whether there is such a message.
        self._decompressor: zlib._Decompress | None = None
        self._in_message = self._is_control = False
        self._left = 0

    def enabled(self) -> bool:
        """Return whether the handshake has agreed on the extension."""
        return True

    def offer(self) -> str:
        """Return the parameters to offer, which is for clients."""
        raise NotImplementedError

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: WsprotoOpcode, rsv: RsvBits, payload_length: int
    ) -> RsvBits:
        """Begin a frame; return the reserved bits that it may have: only the first frame of a message has RSV1."""
        del proto, payload_length
        self._is_control = opcode.iscontrol()
        if self._is_control or self._in_message:
            return RsvBits(False, False, False)
        self._in_message, self._left = True, self._most
        self._decompressor = zlib.decompressobj(-_GREATEST_WINDOW) if rsv.rsv1 else None
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Decompress a piece of a message."""
        del proto
        return data if self._is_control or self._decompressor is None else self._decompress(data)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        """Return the rest of a message at its end."""
        del proto
        if self._is_control or not fin:
            return None
        self._in_message = False
        rest = None if self._decompressor is None else self._decompress(_TAIL)
        self._decompressor = None
        return rest

    def _decompress(self, data: bytes) -> bytes | CloseReason:
        found = bytearray()
        while data:
            decompressor = self._decompressor
            assert decompressor is not None  # noqa: S101 - the message is compressed
            try:
                piece = decompressor.decompress(data, self._left + 1)
            except zlib.error:
                return CloseReason.INVALID_FRAME_PAYLOAD_DATA
            if len(piece) > self._left:
                return CloseReason.MESSAGE_TOO_BIG
            found += piece
            self._left -= len(piece)
            data = decompressor.unused_data
            if decompressor.eof:
                # Another stream may follow a final block (section 7.2.3.4).
                self._decompressor = zlib.decompressobj(-_GREATEST_WINDOW)
        return bytes(found)

    def compress(self, data: bytes) -> bytes:
        """Return the payload of a whole message, compressed."""
        compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -self._server_window)
        return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)[: -len(_TAIL)]


class FrameReader:
    """Frames of one connection in both directions; see the docstring of the module.

    Args:
        most: the largest message of the client, in bytes.
        deflate: the parameters of permessage-deflate; None without compression.
    """

    __slots__ = (
        "_at", "_connection", "_data", "_deflate", "_events", "_frame_left", "_in_message", "_message_size", "_most",
    )  # fmt: skip

    def __init__(self, most: int, deflate: DeflateOffer | None = None) -> None:
        self._most = most
        self._deflate = None if deflate is None else PerMessageDeflate(most, deflate)
        # Made for the first frame that is not read here.
        self._connection: Connection | None = None
        # The bytes that are not read yet begin at this offset of the data.
        self._data, self._at = b"", 0
        self._events: list[Frame] = []
        # The bytes of the frame that wsproto still has to get; whether it is within a message, and the size so far.
        self._frame_left = 0
        self._in_message, self._message_size = False, 0

    @property
    def has_input(self) -> bool:
        """Whether there are bytes that receive() has not looked at, or frames that it has not returned."""
        return len(self._data) > self._at or bool(self._events)

    def feed(self, data: bytes) -> None:
        """Add the next bytes to the buffer."""
        if len(self._data) > self._at:
            self._data = self._data[self._at :] + data
        else:
            self._data = data
        self._at = 0

    def whole_message(self, data: bytes) -> Frame | None:
        """Return the message, if the next bytes are exactly a frame with a whole message that is read here.

        Otherwise return None; then feed() has to be called.

        Raises:
            WebSocketError: its text is not valid.
        """
        if self._frame_left or self._in_message or self._deflate is not None or len(self._data) > self._at:
            return None
        found = self._short_frame(data, 0)
        if found is None or found[1] != len(data):
            return None
        return Frame(data[0] & ~_FIN, found[0])

    def receive(self) -> Frame | None:
        """Return the next piece of a message or the next control frame; None if more bytes are needed.

        Raises:
            WebSocketError: invalid input; no further call is allowed.
        """
        data, at = self._data, self._at
        if not (self._frame_left or self._in_message or self._events) and self._deflate is None:
            found = self._short_frame(data, at)
            if found is not None:
                payload, self._at = found
                return Frame(data[at] & ~_FIN, payload)
        while not self._events:
            piece = self._next_piece()
            if not piece:
                return None
            self._events += self._read(piece)
        return self._events.pop(0)

    def _short_frame(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """Return the payload of a whole message in one frame, and the end of the frame; None for any other frame."""
        have = len(data) - at
        if have < _SHORTEST or data[at] not in _MESSAGES:
            return None
        size, start = data[at + 1] - _MASKED, at + _SHORTEST
        if size == _TWO_BYTES and have >= _SHORTEST + 2:
            size, start = data[at + 2] << 8 | data[at + 3], start + 2
            if size < _TWO_BYTES:
                return None
        elif not 0 <= size < _TWO_BYTES:
            return None
        end = start + size
        if end > len(data) or size > self._most:
            return None
        # As numbers, which is faster than bytes one by one.
        key = (data[start - _MASK_BYTES : start] * (size // _MASK_BYTES + 1))[:size]
        number = int.from_bytes(data[start:end], "little") ^ int.from_bytes(key, "little")
        payload = number.to_bytes(size, "little")
        if data[at] == _TEXT_MESSAGE and not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise WebSocketError(CloseCode.INVALID_TEXT, _NOT_UTF8) from None
        return payload, end

    def _next_piece(self) -> bytes:
        """Take the next bytes for wsproto, at most those of one frame; none while the head of a frame is incomplete."""
        data, at = self._data, self._at
        have = len(data) - at
        if not self._frame_left:
            self._frame_left = self._frame_size(data, at)
        taken = min(self._frame_left, _SLICE, have)
        self._frame_left -= taken
        self._at = at + taken
        return data[at : at + taken]

    def _frame_size(self, data: bytes, at: int) -> int:
        """Return the size of the frame at an offset, with its head; 0 if its head is incomplete.

        Raises:
            WebSocketError: its message is too big.
        """
        have = len(data) - at
        if have < 2 or have < _head_size(data[at + 1]):
            return 0
        head, size = _head_size(data[at + 1]), data[at + 1] & _LENGTH
        if size == _TWO_BYTES:
            (size,) = struct.unpack_from("!H", data, at + 2)
        elif size == _EIGHT_BYTES:
            (size,) = struct.unpack_from("!Q", data, at + 2)
        is_message = not data[at] & _CONTROL
        # A compressed message is measured after decompression only, as it may also become shorter.
        if is_message and self._deflate is None and self._message_size + size > self._most and not size >> 63:
            raise WebSocketError(CloseCode.TOO_BIG, _TOO_BIG.format(self._most))
        return head + size

    def _read(self, piece: bytes) -> list[Frame]:
        """Pass bytes to wsproto; return what it makes of them."""
        connection = self._connection
        if connection is None:
            extensions: list[Extension] = [] if self._deflate is None else [self._deflate]
            connection = self._connection = Connection(ConnectionType.SERVER, extensions)
        connection.receive_data(piece)
        return [self._frame(event, connection.state) for event in connection.events()]

    def _frame(self, event: Event, state: ConnectionState) -> Frame:
        if isinstance(event, (TextMessage, BytesMessage)):
            return self._piece(event)
        if isinstance(event, Ping):
            return Frame(Opcode.PING, bytes(event.payload))
        if isinstance(event, Pong):
            return Frame(Opcode.PONG, bytes(event.payload))
        assert isinstance(event, CloseConnection)  # noqa: S101 - an open connection has no other events
        if state is ConnectionState.OPEN:
            # wsproto reports the failure of the client in this way, with the status for it.
            reason = _REASONS.get(event.code, event.reason or "")
            raise WebSocketError(int(event.code), reason.format(self._most))
        return Frame(Opcode.CLOSE, struct.pack("!H", event.code) + (event.reason or "").encode())

    def _piece(self, event: TextMessage | BytesMessage) -> Frame:
        is_text = isinstance(event.data, str)
        payload = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
        self._message_size += len(payload)
        if self._message_size > self._most:
            raise WebSocketError(CloseCode.TOO_BIG, _TOO_BIG.format(self._most))
        finished = event.message_finished
        self._in_message = not finished
        if finished:
            self._message_size = 0
        return Frame(Opcode.TEXT if is_text else Opcode.BINARY, payload, finished)

    # Frames of the server

    def message(self, opcode: int, payload: bytes) -> bytes:
        """Return a message as bytes; a text has to be valid UTF-8."""
        first = _FIN | opcode
        if self._deflate is not None:
            first, payload = first | _COMPRESSED, self._deflate.compress(payload)
        size = len(payload)
        if size < _TWO_BYTES:
            return _SHORT_HEADS[first][size] + payload
        if size < 1 << 16:
            return struct.pack("!BBH", first, _TWO_BYTES, size) + payload
        return struct.pack("!BBQ", first, _EIGHT_BYTES, size) + payload

    @staticmethod
    def control(opcode: int, payload: bytes = b"") -> bytes:
        """Return a Ping or a Pong as bytes; its payload has at most 125 bytes."""
        return bytes((_FIN | opcode, len(payload))) + payload

    @staticmethod
    def close(code: int | None, reason: str = "") -> bytes:
        """Return a Close frame as bytes; the reason is cut to the 123 bytes that it may have. None is no status."""
        if code is None:
            return bytes((_FIN | Opcode.CLOSE, 0))
        cut = reason.encode(errors="replace")[:_MOST_REASON].decode(errors="ignore").encode()
        return bytes((_FIN | Opcode.CLOSE, 2 + len(cut))) + struct.pack("!H", code) + cut


def _head_size(second: int) -> int:
    """Return the size of a frame's head, given its second byte."""
    length = {_TWO_BYTES: 2, _EIGHT_BYTES: 8}.get(second & _LENGTH, 0)
    return 2 + length + (_MASK_BYTES if second & _MASKED else 0)
