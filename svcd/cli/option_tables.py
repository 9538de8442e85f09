"""The option table and the built-ins as text and as Markdown."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from svcd.cli.terminal import Output
from svcd.config.option_info import GROUPS, OptionInfo
from svcd.config.options import TABLE
from svcd.config.statement import nearest
from svcd.config.xinetd_words import option_remedy
from svcd.errors import UsageError
from svcd.model import SocketType
from svcd.protocols.catalog import BUILTINS, Builtin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["FORMATS", "description_of"]


#: The width of the text on a pipe, and at most on a terminal.
_WIDTH = 96
_INDENT = " " * 6


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
    return [f"  {info.name}=", _filled(info.help), _filled(f"({_facts(info)})")]


def _builtin_lines(name: str) -> list[str]:
    return [f"  {name}", _filled(_builtin_facts(BUILTINS[name]))]


def _filled(text: str) -> str:
    width = min(Output.current().width or _WIDTH, _WIDTH)
    return textwrap.fill(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)


def description_of(name: str) -> str:
    """Return the description of an option or a built-in as text.

    Raises:
        UsageError: there is neither; the text has the replacement of a word of xinetd.
    """
    wanted = name.removesuffix("=")
    lines = _option_lines(TABLE[wanted]) if wanted in TABLE else []
    if wanted in BUILTINS:
        lines += _builtin_lines(wanted)
    if not lines:
        word, _, value = name.partition("=")
        remedy = option_remedy(word, value)
        if remedy:
            raise UsageError(f"no option {word!r}: {remedy}")
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


FORMATS: Mapping[str, Callable[[], str]] = {
    "text": _text,
    "markdown": _markdown,
    "names": _names,
}
