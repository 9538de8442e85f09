"""What a row of the option table is: its type, its default, who takes it, and what people are told of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from svcd.model import NetProtocol, SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from svcd.config.value_types import ValueType

__all__ = ["GROUPS", "HANDLERS", "SPAWNED", "SPEAKERS", "OptionInfo", "option"]

T = TypeVar("T")

#: The options that say what runs, of which a line has one at most; without any a built-in does.
HANDLERS = ("server", "python", "factory", "redirect")
#: Those of them whose handlers are processes of their own.
SPAWNED = ("server", "python")

#: The built-ins that speak first, and wait for nothing that a client might say.
SPEAKERS = ("chargen", "daytime", "qotd", "time")

#: The groups of the table, in the order of the manual.
GROUPS = {
    "where": "Where it listens",
    "who": "Who may come in",
    "how many": "How many, and how fast",
    "how long": "How long",
    "udp": "Over UDP",
    "runs": "What runs",
    "process": "The process of a spawned service",
    "tls": "TLS",
    "said": "What is said and logged",
    "daytime": "For daytime",
    "qotd": "For qotd",
    "http": "For http",
    "misc": "Other",
}

#: Scopes by which a row is limited to some services: what the scope is called.
_SCOPES = {
    "any": "any service",
    "stream": "stream services (tcp, unix)",
    "inet": "services with a port (tcp, udp)",
    "tcp": "tcp services",
    "udp": "built-ins over udp",
    "local": "UNIX sockets (unix, unixgram)",
    "session": "stream services (tcp, unix), and any with server=",
    "watched": "tcp services, and unix services that are not spawned",
    "asked": "tcp services, and unix services that are not spawned, but for " + ", ".join(SPEAKERS),
    "spawned": "spawned services (server=, python=)",
    "imported": "services with python= or factory=",
    "group": "spawned services (server=, python=) and UNIX sockets (unix, unixgram)",
    "tls": "stream services (tcp, unix), but for tcpmux",
    "web": "http and status services",
    **{handler: f"services with {handler}=" for handler in HANDLERS},
}


def _is_seen(net: NetProtocol, runs: str) -> bool:
    """Whether the daemon sees bytes move. Of what other processes have, the kernel counts those of TCP alone."""
    return net.shape is SocketType.STREAM and not (net.local and runs in SPAWNED)


#: And to which services, by their protocol and what they run.
_TAKERS: Mapping[str, Callable[[NetProtocol, str], bool]] = {
    "any": lambda _net, _runs: True,
    "stream": lambda net, _runs: net.shape is SocketType.STREAM,
    "inet": lambda net, _runs: not net.local,
    "tcp": lambda net, _runs: net.shape is SocketType.STREAM and not net.local,
    "udp": lambda net, runs: net.shape is SocketType.DATAGRAM and not net.local and runs not in SPAWNED,
    "local": lambda net, _runs: net.local,
    "session": lambda net, runs: net.shape is SocketType.STREAM or runs in SPAWNED,
    "watched": _is_seen,
    "asked": lambda net, runs: _is_seen(net, runs) and runs not in SPEAKERS,
    "spawned": lambda _net, runs: runs in SPAWNED,
    "imported": lambda _net, runs: runs in ("python", "factory"),
    "group": lambda net, runs: net.local or runs in SPAWNED,
    "tls": lambda net, runs: net.shape is SocketType.STREAM and runs != "tcpmux",
    "web": lambda _net, runs: runs in ("http", "status"),
}


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """A row of the table.

    Attributes:
        name: as it is written before the `=`.
        kind: the type of its value.
        default: the value without it.
        group: the heading it stands under.
        scope: a key of _SCOPES, or the name of the built-in that takes it.
        help: one sentence.
        xinetd: xinetd's word for it, if it has one.
    """

    name: str
    kind: ValueType[Any]
    default: object
    group: str
    scope: str
    help: str
    xinetd: str = ""

    def applies_to(self, net: NetProtocol, runs: str) -> bool:
        """Whether a service of this protocol that runs this built-in, or one of HANDLERS, takes the option."""
        takes = _TAKERS.get(self.scope)
        return runs == self.scope if takes is None else takes(net, runs)

    @property
    def scope_text(self) -> str:
        """The scope as people say it."""
        return _SCOPES.get(self.scope, f"{self.scope} services")

    @property
    def default_text(self) -> str:
        """The default as it would be written; empty when there is nothing to write."""
        if self.default is None and not self.kind.takes_none:
            return ""
        return self.kind.write(self.default)


def option(kind: ValueType[T], default: T | None, group: str, scope: str, text: str, *, xinetd: str = "") -> Any:  # noqa: ANN401 - as dataclasses.field
    """A field of Options that is a row of the table.

    Args:
        kind: the type of its value.
        default: the value without it; None says that nothing is set, if that is no value of the kind.
        group: a key of GROUPS.
        scope: who takes it, as in OptionInfo.
        text: its help.
        xinetd: xinetd's word for it.
    """
    metadata = {"kind": kind, "group": group, "scope": scope, "help": text, "xinetd": xinetd}
    return dataclasses.field(default=default, metadata=metadata)
