"""The one table of options. The parser, the checks, `svcctl options`, the manual page and the README come from it.

A row is a field of Options: its annotation is the Python type, its metadata an OptionInfo.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from svcd.config.kinds import (
    COUNT,
    DURATION,
    MODE,
    NAMES,
    PATH,
    TEXT,
    WORD,
    WORDS,
    YES_NO,
    Kind,
    choice,
    choices,
)
from svcd.model import Net, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GROUPS", "TABLE", "OptionInfo", "Options"]

T = TypeVar("T")

#: The groups of the table, in the order of the manual.
GROUPS = {
    "where": "Where it listens",
    "who": "Who may come in",
    "how long": "How long",
    "said": "What is said and logged",
    "daytime": "For daytime",
    "qotd": "For qotd",
    "http": "For http",
    "misc": "Other",
}

#: Scopes by which a row is limited to some services: what the scope is called, and whether it holds.
_SCOPES = {
    "any": "any service",
    "stream": "stream services (tcp, unix)",
    "inet": "services with a port (tcp, udp)",
    "tcp": "tcp services",
    "local": "UNIX sockets (unix, unixgram)",
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
    kind: Kind[Any]
    default: object
    group: str
    scope: str
    help: str
    xinetd: str = ""

    def applies_to(self, net: Net, runs: str) -> bool:
        """Whether a service of this protocol that runs this built-in takes the option."""
        match self.scope:
            case "any":
                return True
            case "stream":
                return net.shape is Shape.STREAM
            case "inet":
                return not net.local
            case "tcp":
                return net.shape is Shape.STREAM and not net.local
            case "local":
                return net.local
            case builtin:
                return runs == builtin

    @property
    def scope_text(self) -> str:
        """The scope as people say it."""
        return _SCOPES.get(self.scope, f"{self.scope} services")

    @property
    def default_text(self) -> str:
        """The default as it would be written; empty when there is nothing to write."""
        return self.kind.write(self.default) if self.default not in ("", ()) else ""


def _row(kind: Kind[T], default: T, group: str, scope: str, text: str, *, xinetd: str = "") -> Any:  # noqa: ANN401 - as dataclasses.field
    metadata = {"kind": kind, "group": group, "scope": scope, "help": text, "xinetd": xinetd}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one service, each with its value or its default."""

    bind: tuple[str, ...] = _row(
        WORDS, (), "where", "inet",
        "Addresses, network interfaces or host names to listen on, with commas between them; default: all addresses.",
        xinetd="bind, interface",
    )  # fmt: skip
    backlog: int = _row(
        COUNT, 128, "where", "stream",
        "How many connections the kernel keeps waiting to be accepted.",
    )  # fmt: skip
    v6only: bool = _row(
        YES_NO, True, "where", "inet",
        "With no, a tcp6 or udp6 service takes IPv4 clients as well.",
    )  # fmt: skip
    keepalive: bool = _row(
        YES_NO, False, "where", "tcp",
        "Let the kernel probe silent connections and end dead ones.",
        xinetd="flags = KEEPALIVE",
    )  # fmt: skip
    nodelay: bool = _row(
        YES_NO, True, "where", "tcp",
        "Send small answers at once (TCP_NODELAY).",
        xinetd="flags = NODELAY",
    )  # fmt: skip
    reuse_port: bool = _row(
        YES_NO, False, "where", "inet",
        "Share the port with other processes that ask for it too (SO_REUSEPORT).",
    )  # fmt: skip
    mode: int = _row(
        MODE, 0o660, "where", "local",
        "Permissions of the socket file.",
    )  # fmt: skip
    owner: str = _row(
        WORD, "", "where", "local",
        "User that owns the socket file, by name or number; default: who runs the daemon.",
    )  # fmt: skip
    group: str = _row(
        WORD, "", "where", "local",
        "Group of the socket file, by name or number; default: the group that runs the daemon.",
    )  # fmt: skip
    resolve: bool = _row(
        YES_NO, False, "who", "stream",
        "Look up the client's host name, without blocking, and log it.",
    )  # fmt: skip
    shutdown_timeout: float = _row(
        DURATION, 10.0, "how long", "stream",
        "How long open connections may go on once the daemon is told to stop.",
    )  # fmt: skip
    log_on_success: tuple[str, ...] = _row(
        choices("PID", "HOST", "EXIT", "DURATION", "TRAFFIC"), ("HOST", "EXIT", "DURATION", "TRAFFIC"),
        "said", "stream",
        "What the accept and end lines of a connection say: the process, the client, the reason of the end, the "
        "seconds, the bytes. With none there are no such lines.",
        xinetd="log_on_success",
    )  # fmt: skip
    utc: bool = _row(
        YES_NO, False, "daytime", "daytime",
        "Tell universal instead of local time.",
    )  # fmt: skip
    date_format: str = _row(
        choice("classic", "iso8601"), "classic", "daytime", "daytime",
        "Sat Nov 21 10:12:00 2026 or 2026-11-21T10:12:00+01:00.",
    )  # fmt: skip
    quotes: str = _row(
        PATH, "", "qotd", "qotd",
        "File with the quotations, between lines of a single %; those of 512 characters and more are left out. "
        "Default: a few of our own.",
    )  # fmt: skip
    root: str = _row(
        PATH, "", "http", "http",
        "Directory whose files are served; default: a page that greets the client.",
    )  # fmt: skip
    index: tuple[str, ...] = _row(
        NAMES, ("index.html",), "http", "http",
        "Files to answer with when a directory is asked for; the first that exists.",
    )  # fmt: skip
    symlinks: bool = _row(
        YES_NO, False, "http", "http",
        "Follow symbolic links below root, wherever they lead.",
    )  # fmt: skip
    disable: bool = _row(
        YES_NO, False, "misc", "any",
        "Leave the line in the file but do not serve it.",
        xinetd="disable",
    )  # fmt: skip
    description: str = _row(
        TEXT, "", "misc", "any",
        "What the service is for, in your words.",
    )  # fmt: skip


#: The rows by name, in the order above.
TABLE: Mapping[str, OptionInfo] = {
    field.name: OptionInfo(name=field.name, default=field.default, **field.metadata)
    for field in dataclasses.fields(Options)
}
