"""The file that is sent for a name in a directory: itself, or a precompressed neighbour (RFC 9110, section 12.5.3).

The neighbours of style.css are style.css.br, style.css.zst and style.css.gz. A neighbour that was last changed before
the file is outdated, and is not used.
"""

from __future__ import annotations

import errno
import os
import stat
from http import HTTPStatus
from typing import TYPE_CHECKING

from svcd.protocols.http.file_cache import identity_of, is_settled
from svcd.protocols.http.root_directory import MISSING, NOT_FOUND
from svcd.wire.http_request import HttpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svcd.protocols.http.file_cache import Identity
    from svcd.protocols.http.root_directory import RootDirectory

__all__ = ["FileSearch", "SelectedFile"]

#: The extension of the neighbour for each content coding (RFC 7932, 8878, 1952).
_EXTENSIONS = {"br": ".br", "zstd": ".zst", "gzip": ".gz"}


class SelectedFile:
    """An open file.

    Args:
        name: the name that was asked for, which has the type of the content.
        descriptor: its descriptor, of which this object takes ownership.
        status: its status.

    Attributes:
        name: as given.
        descriptor: that of the file, or of the neighbour that is sent instead.
        status: its status.
        coding: the content coding of the neighbour; empty for the file itself.
        varies: whether clients get different files by the codings that they accept.
    """

    __slots__ = ("coding", "descriptor", "name", "status", "varies")

    def __init__(self, name: str, descriptor: int, status: os.stat_result) -> None:
        self.name = name
        self.descriptor = descriptor
        self.status = status
        self.coding = ""
        self.varies = False

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


class FileSearch:
    """The search for the file of one request.

    It notes the files and directories that led to the result: as long as they have the same identities, another search
    finds the same.

    Args:
        root: the directory below which files are searched.
        folder: the descriptor of a directory in it, which stays the caller's.
        names: the segments of its path.
        now: the time before the search, in nanoseconds since 1970.

    Attributes:
        now: as given.
        is_lasting: whether each change of the result will be seen in the identities.
    """

    def __init__(self, root: RootDirectory, folder: int, names: Sequence[str], now: int) -> None:
        self._root = root
        self._folder = folder
        self._names = tuple(names)
        self.now = now
        self._found: dict[str, Identity] = {}
        self.is_lasting = True

    @property
    def checks(self) -> Sequence[tuple[str, Identity]]:
        """Paths, with the identities of what the result depends on."""
        return tuple(self._found.items())

    def file(self, name: str, codings: Sequence[str]) -> SelectedFile:
        """Open the file for a name, or its neighbour; a directory has no neighbours.

        Args:
            name: the name in the directory.
            codings: the content codings that the client accepts, the best first.

        Raises:
            HttpError: 404 for anything but a regular file or a directory.
            OSError: it can't be opened.
        """
        file = SelectedFile(name, *self._root.open_file(self._folder, name))
        try:
            if file.is_directory:
                return file
            if not stat.S_ISREG(file.status.st_mode):
                raise HttpError(HTTPStatus.NOT_FOUND)
            self._note(name, file.status)
            self._choose_neighbour(file, codings)
        except BaseException:
            file.close()
            raise
        return file

    def index_file(self, index: Sequence[str], codings: Sequence[str]) -> SelectedFile | None:
        """Open the first name of `index` that exists, or its neighbour; return None if none exists.

        Raises:
            HttpError, OSError: as in file().
        """
        for name in index:
            try:
                file = self.file(name, codings)
            except OSError as error:
                if error.errno not in NOT_FOUND:
                    raise
                if error.errno not in MISSING:
                    self._root.warn(name, error)
                self._miss(error)
                continue
            if file.is_directory:
                file.close()
                raise HttpError(HTTPStatus.NOT_FOUND)
            return file
        return None

    def _choose_neighbour(self, file: SelectedFile, codings: Sequence[str]) -> None:
        """Replace a file by the neighbour with the best accepted coding, if there is one."""
        if file.name.endswith(tuple(_EXTENSIONS.values())):
            return
        for coding in codings:
            neighbour = self._neighbour(file, coding)
            if neighbour is not None:
                os.close(file.descriptor)
                file.descriptor, file.status = neighbour
                file.coding = coding
                file.varies = True
                return
        file.varies = any(self._has(file.name + _EXTENSIONS[coding]) for coding in set(_EXTENSIONS).difference(codings))

    def _neighbour(self, file: SelectedFile, coding: str) -> tuple[int, os.stat_result] | None:
        """Open a neighbour; return its descriptor, which the caller closes, and its status."""
        name = file.name + _EXTENSIONS[coding]
        try:
            descriptor, status = self._root.open_file(self._folder, name)
        except OSError as error:
            if error.errno not in NOT_FOUND:
                raise
            self._miss(error)
            return None
        self._note(name, status)
        if stat.S_ISREG(status.st_mode) and status.st_mtime_ns >= file.status.st_mtime_ns:
            return descriptor, status
        os.close(descriptor)
        return None

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=self._root.symlinks)
        except OSError:
            return False
        return True

    def _note(self, name: str, status: os.stat_result) -> None:
        self._found[self._root.path_of((*self._names, name))] = identity_of(status)
        self.is_lasting = self.is_lasting and is_settled(status, self.now)

    def _miss(self, error: OSError) -> None:
        """Note that a name was not found: it changes its directory when it appears."""
        self._note("", os.fstat(self._folder))
        # A file that can't be opened may become readable without a change of its directory.
        self.is_lasting = self.is_lasting and error.errno == errno.ENOENT
