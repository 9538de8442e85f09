"""svcctl: the command line tool of svcd."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from svcd import __version__
from svcd.cli.client_arguments import add_clients
from svcd.cli.control_commands import add_commands
from svcd.cli.file_commands import add_file_commands
from svcd.cli.install import add_install
from svcd.process.signals import reset_inherited_signals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["main"]

# Commands import what only they need: the import of Twisted takes longer than all that other commands do.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the words after the name of the program; None for those of the process.

    Returns:
        The exit status: 0, 1 for a client that would be refused, 64 for a wrong command line, 69, 73 and 77 for an
        installation that can't be made, 74 for an output that can't be written, 78 for a services file with Problems;
        svcctl(1) has them all.
    """
    reset_inherited_signals()
    if sys.stdout is None:
        # Closed by the caller (`>&-`): the output is not wanted.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head(1), has ended.
        _give_up_output()
        return 0
    except OSError as error:
        if error.filename is not None:
            raise
        _give_up_output()
        print(f"svcctl: standard output: {error.strerror}", file=sys.stderr)
        return os.EX_IOERR
    return status


def _give_up_output() -> None:
    """Replace the output, so that Python's flush at the exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser that exits with EX_USAGE, as sysexits(3) requires, not with 2.

    Attributes:
        mixes: whether options may stand between optional arguments, as in `echo HOST -u PORT`.
    """

    mixes = True

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse a command line, also that of a command."""
        if not self.mixes:
            return super().parse_known_args(args, namespace)
        # parse_known_intermixed_args() calls this method twice.
        self.mixes = False
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixes = True

    def _check_value(self, action: argparse.Action, value: str) -> None:
        # argparse would list all commands.
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:  # noqa: SLF001 - its type
            raise argparse.ArgumentError(None, _unknown_command(value, action.choices))
        super()._check_value(action, value)

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="svcctl",
        description="Control a running svcd, check and explain services files, and query servers.",
    )
    # All words after a command belong to it.
    parser.mixes = False
    parser.add_argument("--version", action="version", version=f"svcd {__version__}")
    parser.add_argument("--control", metavar="PATH", help="the control socket of the daemon; default: its default path")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_commands(commands.add_parser)

    add_file_commands(commands.add_parser)
    add_clients(commands.add_parser)
    add_install(commands, parser)
    show_help = commands.add_parser("help", help="show the help of svcctl, or of a command")
    show_help.add_argument("topic", nargs="?", metavar="COMMAND", help="the command; default: svcctl itself")
    show_help.set_defaults(run=partial(_help, parser, commands.choices))
    return parser


def _help(parser: argparse.ArgumentParser, commands: Mapping[str, _Parser], chosen: argparse.Namespace) -> int:
    if chosen.topic is None:
        parser.print_help()
    elif chosen.topic in commands:
        commands[chosen.topic].print_help()
    else:
        print(f"svcctl help: {_unknown_command(chosen.topic, commands)}", file=sys.stderr)
        return os.EX_USAGE
    return 0


def _unknown_command(word: str, known: Iterable[str]) -> str:
    """Return the message for a word that is not a command, with the nearest one."""
    # Commands without a services file need not import this.
    from svcd.config.statement import nearest_word

    near = nearest_word(word, known)
    hint = f"did you mean {near}?" if near else "svcctl help lists the commands"
    return f"there is no command {word!r}; {hint}"
