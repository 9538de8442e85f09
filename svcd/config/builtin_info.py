"""Facts about built-in services that the parser and the checks use. The catalog of svcd/protocols states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["HTTP_ALPN", "NO_BUILTIN", "BuiltinInfo", "names_of"]

#: The protocol that HTTP servers offer over TLS (RFC 7301).
HTTP_ALPN = "http/1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinInfo:
    """Facts about one built-in service.

    Attributes:
        summary: one line that describes it.
        shapes: the types of sockets that it is served over.
        speaks_first: whether it sends data before it receives any, so that no first byte is waited for.
        loopback_only: whether it listens on the loopback addresses unless bind= is set.
        amplifies: whether its answer to a datagram may be many times as long as the question.
        multiplexer: whether it passes its connections on to other services.
        alpn: the protocols that it offers over TLS unless tls_alpn= is set, the preferred one first.
    """

    summary: str = ""
    shapes: frozenset[SocketType] = frozenset({SocketType.STREAM})
    speaks_first: bool = False
    loopback_only: bool = False
    amplifies: bool = False
    multiplexer: bool = False
    alpn: tuple[str, ...] = ()


#: The facts about a service that is not a built-in.
NO_BUILTIN = BuiltinInfo(shapes=frozenset())


def names_of(builtins: Mapping[str, BuiltinInfo], selects: Callable[[BuiltinInfo], bool]) -> str:
    """Return the sorted names of the built-ins that a condition selects, as text: `a, b and c`."""
    *names, last = sorted(name for name, builtin in builtins.items() if selects(builtin)) or [""]
    return f"{', '.join(names)} and {last}" if names else last
