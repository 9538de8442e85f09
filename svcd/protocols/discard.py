"""Discard (RFC 863): whatever comes is thrown away, and nothing is ever answered."""

from __future__ import annotations

from svcd.protocols.base import BuiltinDatagrams, BuiltinFactory, HalfCloseProtocol

__all__ = ["DiscardDatagrams", "DiscardFactory", "DiscardProtocol"]


class DiscardProtocol(HalfCloseProtocol):
    """Reads until the client closes."""

    def dataReceived(self, data: bytes) -> None:
        """Drop it."""


class DiscardFactory(BuiltinFactory):
    """Makes DiscardProtocols."""

    protocol = DiscardProtocol


class DiscardDatagrams(BuiltinDatagrams):
    """Reads datagrams."""

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Drop it."""
