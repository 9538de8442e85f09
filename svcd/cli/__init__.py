"""svcctl: the command line tool of svcd."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from svcd import __version__
from svcd.addresses import LOCAL_CLIENT
from svcd.cli.client_arguments import add_clients
from svcd.cli.control_commands import add_commands
from svcd.cli.install import add_install
from svcd.defaults import SERVICES_FILE
from svcd.errors import ConfigError, UsageError
from svcd.process.signals import reset_inherited_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# Commands import what only they need: the import of Twisted takes longer than all that other commands do.

#: The formats of the list of options, those of svcd.cli.option_tables.
_FORMATS = ("man", "markdown", "text")
_DEFAULT_FILE = f"the running daemon's, else {SERVICES_FILE}, else the embedded one"


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

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="svcctl",
        description="Controls a running svcd, checks and explains services files, and talks to servers of all kinds.",
    )
    # All words after a command belong to it.
    parser.mixes = False
    parser.add_argument("--version", action="version", version=f"svcd {__version__}")
    parser.add_argument("--control", metavar="PATH", help="the daemon's control socket; default: its usual place")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_commands(commands.add_parser)

    check = commands.add_parser("check", help="say where services would listen, or what is wrong with their file")
    check.add_argument("file", nargs="?", help=f"the services file; default: {_DEFAULT_FILE}")
    check.add_argument("--port-offset", type=int, metavar="N", help="added to every port; default: 0, or the daemon's")
    check.add_argument("--user", help="as whom to check, for root; default: the user that serves the file, where known")
    check.set_defaults(run=_check)

    explain = commands.add_parser(
        "explain",
        help="say what would happen to a client of a service, and which rule decides",
        description="Says what would happen to somebody who comes to a service, step by step, by the services file "
        "alone: no daemon is asked. The exit status is 0 for whoever is admitted, as far as the file decides, 1 for "
        "whoever is refused.",
    )
    explain.add_argument("service", help="its name, or name/protocol")
    explain.add_argument("address", help=f"the client's, or {LOCAL_CLIENT} for a UNIX socket's")
    explain.add_argument("--services", metavar="FILE", help=f"default: {_DEFAULT_FILE}")
    explain.add_argument("--at", metavar="TIME", help="as 18:30 or 2026-01-31T18:30; default: now")
    explain.set_defaults(run=_explain)

    options = commands.add_parser("options", help="list the options and the built-ins of the services file")
    options.add_argument("--format", choices=_FORMATS, default="text", help="how to write the list")
    options.set_defaults(run=_options)

    add_clients(commands.add_parser)
    add_install(commands, parser)
    return parser


#: The exit status for a file without mistakes of which the machine can't serve all services.
_FAULTS = 1


def _check(chosen: argparse.Namespace) -> int:
    # All imports, before a change to a user that perhaps can't read the modules.
    import svcd.config.tls_files  # noqa: F401 - as above
    from svcd.cli.services_file import KnownAddresses, become, source_of
    from svcd.config_loader import listing, load_config
    from svcd.host.files import LocalFiles
    from svcd.host.info import Host

    try:
        source = source_of(chosen.file, chosen)
        known = KnownAddresses.now(chosen)
        user = become(chosen.user or source.reader)
        handlers = f", handlers as {source.handlers}" if source.handlers and not chosen.user else ""
        print(f"svcctl check: {source.name}; as user {user}{handlers}", file=sys.stderr)
        offset = source.port_offset if chosen.port_offset is None else chosen.port_offset
        machine = Host(thorough=True, user="" if chosen.user else source.handlers)
        loaded = load_config(source.file, LocalFiles(), port_offset=offset, machine=machine)
    except (ConfigError, UsageError) as error:
        print(error if isinstance(error, ConfigError) else f"svcctl check: {error}", file=sys.stderr)
        return error.exit_code
    in_use, doubtful = known.problems(loaded.desired.endpoints)
    faults = [*loaded.faults, *source.rights(loaded, user), *in_use]
    for problem in (*faults, *loaded.warnings, *doubtful):
        print(problem, file=sys.stderr)
    for line in listing(loaded.desired.endpoints):
        print(line)
    if not faults:
        return 0
    broken = ", ".join(dict.fromkeys(fault.service for fault in faults))
    print(f"svcctl check: the machine can't serve {broken} at the moment", file=sys.stderr)
    return _FAULTS


def _explain(chosen: argparse.Namespace) -> int:
    from svcd.cli.explain import explanation, services_named
    from svcd.cli.services_file import source_of
    from svcd.config_loader import load_config
    from svcd.host.files import LocalFiles

    try:
        source = source_of(chosen.services, chosen)
        print(f"svcctl explain: {source.name}", file=sys.stderr)
        config = load_config(source.file, LocalFiles()).config
        found = [explanation(service, chosen.address, chosen.at) for service in services_named(config, chosen.service)]
    except (ConfigError, UsageError) as error:
        print(error if isinstance(error, ConfigError) else f"svcctl explain: {error}", file=sys.stderr)
        return error.exit_code
    print("\n\n".join("\n".join(lines) for _, lines in found))
    return 0 if all(admitted for admitted, _ in found) else 1


def _options(chosen: argparse.Namespace) -> int:
    from svcd.cli.option_tables import FORMATS

    print(FORMATS[chosen.format](), end="")
    return 0
