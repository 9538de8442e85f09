"""svcctl's commands for a running daemon: requests over its control socket, answers as text."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from svcd.cli.argument_types import count_of, seconds_of
from svcd.cli.control_views import view
from svcd.cli.terminal import Output
from svcd.host.control_path import control_paths, directory_problem
from svcd.wire.control_protocol import COMMANDS, Command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["add_commands", "daemon_status"]

#: The exit status by the code of a failed request (sysexits(3)).
_EXITS = {"usage": os.EX_USAGE, "config": os.EX_CONFIG, "refused": 1, "busy": os.EX_TEMPFAIL, "error": os.EX_SOFTWARE}
#: How long an answer may take, in seconds: a reload imports modules.
_TIMEOUT_SECONDS = 120.0


class _UnavailableError(Exception):
    """Error: no daemon answers."""


class _FailedError(Exception):
    """Error: the daemon has answered that a command failed.

    Args:
        text: the reason.
        code: the code of the answer.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


def send_command(
    path: str, command: str, arguments: Mapping[str, object], seconds: float = _TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Send a request, and return the answer.

    Raises:
        _UnavailableError: no daemon answers.
    """
    question = json.dumps({"id": 1, "command": command, "arguments": dict(arguments)}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(seconds + float(str(arguments.get("timeout", 0))))
            client.connect(path)
            client.sendall(question)
            with client.makefile("rb") as answers:
                line = answers.readline()
    except FileNotFoundError as error:
        raise _no_socket(path) from error
    except PermissionError as error:
        text = f"no access to {path}: {error.strerror}; run svcctl as root or as the user of the daemon"
        raise _UnavailableError(text) from error
    except OSError as error:
        raise _UnavailableError(f"no daemon answers at {path}: {error.strerror or error}") from error
    return _answer(path, line)


def _no_socket(paths: str) -> _UnavailableError:
    """Return the error for paths without a control socket."""
    return _UnavailableError(
        f"no control socket found at {paths}; start svcd with --control PATH, or pass --control PATH"
    )


def _answer(path: str, line: bytes) -> dict[str, Any]:
    """Parse a line into an answer.

    Raises:
        _UnavailableError: it is not an answer, or incomplete.
    """
    if not line:
        raise _UnavailableError(f"the daemon at {path} has closed the connection before its answer")
    if not line.endswith(b"\n"):
        raise _UnavailableError(
            f"the daemon at {path} has closed the connection in the middle of its answer, after {len(line)} bytes; "
            "its log may contain the reason"
        )
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found.keys() >= ({"result"} if found.get("ok") else {"code", "error"}):
        raise _UnavailableError(f"the process at {path} is not svcd: it violates the control protocol")
    return found


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add a parser for each command of the control protocol.

    Args:
        add: add_parser of argparse's subparsers.
    """
    for command in COMMANDS.values():
        parser = add(command.name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}.")
        for argument in command.arguments:
            if argument.kind is bool:
                flag = f"--{argument.name.replace('_', '-')}"
                parser.add_argument(flag, action="store_true", help=argument.help)
            elif argument.kind is float:
                parser.add_argument(f"--{argument.name}", type=seconds_of, metavar="SECONDS", help=argument.help)
            else:
                count = None if argument.needed else "?"
                parser.add_argument(argument.name, nargs=count, metavar=argument.name.upper(), help=argument.help)
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")
        parser.set_defaults(run=_run, command=command)
    top = add(
        "top",
        help="show the status, refreshed each second",
        description="Shows the status, refreshed each second; q ends it.",
    )
    top.add_argument(
        "--sort",
        choices=("connections", "rate", "service"),
        default="connections",
        help="sort key: open connections, rate, or service name; default: connections",
    )
    top.add_argument("--count", type=count_of, default=0, metavar="N", help="end after N refreshes")
    top.set_defaults(run=_top)


def _arguments(command: Command, chosen: argparse.Namespace) -> dict[str, object]:
    given = {argument.name: getattr(chosen, argument.name) for argument in command.arguments}
    if given.get("file"):
        # The daemon has another working directory.
        given["file"] = os.path.abspath(given["file"])  # noqa: PTH100 - as it was written
    return {name: value for name, value in given.items() if value not in (None, False)}


def _path(chosen: argparse.Namespace) -> str:
    """Return the path of the daemon's socket: the named one, or the usual path at which there is a socket.

    Raises:
        _UnavailableError: there is no socket, or it is where other users can create one.
    """
    if chosen.control:
        return str(chosen.control)
    places, problems = control_paths(), []
    for place in places:
        problem = directory_problem(place.directory) if place.private else ""
        if problem:
            problems.append(problem)
        elif len(places) == 1 or os.path.lexists(place.path):
            return place.path
    if problems:
        raise _UnavailableError(f"no directory for the control socket: {'; '.join(problems)}")
    paths = " or ".join(place.path for place in places)
    raise _no_socket(paths)


def daemon_status(chosen: argparse.Namespace, seconds: float) -> Mapping[str, Any] | None:
    """Return the status of the daemon that a command line means; None if none answers within the time in seconds."""
    try:
        found = send_command(_path(chosen), "status", {}, seconds)
    except _UnavailableError:
        return None
    result = found["result"] if found["ok"] else None
    return result if isinstance(result, dict) else None


def _run(chosen: argparse.Namespace) -> int:
    command: Command = chosen.command
    try:
        found = send_command(_path(chosen), command.name, _arguments(command, chosen))
    except _UnavailableError as error:
        print(f"svcctl: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    if not found["ok"]:
        if chosen.json and found.get("problems"):
            print(json.dumps(_change_document({}, found["problems"]), indent=2))
        else:
            print(found["error"], file=sys.stderr)
        return _EXITS.get(found["code"], 1)
    result = found["result"]
    # A reload that leaves services broken has changed the others.
    faults = result.get("faults", []) if isinstance(result, dict) else []
    if chosen.json:
        print(json.dumps(_change_document(result, []) if command.name in _CHANGES else result, indent=2))
        return int(bool(faults))
    for line in view(command.name, result, Output.current()):
        print(line)
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


#: The commands with the JSON document of changes.
_CHANGES = ("diff", "reload")


def _change_document(result: Mapping[str, Any], problems: Sequence[object]) -> dict[str, Any]:
    """Return the document of `svcctl diff --json` and `svcctl reload --json`.

    Args:
        result: the answer of the daemon; empty if there is none because of problems.
        problems: the problems because of which nothing changes.
    """
    names = ("changes", "faults", "added", "removed", "changed", "opened", "closed", "broken")
    return {"version": 1, **{name: [] for name in names}, **result, "problems": problems}


def _top(chosen: argparse.Namespace) -> int:
    from svcd.cli.top import show_top

    def status() -> dict[str, Any]:
        found = send_command(_path(chosen), "status", {})
        if not found["ok"]:
            raise _FailedError(found["error"], found["code"])
        result: dict[str, Any] = found["result"]
        return result

    try:
        show_top(status, chosen.sort, chosen.count)
    except _UnavailableError as error:
        print(f"svcctl: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except _FailedError as error:
        print(error, file=sys.stderr)
        return _EXITS.get(error.code, 1)
    except KeyboardInterrupt:
        return 0
    return 0
