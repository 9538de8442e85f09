"""WebSocket clients in memory: frames from and to bytes, written apart from svcd's; and a fuzz test.

`python -m tests.websocket 100000` mutates so many sequences of frames, and compares what svcd and wsproto alone make of
each.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from typing import NamedTuple

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from svcd.wire.websocket_frames import FrameReader, Opcode, WebSocketError
from svcd.wire.websocket_handshake import DeflateOffer

__all__ = ["HANDSHAKE", "Received", "deflated", "frame", "fuzz", "received", "request"]

_MASK = b"\x5a\x17\xc3\x88"
MOST = 5000
#: The longest head of a frame, in bytes.
_MOST_HEAD = 14


class Received(NamedTuple):
    """A frame of the server.

    Attributes:
        first: its first byte: FIN, reserved bits and opcode.
        payload: its content.
    """

    first: int
    payload: bytes

    @property
    def code(self) -> int:
        """The status of a Close frame; 0 without one."""
        assert self.first == 0x88
        return int(struct.unpack("!H", self.payload[:2])[0]) if self.payload else 0


def request(target: str = "/", **fields: str | None) -> bytes:
    """Return the request of a handshake; a field that is None is left out, and an underscore stands for a hyphen."""
    given = {
        "Host": "a.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    names = {name.lower().replace("-", "_"): name for name in given}
    for name, value in fields.items():
        given[names.get(name.lower(), name.replace("_", "-"))] = value  # type: ignore[assignment]
    lines = [f"{name}: {value}\r\n" for name, value in given.items() if value is not None]
    return f"GET {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


HANDSHAKE = request()


def frame(first: int, payload: bytes = b"", *, mask: bytes | None = _MASK, length: int | None = None) -> bytes:
    """Return a frame of a client.

    Args:
        first: its first byte: FIN, reserved bits and opcode.
        payload: its content, not masked.
        mask: the masking key; None for a frame without a mask.
        length: the length that it states; None for the right one.
    """
    size = len(payload) if length is None else length
    masked = 0 if mask is None else 0x80
    if size < 126:
        head = struct.pack("!BB", first, masked | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def received(data: bytes) -> list[Received]:
    """Return the frames in the bytes of a server, which have no mask."""
    frames = []
    while data:
        size, start = data[1], 2
        assert size < 0x80
        if size == 126:
            size, start = struct.unpack_from("!H", data, 2)[0], 4
            assert size > 125
        elif size == 127:
            size, start = struct.unpack_from("!Q", data, 2)[0], 10
            assert size >= 1 << 16
        assert len(data) >= start + size
        frames.append(Received(data[0], data[start : start + size]))
        data = data[start + size :]
    return frames


def deflated(data: bytes) -> bytes:
    """Return a compressed payload (RFC 7692, section 7.2.1)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


# What a sequence of frames comes to: messages, control frames, and the status at the end, 0 if there is none.
_Outcome = tuple[list[tuple[int, bytes]], int]


def read_by_svcd(pieces: list[bytes], *, deflate: bool = False, most: int = MOST) -> _Outcome:
    """Return what svcd makes of frames."""
    reader = FrameReader(most, DeflateOffer() if deflate else None)
    done: list[tuple[int, bytes]] = []
    message = b""
    for piece in pieces:
        reader.feed(piece)
        try:
            while (found := reader.receive()) is not None:
                if found.opcode >= Opcode.CLOSE:
                    done.append((int(found.opcode), found.payload))
                    if found.opcode == Opcode.CLOSE:
                        return done, 0
                    continue
                message += found.payload
                assert len(message) <= most
                if found.finished:
                    done.append((int(found.opcode), message))
                    message = b""
        except WebSocketError as error:
            return done, error.code
    return done, 0


def read_by_wsproto(data: bytes, most: int = MOST) -> _Outcome:
    """Return what wsproto makes of frames, with a limit of messages by their stated length and by their content."""
    connection = Connection(ConnectionType.SERVER)
    done: list[tuple[int, bytes]] = []
    message = b""
    connection.receive_data(data)
    for event in connection.events():
        if isinstance(event, (TextMessage, BytesMessage)):
            is_text = isinstance(event.data, str)
            message += event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            if len(message) > most:
                return done, 1009
            if event.message_finished:
                done.append((Opcode.TEXT if is_text else Opcode.BINARY, message))
                message = b""
        elif isinstance(event, (Ping, Pong)):
            done.append((Opcode.PING if isinstance(event, Ping) else Opcode.PONG, bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            if connection.state is ConnectionState.OPEN:
                return done, int(event.code)
            done.append((Opcode.CLOSE, struct.pack("!H", event.code) + (event.reason or "").encode()))
    return done, 0


def _sample(chance: random.Random) -> bytes:
    """Return a sequence of valid frames."""
    text = "".join(chance.choice("aé€😀 \n") for _ in range(chance.choice((0, 1, 5, 60, 200)))).encode()
    cut = chance.randint(0, len(text))
    return b"".join(
        chance.choice((
            lambda: frame(0x81, text),
            lambda: frame(0x82, chance.randbytes(chance.choice((0, 3, 125, 126, 700)))),
            lambda: frame(0x01, text[:cut]) + frame(0x89, b"x") + frame(0x80, text[cut:]),
            lambda: frame(0x02, text[:cut]) + frame(0x00, b"") + frame(0x80, text[cut:]),
            lambda: frame(0x89, text[:50]),
            lambda: frame(0x8A, b""),
            lambda: frame(0x88, struct.pack("!H", chance.choice((1000, 1001, 3000, 1005, 999))) + b"bye"),
        ))()
        for _ in range(chance.randint(1, 5))
    )  # fmt: skip


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at : at + chance.randint(1, 4)]
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 4))
        else:
            changed[at:at] = bytes(changed[:at][-chance.randint(1, 30) :])
    return bytes(changed)


def _pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """Return bytes in pieces of any size."""
    pieces = []
    while data:
        size = chance.choice((1, 2, 3, 7, len(data)))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def _same(ours: _Outcome, theirs: _Outcome) -> bool:
    """Return whether two outcomes agree: a message that is too big may be noticed before its other faults are."""
    if ours == theirs:
        return True
    return ours[1] == 1009 and ours[0] == theirs[0][: len(ours[0])]


def fuzz(count: int, seed: int) -> None:
    """Compare what svcd and wsproto make of mutated frames; of compressed ones see that svcd keeps its limits."""
    chance = random.Random(seed)
    for number in range(count):
        data = _mutated(_sample(chance), chance)
        pieces = _pieces(data, chance)
        ours, theirs = read_by_svcd(pieces), read_by_wsproto(data)
        if theirs[1] and not ours[1]:
            # svcd does not look at half a head.
            ours = read_by_svcd([*pieces, bytes(_MOST_HEAD)])
        assert _same(ours, theirs), f"{seed} {number}: {data.hex()}\n{ours}\n{theirs}"
        compressed = _mutated(frame(0xC1, deflated(b"ab" * chance.randint(0, 3000))), chance)
        _, code = read_by_svcd(_pieces(compressed, chance), deflate=True)
        assert code in (0, 1002, 1007, 1009), f"{seed} {number}: {compressed.hex()}\n{code}"


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    print("no difference")
