"""The body of an HTTP request, which is delivered as it arrives.

A parser adds pieces to a RequestBody; a handler takes them, as soon as it is able to. What is not taken yet is the
content of a few pieces only, since the owner of the parser reads no more before they are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RequestBody"]


def _no_op() -> None:
    """Do nothing."""


class RequestBody:
    """The body of a request.

    A handler calls start(), and may call pause() and resume(). A body that no handler starts is read and dropped.

    Args:
        length: the number of bytes of the body; None if it is not known in advance.
        expects_continue: whether the client may wait for a 100 response before it sends the body (RFC 9110, section
            10.1.1).

    Attributes:
        length: as given.
        expects_continue: as given; False once a part of the body has arrived.
        started: whether start() was called.
        complete: whether all of it has arrived, or no more will arrive.
        wake: called when more of it can be delivered or read; the owner of the parser sets it.
    """

    __slots__ = (
        "_dropped", "_on_data", "_on_end", "_paused", "_pieces", "_whole", "complete", "expects_continue", "length",
        "started", "wake",
    )  # fmt: skip

    def __init__(self, length: int | None, *, expects_continue: bool = False) -> None:
        self.length = length
        self.expects_continue = expects_continue
        self.started = self.complete = False
        self.wake: Callable[[], None] = _no_op
        self._pieces: list[bytes] = []
        self._paused = self._dropped = self._whole = False
        self._on_data: Callable[[bytes], None] | None = None
        self._on_end: Callable[[bool], None] | None = None

    # For the handler

    def start(self, on_data: Callable[[bytes], None], on_end: Callable[[bool], None]) -> None:
        """Start the delivery, which may begin within this call.

        Args:
            on_data: called with each piece.
            on_end: called once, after the last piece: with True if the body is whole; with False if the client has
                disconnected or sent invalid data, or if the response ended before the body.
        """
        self._on_data, self._on_end = on_data, on_end
        self.started = True
        self.wake()

    def pause(self) -> None:
        """Stop the delivery, and let the client wait."""
        self._paused = True

    def resume(self) -> None:
        """Continue the delivery, which may begin within this call."""
        self._paused = False
        self.wake()

    # For the owner of the parser

    @property
    def wanted(self) -> bool:
        """Whether more of the body may be read."""
        return not self.complete and (self._dropped or (self.started and not self._paused and not self._pieces))

    @property
    def done(self) -> bool:
        """Whether the body is complete, and all of it was delivered or dropped."""
        return self.complete and not self._pieces and self._on_end is None and (self.started or self._dropped)

    def add(self, piece: bytes) -> None:
        """Add a piece."""
        self.expects_continue = False
        if not self._dropped:
            self._pieces.append(piece)

    def end(self, *, whole: bool) -> None:
        """Handle that no more will arrive; do nothing if that was handled before.

        Args:
            whole: whether all of the body has arrived.
        """
        if not self.complete:
            self.complete = True
            self._whole = whole

    def deliver(self) -> bool:
        """Deliver a piece, or the end; return False if there is nothing to deliver now."""
        if self._paused or self._on_data is None:
            return False
        if self._pieces:
            self._on_data(self._pieces.pop(0))
            return True
        if self.complete and self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self._whole)
            return True
        return False

    def drop(self) -> None:
        """Drop what has arrived and what will arrive; a handler that has started it is told that it ends early."""
        self._dropped = True
        self._whole = self._whole and not self._pieces
        self._pieces.clear()
        on_end, self._on_end = self._on_end, None
        self._on_data = None
        if on_end is not None:
            on_end(self._whole)
