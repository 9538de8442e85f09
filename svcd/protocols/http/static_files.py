"""Static files below a directory, for HTTP."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import weakref
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from svcd.protocols.http.directory_listing import DirectoryListing
from svcd.protocols.http.file_cache import CachedFile, FileCache, identity_of, is_settled
from svcd.protocols.http.file_selection import FileSearch
from svcd.protocols.http.file_types import FileTypes
from svcd.protocols.http.representation import Representation
from svcd.protocols.http.response import GET_AND_HEAD, error_response
from svcd.protocols.http.root_directory import MISSING, RootDirectory
from svcd.protocols.open_files import OpenFiles
from svcd.wire.http_conditions import Validators
from svcd.wire.http_negotiation import accepted_codings
from svcd.wire.http_request import HttpError, HttpRequest, path_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IReactorTime

    from svcd.protocols.http.file_cache import CacheKey
    from svcd.protocols.http.file_selection import SelectedFile
    from svcd.protocols.http.response import Response
    from svcd.protocols.open_files import FileBody
    from svcd.wire.http_ranges import ByteRange

__all__ = ["FileSettings", "StaticFiles"]

#: The largest file that is sent with its head in one write, and that is kept in memory, in bytes.
_SMALL = 65_536
#: A second, in nanoseconds.
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Settings of a StaticFiles.

    Attributes:
        index: the names of index files, tried in order.
        symlinks: whether symbolic links below the root are followed, even out of it.
        listing: whether a directory without an index file is listed.
        cache_control: the value of the Cache-Control field; None for no field.
        types: media types by file name extension, in addition to the known ones.
    """

    index: Sequence[str] = ("index.html",)
    symlinks: bool = False
    listing: bool = False
    cache_control: str | None = None
    types: Mapping[str, str] | None = None


class _OpenContent:
    """The content of a large file; see svcd.protocols.http.representation.Content.

    Args:
        files: the files that are being sent.
        file: the file, which this object closes.
    """

    def __init__(self, files: OpenFiles, file: SelectedFile) -> None:
        self._files = files
        self._file: SelectedFile | None = file

    def take(self, pieces: Sequence[bytes | ByteRange]) -> tuple[bytes, FileBody]:
        """Return a body, which closes the file."""
        file, self._file = self._file, None
        assert file is not None  # noqa: S101 - it is called once
        return b"", self._files.body(file.descriptor, file.status, pieces)

    def close(self) -> None:
        """Close the file, unless it was taken."""
        if self._file is not None:
            self._file.close()


class StaticFiles:
    """A Handler that responds with files.

    Names that begin with a dot are not served, except /.well-known (RFC 8615).

    Args:
        root: the directory.
        settings: how its files are served.
        clock: the reactor; required for listings.
        now: returns the time in nanoseconds since 1970.
    """

    methods = GET_AND_HEAD
    streams: Literal[False] = False

    def __init__(
        self,
        root: str,
        settings: FileSettings | None = None,
        clock: IReactorTime | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings = settings or FileSettings()
        self._root = RootDirectory(root, symlinks=settings.symlinks)
        self._open_files = OpenFiles()
        self._types = FileTypes(settings.types)
        self._cache = FileCache(symlinks=settings.symlinks, call_before_poll=getattr(clock, "call_before_poll", None))
        self._now = now
        self._listing = DirectoryListing(self._root, clock) if settings.listing and clock is not None else None

    def respond(self, request: HttpRequest, peer: IAddress) -> Response | Deferred[Response]:  # noqa: ARG002 - as all
        """Return the file of a request's path, or the redirect from a directory to its path with a slash.

        Raises:
            HttpError: 404 for a file that does not exist, is hidden or can't be read; 400 for a bad path; 503 if no
                descriptor is left.
        """
        if request.memo:
            known = _known_response(request, self._cache.is_current)
            if known is not None:
                return known
        path = request.target.partition(b"?")[0]
        key = path, accepted_codings(request.fields.get(b"accept-encoding", b""))
        cached = self._cache.find(key)
        if cached is not None:
            response = cached.respond(request)
            if response is cached.representation.whole or response is cached.representation.not_modified:
                # A weak reference: the cache alone keeps the content.
                request.memo[:] = weakref.ref(cached), response is cached.representation.not_modified
            return response
        segments = path_segments(path)
        if any(name.startswith(".") for name in segments[segments[0] == ".well-known" :]):
            raise HttpError(HTTPStatus.NOT_FOUND)
        try:
            return self._find(request, segments, key)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE) from None
            if error.errno not in MISSING:
                self._root.warn("/".join(segments), error)
            raise HttpError(HTTPStatus.NOT_FOUND) from None

    def respond_again(self, request: HttpRequest) -> Response | None:
        """Return the response that a request had before; see svcd.protocols.http.response.RepeatingHandler."""
        return _known_response(request, self._cache.was_current) if request.memo else None

    def _find(self, request: HttpRequest, segments: Sequence[str], key: CacheKey) -> Response | Deferred[Response]:
        *folders, name = segments
        folder = self._root.open_folder(folders)
        try:
            search = FileSearch(self._root, folder, folders, self._now())
            file = search.file(name, key[1]) if name else search.index_file(self._settings.index, key[1])
        finally:
            os.close(folder)
        if file is None:
            if self._listing is None:
                raise HttpError(HTTPStatus.NOT_FOUND)
            return self._listing.respond(request, folders)
        if file.is_directory:
            file.close()
            return _redirect(segments, request.target)
        if file.status.st_size > _SMALL:
            content = _OpenContent(self._open_files, file)
            try:
                validators = _validators(file.status, search.now)
                return self._represent(file, validators, file.status.st_size).respond(request, content)
            finally:
                content.close()
        return self._read(file, search, key).respond(request)

    def _read(self, file: SelectedFile, search: FileSearch, key: CacheKey) -> CachedFile:
        """Read a small file, and put it into the cache if changes of it will be seen. Closes the file."""
        try:
            data = os.read(file.descriptor, file.status.st_size)
            # A file that is being changed: what was read may be part of each version.
            is_torn = identity_of(os.fstat(file.descriptor)) != identity_of(file.status)
        finally:
            file.close()
        validators = _validators(file.status, search.now, is_torn=is_torn)
        found = CachedFile(data, self._represent(file, validators, len(data)), search.checks)
        if search.is_lasting and validators.date_is_strong and not is_torn:
            self._cache.add(key, found)
        return found

    def _represent(self, file: SelectedFile, validators: Validators, length: int) -> Representation:
        fields = {"Content-Type": self._types.type_of(file.name)}
        if file.coding:
            fields["Content-Encoding"] = file.coding
        if file.varies:
            fields["Vary"] = "Accept-Encoding"
        if self._settings.cache_control is not None:
            fields["Cache-Control"] = self._settings.cache_control
        fields["X-Content-Type-Options"] = "nosniff"
        return Representation(fields, validators, length)


def _known_response(request: HttpRequest, is_current: Callable[[CachedFile], bool]) -> Response | None:
    """Return the response that a request had before; None if its file has changed or is no longer in the cache."""
    reference, not_modified = request.memo
    file = reference()
    if file is None or not is_current(file):
        return None
    representation: Representation = file.representation
    return representation.not_modified if not_modified else representation.whole


def _validators(status: os.stat_result, now: int, *, is_torn: bool = False) -> Validators:
    """Return the validators of a file.

    The entity tag has the inode and the time of its last change in it: two files may have the same size and time of
    modification, as archives and reproducible builds set it. It is weak (RFC 9110, section 8.8.1) while another change
    may leave it the same. Last-Modified must not be in the future (section 8.8.2.1).

    Args:
        status: the status of the file.
        now: the time, in nanoseconds since 1970.
        is_torn: whether the file was changed while it was read.
    """
    state = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    tag = f'"{hashlib.blake2b(state.encode(), digest_size=12).hexdigest()}"'
    modified, second = status.st_mtime_ns // _SECOND, now // _SECOND
    return Validators(
        (tag if is_settled(status, now) and not is_torn else f"W/{tag}").encode("ascii"),
        max(min(modified, second), 0),
        date_is_strong=modified < second,
    )


def _redirect(segments: Sequence[str], target: bytes) -> Response:
    """Return the redirect from a directory to its path with a slash.

    The Location is made from the decoded segments, so that it can't point to another host (//host/).
    """
    response = error_response(HTTPStatus.MOVED_PERMANENTLY)
    query = quote(target.partition(b"?")[2], safe="=&;+%:/?@!$'()*,~-._")
    response.fields["Location"] = "/" + "/".join(map(quote, segments)) + "/" + (f"?{query}" if query else "")
    return response
