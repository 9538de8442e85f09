"""Pages and JSON documents with listings of directories. Each text is escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import pkgutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from svcd.protocols.status.formatting import count, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["POLICY", "Entry", "Listing", "Order", "html_page", "json_document"]


def _style() -> str:
    data = pkgutil.get_data(__package__ or "", "listing.css")
    assert data is not None  # noqa: S101 - every installation has the file
    return data.decode()


# It is read when this module is imported, because a daemon that has changed its root directory could not read it later.
_STYLE = _style()
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: The Content-Security-Policy of a page (https://www.w3.org/TR/CSP3/): its own style, and the icon of the site.
POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src 'sha256-{_HASH}'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    ]
)

#: The columns: the value of `sort` in the query, the title, and whether the first click sorts from the highest value.
_COLUMNS = (("name", "Name", False), ("size", "Size", True), ("modified", "Modified", True))
#: The last time that a datetime can have, in seconds since 1970.
_LAST_TIME = datetime.max.replace(tzinfo=UTC).timestamp() - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory.

    Attributes:
        name: its name.
        size: its number of bytes; None for a directory.
        modified: the time of its last change, in seconds since 1970.
    """

    name: str
    size: int | None
    modified: float


@dataclass(frozen=True, slots=True)
class Order:
    """An order of entries; directories come first in any.

    Attributes:
        column: `name`, `size` or `modified`.
        descending: whether the highest value comes first.
    """

    column: str = "name"
    descending: bool = False

    @classmethod
    def of(cls, query: bytes) -> Order:
        """Return the order of a query, `sort=name&order=asc`; what is unknown has its default."""
        try:
            values = parse_qs(query.decode("ascii"), max_num_fields=8)
        except ValueError:
            return cls()
        column = values.get("sort", [""])[-1]
        descending = values.get("order", [""])[-1] == "desc"
        return cls(column, descending) if any(column == each for each, _, _ in _COLUMNS) else cls(descending=descending)

    def sort(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return entries in this order; equal ones by name."""
        ordered = sorted(entries, key=lambda entry: (entry.name.casefold(), entry.name))
        if self.column == "name":
            ordered = ordered[::-1] if self.descending else ordered
        elif self.column == "size":
            ordered.sort(key=lambda entry: entry.size or 0, reverse=self.descending)
        else:
            ordered.sort(key=lambda entry: entry.modified, reverse=self.descending)
        return sorted(ordered, key=lambda entry: entry.size is not None)


@dataclass(slots=True)
class Listing:
    """A listing of a directory.

    Attributes:
        names: the segments of its path.
        order: the order of the entries.
        entries: the entries, in any order.
        complete: whether the directory has no other entries.
    """

    names: tuple[str, ...]
    order: Order
    entries: list[Entry] = field(default_factory=list)
    complete: bool = True


def json_document(listing: Listing) -> Iterator[bytes]:
    """Yield the pieces of a JSON document with `path`, `complete` and `entries`."""
    path = json.dumps(_path(listing.names))
    yield f'{{"path": {path}, "complete": {json.dumps(listing.complete)}, "entries": ['.encode()
    separator = "\n"
    for entry in listing.order.sort(listing.entries):
        data: dict[str, Any] = {"name": entry.name, "type": "directory" if entry.size is None else "file"}
        if entry.size is not None:
            data["size"] = entry.size
        data["modified"] = _time(entry).isoformat(timespec="seconds").replace("+00:00", "Z")
        yield (separator + json.dumps(data)).encode()
        separator = ",\n"
    yield b"\n]}\n"


def html_page(listing: Listing) -> Iterator[bytes]:
    """Yield the pieces of a page; its headings are links that sort it."""
    path = _path(listing.names)
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Index of {html.escape(path)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Index of {_trail(listing.names)}</h1>\n"
        f"<table>\n<thead><tr>{_headings(listing.order)}</tr></thead>\n<tbody>\n"
    ).encode()
    if listing.names:
        yield b'<tr><th scope="row"><a href="../">Parent directory</a></th><td></td><td></td></tr>\n'
    for entry in listing.order.sort(listing.entries):
        yield _row(entry).encode()
    yield f"</tbody>\n</table>\n<p>{_summary(listing)}</p>\n</body>\n</html>\n".encode()


def _path(names: Sequence[str]) -> str:
    return "".join(f"/{name}" for name in names) + "/"


def _trail(names: Sequence[str]) -> str:
    """Return the path of a directory with links to those that contain it."""
    parts = ['<a href="/">/</a>' if names else "/"]
    for number, name in enumerate(names, 1):
        text = html.escape(name)
        href = "".join(f"/{quote(each, safe='')}" for each in names[:number])
        parts.append(f"<b>{text}</b>/" if number == len(names) else f'<a href="{href}/">{text}</a>/')
    return "<wbr>".join(parts)


def _headings(order: Order) -> str:
    cells = []
    for column, title, starts_high in _COLUMNS:
        sorted_by = ""
        descending = starts_high
        if column == order.column:
            sorted_by = f' aria-sort="{"descending" if order.descending else "ascending"}"'
            descending = not order.descending
        href = f"?sort={column}&amp;order={'desc' if descending else 'asc'}"
        cells.append(f'<th scope="col"{sorted_by}><a href="{href}">{title}</a></th>')
    return "".join(cells)


def _row(entry: Entry) -> str:
    slash = "/" if entry.size is None else ""
    modified = _time(entry)
    shown = "" if entry.size is None else f'<data value="{entry.size}">{size(entry.size)}</data>'
    return (
        f'<tr><th scope="row"><a href="{quote(entry.name, safe="")}{slash}">{html.escape(entry.name)}{slash}</a></th>'
        f'<td>{shown}</td><td><time datetime="{modified:%Y-%m-%dT%H:%M:%SZ}">{modified:%Y-%m-%d} '
        f"<span>{modified:%H:%M}</span></time></td></tr>\n"
    )


def _time(entry: Entry) -> datetime:
    return datetime.fromtimestamp(min(max(entry.modified, 0), _LAST_TIME), UTC)


def _summary(listing: Listing) -> str:
    sizes = [entry.size for entry in listing.entries if entry.size is not None]
    directories = len(listing.entries) - len(sizes)
    text = (
        f"{count(directories)} {'directory' if directories == 1 else 'directories'}, "
        f"{count(len(sizes))} {'file' if len(sizes) == 1 else 'files'}, {size(sum(sizes))}. Times are in UTC."
    )
    return text if listing.complete else f"The directory has more entries than are listed. {text}"
