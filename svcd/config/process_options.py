"""The options that say what runs, and how a process of it is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.access.types import OutputRate
from svcd.config.option_info import option
from svcd.config.process_types import (
    COMMAND,
    COUNT_LIMIT,
    ENVIRONMENT,
    HOST_PORT,
    NICE,
    OUTPUT_RATE,
    PATHS,
    REFERENCE,
    SECONDS_LIMIT,
    SIZE_LIMIT,
    VARIABLES,
)
from svcd.config.value_types import MODE, PATH, TEXT, TIMEOUT, WORD, YES_NO, choice, or_none

if TYPE_CHECKING:
    from svcd.addresses import HostPort

__all__ = ["HandlerOptions"]


@dataclass(frozen=True, kw_only=True)
class HandlerOptions:
    """A part of Options, which has the slots for all its parts.

    A limit (rlimit_*) is None for the daemon's own, kinds.UNLIMITED for none, else bytes, seconds or a count.
    """

    __slots__ = ()

    server: tuple[str, ...] = option(
        COMMAND, (), "runs", "any",
        "A program and its arguments, quoted as one word; it is started for each connection and has that as "
        "standard input, output and error. Datagram services need wait=yes.",
        xinetd="server, server_args",
    )  # fmt: skip
    argv0: str = option(
        TEXT, "", "runs", "server",
        "What the program is told as its own name (argv[0]); default: its path.",
        xinetd="flags = NAMEINARGS",
    )  # fmt: skip
    wait: bool = option(
        YES_NO, False, "runs", "server",
        "With yes one process at a time gets the listening socket itself, or the datagram socket, and svcd listens "
        "again when it has ended. A reload that takes the socket away from the service ends the process: SIGTERM, and "
        "SIGKILL after shutdown_timeout.",
        xinetd="wait",
    )  # fmt: skip
    python: str = option(
        REFERENCE, "", "runs", "stream",
        "A Python handler: a socketserver.BaseRequestHandler, or a callable that takes the socket and the address.",
    )  # fmt: skip
    python_path: tuple[str, ...] = option(
        PATHS, (), "runs", "python",
        "Directories where the module is looked for before Python's own.",
    )  # fmt: skip
    model: str = option(
        choice("process", "thread"), "process", "runs", "python",
        "Whether each connection has a process, forked from one that has imported the module, or a thread in it.",
    )  # fmt: skip
    factory: str = option(
        REFERENCE, "", "runs", "stream",
        "A Twisted Factory that is served in the daemon itself, or a callable that takes the service's options and "
        "returns one.",
    )  # fmt: skip
    redirect: HostPort | None = option(
        HOST_PORT, None, "runs", "stream",
        "Pass each connection on to this server; its name is looked up anew each time.",
        xinetd="redirect",
    )  # fmt: skip
    send_proxy: str | None = option(
        or_none(choice("v1", "v2")), None, "runs", "redirect",
        "Begin each connection to the other server with a header of the PROXY protocol, of this version, that names "
        "the client.",
    )  # fmt: skip
    mux: bool = option(
        YES_NO, False, "runs", "stream",
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
