"""svcctl's commands about a services file: check, explain, options, names."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from svcd.addresses import LOCAL_CLIENT
from svcd.defaults import SERVICES_FILE
from svcd.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from svcd.model import ConfigProblem

__all__ = ["add_file_commands"]

# Commands import what only they need: the import of Twisted takes longer than all that other commands do.

#: The formats of the list of options, those of svcd.cli.option_tables.
_FORMATS = ("markdown", "names", "text")
_DEFAULT_FILE = f"the file of the running daemon, else {SERVICES_FILE}, else the built-in services"
#: The exit status for a file without mistakes of which the machine can't serve all services.
_FAULTS = 1


def add_file_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the parsers of the commands.

    Args:
        add: add_parser of argparse's subparsers.
    """
    check = add("check", help="check a services file and list the sockets of its services")
    check.add_argument("file", nargs="?", help=f"the services file; default: {_DEFAULT_FILE}")
    check.add_argument(
        "--port-offset", type=int, metavar="N", help=("number added to every port; default: the daemon's, or 0")
    )
    check.add_argument(
        "--user", help="the user to check as (only for root); default: the user that serves the file, where known"
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.set_defaults(run=_check)

    explain = add(
        "explain",
        help="show whether a service would admit a client, and which rule decides",
        description="Shows step by step whether a service would admit a client. The services file decides; no daemon "
        "is asked. The exit status is 0 if the client is admitted, as far as the file decides, and 1 if it is refused.",
    )
    explain.add_argument("service", metavar="SERVICE", help="service name, or name/protocol")
    explain.add_argument("address", help=f"the address of the client; {LOCAL_CLIENT} for a client of a UNIX socket")
    explain.add_argument("--services", metavar="FILE", help=f"default: {_DEFAULT_FILE}")
    explain.add_argument("--at", metavar="TIME", help="a time such as 18:30 or 2026-01-31T18:30; default: now")
    explain.add_argument("--json", action="store_true", help="print the result as JSON")
    explain.set_defaults(run=_explain)

    options = add("options", help="list the options and the built-ins of the services file, or describe one of them")
    options.add_argument("name", nargs="?", metavar="OPTION", help="the option or built-in; default: all")
    options.add_argument("--format", choices=_FORMATS, default="text", help="the format of the list; default: text")
    options.add_argument("--json", action="store_true", help="print the list as JSON")
    options.set_defaults(run=_options)

    names = add("names", help="list the names of the services, for scripts and shell completion")
    names.add_argument("--services", metavar="FILE", help=f"default: {_DEFAULT_FILE}")
    names.set_defaults(run=_names)


def _check(chosen: argparse.Namespace) -> int:
    # All imports, before a change to a user that perhaps can't read the modules.
    import svcd.config.tls_files  # noqa: F401 - as above
    from svcd.cli.documents import check_document
    from svcd.cli.services_file import KnownAddresses, become, require_modules, source_of
    from svcd.config_loader import listing, load_config
    from svcd.host.files import LocalFiles
    from svcd.host.info import Host

    name = user = ""
    try:
        source = source_of(chosen.file, chosen)
        name = source.name
        known = KnownAddresses.now(chosen)
        user = become(chosen.user or source.reader)
        print(f"svcctl check: {name}; as user {user}{'' if chosen.user else source.handlers_text}", file=sys.stderr)
        require_modules(user)
        offset = source.port_offset if chosen.port_offset is None else chosen.port_offset
        machine = Host(thorough=True, user="" if chosen.user else source.handlers)
        loaded = load_config(source.file, LocalFiles(), port_offset=offset, machine=machine)
    except (ConfigError, UsageError) as error:
        return _failed("check", error, chosen, lambda problems: check_document(name, user, (), problems))
    endpoints = loaded.desired.endpoints
    in_use, doubtful = known.problems(endpoints)
    faults = [*loaded.faults, *source.rights(loaded, user), *in_use]
    problems = [*faults, *loaded.warnings, *doubtful]
    if chosen.json:
        print(json.dumps(check_document(name, user, endpoints, problems), indent=2))
        return _FAULTS if faults else 0
    # A problem of @defaults concerns several services.
    for text in dict.fromkeys(map(str, problems)):
        print(text, file=sys.stderr)
    for line in listing(endpoints):
        print(line)
    if not faults:
        return 0
    broken = ", ".join(dict.fromkeys(fault.service for fault in faults))
    print(f"svcctl check: the machine can't serve {broken} at the moment", file=sys.stderr)
    return _FAULTS


def _failed(
    command: str,
    error: ConfigError | UsageError,
    chosen: argparse.Namespace,
    document: Callable[[Sequence[ConfigProblem]], dict[str, Any]],
) -> int:
    """Print the error of a command, the problems of a file as a document with --json; return the exit status."""
    if chosen.json and isinstance(error, ConfigError):
        print(json.dumps(document(error.problems), indent=2))
    else:
        print(error if isinstance(error, ConfigError) else f"svcctl {command}: {error}", file=sys.stderr)
    return error.exit_code


def _explain(chosen: argparse.Namespace) -> int:
    from svcd.cli.documents import explain_document
    from svcd.cli.explain import explained, services_named
    from svcd.cli.services_file import source_of
    from svcd.config_loader import load_config
    from svcd.host.files import LocalFiles

    name = ""
    try:
        source = source_of(chosen.services, chosen)
        name = source.name
        print(f"svcctl explain: {source.name}", file=sys.stderr)
        config = load_config(source.file, LocalFiles()).config
        found = [explained(service, chosen.address, chosen.at) for service in services_named(config, chosen.service)]
    except (ConfigError, UsageError) as error:
        return _failed("explain", error, chosen, lambda problems: explain_document(name, (), problems))
    if chosen.json:
        print(json.dumps(explain_document(source.name, found), indent=2))
    else:
        print("\n\n".join("\n".join(each.lines()) for each in found))
    return 0 if all(each.admitted for each in found) else 1


def _options(chosen: argparse.Namespace) -> int:
    from svcd.cli.documents import options_document
    from svcd.cli.option_tables import FORMATS, description_of

    try:
        text = description_of(chosen.name) if chosen.name is not None else FORMATS[chosen.format]()
    except UsageError as error:
        print(f"svcctl options: {error}", file=sys.stderr)
        return os.EX_USAGE
    if chosen.json:
        text = json.dumps(options_document(chosen.name and chosen.name.removesuffix("=")), indent=2) + "\n"
    print(text, end="")
    return 0


def _names(chosen: argparse.Namespace) -> int:
    from svcd.cli.control_commands import daemon_status
    from svcd.cli.services_file import source_of
    from svcd.config_loader import load_config
    from svcd.host.files import LocalFiles

    status = None if chosen.services is not None else daemon_status(chosen, _NAMES_SECONDS)
    if status is not None:
        names = [row["service"] for row in status["services"]]
    else:
        try:
            config = load_config(source_of(chosen.services, chosen).file, LocalFiles()).config
        except (ConfigError, UsageError) as error:
            print(error, file=sys.stderr)
            return error.exit_code
        names = [service.id for service in config.services]
    for name in dict.fromkeys(names):
        print(name)
    return 0


#: How long `names` waits for the daemon, in seconds: a shell waits for it.
_NAMES_SECONDS = 2.0
