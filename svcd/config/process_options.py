"""The options of handlers and their processes, and the types of their values."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from svcd.access.types import OutputRate
from svcd.addresses import HostPort
from svcd.config.option_info import option
from svcd.config.value_types import (
    DURATION,
    MODE,
    PATH,
    TEXT,
    TIMEOUT,
    UNLIMITED,
    WORD,
    YES_NO,
    ValueType,
    choice,
    or_none,
    require,
)

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
    "HandlerOptions",
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

#: A host name, or an IPv4 address; names are resolved when they are used.
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
    # rlim_t has 64 bits; its greatest values mean no limit.
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
    # The kernel doubles the value, which must then fit in an int (socket(7)).
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


@dataclass(frozen=True, kw_only=True)
class HandlerOptions:
    """The options of handlers and processes, a base class of ServiceOptions, which has the slots.

    A limit (rlimit_*) is in bytes, in seconds or a count; UNLIMITED means no limit, None the limit of the daemon.
    """

    __slots__ = ()

    server: tuple[str, ...] = option(
        COMMAND, (), "handler", "any",
        "A program and its arguments, quoted as one word; it is started for each connection and has that as "
        "standard input, output and error. Datagram services need wait=yes.",
        xinetd="server, server_args",
    )  # fmt: skip
    argv0: str = option(
        TEXT, "", "handler", "server",
        "What the program is told as its own name (argv[0]); default: its path.",
        xinetd="flags = NAMEINARGS",
    )  # fmt: skip
    wait: bool = option(
        YES_NO, False, "handler", "server",
        "With yes one process at a time gets the listening socket itself, or the datagram socket, and svcd listens "
        "again when it has ended. A reload that takes the socket away from the service ends the process: SIGTERM, and "
        "SIGKILL after shutdown_timeout.",
        xinetd="wait",
    )  # fmt: skip
    python: str = option(
        REFERENCE, "", "handler", "stream",
        "A Python handler: a socketserver.BaseRequestHandler, or a callable that takes the socket and the address.",
    )  # fmt: skip
    python_path: tuple[str, ...] = option(
        PATHS, (), "handler", "python",
        "Directories where the module is looked for before Python's own.",
    )  # fmt: skip
    model: str = option(
        choice("process", "thread"), "process", "handler", "python",
        "Whether each connection has a process, forked from one that has imported the module, or a thread in it.",
    )  # fmt: skip
    factory: str = option(
        REFERENCE, "", "handler", "stream",
        "A Twisted Factory that is served in the daemon itself, or a callable that takes the service's options and "
        "returns one.",
    )  # fmt: skip
    redirect: HostPort | None = option(
        HOST_PORT, None, "handler", "stream",
        "Pass each connection on to this server; its name is looked up anew each time.",
        xinetd="redirect",
    )  # fmt: skip
    send_proxy: str | None = option(
        or_none(choice("v1", "v2")), None, "handler", "redirect",
        "Begin each connection to the other server with a header of the PROXY protocol, of this version, that names "
        "the client.",
    )  # fmt: skip
    mux: bool = option(
        YES_NO, False, "handler", "stream",
        "Offer the service by its name on the tcpmux service, too.",
        xinetd="type = TCPMUX",
    )  # fmt: skip

    user: str = option(
        WORD, "", "process", "spawned",
        "User it runs as, by name or number; default: who runs the daemon.",
        xinetd="user",
    )  # fmt: skip
    groups: bool = option(
        YES_NO, False, "process", "spawned",
        "Give it the supplementary groups of its user, too.",
        xinetd="groups",
    )  # fmt: skip
    umask: int = option(
        MODE, 0o022, "process", "spawned",
        "Permissions that files it makes do not get.",
        xinetd="umask",
    )  # fmt: skip
    nice: int = option(
        NICE, 0, "process", "spawned",
        "How much more modest it is than the daemon when processors are short; below 0 needs root.",
        xinetd="nice",
    )  # fmt: skip
    cwd: str = option(
        PATH, "/", "process", "spawned",
        "Its working directory, inside chroot= if that is set.",
    )  # fmt: skip
    chroot: str = option(
        PATH, "", "process", "spawned",
        "Its root directory; the program is looked up inside.",
    )  # fmt: skip
    env: tuple[tuple[str, str], ...] = option(
        ENVIRONMENT, (), "process", "spawned",
        "Variables for its environment, which is clean otherwise.",
        xinetd="env",
    )  # fmt: skip
    passenv: tuple[str, ...] = option(
        VARIABLES, (), "process", "spawned",
        "Variables that it gets from the daemon's environment.",
        xinetd="passenv",
    )  # fmt: skip
    rlimit_as: int | None = option(
        SIZE_LIMIT, None, "process", "spawned",
        "How much address space it may have; default for this and the other limits: the daemon's.",
        xinetd="rlimit_as",
    )  # fmt: skip
    rlimit_data: int | None = option(
        SIZE_LIMIT, None, "process", "spawned",
        "How much data (heap) it may have.",
        xinetd="rlimit_data",
    )  # fmt: skip
    rlimit_stack: int | None = option(
        SIZE_LIMIT, None, "process", "spawned",
        "How large its stack may grow.",
        xinetd="rlimit_stack",
    )  # fmt: skip
    rlimit_core: int | None = option(
        SIZE_LIMIT, None, "process", "spawned",
        "How large a core file it may leave; with 0 it leaves none.",
    )  # fmt: skip
    rlimit_cpu: int | None = option(
        SECONDS_LIMIT, None, "process", "spawned",
        "How much processor time it may use.",
        xinetd="rlimit_cpu",
    )  # fmt: skip
    rlimit_nofile: int | None = option(
        COUNT_LIMIT, None, "process", "spawned",
        "How many files it may have open; with none as many as the daemon may at most.",
        xinetd="rlimit_files",
    )  # fmt: skip
    rlimit_nproc: int | None = option(
        COUNT_LIMIT, None, "process", "spawned",
        "How many processes its user may have, other than root.",
    )  # fmt: skip
    no_new_privs: bool = option(
        YES_NO, False, "process", "spawned",
        "Let nothing it starts gain privileges, as by a set-user-ID bit.",
    )  # fmt: skip
    listen_fds: bool = option(
        YES_NO, False, "process", "server",
        "Give it the socket as descriptor 3 too, as systemd does (LISTEN_FDS). In LISTEN_FDNAMES a connection is named "
        "connection, and with wait=yes the socket as the service.",
    )  # fmt: skip
    stderr: str = option(
        choice("client", "log"), "client", "process", "spawned",
        "Where its standard error goes: to the client, or line by line into the log.",
    )  # fmt: skip
    stderr_rate: OutputRate | None = option(
        OUTPUT_RATE, OutputRate(100, 65_536), "process", "spawned",
        "How many lines and bytes a second all its processes together may write into the log (stderr=log, and what "
        "Python handlers print); lines beyond that are dropped, and one line a second says how many.",
    )  # fmt: skip
    launcher_idle: float | None = option(
        or_none(TIMEOUT), 60.0, "process", "spawned",
        "The process that starts its handlers (its launcher) ends when it has had none for so long, and gives its "
        "memory back; the next client has it started again, and waits for the import of a Python module.",
    )  # fmt: skip
