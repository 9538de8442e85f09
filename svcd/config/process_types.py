"""The types of values that handlers need: commands, references to Python objects, addresses, limits of a process."""

from __future__ import annotations

import re
import shlex

from svcd.access.types import OutputRate
from svcd.addresses import HostPort
from svcd.config.value_types import DURATION, UNLIMITED, ValueType, require

__all__ = [
    "BUFFER_SIZE",
    "COMMAND",
    "COUNT_LIMIT",
    "ENVIRONMENT",
    "HOST_PORT",
    "NICE",
    "OUTPUT_RATE",
    "PATHS",
    "REFERENCE",
    "SECONDS_LIMIT",
    "SIZE_LIMIT",
    "VARIABLES",
]


def _read_command(word: str) -> tuple[str, ...]:
    words = shlex.split(word)
    require(words and words[0].startswith("/") and not words[0].endswith("/"))
    return tuple(words)


COMMAND: ValueType[tuple[str, ...]] = ValueType(
    "command", "a program's absolute path and its arguments, quoted as in a shell", _read_command, shlex.join
)


def _read_reference(word: str) -> str:
    module, colon, name = word.partition(":")
    require(colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))))
    return word


REFERENCE: ValueType[str] = ValueType("reference", "package.module:name", _read_reference, str)


def _read_paths(word: str) -> tuple[str, ...]:
    paths = tuple(word.split(","))
    require(all(path.startswith("/") for path in paths))
    return paths


PATHS: ValueType[tuple[str, ...]] = ValueType("paths", "absolute paths with commas between them", _read_paths, ",".join)

#: A name of a host, or an address without brackets; what it resolves to is seen when it is used.
_HOST = re.compile(r"[^\s:/\[\]@]+")
_LITERAL = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[^\s:/\[\]@]+)?)\]")


def _read_host_port(word: str) -> HostPort:
    host, _, port = word.rpartition(":")
    literal = _LITERAL.fullmatch(host)
    require(_HOST.fullmatch(host) if literal is None else ":" in literal[1])
    require(re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536)
    return HostPort(literal[1] if literal else host, int(port))


HOST_PORT: ValueType[HostPort] = ValueType(
    "host:port",
    "host:port or [address]:port, the port as a number",
    _read_host_port,
    lambda value: f"[{value.host}]:{value.port}" if ":" in value.host else f"{value.host}:{value.port}",
)

_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def _read_environment(word: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for each in shlex.split(word):
        name, equals, value = each.partition("=")
        require(equals and _VARIABLE.fullmatch(name))
        pairs.append((name, value))
    require(pairs)
    return tuple(pairs)


ENVIRONMENT: ValueType[tuple[tuple[str, str], ...]] = ValueType(
    "environment",
    "NAME=VALUE ..., quoted as in a shell",
    _read_environment,
    lambda pairs: shlex.join(f"{name}={value}" for name, value in pairs),
)


def _read_variables(word: str) -> tuple[str, ...]:
    names = tuple(word.split(","))
    require(all(_VARIABLE.fullmatch(name) for name in names))
    return names


VARIABLES: ValueType[tuple[str, ...]] = ValueType(
    "variables", "names of variables with commas between them", _read_variables, ",".join
)


def _read_nice(word: str) -> int:
    require(re.fullmatch("-?[0-9]{1,2}", word) and -20 <= int(word) <= 19)
    return int(word)


NICE: ValueType[int] = ValueType("nice", "a whole number from -20 to 19", _read_nice, str)

_SCALE = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def _read_size(word: str) -> int:
    if word == "none":
        return UNLIMITED
    match = re.fullmatch("([0-9]{1,15})([KMG]?)", word)
    require(match)
    assert match is not None  # noqa: S101 - for the type checker
    size = int(match[1]) * _SCALE[match[2]]
    # What rlim_t holds, less its greatest values, which mean no limit.
    require(size < 2**62)
    return size


def _write_size(size: int) -> str:
    if size == UNLIMITED:
        return "none"
    unit = next(unit for unit in ("G", "M", "K", "") if size % _SCALE[unit] == 0)
    return f"{size // _SCALE[unit]}{unit}" if size else "0"


SIZE_LIMIT: ValueType[int] = ValueType(
    "size limit", "a size in bytes, or with a unit: 64K, 16M, 2G; or none", _read_size, _write_size
)


def _read_buffer_size(word: str) -> int:
    size = _read_size(word)
    # Twice as much must be an int of C (socket(7)).
    require(0 < size < 2**30)
    return size


BUFFER_SIZE: ValueType[int] = ValueType(
    "buffer size", "a size in bytes below 1G, or with a unit: 64K, 16M", _read_buffer_size, _write_size
)


def _read_seconds(word: str) -> int:
    if word == "none":
        return UNLIMITED
    seconds = DURATION.read(word)
    require(seconds >= 1 and seconds.is_integer())
    return int(seconds)


SECONDS_LIMIT: ValueType[int] = ValueType(
    "seconds limit",
    "a time in whole seconds, or with a unit: 10s, 5m, 2h; or none",
    _read_seconds,
    lambda value: "none" if value == UNLIMITED else f"{value}s",
)


def _read_count(word: str) -> int:
    if word == "none":
        return UNLIMITED
    require(re.fullmatch("[0-9]{1,9}", word) and int(word) > 0)
    return int(word)


COUNT_LIMIT: ValueType[int] = ValueType(
    "count limit",
    "a whole number from 1 to 999999999, or none",
    _read_count,
    lambda value: "none" if value == UNLIMITED else str(value),
)


def _read_output_rate(word: str) -> OutputRate | None:
    if word == "none":
        return None
    match = re.fullmatch("([0-9]{1,7})/s,([0-9]{1,9}[KMG]?)/s", word)
    require(match)
    assert match is not None  # noqa: S101 - for the type checker
    lines, size = int(match[1]), _read_size(match[2])
    require(lines and size)
    return OutputRate(lines, size)


OUTPUT_RATE: ValueType[OutputRate | None] = ValueType(
    "output rate",
    "lines and bytes a second as 100/s,64K/s; or none",
    _read_output_rate,
    lambda rate: "none" if rate is None else f"{rate.lines}/s,{_write_size(rate.size)}/s",
    takes_none=True,
)
