"""The body of an HTTP response while it is sent: its framing (RFC 9112, section 6), and the check of its length."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.protocols.http.response import Body, PushBody

__all__ = ["LAST_CHUNK", "OutgoingBody", "chunk"]

#: The end of a body in chunks, without trailers.
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return data, which must not be empty, as a chunk (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class OutgoingBody:
    """A body that is being sent.

    Args:
        body: the body.
        length: the number of bytes that it must have; None if that is not known.
        chunked: whether it is sent in chunks.

    Attributes:
        stalled: whether the body has nothing to send yet.
        done: whether all of it was read.
        status: the status code of the response.
        sent: the number of bytes of its content that were sent, without framing.
    """

    __slots__ = ("_body", "_chunked", "_missing", "done", "sent", "stalled", "status")

    def __init__(self, body: Body, length: int | None, *, chunked: bool) -> None:
        self._body = body
        self.status = self.sent = 0
        self._missing = length
        self._chunked = chunked
        self.stalled = self.done = False

    def read(self, wake: Callable[[], None]) -> bytes:
        """Return the next bytes to send, with their framing; there may be none at the end, or if it is stalled.

        Args:
            wake: called when it is stalled no more.

        Raises:
            OSError: the rest can't be read, or has another length than it must have.
        """
        piece = self._body.read()
        if piece is None:
            self.stalled = True

            def ready() -> None:
                if self.stalled:
                    self.stalled = False
                    wake()

            cast("PushBody", self._body).wake = ready
            return b""
        if self._missing is not None:
            self._missing -= len(piece)
            if self._missing < 0 or (self._missing and not piece):
                difference = "missing" if self._missing > 0 else "too many"
                raise OSError(f"{abs(self._missing)} bytes are {difference}")
        self.done = not piece
        self.sent += len(piece)
        if self._chunked:
            return LAST_CHUNK if self.done else chunk(piece)
        return piece

    def take_part(self) -> tuple[int, int, int] | None:
        """Skip what read() would return next, for a transport that sends files itself; see FileBody.take_part()."""
        take = getattr(self._body, "take_part", None)
        part: tuple[int, int, int] | None = None if take is None or self._chunked else take()
        if part is not None:
            self.sent += part[2]
            if self._missing is not None:
                self._missing -= part[2]
        return part

    def close(self) -> None:
        """Release the resources of the body."""
        self._body.close()
