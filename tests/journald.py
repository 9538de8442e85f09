"""A stand-in for systemd-journald: takes entries as the native protocol has them, and knows nothing of svcd.

Written after https://systemd.io/JOURNAL_NATIVE_PROTOCOL/, for the receiving side.
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
    """The fields of an entry; a field that is there twice, or is not well formed, fails the test."""
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
    """An entry's fields.

    Attributes:
        in_memory: whether it came as a file in memory.
    """

    in_memory = False


class FakeJournald:
    """Listens where it is told.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(60)
        self._socket.bind(str(path))

    def take(self) -> Entry:
        """The next entry."""
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
        """The next entry of an event."""
        while (entry := self.take()).get("SVCD_EVENT") != event:
            pass
        return entry

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
        self.path.unlink()
