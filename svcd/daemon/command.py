"""The command `svcd`: `twistd -n --pidfile= svcd`, with a usage text of its own."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from twisted.python import usage

from svcd import __version__
from svcd.config.statement import nearest
from svcd.daemon.options import Options
from svcd.defaults import SERVICES_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["help_text", "main"]

_USAGE = "usage: svcd [--services FILE] [OPTION ...]"
#: The options of twistd with which it runs svcd in the foreground and without a pid file.
_TWISTD = ("--nodaemon", "--pidfile=", "svcd")
_WIDTH = 80
_INDENT = 28
#: The labels of the values of options.
_LABELS = {"services": "FILE", "port-offset": "N", "control": "PATH", "max-connections": "N", "log-format": "FORMAT",
           "log-addresses": "full|short"}  # fmt: skip


def main() -> None:
    """Run the daemon in the foreground; exit with EX_USAGE for a wrong command line."""
    words = sys.argv[1:]
    if "--help" in words or "-h" in words:
        print(help_text(), end="")
        return
    if "--version" in words:
        print(f"svcd {__version__}")
        return
    # Imported here, since it takes long and --help does not need it.
    from twisted.scripts._twistd_unix import ServerOptions
    from twisted.scripts.twistd import runApp

    options = ServerOptions()
    try:
        options.parseOptions([*_TWISTD, *words])
    except usage.UsageError as error:
        _fail(str(error))
    runApp(options)


def _fail(text: str) -> None:
    """Print two lines about a wrong command line, and exit."""
    # systemd reads the priority err from a line of a unit (sd-daemon(3)).
    priority = "<3>" if _is_journal() else ""
    # Twisted writes this before the texts of the functions that check values.
    text = text.removeprefix("Parameter type enforcement failed: ")
    unknown = re.fullmatch(r"option (--?\S+) not recognized", text)
    hint = "" if unknown is None else nearest(unknown[1], [f"--{name}" for name, _, _ in _rows()])
    print(f"{priority}svcd: {text}{hint}\n{priority}{_USAGE}; svcd --help lists the options", file=sys.stderr)
    sys.exit(os.EX_USAGE)


def _is_journal() -> bool:
    try:
        found = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _rows() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the short name and the help of each option."""
    parameters: Any = Options.optParameters
    for name, short, default, text, *_ in parameters:
        shown = f" [default: {default}]" if default not in (None, 0) else ""
        yield name, short or "", f"{text}{shown}"
    flags: Any = Options.optFlags
    for name, short, text in flags:
        yield name, short or "", text
    yield "version", "", "Print the version and exit."
    yield "help", "h", "Print this text and exit."


def help_text() -> str:
    """Return the text of --help."""
    about = (
        "Runs the super-server in the foreground; Ctrl-C stops it. Without --services it reads "
        f"{SERVICES_FILE}, or serves built-ins on the loopback interface if there is no such file."
    )
    lines: list[str] = [_USAGE, "", *textwrap.wrap(about, _WIDTH), ""]
    for name, short, text in _rows():
        label = f" {_LABELS[name]}" if name in _LABELS else ""
        option = f"  {f'-{short}, ' if short else '    '}--{name}{label}"
        wrapped = textwrap.wrap(text, _WIDTH - _INDENT)
        if len(option) < _INDENT - 1:
            lines.append(f"{option:{_INDENT}}{wrapped.pop(0)}")
        else:
            lines.append(option)
        lines += [" " * _INDENT + line for line in wrapped]
    more = (
        "twistd runs it in the background, as another user or with another log: see twistd(1) and twistd svcd --help."
    )
    return "\n".join([*lines, "", *textwrap.wrap(more, _WIDTH), ""])
