"""Entries of systemd's journal, as its native protocol has them (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

`datagram` takes the fields of an entry as lines of ASCII, `NAME=value`, in which a value that begins with a quotation
mark is a JSON string, and returns the bytes of the datagram, or of the memory file that stands for it. It raises
nothing on what svcd.log.formats makes, and has no cap: who sends knows what fits.
"""

from __future__ import annotations

import json
import struct

__all__ = ["SOCKET", "datagram"]

#: Where journald listens.
SOCKET = "/run/systemd/journal/socket"


def datagram(entry: str, most: int | None = None) -> bytes:
    """An entry's bytes.

    Args:
        entry: its fields, one a line.
        most: the characters of each value that are kept; all without it.
    """
    if '="' not in entry and most is None:
        # Lines of connections are plain nearly always, and are the datagram as they are.
        return entry.encode("ascii") + b"\n"
    return b"".join(_field(*line.partition("=")[::2], most) for line in entry.split("\n"))


def _field(name: str, text: str, most: int | None) -> bytes:
    if text.startswith('"'):
        text = json.loads(text)
    # A JSON string may hold half a surrogate pair, for which UTF-8 has no bytes.
    value = text[:most].encode("utf-8", "backslashreplace")
    if b"\n" not in value:
        return b"%b=%b\n" % (name.encode("ascii"), value)
    # "the field name, followed by a newline, the size as 64-bit little-endian value, the value, and a newline".
    return b"%b\n%b%b\n" % (name.encode("ascii"), struct.pack("<Q", len(value)), value)
