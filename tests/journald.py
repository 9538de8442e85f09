"""Test double for systemd-journald: the receiving side of its native protocol, independent of svcd.

See https://systemd.io/JOURNAL_NATIVE_PROTOCOL/.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Entry", "FakeJournald", "parse_entry"]

_SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def parse_entry(data: bytes) -> dict[str, bytes]:
    """Return the fields of an entry; fail the test if a field is malformed or occurs twice."""
    found: dict[str, bytes] = {}
    while data:
        line, newline, rest = data.partition(b"\n")
        assert newline, f"no end: {line!r}"
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        text = name.decode("ascii")
        assert text.replace("_", "A").isalnum()
        assert text.isupper()
        assert not text.startswith("_")
        assert len(text) <= 64
        assert text not in found
        found[text] = value
        data = rest
    return found


class Entry(dict[str, str]):
    """Fields of an entry.

    Attributes:
        in_memory: whether the entry was received as a sealed memfd.
    """

    in_memory = False


class FakeJournald:
    """Server on a datagram socket that receives journal entries.

    Args:
        path: the path of the socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(60)
        self._socket.bind(str(path))

    def take(self) -> Entry:
        """Receive the next entry, within 60 s."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 20, 4)
        if descriptors:
            (descriptor,) = descriptors
            assert not data
            try:
                assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _SEALED
                data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            finally:
                os.close(descriptor)
        entry = Entry({name: value.decode() for name, value in parse_entry(data).items()})
        entry.in_memory = bool(descriptors)
        return entry

    def take_event(self, event: str) -> Entry:
        """Receive entries up to the next one of an event, and return that."""
        while (entry := self.take()).get("SVCD_EVENT") != event:
            pass
        return entry

    def empty(self) -> bool:
        """Return whether no entry is waiting."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._socket.close()
        self.path.unlink()
