"""What the zygote is told of a service before anything runs: what to start, as whom, within which limits."""

from __future__ import annotations

import marshal
from typing import Any, NamedTuple

__all__ = ["LaunchSpec", "ProcessCredentials", "ResourceLimit", "add_nofile_limit", "dump", "load"]

#: With fewer descriptors a launcher has not enough for itself.
_FEWEST_DESCRIPTORS = 64


class ResourceLimit(NamedTuple):
    """A limit of a process (setrlimit(2)): its RLIMIT number, and the soft and the hard one; -1 is none."""

    which: int
    soft: int
    hard: int


class ProcessCredentials(NamedTuple):
    """As whom a handler runs. None keeps what the daemon was started with.

    Attributes:
        user, group: numbers.
        groups: the supplementary groups, by number.
        umask: permissions that new files don't get.
        nice: added to the priority (nice(2)); below 0 needs root.
        root: the root directory; only root can change it.
        folder: the working directory, inside of root.
        no_new_privs: whether programs gain no rights by being executed (prctl(2)).
        own_limits: what the launcher takes for itself and its handlers.
        handler_limits: what handlers alone take, each between its fork and its beginning.
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
    """A spawned service.

    Attributes:
        name: the service's, for messages.
        identity: as whom.
        environment: what every connection has in common, NAME to value.
        program: the path of a program; empty for a Python handler.
        argv: its arguments, the first of them included.
        handler: `module:name` of a Python handler.
        path: where Python looks for its module.
        own_path: of that what the service has itself, where its modules may change.
        threads: whether a Python handler runs in a thread, not in a process.
        log_stderr: whether what a program writes to its standard error goes to the log, not to the client.
        listen_fds: whether a program finds the socket as descriptor 3 too (sd_listen_fds(3)).
        stderr_lines, stderr_bytes: how much of what handlers write goes to the log in a second; 0 for all.
        idle: after so many seconds without a handler the launcher ends; 0 if it stays.
        start_timeout: how long the launcher may take until it can serve, in seconds.
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


def dump(specs: tuple[LaunchSpec, ...]) -> bytes:
    """A table of services as bytes, for the same Python only."""
    return marshal.dumps([_plain(spec) for spec in specs])


def _plain(value: object) -> object:
    """Named tuples as plain ones."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def load(data: bytes) -> tuple[LaunchSpec, ...]:
    """The table again. The bytes must come from the process that starts this one."""
    return tuple(_spec(*values) for values in marshal.loads(data))  # noqa: S302


def _spec(name: str, identity: Any, *rest: Any) -> LaunchSpec:  # noqa: ANN401 - as it was dumped
    *others, own, handlers = identity
    return LaunchSpec(name, ProcessCredentials._make((*others, _limits(own), _limits(handlers))), *rest)


def _limits(values: Any) -> tuple[ResourceLimit, ...]:  # noqa: ANN401 - as it was dumped
    return tuple(ResourceLimit(*value) for value in values)


def add_nofile_limit(
    own: tuple[ResourceLimit, ...], handler: tuple[ResourceLimit, ...], files: ResourceLimit, *, keeps: bool
) -> Any:  # noqa: ANN401
    """Return the launcher's own limits and its handlers', with the one of open files among them.

    What a launcher keeps open for each handler is not to be limited with the handler.
    """
    if not keeps and files.soft >= _FEWEST_DESCRIPTORS:
        return (*own, files), handler
    return own, (*handler, files)
