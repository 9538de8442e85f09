"""Rows of the option table: the type of an option, its default, its scope, its help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from svcd.config.builtin_info import HTTP_ALPN, NO_BUILTIN, names_of
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from svcd.config.builtin_info import BuiltinInfo
    from svcd.config.value_types import ValueType
    from svcd.model import NetProtocol

__all__ = ["CGI", "GROUPS", "HANDLERS", "SCOPES", "SPAWNED", "OptionInfo", "Scope", "option"]

T = TypeVar("T")

#: The options that set a handler. A line has at most one of them; without any it runs a built-in.
HANDLERS = ("server", "python", "factory", "redirect")
#: The options whose handlers are processes of their own.
SPAWNED = ("server", "python")
#: The option of an http service that also starts processes. For the scopes of options it counts as a handler besides
#: the built-in.
CGI = "cgi"
_LAUNCHED = (*SPAWNED, CGI)
#: The options that select a handler which can be put behind WebSocket.
_BEHIND_WEBSOCKET = (*SPAWNED, "redirect")

#: The groups of the table, in the order of the manual.
GROUPS = {
    "listen": "Listening sockets",
    "access": "Access control",
    "limits": "Limits and rates",
    "timeouts": "Timeouts",
    "udp": "UDP answers",
    "handler": "Handlers",
    "process": "Processes of spawned services and CGI programs",
    "tls": "TLS",
    "websocket": "WebSocket",
    "log": "Banners and logging",
    "daytime": "daytime services",
    "qotd": "qotd services",
    "http": "http services",
    "other": "Other options",
}


def _is_counted(net: NetProtocol, runs: str) -> bool:
    """Return whether the daemon can count the bytes of a connection; of other processes the kernel counts TCP alone."""
    return net.shape is SocketType.STREAM and not (net.local and runs in SPAWNED)


def _takes_websocket(net: NetProtocol, runs: str) -> bool:
    """Return whether a service can have websocket=."""
    return net.shape is SocketType.STREAM and runs in _BEHIND_WEBSOCKET


@dataclass(frozen=True, slots=True)
class Scope:
    """A set of services that an option applies to.

    Attributes:
        text: its description; `{}` stands for the names of the built-ins that `named` selects.
        applies: decides whether a service belongs to it, given the service's protocol, what it runs (one of HANDLERS
            CGI, or the name of a built-in), and the facts about the built-in.
        named: selects the built-ins that the description names.
    """

    text: str
    applies: Callable[[NetProtocol, str, BuiltinInfo], bool]
    named: Callable[[BuiltinInfo], bool] | None = None


def _handler_scope(handler: str) -> Scope:
    return Scope(f"services with {handler}=", lambda _net, runs, _builtin: runs == handler)


#: The scopes of options. An option of one built-in has the name of the built-in as its scope.
SCOPES: Mapping[str, Scope] = {
    "any": Scope("any service", lambda _net, _runs, _builtin: True),
    "stream": Scope("stream services (tcp, unix)", lambda net, _runs, _builtin: net.shape is SocketType.STREAM),
    "inet": Scope("services with a port (tcp, udp)", lambda net, _runs, _builtin: not net.local),
    "tcp": Scope("tcp services", lambda net, _runs, _builtin: net.shape is SocketType.STREAM and not net.local),
    "udp": Scope(
        "built-ins over udp",
        lambda net, runs, _builtin: net.shape is SocketType.DATAGRAM and not net.local and runs not in SPAWNED,
    ),
    "local": Scope("UNIX sockets (unix, unixgram)", lambda net, _runs, _builtin: net.local),
    "session": Scope(
        "stream services (tcp, unix), and any with server=",
        lambda net, runs, _builtin: net.shape is SocketType.STREAM or runs in SPAWNED,
    ),
    "counted": Scope(
        "tcp services, and unix services that are not spawned", lambda net, runs, _builtin: _is_counted(net, runs)
    ),
    "client first": Scope(
        "tcp services, and unix services that are not spawned, except {}",
        lambda net, runs, builtin: _is_counted(net, runs) and not builtin.speaks_first,
        lambda builtin: builtin.speaks_first,
    ),
    "spawned": Scope("spawned services (server=, python=)", lambda _net, runs, _builtin: runs in SPAWNED),
    "launched": Scope(
        "spawned services (server=, python=) and services with cgi=", lambda _net, runs, _builtin: runs in _LAUNCHED
    ),
    "python code": Scope(
        "services with python= or factory=", lambda _net, runs, _builtin: runs in ("python", "factory")
    ),
    "group": Scope(
        "spawned services (server=, python=), services with cgi= and UNIX sockets (unix, unixgram)",
        lambda net, runs, _builtin: net.local or runs in _LAUNCHED,
    ),
    "tls": Scope(
        "stream services (tcp, unix), except {}",
        lambda net, _runs, builtin: net.shape is SocketType.STREAM and not builtin.multiplexer,
        lambda builtin: builtin.multiplexer,
    ),
    "http server": Scope(
        "{} services",
        lambda _net, _runs, builtin: HTTP_ALPN in builtin.alpn,
        lambda builtin: HTTP_ALPN in builtin.alpn,
    ),
    "websocket": Scope(
        "stream services (tcp, unix) with server=, python= or redirect=",
        lambda net, runs, _builtin: _takes_websocket(net, runs),
    ),
    "request": Scope(
        "{} services, and services with websocket=",
        lambda net, runs, builtin: HTTP_ALPN in builtin.alpn or _takes_websocket(net, runs),
        lambda builtin: HTTP_ALPN in builtin.alpn,
    ),
    **{handler: _handler_scope(handler) for handler in (*HANDLERS, CGI)},
}


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """A row of the option table.

    Attributes:
        name: the name of the option.
        value_type: the type of its value.
        default: its default.
        group: a key of GROUPS, for its heading in the manual.
        scope: a key of SCOPES, or the name of the built-in that it applies to.
        help: its description.
        xinetd: the corresponding words of xinetd.conf(5); empty if there are none.
        systemd: the corresponding words of systemd.socket(5) and systemd.exec(5); empty if there are none.
        example: a line of a services file.
    """

    name: str
    value_type: ValueType[Any]
    default: object
    group: str
    scope: str
    help: str
    xinetd: str = ""
    systemd: str = ""
    example: str = ""

    def applies_to(
        self, net: NetProtocol, runs: str, builtins: Mapping[str, BuiltinInfo], *, cgi: bool = False
    ) -> bool:
        """Return whether the option applies to a service.

        Args:
            net: the service's protocol.
            runs: what it runs: one of HANDLERS, or the name of a built-in.
            builtins: the facts about all built-ins.
            cgi: whether it has cgi=, which applies to it.
        """
        scope = SCOPES.get(self.scope)
        if scope is None:
            return runs == self.scope
        builtin = builtins.get(runs, NO_BUILTIN)
        return scope.applies(net, runs, builtin) or (cgi and scope.applies(net, CGI, builtin))

    def scope_text(self, builtins: Mapping[str, BuiltinInfo]) -> str:
        """Return the description of the scope."""
        scope = SCOPES.get(self.scope)
        if scope is None:
            return f"{self.scope} services"
        return scope.text if scope.named is None else scope.text.format(names_of(builtins, scope.named))

    @property
    def default_text(self) -> str:
        """The default as written in a services file; empty if it can't be written."""
        if self.default is None and not self.value_type.takes_none:
            return ""
        return self.value_type.write(self.default)


def option(
    value_type: ValueType[T],
    default: T | None,
    group: str,
    scope: str,
    text: str,
    **more: str,
) -> Any:  # noqa: ANN401 - as dataclasses.field
    """Return a dataclass field of ServiceOptions that becomes a row of the table.

    Args:
        value_type: the type of its value.
        default: its default; None means not set if it is not a value of the type.
        group: a key of GROUPS.
        scope: a key of SCOPES, or the name of a built-in.
        text: its description.
        more: the attributes xinetd, systemd and example of OptionInfo.
    """
    metadata = {"value_type": value_type, "group": group, "scope": scope, "help": text, **more}
    return dataclasses.field(default=default, metadata=metadata)
