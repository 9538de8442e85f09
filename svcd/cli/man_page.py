"""The manual page svcctl(1), made from its parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd import __version__
from svcd.cli.parser_model import commands_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from svcd.cli.parser_model import ParserArgument, ParserCommand

__all__ = ["manual", "roff"]

_EXITS = {
    0: "Success.",
    1: "The daemon refuses the command; a client would be refused (explain); the machine can't serve a service "
    "(check); a server sent another answer than expected.",
    64: "The command line is wrong.",
    69: "The daemon or the server can't be reached or does not answer in time. svcd can't run as a service from here "
    "(install).",
    73: "A file can't be written (install).",
    74: "An error of the standard input or output.",
    75: "The daemon is busy, or an upgrade has just replaced it; try again.",
    76: "A server violates the protocol, or its certificate can't be trusted.",
    77: "Permission denied (install).",
    78: "The services file has mistakes.",
}


def roff(text: str) -> str:
    """Escape text for the source of a manual page (man(7))."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def manual(parser: argparse.ArgumentParser) -> str:
    """Return the manual page, with all commands and their options.

    Args:
        parser: the parser of svcctl.
    """
    program, *commands = commands_of(parser)
    lines = [
        f'.TH SVCCTL 1 "" "svcd {__version__}" "User commands"',
        ".SH NAME",
        "svcctl \\- control svcd, check its services file, talk to servers",
        ".SH SYNOPSIS",
        ".B svcctl",
        r"[\fIoptions\fR] \fIcommand\fR [\fIarguments\fR]",
        ".SH DESCRIPTION",
        roff(program.description),
        ".SH OPTIONS",
        *_arguments(program),
        ".SH COMMANDS",
    ]
    for command in commands:
        lines += [f".SS {roff(command.name)}", f".B svcctl {roff(command.name)}", " ".join(_words(command)), ".PP"]
        lines += [roff(command.description or _sentence(command.help)), *_arguments(command)]
    lines.append(".SH EXIT STATUS")
    for status, text in _EXITS.items():
        lines += [".TP", f".B {status}", roff(text)]
    lines += [".SH SEE ALSO", ".BR svcd\\-services (5),", ".BR twistd (1)"]
    return "\n".join(lines) + "\n"


def _words(command: ParserCommand) -> Iterator[str]:
    """Return the arguments of a command's synopsis, without its options."""
    yield r"[\fIoptions\fR]"
    for each in command.others:
        label = rf"\fI{roff(each.label)}\fR" + (" ..." if each.arity in ("*", "+") else "")
        yield f"[{label}]" if each.arity in ("?", "*") else label


def _arguments(command: ParserCommand) -> Iterator[str]:
    for each in [*command.others, *command.options]:
        if "--help" not in each.names:
            yield from (".TP", _heading(each), roff(_sentence(each.help)))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _heading(argument: ParserArgument) -> str:
    label = rf"\fI{roff(argument.label)}\fR" if argument.label else ""
    names = ", ".join(rf"\fB{roff(name)}\fR" for name in argument.names)
    return " ".join(filter(None, [names, label]))
