"""Parts of the documentation that are made from the code when it is built.

A page has a comment where such a part belongs: `<!-- generated: options -->`. docs/conf.py replaces it when Sphinx
reads the page.
"""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.task import Clock

import svcd.cli
from svcd.cli import _parser
from svcd.cli.exit_status import DAEMON, SVCCTL
from svcd.cli.parser_model import commands_of
from svcd.config.option_info import GROUPS
from svcd.config.options import TABLE
from svcd.daemon.options import Options
from svcd.log.event_help import END_REASONS, EVENTS, FIELDS, REFUSE_REASONS
from svcd.log.events import NUMBERS, Event
from svcd.metrics.registry import MetricsRegistry
from svcd.metrics.snapshot import ServiceInfo, ServiceSnapshot
from svcd.model import SocketType
from svcd.process.environment import VARIABLES
from svcd.process.websocket_environment import WEBSOCKET_VARIABLES
from svcd.protocols.catalog import BUILTINS
from svcd.protocols.sample_files import default_ports
from svcd.protocols.status.metric_families import families
from svcd.wire.control_protocol import COMMANDS, LONGEST
from svcd.wire.openmetrics import MetricType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from svcd.cli.parser_model import ParserArgument, ParserCommand
    from svcd.config.option_info import OptionInfo
    from svcd.metrics.snapshot import Snapshot
    from svcd.wire.openmetrics import Family

__all__ = ["PARTS", "with_parts"]

ROOT = Path(__file__).parents[1]
_MARK = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)


def plain(text: str) -> str:
    """Return a sentence of the code as Markdown; what stands between backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<\[|])", r"\\\1", part) for part in parts)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _definitions(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Return a definition list: terms as Markdown, sentences as Markdown."""
    for term, text in entries:
        yield from (term, ": " + text.replace("\n", "\n  "), "")


def _sentence(text: str) -> str:
    return plain(f"{text[:1].upper()}{text[1:]}".rstrip(".") + ".")


# Options of services


def _grouped() -> Iterator[tuple[str, list[OptionInfo]]]:
    for group, infos in groupby(TABLE.values(), lambda info: info.group):
        yield GROUPS[group], list(infos)


def _facts(info: OptionInfo) -> Iterator[tuple[str, str]]:
    yield "Value", plain(info.value_type.accepts)
    yield "Default", f"`{info.default_text}`" if info.default_text else "not set"
    yield "Scope", plain(info.scope_text(BUILTINS))
    if info.xinetd:
        yield "xinetd", f"`{info.xinetd}`"
    if info.systemd:
        yield "systemd", f"`{info.systemd}`"


def _linked(text: str) -> str:
    """Return the help of an option, with links to the options that it names."""
    return re.sub(
        r"(?<![\w./:])([a-z]+(?:\\_[a-z0-9]+)+|[a-z]+(?==))(?![\w/:])",
        lambda found: f"[{found[1]}](#{name})" if (name := found[1].replace("\\", "")) in TABLE else found[1],
        plain(text),
    )


def _options() -> Iterator[str]:
    for heading, infos in _grouped():
        yield from (f"## {heading}", "")
        for info in infos:
            yield from (f"### {info.name}", "", _linked(info.help), "")
            yield from (f"- {name}: {value}" for name, value in _facts(info))
            yield from ("", "```services", info.example, "```", "")


def _options_by_name() -> Iterator[str]:
    yield from _table(
        ("option", "group", "default"),
        (
            (f"[{info.name}](#{info.name})", GROUPS[info.group], f"`{info.default_text}`" if info.default_text else "")
            for info in sorted(TABLE.values(), key=lambda info: info.name)
        ),
    )


def _options_manual() -> Iterator[str]:
    for heading, infos in _grouped():
        yield from (f"### {heading}", "")
        for info in infos:
            facts = "; ".join(f"{name.lower() if name[0].isupper() else name} {value}" for name, value in _facts(info))
            yield from _definitions([(f"**{plain(info.name)}**", f"{plain(info.help)}\n\nTakes {facts[6:]}.")])


def _builtins() -> Iterator[str]:
    yield from _table(
        ("built-in", "protocols", "usual port", "client", "service"),
        (
            (
                f"`{name}`",
                "tcp, udp, unix, unixgram" if SocketType.DATAGRAM in builtin.shapes else "tcp, unix",
                str(builtin.port),
                f"`svcctl {builtin.client}`" if builtin.client else "",
                _sentence(builtin.summary),
            )
            for name, builtin in BUILTINS.items()
        ),
    )


def _builtins_manual() -> Iterator[str]:
    for name, builtin in BUILTINS.items():
        over = "" if SocketType.DATAGRAM in builtin.shapes else " Streams only."
        client = f"; client: svcctl {builtin.client}" if builtin.client else ""
        text = f"{_sentence(builtin.summary)}{over} Usual port: {builtin.port}{client}."
        yield from _definitions([(f"**{name}**", text)])


def _ports() -> Iterator[str]:
    yield f"{default_ports()}."


# Command lines


def _svcctl_commands() -> Iterator[str]:
    for command in commands_of(_parser())[1:]:
        yield from (f"### {command.name}", "", f"**svcctl {command.name}** {' '.join(_words(command))}".rstrip(), "")
        yield from (_sentence(command.description or command.help), "")
        yield from _definitions(_argument(each) for each in command.arguments if "--help" not in each.names)


def _svcctl_options() -> Iterator[str]:
    yield from _definitions(_argument(each) for each in commands_of(_parser())[0].options if "--help" not in each.names)


def _words(command: ParserCommand) -> Iterator[str]:
    if any("--help" not in each.names for each in command.options):
        yield r"\[*options*\]"
    for each in command.others:
        label = f"*{plain(each.label)}*" + (" ..." if each.arity in ("*", "+") else "")
        yield rf"\[{label}\]" if each.arity in ("?", "*") else label


def _argument(argument: ParserArgument) -> tuple[str, str]:
    names = ", ".join(f"**{name}**" for name in argument.names)
    label = f"*{plain(argument.label)}*" if argument.label else ""
    text = _sentence(argument.help)
    return " ".join(filter(None, [names, label])), text


def _daemon_options() -> Iterator[str]:
    parameters = [each[:4] for each in cast("list[list[Any]]", Options.optParameters)]
    flags = [[name, short, None, text] for name, short, text in Options.optFlags]
    for name, short, default, text in sorted(parameters + flags):
        names = f"**-{short}**, **--{name}**" if short else f"**--{name}**"
        value = " *VALUE*" if [name, short, default, text] in parameters else ""
        usual = f" Default: {default}." if default and "default" not in text else ""
        sentence = _sentence(re.sub(r" \[default: (.*)\]", r" Default: \1", text))
        yield from _definitions([(f"{names}{value}", f"{sentence}{usual}")])


def _statuses(statuses: Mapping[int, str]) -> Callable[[], Iterator[str]]:
    return lambda: _definitions((f"**{status}**", plain(text)) for status, text in statuses.items())


# The log, the environment, the metrics


def _events() -> Iterator[str]:
    from svcd.log import events

    known = {each.name: each for each in vars(events).values() if isinstance(each, Event)}
    for name in EVENTS:
        levels = sorted({each.level for each in vars(events).values() if isinstance(each, Event) and each.name == name})
        fields = ", ".join(f"`{field}`" for field in known[name].fields)
        yield from (f"### {name}", "", plain(EVENTS[name]), "", f"- Level: {' or '.join(levels)}")
        yield from (f"- Fields: {fields}", "")


def _fields() -> Iterator[str]:
    yield from _table(
        ("field", "JSON type", "meaning"),
        ((f"`{name}`", "number" if name in NUMBERS else "string", plain(text)) for name, text in FIELDS.items()),
    )


def _meanings(head: str, meanings: Mapping[str, str]) -> Callable[[], Iterator[str]]:
    return lambda: _table((head, "meaning"), ((f"`{name}`", plain(text)) for name, text in meanings.items()))


def _metrics() -> Iterator[str]:
    suffixes = {MetricType.COUNTER: "_total", MetricType.INFO: "_info"}
    yield from _table(
        ("metric", "type", "labels", "meaning"),
        (
            (f"`{each.name}{suffixes.get(each.kind, '')}`", each.kind.value, _labels(each), plain(each.help))
            for each in families(_snapshot())
        ),
    )


def _labels(family: Family) -> str:
    names = dict.fromkeys(name for labels, _ in family.points for name in re.findall(r'(\w+)="', labels))
    return ", ".join(f"`{name}`" for name in names)


def _snapshot() -> Snapshot:
    """Return a snapshot with a point for each label of each metric."""
    clock = Clock()
    registry = MetricsRegistry(wall_clock=clock.seconds, clock=clock.seconds)
    counts = {"x": 1}
    services = [
        ServiceSnapshot(
            ServiceInfo("x/tcp", "x", stream=stream, spawned=stream, max_connections=1, expires=1.0),
            ended=counts, refused=counts, exits=counts, handshakes=counts, handshakes_failed=counts,
        )
        for stream in (True, False)
    ]  # fmt: skip
    return dataclasses.replace(registry.snapshot(), services=tuple(services))


def _control() -> Iterator[str]:
    kinds = {str: "string", bool: "true or false", float: "number"}
    for command in COMMANDS.values():
        yield from (f"### {command.name}", "", _sentence(command.help), "")
        for each in command.arguments:
            needed = ", required" if each.needed else ""
            yield f"- `{each.name}` ({kinds[each.kind]}{needed}): {_sentence(each.help)}"
        yield ""


def _control_limit() -> Iterator[str]:
    yield f"A request has at most {LONGEST} bytes."


def _schemas() -> Iterator[str]:
    for path in sorted((Path(svcd.cli.__file__).parent / "schemas").glob("*.json")):
        schema = json.loads(path.read_text("utf-8"))
        yield from (f"## {plain(schema['title'])}", "", f"Schema: `{schema['$id']}`, the file `{path.name}`.", "")
        yield from _table(("field", "type", "meaning"), _schema_rows(schema, ""))
        yield ""


def _schema_rows(schema: Mapping[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    """Return a row for each field of an object, and of the objects in it."""
    for name, field in schema.get("properties", {}).items():
        path = f"{above}{name}"
        yield f"`{path}`", plain(_schema_type(field)), plain(field.get("description", ""))
        inner = field.get("items", field)
        if isinstance(inner, dict):
            yield from _schema_rows(inner, f"{path}[]." if "items" in field else f"{path}.")


def _schema_type(field: Mapping[str, Any]) -> str:
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        return " or ".join(json.dumps(each) for each in field["enum"])
    kind = field.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _shared(page: str) -> Callable[[], Iterator[str]]:
    """Return a part of another page, between the comments `<!-- shared -->` and `<!-- /shared -->`."""

    def lines() -> Iterator[str]:
        text = (ROOT / "docs" / page).read_text("utf-8")
        yield text.partition("<!-- shared -->\n")[2].partition("<!-- /shared -->")[0].strip()

    return lines


#: The parts by the names in the comments.
PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "options": _options,
    "options by name": _options_by_name,
    "options, as in a manual": _options_manual,
    "built-ins": _builtins,
    "built-ins, as in a manual": _builtins_manual,
    "default ports": _ports,
    "svcctl commands": _svcctl_commands,
    "svcctl options": _svcctl_options,
    "svcctl exit statuses": _statuses(SVCCTL),
    "daemon options": _daemon_options,
    "daemon exit statuses": _statuses(DAEMON),
    "log events": _events,
    "log fields": _fields,
    "reasons of ends": _meanings("reason", END_REASONS),
    "reasons of refusals": _meanings("reason", REFUSE_REASONS),
    "environment": _meanings("variable", VARIABLES),
    "websocket environment": _meanings("variable", WEBSOCKET_VARIABLES),
    "metrics": _metrics,
    "control commands": _control,
    "control limit": _control_limit,
    "schemas": _schemas,
    "grammar": _shared("reference/services-file.md"),
}


def with_parts(text: str) -> str:
    """Return a page with the parts that are made from the code.

    Raises:
        KeyError: there is no such part.
    """
    return _MARK.sub(lambda found: "\n".join(PARTS[found[1]]()), text)
