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
    "MEMORY_SIZE",
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
    "command", "the absolute path of a program and its arguments, quoted as in a shell", _read_command, shlex.join
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


PATHS: ValueType[tuple[str, ...]] = ValueType(
    "paths", "a comma-separated list of absolute paths", _read_paths, ",".join
)

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
    "host:port or [address]:port, with a numeric port",
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
    "variables", "a comma-separated list of variable names", _read_variables, ",".join
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


def _read_memory_size(word: str) -> int:
    size = _read_size(word)
    require(0 < size <= 2**24)
    return size


MEMORY_SIZE: ValueType[int] = ValueType(
    "memory size", "a size in bytes from 1 to 16M, or with a unit: 64K, 1M", _read_memory_size, _write_size
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
    "a whole number from 1 to 999999999; or none",
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
    "lines and bytes per second, such as 100/s,64K/s; or none",
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
        "Program and its arguments, quoted as one word. It is started for each connection, with the connection as "
        "standard input, output and error. Datagram services require wait=yes.",
        xinetd="server, server_args",
        systemd="ExecStart=",
        example="finger 79/tcp server='/usr/sbin/in.fingerd -w'",
    )  # fmt: skip
    argv0: str = option(
        TEXT, "", "handler", "server",
        "Name that the program gets as argv[0]. Default: its path.",
        xinetd="flags = NAMEINARGS",
        systemd="ExecStart=@",
        example="finger 79/tcp server=/usr/sbin/in.fingerd argv0=fingerd",
    )  # fmt: skip
    wait: bool = option(
        YES_NO, False, "handler", "server",
        "With yes, one process at a time gets the listening socket, or the datagram socket, and svcd listens again "
        "when the process has ended. A reload that takes the socket away from the service ends the process: SIGTERM, "
        "and SIGKILL after shutdown_timeout.",
        xinetd="wait",
        systemd="Accept=no",
        example="tftp 69/udp server='/usr/sbin/in.tftpd' wait=yes",
    )  # fmt: skip
    python: str = option(
        REFERENCE, "", "handler", "stream",
        "Python handler: a socketserver.BaseRequestHandler, or a callable that takes the socket and the client "
        "address.",
        example="greet 7010/tcp python=greet:Greeter",
    )  # fmt: skip
    python_path: tuple[str, ...] = option(
        PATHS, (), "handler", "python",
        "Directories to search for the module before Python's own.",
        example="greet 7010/tcp python=greet:Greeter python_path=/srv/handlers",
    )  # fmt: skip
    model: str = option(
        choice("process", "thread"), "process", "handler", "python",
        "Concurrency model: process forks a process for each connection from a process that has imported the module, "
        "thread runs each connection in a thread of that process.",
        example="chat 7010/tcp python=chat:Chat model=thread",
    )  # fmt: skip
    factory: str = option(
        REFERENCE, "", "handler", "stream",
        "Twisted Factory that runs in the daemon, or a callable that takes the service's options and returns one.",
        example="chat 7010/tcp factory=chat:factory",
    )  # fmt: skip
    redirect: HostPort | None = option(
        HOST_PORT, None, "handler", "stream",
        "Forward each connection to this server. The host name is looked up for each connection.",
        xinetd="redirect",
        systemd="systemd-socket-proxyd",
        example="www 8080/tcp redirect=127.0.0.1:80",
    )  # fmt: skip
    send_proxy: str | None = option(
        or_none(choice("v1", "v2")), None, "handler", "redirect",
        "Send a PROXY protocol header of this version, with the client address, at the start of each connection to "
        "the redirect= server.",
        example="www 8080/tcp redirect=127.0.0.1:80 send_proxy=v2",
    )  # fmt: skip
    mux: bool = option(
        YES_NO, False, "handler", "stream",
        "Offer the service by name on the tcpmux service as well.",
        xinetd="type = TCPMUX",
        example="greet 7010/tcp python=greet:Greeter mux=yes",
    )  # fmt: skip

    user: str = option(
        WORD, "", "process", "launched",
        "User of the process, by name or number. Default: the daemon's.",
        xinetd="user",
        systemd="User=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd user=nobody",
    )  # fmt: skip
    groups: bool = option(
        YES_NO, False, "process", "launched",
        "Give the process the supplementary groups of its user.",
        xinetd="groups",
        systemd="SupplementaryGroups=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd user=nobody groups=yes",
    )  # fmt: skip
    umask: int = option(
        MODE, 0o022, "process", "launched",
        "File mode creation mask of the process (umask(2)).",
        xinetd="umask",
        systemd="UMask=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd umask=0077",
    )  # fmt: skip
    nice: int = option(
        NICE, 0, "process", "launched",
        "Scheduling priority of the process, as in nice(1), added to the daemon's. Values below 0 require root.",
        xinetd="nice",
        systemd="Nice=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd nice=10",
    )  # fmt: skip
    cwd: str = option(
        PATH, "/", "process", "spawned",
        "Working directory of the process, inside chroot= if that is set.",
        systemd="WorkingDirectory=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd cwd=/srv",
    )  # fmt: skip
    chroot: str = option(
        PATH, "", "process", "launched",
        "Root directory of the process. The program is looked up inside it.",
        systemd="RootDirectory=",
        example="quiet 7010/tcp server=/bin/cat chroot=/srv/jail",
    )  # fmt: skip
    env: tuple[tuple[str, str], ...] = option(
        ENVIRONMENT, (), "process", "launched",
        "Environment variables of the process. It gets no others, except those of passenv= and those that svcd sets.",
        xinetd="env",
        systemd="Environment=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd env='LANG=C.UTF-8 TZ=UTC'",
    )  # fmt: skip
    passenv: tuple[str, ...] = option(
        VARIABLES, (), "process", "launched",
        "Environment variables of the daemon to pass to the process.",
        xinetd="passenv",
        systemd="PassEnvironment=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd passenv=LANG,TZ",
    )  # fmt: skip
    rlimit_as: int | None = option(
        SIZE_LIMIT, None, "process", "launched",
        "Maximum address space of the process (RLIMIT_AS). Default of this limit and the next ones: the daemon's "
        "limit.",
        xinetd="rlimit_as",
        systemd="LimitAS=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_as=256M",
    )  # fmt: skip
    rlimit_data: int | None = option(
        SIZE_LIMIT, None, "process", "launched",
        "Maximum size of data and heap (RLIMIT_DATA).",
        xinetd="rlimit_data",
        systemd="LimitDATA=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_data=64M",
    )  # fmt: skip
    rlimit_stack: int | None = option(
        SIZE_LIMIT, None, "process", "launched",
        "Maximum size of the stack (RLIMIT_STACK).",
        xinetd="rlimit_stack",
        systemd="LimitSTACK=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_stack=8M",
    )  # fmt: skip
    rlimit_core: int | None = option(
        SIZE_LIMIT, None, "process", "launched",
        "Maximum size of a core file (RLIMIT_CORE); 0 disables core files.",
        systemd="LimitCORE=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_core=0",
    )  # fmt: skip
    rlimit_cpu: int | None = option(
        SECONDS_LIMIT, None, "process", "launched",
        "Maximum processor time (RLIMIT_CPU).",
        xinetd="rlimit_cpu",
        systemd="LimitCPU=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_cpu=10s",
    )  # fmt: skip
    rlimit_nofile: int | None = option(
        COUNT_LIMIT, None, "process", "launched",
        "Maximum number of open files (RLIMIT_NOFILE); none raises it to the daemon's hard limit.",
        xinetd="rlimit_files",
        systemd="LimitNOFILE=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_nofile=64",
    )  # fmt: skip
    rlimit_nproc: int | None = option(
        COUNT_LIMIT, None, "process", "launched",
        "Maximum number of processes of the user (RLIMIT_NPROC); not enforced for root.",
        systemd="LimitNPROC=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd rlimit_nproc=50",
    )  # fmt: skip
    no_new_privs: bool = option(
        YES_NO, False, "process", "launched",
        "Deny new privileges to the process and its children, for example from a set-user-ID bit "
        "(PR_SET_NO_NEW_PRIVS).",
        systemd="NoNewPrivileges=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd no_new_privs=yes",
    )  # fmt: skip
    listen_fds: bool = option(
        YES_NO, False, "process", "server",
        "Pass the socket as descriptor 3 as well, as systemd does (LISTEN_FDS). LISTEN_FDNAMES is connection, or with "
        "wait=yes the service name.",
        systemd="ListenStream= (protocol of sd_listen_fds)",
        example="echo 7010/tcp server=/usr/local/bin/socket-daemon wait=yes listen_fds=yes",
    )  # fmt: skip
    stderr: str = option(
        choice("client", "log"), "client", "process", "spawned",
        "Destination of the standard error of the process: the client, or the log, line by line.",
        systemd="StandardError=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd stderr=log",
    )  # fmt: skip
    stderr_rate: OutputRate | None = option(
        OUTPUT_RATE, OutputRate(100, 65_536), "process", "launched",
        "Maximum rate of lines and bytes that all processes of the service together write to the log (stderr=log, "
        "output of Python handlers, standard error of CGI programs). Lines over the rate are dropped, and one line per "
        "second gives their number.",
        systemd="LogRateLimitBurst=, LogRateLimitIntervalSec=",
        example="finger 79/tcp server=/usr/sbin/in.fingerd stderr=log stderr_rate=20/s,8K/s",
    )  # fmt: skip
    launcher_idle: float | None = option(
        or_none(TIMEOUT), 60.0, "process", "launched",
        "Stop the launcher, the process that starts the handlers, when it has had no handler for this time; this "
        "frees its memory. The next client waits until a new launcher has started and imported the Python module.",
        example="finger 79/tcp server=/usr/sbin/in.fingerd launcher_idle=10m",
    )  # fmt: skip
