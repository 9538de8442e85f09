"""Static files below a directory, for HTTP.

A path is walked segment by segment; each segment is opened relative to its parent, without following symbolic links
(openat(2), O_NOFOLLOW). So no spelling of a path, and no concurrent change of the tree, leads out of the root.
"""

from __future__ import annotations

import email.utils
import errno
import mimetypes
import os
import stat
import time
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from twisted.logger import Logger

from svcd.protocols.http.response import Response, error_response
from svcd.protocols.open_files import OpenFiles
from svcd.wire.http_request import HttpError, HttpRequest, path_segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IAddress

__all__ = ["StaticFiles"]

#: The largest file that is sent with its head in one write, in bytes.
_SMALL = 65_536

# O_NONBLOCK: open(2) of a FIFO must not wait for a writer.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

#: Errors of open(2) that mean that there is no such file, which is not logged.
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
_NOT_FOUND = _MISSING | {errno.EACCES}
#: The shortest time between two warnings about files that can't be read, in seconds.
_WARNING_SECONDS = 1.0


class StaticFiles:
    """A Handler that responds with files.

    Names that begin with a dot are not served, except /.well-known (RFC 8615).

    Args:
        root: the directory.
        index: the names of index files, tried in order.
        symlinks: whether symbolic links below root are followed, even out of it.
    """

    _log = Logger()

    def __init__(self, root: str, index: Sequence[str] = ("index.html",), *, symlinks: bool = False) -> None:
        self._root = root
        self._warned = -_WARNING_SECONDS
        self._open_files = OpenFiles()
        self._index = tuple(index)
        self._flags = _OPEN if symlinks else _OPEN | os.O_NOFOLLOW
        self._types = mimetypes.MimeTypes()
        for known in mimetypes.knownfiles:
            if os.path.isfile(known):  # noqa: PTH113 - once, at start
                self._types.read(known)

    def respond(self, request: HttpRequest, peer: IAddress) -> Response:  # noqa: ARG002 - every handler gets it
        """Return the file of a request's path, or the redirect from a directory to its path with a slash.

        Raises:
            HttpError: 404 for a file that does not exist, is hidden or can't be read; 400 for a bad path; 503 if no
                descriptor is left.
        """
        segments = path_segments(request.target)
        if any(name.startswith(".") for name in segments[segments[0] == ".well-known" :]):
            raise HttpError(HTTPStatus.NOT_FOUND)
        *folders, name = segments
        try:
            folder = self._open_folder(folders)
            try:
                if name:
                    return self._file_or_redirection(folder, name, segments, request.target)
                return self._index_file(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE) from None
            if error.errno not in _MISSING:
                self._warn("/".join(segments), error)
            raise HttpError(HTTPStatus.NOT_FOUND) from None

    def _warn(self, name: str, error: OSError) -> None:
        """Log that a file can't be read, at most once in _WARNING_SECONDS."""
        now = time.monotonic()
        if now - self._warned >= _WARNING_SECONDS:
            self._warned = now
            self._log.warn(
                "{root}: {name!r} can't be read: {reason}", root=self._root, name=name, reason=error.strerror
            )

    def _open_folder(self, names: Sequence[str]) -> int:
        """Open a directory below root; return its descriptor, which the caller closes."""
        folder = os.open(self._root, _OPEN | os.O_DIRECTORY)
        for name in names:
            outer = folder
            try:
                folder = os.open(name, self._flags | os.O_DIRECTORY, dir_fd=outer)
            finally:
                os.close(outer)
        return folder

    def _file_or_redirection(self, folder: int, name: str, segments: Sequence[str], target: bytes) -> Response:
        descriptor, status = self._open(folder, name)
        if not stat.S_ISDIR(status.st_mode):
            return self._file(descriptor, name, status)
        os.close(descriptor)
        # The Location is made from the decoded segments, so that it can't point to another host (//host/).
        response = error_response(HTTPStatus.MOVED_PERMANENTLY)
        query = quote(target.partition(b"?")[2], safe="=&;+%:/?@!$'()*,~-._")
        response.fields["Location"] = "/" + "/".join(map(quote, segments)) + "/" + (f"?{query}" if query else "")
        return response

    def _index_file(self, folder: int) -> Response:
        for name in self._index:
            try:
                descriptor, status = self._open(folder, name)
            except OSError as error:
                if error.errno not in _NOT_FOUND:
                    raise
                if error.errno not in _MISSING:
                    self._warn(name, error)
            else:
                return self._file(descriptor, name, status)
        raise HttpError(HTTPStatus.NOT_FOUND)

    def _open(self, folder: int, name: str) -> tuple[int, os.stat_result]:
        """Open a name in a folder; return its descriptor, which the caller closes, and its status."""
        descriptor = os.open(name, self._flags, dir_fd=folder)
        try:
            return descriptor, os.fstat(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def _file(self, descriptor: int, name: str, status: os.stat_result) -> Response:
        """Return the response with an open file. Takes ownership of the descriptor."""
        try:
            if not stat.S_ISREG(status.st_mode):
                raise HttpError(HTTPStatus.NOT_FOUND)
            fields = {
                "Content-Type": self._type_of(name),
                "Content-Length": str(status.st_size),
                "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
                "X-Content-Type-Options": "nosniff",
            }
            if status.st_size > _SMALL:
                return Response(HTTPStatus.OK, fields, body=self._open_files.body(descriptor, status))
            content = os.read(descriptor, status.st_size)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return Response(HTTPStatus.OK, {**fields, "Content-Length": str(len(content))}, content)

    def _type_of(self, name: str) -> str:
        kind, encoding = self._types.guess_type(name)
        if encoding is not None:
            return {"gzip": "application/gzip", "xz": "application/x-xz"}.get(encoding, "application/octet-stream")
        if kind is None:
            return "application/octet-stream"
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
