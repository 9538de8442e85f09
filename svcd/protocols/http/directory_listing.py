"""Listings of directories, for HTTP: a page, or JSON for clients that prefer it.

A directory may have very many entries. So listings are made one after the other, in slices between which the reactor
serves other connections, and at most MOST_ENTRIES entries are read. Clients that wait for a listing are limited in
number, and slow clients that take the same one share its bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from http import HTTPStatus
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from twisted.internet.defer import DeferredLock
from twisted.internet.task import Cooperator

from svcd.protocols.http import listing_page
from svcd.protocols.http.listing_page import Entry, Listing, Order
from svcd.protocols.http.response import Response
from svcd.wire.http_negotiation import media_type
from svcd.wire.http_request import HttpError, is_served_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IReactorTime

    from svcd.interfaces import DescriptorCounter
    from svcd.protocols.http.root_directory import RootDirectory
    from svcd.wire.http_request import HttpRequest

__all__ = ["MOST_ENTRIES", "MOST_WAITING", "DirectoryListing"]

#: The largest number of entries that are read: of a directory with more, those that the kernel returns first.
MOST_ENTRIES = 10_000
#: The largest number of requests that wait for a listing, also of clients that have gone; more get 503.
MOST_WAITING = 64
#: The number of entries after which other connections may be served.
_SLICE = 64
_MEDIA_TYPES = ("text/html", "application/json")
_FIELDS = {"Vary": "Accept", "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


#: The size of a piece of a listing, in bytes.
_PIECE = 65_536


class _Content:
    """The bytes of a listing."""

    __slots__ = ("__weakref__", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data


class _ListingBody:
    """The body of a response with a listing; see svcd.protocols.http.response.Body."""

    uncounted = False

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._offset = 0

    def count(self, budget: DescriptorCounter, /) -> None:
        """Not called: a listing has no descriptor."""
        raise NotImplementedError

    def read(self) -> bytes:
        """Return the next piece."""
        piece = self._content.data[self._offset : self._offset + _PIECE]
        self._offset += len(piece)
        return piece

    def close(self) -> None:
        """Do nothing: the bytes are kept by the bodies that send them."""


class DirectoryListing:
    """Makes the responses with listings.

    Args:
        root: the directory below which the listed directories are.
        clock: the reactor.
    """

    def __init__(self, root: RootDirectory, clock: IReactorTime) -> None:
        self._root = root
        # One slice in each iteration of the reactor.
        self._cooperator = Cooperator(lambda: lambda: True, scheduler=lambda call: clock.callLater(0, call))
        # So a service has one directory open, and its listings take the time of one.
        self._lock = DeferredLock()
        # What is being sent.
        self._contents: WeakValueDictionary[tuple[tuple[str, ...], Order, str], _Content] = WeakValueDictionary()

    def respond(self, request: HttpRequest, names: Sequence[str]) -> Deferred[Response]:
        """Return the listing of a directory.

        Args:
            request: the request; its query has the order.
            names: the segments of the path of the directory.

        Raises:
            HttpError: 503 if too many clients wait.
        """
        if len(self._lock.waiting) >= MOST_WAITING:
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE)
        wanted = media_type(request.fields.get(b"accept", b""), _MEDIA_TYPES)
        order = Order.of(request.target.partition(b"?")[2])
        return self._lock.run(self._make, names, order, wanted)

    def _make(self, names: Sequence[str], order: Order, wanted: str) -> Deferred[Response]:
        listing = Listing(tuple(names), order)
        content: list[bytes] = []

        def steps() -> Iterator[None]:
            yield from self._collect(listing)
            render = listing_page.html_page if wanted == "text/html" else listing_page.json_document
            for number, piece in enumerate(render(listing)):
                content.append(piece)
                if number % _SLICE == 0:
                    yield

        def respond(_: object) -> Response:
            key = listing.names, order, wanted
            data, known = b"".join(content), self._contents.get(key)
            if known is None or known.data != data:
                known = self._contents[key] = _Content(data)
            return _response(known, wanted)

        return self._cooperator.coiterate(steps()).addCallback(respond)

    def _collect(self, listing: Listing) -> Iterator[None]:
        """Read the entries of a directory.

        Raises:
            HttpError: 404 for a directory that does not exist any more; 503 if no descriptor is left.
        """
        folder = self._open(listing.names)
        try:
            with os.scandir(folder) as entries:
                for number, found in enumerate(entries):
                    if number % _SLICE == 0:
                        yield
                    if number == MOST_ENTRIES:
                        listing.complete = False
                        break
                    entry = self._entry(found)
                    if entry is not None:
                        listing.entries.append(entry)
        finally:
            os.close(folder)

    def _open(self, names: Sequence[str]) -> int:
        try:
            return self._root.open_folder(names)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE) from None
            raise HttpError(HTTPStatus.NOT_FOUND) from None

    def _entry(self, found: os.DirEntry[str]) -> Entry | None:
        """Return an entry; None for one that is not listed."""
        name = found.name
        if name.startswith(".") or not is_served_name(name):
            return None
        try:
            status = found.stat(follow_symlinks=self._root.symlinks)
        except OSError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return Entry(name, None, status.st_mtime)
        return Entry(name, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None


def _response(content: _Content, content_type: str) -> Response:
    fields = {"Content-Type": f"{content_type}; charset=utf-8", "Content-Length": str(len(content.data)), **_FIELDS}
    if content_type == "text/html":
        fields["Content-Security-Policy"] = listing_page.POLICY
    return Response(HTTPStatus.OK, fields, body=_ListingBody(content))
