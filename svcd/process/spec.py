"""LaunchSpec: the program or handler of a service, with its credentials and limits."""

from __future__ import annotations

import marshal
from typing import Any, NamedTuple

__all__ = ["LaunchSpec", "ProcessCredentials", "ResourceLimit", "add_nofile_limit", "dump", "load"]

#: Minimum number of descriptors that a launcher needs.
_MIN_FDS = 64


class ResourceLimit(NamedTuple):
    """A resource limit (setrlimit(2)): RLIMIT number, soft and hard limit; -1 is none."""

    which: int
    soft: int
    hard: int


class ProcessCredentials(NamedTuple):
    """Credentials and limits of a handler. None keeps the value that the daemon was started with.

    Attributes:
        user, group: numeric IDs.
        groups: the supplementary groups, as numeric IDs.
        umask: the permissions that new files don't get.
        nice: added to the priority (nice(2)); below 0 needs root.
        root: the root directory; only root can change it.
        folder: the working directory, inside of root.
        no_new_privs: whether programs gain no rights by being executed (prctl(2)).
        own_limits: limits of the launcher and its handlers.
        handler_limits: limits of handlers only, set between fork and start of each.
    """

    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    umask: int | None = None
    nice: int = 0
    root: str = ""
    folder: str = "/"
    no_new_privs: bool = False
    own_limits: tuple[ResourceLimit, ...] = ()
    handler_limits: tuple[ResourceLimit, ...] = ()


class LaunchSpec(NamedTuple):
    """A service whose connections are served by processes or threads.

    Attributes:
        name: the id of the service, for messages.
        identity: credentials of the handlers.
        environment: the variables that all connections share.
        program: the path of a program; empty for a Python handler.
        argv: its arguments, including the first.
        handler: `module:name` of a Python handler.
        path: the sys.path for its module.
        own_path: the part of `path` that belongs to the service, where its modules may change.
        threads: whether a Python handler runs in a thread, not in a process.
        log_stderr: whether the standard error of a program goes to the log, not to the client.
        listen_fds: whether a program gets the socket as descriptor 3 as well (sd_listen_fds(3)).
        stderr_lines, stderr_bytes: limit on handler output in the log per second; 0 for none.
        idle: time without a handler after which the launcher exits, in seconds; 0 for no limit.
        start_timeout: time limit of the start of the launcher, in seconds.
        cgi: the directory of CGI programs, one of which is started for a request; empty for all other services.
        symlinks: whether symbolic links below `cgi` are followed.
        hold: whether the launcher keeps a copy of the socket while the handler has it, to count its bytes.
    """

    name: str
    identity: ProcessCredentials
    environment: dict[str, str]
    program: str = ""
    argv: tuple[str, ...] = ()
    handler: str = ""
    path: tuple[str, ...] = ()
    threads: bool = False
    log_stderr: bool = False
    listen_fds: bool = False
    hold: bool = False
    own_path: tuple[str, ...] = ()
    stderr_lines: int = 0
    stderr_bytes: int = 0
    idle: float = 0.0
    start_timeout: float = 30.0
    cgi: str = ""
    symlinks: bool = False


def dump(specs: tuple[LaunchSpec, ...]) -> bytes:
    """Return a table of services as bytes, for the same Python version only."""
    return marshal.dumps([_plain(spec) for spec in specs])


def _plain(value: object) -> object:
    """Return a value with named tuples as plain tuples."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def load(data: bytes) -> tuple[LaunchSpec, ...]:
    """Return the table of services. The bytes must come from the process that starts this one."""
    return tuple(_spec(*values) for values in marshal.loads(data))  # noqa: S302


def _spec(name: str, identity: Any, *rest: Any) -> LaunchSpec:  # noqa: ANN401 - plain values of dump()
    *others, own, handlers = identity
    return LaunchSpec(name, ProcessCredentials._make((*others, _limits(own), _limits(handlers))), *rest)


def _limits(values: Any) -> tuple[ResourceLimit, ...]:  # noqa: ANN401 - plain values of dump()
    return tuple(ResourceLimit(*value) for value in values)


def add_nofile_limit(
    own: tuple[ResourceLimit, ...], handler: tuple[ResourceLimit, ...], files: ResourceLimit, *, keeps: bool
) -> Any:  # noqa: ANN401
    """Return the launcher's own limits and its handlers' limits, with the limit of open files added to one of them.

    A launcher that keeps descriptors open for its handlers must not have the limit of a handler.
    """
    if not keeps and files.soft >= _MIN_FDS:
        return (*own, files), handler
    return own, (*handler, files)
