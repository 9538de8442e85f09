"""Shape of a request, and functions that make it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HOST", "Ending", "Shape", "closed", "get", "kept", "lines", "post", "waiting"]

HOST = "Host: a"


class Ending(enum.Enum):
    """State of the connection after the responses of a shape."""

    KEPT = "kept open for the next request"
    CLOSED = "closed"
    WAITING = "waits for the rest of a request"


@dataclass(frozen=True, slots=True)
class Shape:
    """Bytes of a client, and the behaviour of the server.

    Attributes:
        section: the RFC and its section, such as "9112 3.2".
        name: what is special in the bytes.
        data: the bytes; {etag} in them stands for the entity tag of /file.txt.
        statuses: the status of each response, in order.
        ending: the state of the connection after them.
        fields: fields of the last response: the whole value, or None for a field that must not be there.
        content: the content of the last response; None for any.
    """

    section: str
    name: str
    data: bytes
    statuses: tuple[int, ...]
    ending: Ending
    fields: Mapping[str, str | None] = field(default_factory=dict)
    content: bytes | None = None

    def __str__(self) -> str:
        return f"{self.section}: {self.name}"

    @property
    def methods(self) -> list[str]:
        """Methods of the requests that have a response, as far as they matter for its length."""
        return ["HEAD" if piece.startswith(b"HEAD ") else "GET" for piece in self.data.split(b"\r\n\r\n")]


def lines(*texts: str) -> bytes:
    """Return lines with their ends, in latin-1."""
    return "".join(f"{text}\r\n" for text in texts).encode("latin-1")


def get(target: str = "/", *fields: str, method: str = "GET", version: str = "HTTP/1.1", host: str = HOST) -> bytes:
    """Return a request without a body; no Host field if `host` is empty."""
    return lines(f"{method} {target} {version}", *([host] if host else []), *fields, "")


def post(*fields: str, body: str = "", method: str = "POST") -> bytes:
    """Return a request for / with fields and a body."""
    return get("/", *fields, method=method) + body.encode("latin-1")


def kept(section: str, name: str, data: bytes, *statuses: int, **more: object) -> Shape:
    """Return a shape after which the connection stays open."""
    return Shape(section, name, data, statuses, Ending.KEPT, **more)  # type: ignore[arg-type]


def closed(section: str, name: str, data: bytes, *statuses: int, **more: object) -> Shape:
    """Return a shape after which the connection is closed."""
    return Shape(section, name, data, statuses, Ending.CLOSED, **more)  # type: ignore[arg-type]


def waiting(section: str, name: str, data: bytes, *statuses: int) -> Shape:
    """Return a shape after whose responses the server waits for the rest of a request."""
    return Shape(section, name, data, statuses, Ending.WAITING)
