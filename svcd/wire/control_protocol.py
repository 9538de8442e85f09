"""The control protocol: requests and answers are lines of JSON in UTF-8 (RFC 8259).

    {"id": 1, "command": "show", "arguments": {"service": "echo/tcp"}}
    {"id": 1, "ok": true, "result": ...}
    {"id": 2, "ok": false, "code": "usage", "error": "there is no command shwo"}

`id` is any number or string that the client chooses; the answer repeats it. Answers have the order of the requests.
`Lines.feed` takes received bytes and returns the complete lines; it returns None, once, for a line longer than LONGEST,
and drops the rest of it. `Lines.end` returns the last line, which needs no line end. `request` raises RequestError,
with a text for the client, for a line that is not a request.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "COMMANDS",
    "LONGEST",
    "Argument",
    "Command",
    "ControlRequest",
    "Lines",
    "RequestError",
    "answer",
    "mistake",
    "request",
]

#: The longest line of a client, in bytes.
LONGEST = 65_536


class Argument(NamedTuple):
    """Argument of a command.

    Attributes:
        name: the key in a request.
        kind: the type: str, bool, or float for any number.
        help: the description.
        needed: whether the argument is required.
    """

    name: str
    kind: type[str] | type[bool] | type[float]
    help: str
    needed: bool = False


class Command(NamedTuple):
    """Command of the control protocol."""

    name: str
    help: str
    arguments: tuple[Argument, ...] = ()


_SERVICE = Argument("service", str, "name, or name/protocol")
_NEEDED = _SERVICE._replace(needed=True)
_NOW = Argument("now", bool, "close the connections of removed services")
_STRICT = Argument("strict", bool, "change nothing if a service can't be served")
_EMPTY = Argument("allow_empty", bool, "accept a services file in which no service is enabled")
_OLD = Argument("now", bool, "close the old daemon's connections within their shutdown_timeout")
_LEVEL = Argument("level", str, "debug, info, notice, warn, error or critical", needed=True)
_TIMEOUT = Argument("timeout", float, "maximum time until the new daemon is ready, in seconds; default: 60")
_FILE = Argument("file", str, "a services file other than the daemon's")
#: All commands, in the order of the manual.
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("status", "show the state and the connections of each service"),
        Command("show", "show the settings and the counters of a service", (_NEEDED,)),
        Command("connections", "list the connections, and the reason why one waits", (_SERVICE,)),
        Command(
            "kick",
            "close a connection by its id, or all connections of a client",
            (Argument("who", str, "connection id, or client address", needed=True),),
        ),
        Command("enable", "start a disabled service, or retry a broken one", (_NEEDED,)),
        Command("disable", "stop listening for a service, until enable or a reload", (_NEEDED,)),
        Command("pause", "stop accepting connections of a service, or of all; new clients wait", (_SERVICE,)),
        Command("resume", "accept the connections of a paused service, or of all, again", (_SERVICE,)),
        Command("restart", "restart the launcher of a service; no client is refused", (_NEEDED,)),
        Command("reload", "read the services file again and apply the changes", (_NOW, _STRICT, _EMPTY)),
        Command("diff", "show the changes that a reload would make", (_FILE,)),
        Command(
            "upgrade",
            "replace the daemon by a new process of the installed program; no client is refused",
            (_OLD, _TIMEOUT),
        ),
        Command("drain", "stop listening, and stop the daemon after the last connection"),
        Command("stop", "stop the daemon, as SIGTERM does"),
        Command("log-level", "set the lowest level of events that are logged", (_LEVEL,)),
    )
}


class ControlRequest(NamedTuple):
    """Request of a client."""

    id: int | str | None
    command: str
    arguments: dict[str, Any]


class Lines:
    """Splitter of received bytes into lines; it keeps at most LONGEST bytes."""

    def __init__(self) -> None:
        self._rest = b""
        self._dropping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take bytes and return the complete lines without their ends, and None for each line that is too long."""
        *lines, rest = (self._rest + data).split(b"\n")
        found: list[bytes | None] = []
        for line in lines:
            if self._dropping:
                # This is the end of a long line, for which None was returned already.
                self._dropping = False
            elif len(line) > LONGEST:
                found.append(None)
            elif line.strip():
                found.append(line)
        if self._dropping:
            rest = b""
        elif len(rest) > LONGEST:
            found.append(None)
            self._dropping, rest = True, b""
        self._rest = rest
        return found

    def end(self) -> list[bytes | None]:
        """Handle the end of the input: return the last line if it has no line end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() and not self._dropping else []


class RequestError(ValueError):
    """Error: a line is not a request.

    Args:
        text: the reason, for the client.
        id: the id of the request, if it is readable.
    """

    def __init__(self, text: str, id: int | str | None = None) -> None:  # noqa: A002 - its name in the protocol
        super().__init__(text)
        self.id = id


def request(line: bytes) -> ControlRequest:
    """Parse a line into a request.

    Raises:
        RequestError: the line is not a request.
    """
    try:
        data = json.loads(line)
    except RecursionError:
        raise RequestError("the request is nested too deeply") from None
    except ValueError:
        raise RequestError("the request is not JSON") from None
    if not isinstance(data, dict):
        raise RequestError("the request is not an object")
    number = data.get("id")
    if not isinstance(number, int | str | None) or isinstance(number, bool):
        raise RequestError("id is neither a number nor a string")
    name, arguments = data.get("command"), data.get("arguments", {})
    command = COMMANDS.get(name) if isinstance(name, str) else None
    if command is None:
        raise RequestError(f"unknown command; the commands are {' '.join(COMMANDS)}", number)
    if not isinstance(arguments, dict):
        raise RequestError("arguments is not an object", number)
    wrong = _wrong(command, arguments)
    if wrong:
        raise RequestError(wrong, number)
    return ControlRequest(number, command.name, arguments)


def _wrong(command: Command, arguments: dict[str, Any]) -> str:
    """Return the mistake in the arguments of a command; empty if there is none."""
    known = {argument.name: argument for argument in command.arguments}
    for name, value in arguments.items():
        if name not in known:
            return f"{command.name} takes no such argument"
        kind = known[name].kind
        if type(value) is not kind and not (kind is float and type(value) is int):
            return f"{name} must be {_KINDS[known[name].kind]}"
        if isinstance(value, str) and not value.strip():
            # A shell expands an unset variable to an empty argument, but a missing argument may mean all services.
            return f"{name.upper()} of {command.name} is empty; expected: {known[name].help}"
    for argument in command.arguments:
        if argument.needed and argument.name not in arguments:
            return f"{command.name} needs {argument.name}"
    return ""


_KINDS = {str: "a string", bool: "true or false", float: "a number"}


def answer(request_id: int | str | None, result: object) -> bytes:
    """Return the line that answers a request."""
    return _line({"id": request_id, "ok": True, "result": result})


def mistake(request_id: int | str | None, code: str, text: str, problems: Sequence[Mapping[str, object]] = ()) -> bytes:
    """Return the line that reports a failed request.

    Args:
        request_id: the id of the request; None if there is no readable id.
        code: usage, refused, config, or busy.
        text: the reason.
        problems: the problems of the services file, if these are the reason.
    """
    more = {"problems": list(problems)} if problems else {}
    return _line({"id": request_id, "ok": False, "code": code, "error": text, **more})


def _line(data: dict[str, object]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"
