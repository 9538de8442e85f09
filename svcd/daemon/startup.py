"""The daemon's process: limit of open files, inherited sockets, command line."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from svcd.connections.descriptor_budget import RESERVE
from svcd.errors import ActivationError, StartFailure
from svcd.log.events import DESCRIPTORS, log_event
from svcd.sockets.acquire import SocketPool
from svcd.sockets.activation import LISTEN_VARIABLES, listen_fds
from svcd.upgrade.new_daemon import CommandLine

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from svcd.supervisor.daemon_account import DaemonAccount
    from svcd.upgrade.handover import Handover

__all__ = ["connection_limit", "inherited_socket_pool", "own_program"]

#: The highest limit of descriptors that is set: with a limit of a billion, programs that close all possible
#: descriptors one after the other take minutes.
_MOST_DESCRIPTORS = 1_048_576
#: A lower limit is logged.
_FEW_DESCRIPTORS = 4096


def connection_limit(sockets: int) -> int:
    """Raise the limit of descriptors as far as possible; return the number for sockets and connections.

    Args:
        sockets: the number of listening sockets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    limit = _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    if limit < _FEW_DESCRIPTORS:
        connections = max(1, limit - sockets - RESERVE)
        advice = "raise the hard limit of open files (ulimit -Hn, LimitNOFILE=) for more connections"
        log_event(Logger(), DESCRIPTORS, limit=limit, connections=connections, advice=advice)
    return max(1, limit - RESERVE)


def inherited_socket_pool(
    environment: MutableMapping[str, str], pid: int, handover: Handover | None = None
) -> SocketPool:
    """Return the sockets that the process has inherited.

    Args:
        environment: the environment of the process. The variables of socket activation are removed, so that child
            processes do not inherit them.
        pid: the pid of the process.
        handover: the data from the old daemon, with the names of the sockets; None without an old daemon.

    Raises:
        StartFailure: the sockets can't be used.
    """
    first = {**environment, **_first_environment()}
    for name in LISTEN_VARIABLES:
        environment.pop(name, None)
    try:
        return SocketPool(listen_fds(first, pid, None if handover is None else handover.names))
    except ActivationError as error:
        raise StartFailure(error.exit_code, f"can't start: {error}") from None


def own_program(options: Mapping[str, Any], environment: Mapping[str, str], account: DaemonAccount) -> CommandLine:
    """Return the command line of this process, with which an upgrade starts the program again.

    Args:
        options: twistd's options.
        environment: the environment of the process, without the variables for this process alone.
        account: the account, with the limit of open files that the process was started with.
    """
    try:
        directory = os.getcwd()  # noqa: PTH109 - as text
    except OSError:
        # The directory was removed; the upgrade will fail to enter it, with an error message.
        directory = os.environ.get("PWD", ".")
    # sys.orig_argv includes the interpreter's own options. Its first item becomes the full path of the interpreter,
    # from which this finds its virtual environment.
    argv = (sys.executable, *sys.orig_argv[1:])
    foreground = bool(options.get("nodaemon") or options.get("debug"))
    return CommandLine(argv, directory, dict(environment), account.open_files, foreground)


def _first_environment() -> dict[str, str]:
    """Return the environment that the process was started with, as the kernel has it (proc(5)).

    Twisted removes LISTEN_PID and LISTEN_FDS when twisted.internet.endpoints is imported, which is earlier.
    """
    try:
        lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(line).partition("=") for line in lines)
    return {name: value for name, _, value in pairs}
