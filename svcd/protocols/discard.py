"""Discard (RFC 863): input is dropped, and no answer is sent."""

from __future__ import annotations

from svcd.protocols.base import BuiltinDatagrams, BuiltinFactory, HalfCloseProtocol

__all__ = ["DiscardDatagrams", "DiscardFactory", "DiscardProtocol"]


class DiscardProtocol(HalfCloseProtocol):
    """A protocol that drops input until the client closes the connection."""

    def dataReceived(self, data: bytes) -> None:
        """Drop input."""


class DiscardFactory(BuiltinFactory):
    """A factory of DiscardProtocols."""

    protocol = DiscardProtocol


class DiscardDatagrams(BuiltinDatagrams):
    """A datagram protocol that drops every datagram."""

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Drop the datagram."""
