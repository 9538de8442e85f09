"""The pattern of the character generator (RFC 864).

It has lines of 72 of the 95 printable ASCII characters, each ended by CRLF. Every line begins a character later than
the previous line, so the pattern repeats after 95 lines.
"""

from __future__ import annotations

__all__ = ["BLOCK", "LINE_BYTES", "PATTERN", "datagram"]

_PRINTABLE = bytes(range(0x20, 0x7F))
#: A line with its CRLF, in bytes.
LINE_BYTES = 74
#: The 95 lines after which the pattern repeats: 7,030 bytes.
PATTERN = b"".join((_PRINTABLE * 2)[start : start + 72] + b"\r\n" for start in range(95))
#: The block that streams send, a whole number of patterns: 63,270 bytes, one object shared by all connections.
BLOCK = PATTERN * 9

# Six lines: the maximum within the 512 characters of an answer.
_DATAGRAM_BYTES = 512 // LINE_BYTES * LINE_BYTES
_DOUBLE = PATTERN * 2


def datagram(number: int) -> bytes:
    """Return the answer to the datagram with this number: 444 characters; each answer begins a line later."""
    start = number % 95 * LINE_BYTES
    return _DOUBLE[start : start + _DATAGRAM_BYTES]
