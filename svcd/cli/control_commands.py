"""svcctl's commands for a running daemon: requests over its control socket, answers as text."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from svcd.cli.argument_types import count_of, seconds_of
from svcd.host.control_path import control_paths, directory_problem
from svcd.wire.control_protocol import COMMANDS, Command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["add_commands", "daemon_status"]

#: The exit status by the code of a failed request (sysexits(3)).
_EXITS = {"usage": os.EX_USAGE, "config": os.EX_CONFIG, "refused": 1, "busy": os.EX_TEMPFAIL, "error": os.EX_SOFTWARE}
#: How long an answer may take, in seconds: a reload imports modules.
_TIMEOUT_SECONDS = 120.0
_TOP_SECONDS = 1.0


class _UnavailableError(Exception):
    """Error: no daemon answers."""


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
    except OSError as error:
        raise _UnavailableError(f"no daemon answers at {path}: {error.strerror or error}") from error
    return _answer(path, line)


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
            "its log says whether it has stopped"
        )
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found.keys() >= ({"result"} if found.get("ok") else {"code", "error"}):
        raise _UnavailableError(f"what answers at {path} is not svcd: it does not keep to the control protocol")
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
    top = add("top", help="status, again each second", description="Status, again each second.")
    top.add_argument("--sort", choices=("connections", "service"), default="connections", help="what comes first")
    top.add_argument("--count", type=count_of, default=0, metavar="N", help="stop after N times")
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
        raise _UnavailableError(f"no folder to look for a daemon: {'; '.join(problems)}")
    paths = " or ".join(place.path for place in places)
    raise _UnavailableError(f"no daemon answers at {paths}; name its socket by --control PATH")


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
        print(found["error"], file=sys.stderr)
        return _EXITS.get(found["code"], 1)
    result = found["result"]
    # A reload that leaves services broken has changed the others.
    faults = result.get("faults", []) if isinstance(result, dict) else []
    if chosen.json:
        print(json.dumps(result, indent=2))
        return int(bool(faults))
    view: Callable[[Any], Iterator[str]] = _VIEWS.get(command.name, _plain)
    for line in view(result):
        print(line)
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def _top(chosen: argparse.Namespace) -> int:
    shown = 0
    terminal = sys.stdout.isatty()
    try:
        while True:
            found = send_command(_path(chosen), "status", {})
            if not found["ok"]:
                print(found["error"], file=sys.stderr)
                return _EXITS.get(found["code"], 1)
            result = found["result"]
            if chosen.sort == "connections":
                result["services"].sort(key=lambda row: -row.get("connections", 0))
            else:
                result["services"].sort(key=lambda row: row["service"])
            # Cursor home; then each line and the rest of the screen are cleared (ECMA-48), which avoids flicker.
            lines = list(_status(result))
            print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J" if terminal else "\n".join(lines))
            sys.stdout.flush()
            shown += 1
            if shown == chosen.count:
                return 0
            time.sleep(_TOP_SECONDS)
    except _UnavailableError as error:
        print(f"svcctl: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except KeyboardInterrupt:
        return 0


def _status(result: Mapping[str, Any]) -> Iterator[str]:
    since = _duration(result["uptime"])
    connections, descriptors = result["connections"], result["descriptors"]
    most = "" if connections["limit"] is None else f" of {connections['limit']}"
    yield (
        f"svcd {result['version']}, pid {result['pid']}, {result['reactor']}, up {since}, "
        f"connections: {connections['open']}{most}, descriptors: {descriptors['open']} of {descriptors['limit']}"
    )
    rows = [
        (
            row["service"],
            row["state"],
            str(row.get("connections", "-")),
            str(sum(row.get("refused", {}).values())) if "refused" in row else "-",
            " ".join(row["addresses"]),
            row["runs"] + (" over TLS" if "certificate" in row else ""),
        )
        for row in result["services"]
    ]
    yield from _columns([("SERVICE", "STATE", "OPEN", "REFUSED", "ADDRESSES", "RUNS"), *rows], right={2, 3})
    for row in result["services"]:
        certificate = row.get("certificate")
        if certificate is not None and certificate["days"] < certificate["warn"]:
            yield f"{row['service']}: {certificate['file']} {_expiry(certificate['days'])}"
        for problem in row.get("problems", []):
            # The text of a socket's problem names its service.
            yield problem if problem.startswith(f"{row['service']}: ") else f"{row['service']}: {problem}"
    if result["leaving"]:
        yield f"{_counted(result['leaving'])} of services that are no more"


def _connections(result: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    # TLS and waiting connections are marked if there are any.
    tls = any("tls" in row for row in result)
    waits = any(row.get("state", "open") != "open" for row in result)
    rows = [
        (
            str(row["id"]),
            row["service"],
            row["peer"],
            _duration(row["seconds"]),
            str(row.get("in", "-")),
            str(row.get("out", "-")),
            str(row.get("pid", "-")),
            *([row.get("state", "open")] if waits else []),
            *([row.get("tls", "-"), row.get("subject", "")] if tls else []),
        )
        for row in result
    ]
    more = [*(["STATE"] if waits else []), *(["TLS", "SUBJECT"] if tls else [])]
    heading = ("ID", "SERVICE", "PEER", "TIME", "IN", "OUT", "PID", *more)
    yield from _columns([heading, *rows], right={0, 3, 4, 5, 6})


def _changes(result: Mapping[str, Any]) -> Iterator[str]:
    yield from result["changes"] or ["nothing changes"]


def _show(result: Mapping[str, Any]) -> Iterator[str]:
    width = max(map(len, result))
    for name, value in result.items():
        if isinstance(value, list):
            text = " ".join(map(str, value))
        elif isinstance(value, dict):
            text = " ".join(f"{key}={count}" for key, count in value.items()) or "-"
        else:
            text = str(value) or "-"
        yield f"{name:{width}}  {text}".rstrip()


def _upgraded(result: Mapping[str, Any]) -> Iterator[str]:
    count = result["connections"]
    rest = f"ends after its {_counted(count)}" if count else "ends"
    yield f"process {result['pid']} serves; process {result['before']} {rest}"


def _enabled(result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("already"):
        yield f"{result['service']} is on already"
    else:
        yield from _plain(result)


def _expiry(days: int) -> str:
    if days < 0:
        return "has expired"
    return f"expires in {days} day{'' if days == 1 else 's'}" if days else "expires within a day"


def _counted(connections: int) -> str:
    return f"{connections} connection{'' if connections == 1 else 's'}"


def _plain(result: Mapping[str, Any]) -> Iterator[str]:
    yield " ".join(f"{name}={value}" for name, value in result.items()) or "ok"


_VIEWS: dict[str, Callable[[Any], Iterator[str]]] = {
    "status": _status,
    "connections": _connections,
    "show": _show,
    "enable": _enabled,
    "reload": _changes,
    "diff": _changes,
    "upgrade": _upgraded,
}


def _columns(rows: Sequence[Sequence[str]], right: set[int]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
