"""Answers of the control socket as text for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from svcd.cli.terminal import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svcd.cli.terminal import Output

__all__ = ["duration", "status_lines", "view"]

_STATE_STYLES = {"on": "green", "paused": "yellow", "broken": "red", "disabled": "dim"}


def view(command: str, result: Any, output: Output) -> list[str]:  # noqa: ANN401 - JSON
    """Return the lines for the result of a command."""
    try:
        return list(_VIEWS[command](result, output))
    except KeyError:
        # A daemon of another version has other fields, as between an installation and the upgrade.
        return json.dumps(result, indent=2).splitlines()


def duration(seconds: float) -> str:
    """Return a duration as text: 4.2s, 5m03s, 2h05m, 3d04h."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def status_lines(result: Mapping[str, Any], output: Output, rates: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the lines of `svcctl status`.

    Args:
        result: the answer to the command.
        output: the destination.
        rates: the text of the column RATE by service; None for no such column.
    """
    connections, descriptors = result["connections"], result["descriptors"]
    limit = "" if connections["limit"] is None else f" of {connections['limit']}"
    yield from output.fold(
        [
            f"svcd {result['version']}",
            f"pid {result['pid']}",
            str(result["reactor"]),
            f"up {duration(result['uptime'])}",
            f"connections: {connections['open']}{limit}",
            f"descriptors: {descriptors['open']} of {descriptors['limit']}",
        ]
    )
    numbers = ["OPEN", *(["RATE"] if rates is not None else []), "REFUSED", "FAILED"]
    rows = [
        (
            row["service"],
            row["state"],
            str(row.get("connections", "-")),
            *([rates.get(row["service"], "-")] if rates is not None else []),
            str(sum(row.get("refused", {}).values())) if "refused" in row else "-",
            str(row.get("failed", "-")),
            " ".join(row["addresses"]),
            row["runs"] + (" over TLS" if "certificate" in row else ""),
        )
        for row in result["services"]
    ]
    yield from table(
        [("SERVICE", "STATE", *numbers, "ADDRESSES", "RUNS"), *rows],
        output,
        right=frozenset(range(2, 2 + len(numbers))),
        flexible=frozenset({0, 2 + len(numbers), 3 + len(numbers)}),
        brief={2 + len(numbers): _first_address},
        styles={1: _state_style},
    )
    yield from _notes(result, output)


def _first_address(addresses: str) -> str:
    first, *others = addresses.split() or [""]
    return f"{first} +{len(others)}" if others else first


def _state_style(state: str) -> str:
    return _STATE_STYLES.get(state, "")


def _notes(result: Mapping[str, Any], output: Output) -> Iterator[str]:
    """Yield the certificates that expire soon, what services lack, and connections of removed services."""
    for row in result["services"]:
        certificate = row.get("certificate")
        if certificate is not None and certificate["days"] < certificate["warn"]:
            text = f"{row['service']}: {certificate['file']} {_expiry(certificate['days'])}"
            yield output.styled(text, "red" if certificate["days"] < 0 else "yellow")
        for problem in row.get("problems", []):
            # The text of a socket's problem names its service.
            named = problem if problem.startswith(f"{row['service']}: ") else f"{row['service']}: {problem}"
            yield output.styled(named, "red")
    if result["leaving"]:
        yield f"{_counted(result['leaving'], 'connection')} of removed services"


def _status(result: Mapping[str, Any], output: Output) -> Iterator[str]:
    return status_lines(result, output)


def _connections(result: Sequence[Mapping[str, Any]], output: Output) -> Iterator[str]:
    # TLS and waiting connections are marked if there are any.
    tls = any("tls" in row for row in result)
    waits = any(row.get("state", "open") != "open" for row in result)
    rows = [
        (
            str(row["id"]),
            row["service"],
            row["peer"],
            duration(row["seconds"]),
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
    flexible = {1, 2} | ({len(heading) - 1} if tls else set())
    yield from table([heading, *rows], output, right=frozenset({0, 3, 4, 5, 6}), flexible=frozenset(flexible))


def _reloaded(result: Mapping[str, Any], output: Output) -> Iterator[str]:
    counts = [(len(result[name]), "service", name) for name in ("changed", "added", "removed")]
    if not any(count for count, _, _ in counts):
        counts = [(len(result[name]), "socket", name) for name in ("opened", "closed")]
    found = [(count, noun, verb) for count, noun, verb in counts if count]
    parts = [
        f"{count} {verb}" if number else f"{_counted(count, noun)} {verb}"
        for number, (count, noun, verb) in enumerate(found)
    ]
    broken = f"; {len(result['broken'])} broken" if result["broken"] else ""
    yield f"reloaded: {', '.join(parts) or 'nothing has changed'}{broken}"
    yield from (f"  {line}" for line in _change_lines(result, output))


def _difference(result: Mapping[str, Any], output: Output) -> Iterator[str]:
    yield from _change_lines(result, output)
    if not result["changes"]:
        yield "a reload would change nothing"


def _change_lines(result: Mapping[str, Any], output: Output) -> Iterator[str]:
    styles = {"+": "green", "-": "red", "~": "yellow"}
    for line in result["changes"]:
        yield output.styled(line, styles.get(line[:1], ""))


def _show(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    width = max(map(len, result))
    for name, value in result.items():
        if name == "certificate":
            text = f"{value['file']} {_expiry(value['days'])} ({value['expires']})"
        elif isinstance(value, list):
            text = " ".join(map(str, value))
        elif isinstance(value, dict):
            text = " ".join(f"{key}={count}" for key, count in value.items()) or "-"
        else:
            text = "none" if value is None else str(value) or "-"
        yield f"{name:{width}}  {text}".rstrip()


def _enabled(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    yield f"{result['service']} is on{' already' if result.get('already') else ''}"


def _disabled(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    if result.get("already"):
        yield f"{result['service']} is disabled already"
        return
    count = result["connections"]
    rest = f"; its {_counted(count, 'connection')} may continue" if count else ""
    yield f"{result['service']} is disabled until svcctl enable or a reload{rest}"


def _paused(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    services = result["services"]
    names = services[0] if len(services) == 1 else _counted(len(services), "service")
    yield f"paused: {names}; new clients wait until svcctl resume"


def _resumed(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    services = result["services"]
    names = services[0] if len(services) == 1 else _counted(len(services), "service")
    yield f"resumed: {names}"


def _kicked(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    yield f"{_counted(result['ended'], 'connection')} ended"


def _restarted(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    before = f"; launcher {result['before']} ends after its last handler" if result["before"] else ""
    yield f"launcher {result['pid']} starts the handlers now{before}"


def _upgraded(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    count = result["connections"]
    rest = f"ends after its {_counted(count, 'connection')}" if count else "ends"
    yield f"process {result['pid']} serves; process {result['before']} {rest}"


def _drained(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    count = result["connections"]
    rest = f"after {'its' if count == 1 else 'the last of its'} {_counted(count, 'connection')}" if count else "now"
    yield f"svcd accepts no more connections and stops {rest}"


def _stopped(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    count = result["connections"]
    rest = f"; {_counted(count, 'connection')} may end within shutdown_timeout" if count else ""
    yield f"svcd stops{rest}"


def _log_level(result: Mapping[str, Any], _output: Output) -> Iterator[str]:
    yield f"the log has events of level {result['level']} and above"


def _expiry(days: int) -> str:
    if days < 0:
        return "has expired"
    return f"expires in {_counted(days, 'day')}" if days else "expires within a day"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


_VIEWS: dict[str, Callable[[Any, Output], Iterator[str]]] = {
    "status": _status,
    "connections": _connections,
    "show": _show,
    "kick": _kicked,
    "enable": _enabled,
    "disable": _disabled,
    "pause": _paused,
    "resume": _resumed,
    "restart": _restarted,
    "reload": _reloaded,
    "diff": _difference,
    "upgrade": _upgraded,
    "drain": _drained,
    "stop": _stopped,
    "log-level": _log_level,
}
