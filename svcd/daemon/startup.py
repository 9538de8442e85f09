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

#: More descriptors than this are not asked for: where the hard limit is a billion, programs that close them
#: all one by one take minutes.
_MOST_DESCRIPTORS = 1_048_576
#: Below this many the log says so.
_FEW_DESCRIPTORS = 4096


def connection_limit(sockets: int) -> int:
    """Raise the limit of descriptors as far as it goes; return what that leaves for sockets and connections.

    Args:
        sockets: how many the daemon listens at.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
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
        environment: of the process; the variables of socket activation are removed: they are not for children.
        pid: of the process.
        handover: has their names, if an old daemon has handed them over.

    Raises:
        StartFailure: they are of no use; the reason was printed.
    """
    first = {**environment, **_first_environment()}
    for name in LISTEN_VARIABLES:
        environment.pop(name, None)
    try:
        return SocketPool(listen_fds(first, pid, None if handover is None else handover.names))
    except ActivationError as error:
        print(f"svcd: can't start: {error}", file=sys.stderr)
        raise StartFailure(error.exit_code, str(error)) from None


def own_program(options: Mapping[str, Any], environment: Mapping[str, str], account: DaemonAccount) -> CommandLine:
    """Return the command line of this process, for an upgrade to start it again.

    Args:
        options: twistd's.
        environment: of the process, without what was meant for it alone.
        account: has the limit of open files that the process was started with.
    """
    try:
        folder = os.getcwd()  # noqa: PTH109 - as text
    except OSError:
        # It was removed; to go back there will fail, and say so.
        folder = os.environ.get("PWD", ".")
    # sys.orig_argv has the interpreter's own options; its name is the path here, by which it finds its environment.
    words = (sys.executable, *sys.orig_argv[1:])
    foreground = bool(options.get("nodaemon") or options.get("debug"))
    return CommandLine(words, folder, dict(environment), account.open_files, foreground)


def _first_environment() -> dict[str, str]:
    """Return the environment that the process was started with, as the kernel has it (proc(5)).

    Twisted takes LISTEN_PID and LISTEN_FDS out as soon as twisted.internet.endpoints is imported, which is earlier.
    """
    try:
        lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(line).partition("=") for line in lines)
    return {name: value for name, _, value in pairs}
