"""The option table and the built-ins as text, as Markdown for the README, and as a manual page."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from svcd import __version__
from svcd.cli.man_page import roff
from svcd.config.option_info import GROUPS, OptionInfo
from svcd.config.options import TABLE
from svcd.config.statement import nearest
from svcd.errors import UsageError
from svcd.model import SocketType
from svcd.protocols.catalog import BUILTINS, Builtin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["FORMATS", "description_of"]


def _grouped() -> Iterator[tuple[str, list[OptionInfo]]]:
    for group, infos in groupby(TABLE.values(), lambda info: info.group):
        yield GROUPS[group], list(infos)


def _facts(info: OptionInfo) -> str:
    default = f"default {info.default_text}" if info.default_text else "no default"
    word = f"; xinetd: {info.xinetd}" if info.xinetd else ""
    return f"{info.value_type.accepts}; {default}; {info.scope_text(BUILTINS)}{word}"


def _builtin_facts(builtin: Builtin) -> str:
    over = "" if SocketType.DATAGRAM in builtin.shapes else " Streams only."
    client = f"; client: svcctl {builtin.client}" if builtin.client else ""
    return f"{builtin.summary[0].upper()}{builtin.summary[1:]}.{over} Usual port: {builtin.port}{client}."


def _text() -> str:
    lines = []
    for heading, infos in _grouped():
        lines.append(f"{heading}:")
        for info in infos:
            lines += _option_lines(info)
    lines.append("Built-ins:")
    for name in BUILTINS:
        lines += _builtin_lines(name)
    return "\n".join(lines) + "\n"


def _option_lines(info: OptionInfo) -> list[str]:
    return [f"  {info.name}=", _filled(info.help), f"      ({_facts(info)})"]


def _builtin_lines(name: str) -> list[str]:
    return [f"  {name}", _filled(_builtin_facts(BUILTINS[name]))]


def _filled(text: str) -> str:
    return textwrap.fill(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)


def description_of(name: str) -> str:
    """Return the description of an option or a built-in as text.

    Raises:
        UsageError: there is neither.
    """
    wanted = name.removesuffix("=")
    lines = _option_lines(TABLE[wanted]) if wanted in TABLE else []
    if wanted in BUILTINS:
        lines += _builtin_lines(wanted)
    if not lines:
        raise UsageError(f"there is no option or built-in {name!r}{nearest(wanted, [*TABLE, *BUILTINS])}")
    return "\n".join(lines) + "\n"


def _names() -> str:
    return "".join(f"{name}\n" for name in [*TABLE, *BUILTINS])


def _markdown() -> str:
    lines = ["| option | takes | default | for | meaning |", "|---|---|---|---|---|"]
    for _, infos in _grouped():
        for info in infos:
            word = f" xinetd: `{info.xinetd}`." if info.xinetd else ""
            default = f"`{info.default_text}`" if info.default_text else ""
            scope = info.scope_text(BUILTINS)
            lines.append(f"| `{info.name}` | {info.value_type.accepts} | {default} | {scope} | {info.help}{word} |")
    lines += ["", "| built-in | over | usual port | client | what it does |", "|---|---|---|---|---|"]
    for name, builtin in BUILTINS.items():
        over = "tcp, udp, unix, unixgram" if SocketType.DATAGRAM in builtin.shapes else "tcp, unix"
        client = f"`svcctl {builtin.client}`" if builtin.client else ""
        lines.append(f"| `{name}` | {over} | {builtin.port} | {client} | {builtin.summary} |")
    return "\n".join(lines) + "\n"


_MAN_HEAD = r"""
.SH NAME
svcd\-services \- the services file of svcd
.SH DESCRIPTION
The services file lists the services of
.BR svcd .
It is
.BR services (5)
with options: each line has a name,
.IR port / protocol ,
aliases, and then options in the form
.IR name = value .
A value with blanks must be quoted: a word without = after an option is a mistake.
The option server, python, factory or redirect selects the handler.
Otherwise svcd uses the built\-in named by the service name or an alias.
.PP
A
.B #
outside quotes begins a comment.
A line that begins with white space continues the one before.
Quotes are those of a POSIX shell.
Protocols are tcp and udp (IPv4 and IPv6), tcp4, tcp6, udp4, udp6, and unix and unixgram, which take the absolute
path of a socket instead of a port, or @NAME for a socket in the abstract
name space, which every local user may connect to.
A port may be given by its name in
.BR services (5).
With port 0 the kernel picks a port, which is logged.
.PP
.B @defaults
.IR name = value ...
sets options for the lines after it that can take them, to the end of the file.
.B @include
.I pattern
reads other files, relative to this one and in sorted order.
A pattern skips hidden files, README*, and backup files of editors and packages: #*#, *~, and names with the ending
\&.bak, .new, .old, .orig, .rej, .swp, .tmp, .rpmnew, .rpmsave, .rpmorig, .dpkg\-* or .ucf\-*.
""".lstrip()


def _man() -> str:
    lines = [
        f'.TH SVCD\\-SERVICES 5 "" "svcd {__version__}" "File formats"',
        _MAN_HEAD.rstrip(),
        ".SH BUILT\\-INS",
    ]
    for name, builtin in BUILTINS.items():
        lines += [".TP", f".B {name}", roff(_builtin_facts(builtin))]
    lines.append(".SH OPTIONS")
    for heading, infos in _grouped():
        lines.append(f".SS {heading}")
        for info in infos:
            lines += [".TP", f".B {info.name}", roff(info.help), ".br", roff(f"Takes {_facts(info)}.")]
    lines += [
        ".SH EXIT STATUS",
        ".B twistd svcd",
        "and",
        ".B svcctl check",
        "print a line for each mistake of the file and exit with 78; if an address can't be listened on, with 71.",
        ".SH SEE ALSO",
        ".BR services (5),",
        ".BR twistd (1),",
        ".BR inetd (8)",
    ]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Callable[[], str]] = {
    "text": _text,
    "markdown": _markdown,
    "man": _man,
    "names": _names,
}
