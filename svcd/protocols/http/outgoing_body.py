"""The body of an HTTP response while it is sent: its framing (RFC 9112, section 6), and the check of its length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.protocols.http.response import Body, PushBody

__all__ = ["LAST_CHUNK", "OutgoingBody", "Sending", "chunk"]

#: The end of a body in chunks, without trailers.
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return data, which must not be empty, as a chunk (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Sending(Protocol):
    """A part of a file that a transport sends."""

    @property
    def remaining(self) -> int:
        """Number of bytes that are not sent yet."""
        ...


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
        sent: the number of bytes of its content that were sent, without framing; of a part of a file after close().
    """

    __slots__ = ("_body", "_chunked", "_missing", "_sending", "done", "sent", "stalled", "status")

    def __init__(self, body: Body, length: int | None, *, chunked: bool) -> None:
        self._body = body
        self.status = self.sent = 0
        self._missing = length
        self._chunked = chunked
        # The part of a file that the transport sends.
        self._sending: Sending | None = None
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

    def send_part(self, send_file: Callable[..., Sending], failed: Callable[[OSError], None]) -> bool:
        """Let a transport send what read() would return next, if that is a large part of a file; return whether it is.

        Args:
            send_file: the method of the transport.
            failed: called with the reason if the part can't be sent.
        """
        take = getattr(self._body, "take_part", None)
        part: tuple[int, int, int] | None = None if take is None or self._chunked else take()
        if part is None:
            return False
        if self._missing is not None:
            self._missing -= part[2]
        self.sent += part[2]
        self._sending = send_file(part, failed)
        return True

    def close(self) -> None:
        """Release the resources of the body."""
        if self._sending is not None:
            self.sent -= self._sending.remaining
        self._body.close()
