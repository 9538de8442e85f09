"""A connection that was accepted and has no process yet."""

from __future__ import annotations

__all__ = ["Waiting"]


class Waiting:
    """What a link keeps of it.

    Attributes:
        packet: what the launcher is told of it.
        descriptor: ours until the launcher has started something: what a lost one has not is given to the next.
        tries: how many launchers were told.
        sent: whether the present one was.
    """

    __slots__ = ("descriptor", "packet", "sent", "tries")

    def __init__(self, packet: bytes, descriptor: int) -> None:
        self.packet = packet
        self.descriptor = descriptor
        self.tries = 0
        self.sent = False
