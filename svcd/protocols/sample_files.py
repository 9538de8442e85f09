"""Texts generated from the catalog of built-ins: the default services file and the installed services file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.model import SocketType
from svcd.protocols.catalog import BUILTINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.protocols.catalog import Builtin

__all__ = ["default_ports", "default_services", "sample_lines"]

_BY_DEFAULT = sorted((builtin.default_port, name) for name, builtin in BUILTINS.items() if builtin.default_port)


def _protocols(builtin: Builtin) -> list[str]:
    return ["tcp", "udp"] if SocketType.DATAGRAM in builtin.shapes else ["tcp"]


def default_services() -> str:
    """Return the default services file: high ports, loopback addresses only. It is used if no other file exists."""
    lines = ["@defaults bind=127.0.0.1,::1", ""]
    for port, name in _BY_DEFAULT:
        lines += [f"{name:9} {port}/{protocol}" for protocol in _protocols(BUILTINS[name])]
    return "\n".join(lines) + "\n"


def default_ports() -> str:
    """Return the names and ports of the default services file, as text."""
    both, streams = (
        ", ".join(f"{name} {port}" for port, name in _BY_DEFAULT if len(_protocols(BUILTINS[name])) == count)
        for count in (2, 1)
    )
    return f"over TCP and UDP {both}; over TCP {streams}"


def _line(name: str, builtin: Builtin, protocol: str, prefix: str = "") -> str:
    aliases = " ".join(builtin.aliases)
    return f"{prefix + name:9} {f'{builtin.port}/{protocol}':15} {aliases:10} {builtin.sample}".rstrip()


def sample_lines() -> Iterator[str]:
    """Yield the lines of the installed services file for built-ins: enabled lines, then lines commented out."""
    by_port = sorted(BUILTINS.items(), key=lambda item: item[1].port)
    for name, builtin in by_port:
        if not builtin.default_port or builtin.sample:
            continue
        for protocol in _protocols(builtin):
            if protocol == "udp" and builtin.amplifies:
                yield f"# {builtin.note}"
                yield _line(name, builtin, protocol, "#")
            else:
                yield _line(name, builtin, protocol)
    for name, builtin in by_port:
        if not builtin.default_port or builtin.sample:
            yield from ("", f"# {builtin.note}", _line(name, builtin, "tcp", "#"))
