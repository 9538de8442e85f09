"""WebSocketSettings: the options of WebSocket of one service, as its connections use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.protocols.websocket.messages import MODES
from svcd.wire.websocket_handshake import Negotiation

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.config.options import ServiceOptions
    from svcd.interfaces import FdReactor
    from svcd.protocols.websocket.messages import MessageMode

__all__ = ["WebSocketSettings"]

#: A client that sends nothing gets a Ping after this part of idle_timeout, so that its Pong arrives in time: a client
#: that has sent something just before a check gets it after the next one.
_PINGS = 3


@dataclass(frozen=True, slots=True)
class WebSocketSettings:
    """Options of WebSocket of one service.

    Attributes:
        negotiation: what handshakes have to have.
        mode: makes the mode of a connection, given the largest message.
        most: the largest message in bytes.
        handshake_seconds: time limit of a handshake in seconds; None for no limit.
        ping_seconds: time without a byte from the client after which it gets a Ping, in seconds; None for no Pings.
        clock: the reactor.
        banner: sent as the first output; empty for none.
    """

    negotiation: Negotiation
    mode: Callable[[int], MessageMode]
    most: int
    handshake_seconds: float | None
    ping_seconds: float | None
    clock: FdReactor
    banner: bytes = b""

    @classmethod
    def of(cls, options: ServiceOptions, clock: FdReactor, banner: bytes = b"") -> WebSocketSettings:
        """Return the settings in the options of a service with websocket=."""
        assert options.websocket is not None  # noqa: S101 - the caller has checked it
        ping = options.websocket_ping
        if ping is None and options.idle_timeout is not None:
            ping = options.idle_timeout / _PINGS
        negotiation = Negotiation(
            path=options.websocket_path,
            origins=frozenset(options.websocket_origin),
            protocols=options.websocket_protocols,
            deflate=options.websocket_deflate,
        )
        mode = MODES[options.websocket]
        return cls(negotiation, mode, options.websocket_max_message, options.request_timeout, ping, clock, banner)
