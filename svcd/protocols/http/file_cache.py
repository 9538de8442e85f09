"""A cache of small files, in memory.

Each look-up compares the status of the file with that of the moment when it was read: device, inode, size, and the
times of the last changes of content and inode, in nanoseconds. Programs can't set the last one, so a changed file
differs, and so does another file in its place. The status is that of the path, whose directories may have become
symbolic links since the file was found by a walk that follows none. That can't lead to other content: a status that is
the same belongs to the same unchanged inode, whose content was below the root when it was read, and this content is
sent from memory. Two changes within a tick of the kernel's clock have the same times, so a file is kept only if its
last change is long enough ago; see `is_settled`.

Requests of which the first bytes had arrived at the same poll of the reactor share a look at the status. It is taken
after the poll, so a change that was made before a client began to send its request is seen; see `was_current`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from svcd.protocols.http.representation import Representation
    from svcd.protocols.http.response import Response
    from svcd.wire.http_ranges import ByteRange
    from svcd.wire.http_request import HttpRequest

__all__ = ["CacheKey", "CachedFile", "FileCache", "Identity", "identity_of", "is_settled"]

#: Device, inode, size, and the times of the last changes of content and inode.
Identity: TypeAlias = "tuple[int, int, int, int, int]"
#: A target without its query, and the content codings that are accepted.
CacheKey: TypeAlias = "tuple[bytes, tuple[str, ...]]"

#: The largest number of files, and of their bytes. The server may keep a copy of a file with each of two heads.
_MOST_FILES = 2048
_MOST_BYTES = 16_777_216
#: What a file takes in addition to its content, in bytes, roughly.
_OVERHEAD = 2048
#: The time after which a change of a file has another time than the last one, in nanoseconds: twice the longest tick of
#: Linux. Times without a fraction may be those of a file system that counts seconds, or, as FAT, pairs of seconds.
_TICK = 20_000_000
_WHOLE_SECONDS = 2_100_000_000


def identity_of(status: os.stat_result) -> Identity:
    """Return what identifies a file and its state."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(status: os.stat_result, now: int) -> bool:
    """Return whether each later change of a file will be seen in its status.

    Args:
        status: the status of the file.
        now: the time before the status was asked for, in nanoseconds since 1970.
    """
    changed = status.st_ctime_ns
    return now - changed >= (_TICK if changed % 1_000_000_000 else _WHOLE_SECONDS)


class CachedFile:
    """A small file, as the content of its responses.

    Args:
        data: the content.
        representation: makes the responses.
        checks: paths with the identities that they have as long as the content is valid: those of the file, and of
            other files and directories that led to it.

    Attributes:
        is_fresh: whether they were compared since the last poll of the reactor.
    """

    __slots__ = ("__weakref__", "_data", "checks", "is_fresh", "representation")

    def __init__(self, data: bytes, representation: Representation, checks: Sequence[tuple[str, Identity]]) -> None:
        self._data = data
        self.representation = representation
        self.checks = tuple(checks)
        self.is_fresh = False

    def respond(self, request: HttpRequest) -> Response:
        """Return the response to a GET or HEAD request."""
        return self.representation.respond(request, self)

    @property
    def cost(self) -> int:
        """The number of bytes that it counts as."""
        return len(self._data) + _OVERHEAD

    def take(self, pieces: Sequence[bytes | ByteRange]) -> tuple[bytes, None]:
        """Return the content of a response; see svcd.protocols.http.representation.Content."""
        data = self._data
        return b"".join(piece if isinstance(piece, bytes) else data[piece[0] : piece[1]] for piece in pieces), None


class FileCache:
    """Small files by target and accepted content codings; the oldest entries are dropped if there are too many.

    Args:
        symlinks: whether a file may be a symbolic link.
        call_before_poll: calls a function before the next poll of the reactor; None to look at the status each time.
    """

    def __init__(
        self, *, symlinks: bool = False, call_before_poll: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        self._stat: Callable[[str], os.stat_result] = os.stat if symlinks else os.lstat
        self._files: dict[CacheKey, CachedFile] = {}
        self._bytes = 0
        self._call_before_poll = call_before_poll
        self._fresh: list[CachedFile] = []

    def __len__(self) -> int:
        return len(self._files)

    def find(self, key: CacheKey) -> CachedFile | None:
        """Return a file that has not changed; None if there is none."""
        found = self._files.get(key)
        if found is None:
            return None
        if self.is_current(found):
            return found
        self._remove(key)
        return None

    def is_current(self, file: CachedFile) -> bool:
        """Return whether a file has not changed."""
        try:
            for path, identity in file.checks:
                status = self._stat(path)
                # As identity_of(), without the call.
                if identity != (
                    status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                ):  # fmt: skip
                    return False
        except OSError:
            return False
        return True

    def was_current(self, file: CachedFile) -> bool:
        """Return whether a file had not changed after the last poll of the reactor.

        It must be called while the reactor handles the results of the poll, for a request that had begun to arrive
        before: a call that the reactor has scheduled runs before the next poll, and a request that follows another one
        may have been sent since.
        """
        if file.is_fresh:
            return True
        if not self.is_current(file):
            return False
        if self._call_before_poll is not None:
            if not self._fresh:
                self._call_before_poll(self._polls)
            file.is_fresh = True
            self._fresh.append(file)
        return True

    def _polls(self) -> None:
        """Look at the status of each file again."""
        for file in self._fresh:
            file.is_fresh = False
        self._fresh.clear()

    def add(self, key: CacheKey, file: CachedFile) -> None:
        """Add a file."""
        self._files[key] = file
        self._bytes += file.cost
        while self._bytes > _MOST_BYTES or len(self._files) > _MOST_FILES:
            self._remove(next(iter(self._files)))

    def _remove(self, key: CacheKey) -> None:
        self._bytes -= self._files.pop(key).cost
