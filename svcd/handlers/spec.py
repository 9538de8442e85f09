"""What the nursery is told of a service before anything runs: what to start, as whom, within which limits."""

from __future__ import annotations

import marshal
import resource
import struct
from typing import Any, NamedTuple

__all__ = ["Identity", "Limit", "Spec", "adapt", "dump", "launcher_options", "load", "place_files", "rights"]

#: With fewer descriptors a launcher has not enough for itself.
_FEWEST_DESCRIPTORS = 64
#: What of a Spec is the launcher's own affair and needs no right, as a message has it.
_OPTIONS = ("threads", "log_stderr", "hold", "stderr_lines", "stderr_bytes", "idle", "start_timeout")
_OPTIONS_LAYOUT = struct.Struct("=???QQdd")


class Limit(NamedTuple):
    """A limit of a process (setrlimit(2)): its RLIMIT number, and the soft and the hard one; -1 is none."""

    which: int
    soft: int
    hard: int


class Identity(NamedTuple):
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
    own_limits: tuple[Limit, ...] = ()
    handler_limits: tuple[Limit, ...] = ()


class Spec(NamedTuple):
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
    identity: Identity
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


def dump(specs: tuple[Spec, ...]) -> bytes:
    """A table of services as bytes, for the same Python only."""
    return marshal.dumps([_plain(spec) for spec in specs])


def _plain(value: object) -> object:
    """Named tuples as plain ones."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def load(data: bytes) -> tuple[Spec, ...]:
    """The table again. The bytes must come from the process that starts this one."""
    return tuple(_spec(*values) for values in marshal.loads(data))  # noqa: S302


def _spec(name: str, identity: Any, *rest: Any) -> Spec:  # noqa: ANN401 - as it was dumped
    *others, own, handlers = identity
    return Spec(name, Identity._make((*others, _limits(own), _limits(handlers))), *rest)


def _limits(values: Any) -> tuple[Limit, ...]:  # noqa: ANN401 - as it was dumped
    return tuple(Limit(*value) for value in values)


def place_files(own: tuple[Limit, ...], handler: tuple[Limit, ...], files: Limit, *, keeps: bool) -> Any:  # noqa: ANN401
    """Return the launcher's own limits and its handlers', with the one of open files among them.

    What a launcher keeps open for each handler is not to be limited with the handler.
    """
    if not keeps and files.soft >= _FEWEST_DESCRIPTORS:
        return (*own, files), handler
    return own, (*handler, files)


def rights(spec: Spec) -> Spec:
    """Return what of a Spec needs rights; two that have it in common differ in what the launcher itself does."""
    default = Spec(spec.name, spec.identity, spec.environment)
    options = {name: getattr(default, name) for name in _OPTIONS}
    limits = tuple(sorted([*spec.identity.own_limits, *spec.identity.handler_limits]))
    identity = spec.identity._replace(own_limits=(), handler_limits=limits)
    # Where modules are looked at for changes the daemon knows.
    return spec._replace(**options, identity=identity, own_path=())


def launcher_options(spec: Spec) -> bytes:
    """Return the part of a Spec that rights() leaves out, for a message."""
    return _OPTIONS_LAYOUT.pack(*(getattr(spec, name) for name in _OPTIONS))


def adapt(spec: Spec, options: bytes) -> Spec:
    """Return a Spec with the launcher options of another one.

    Raises:
        ValueError: they are none.
    """
    if len(options) != _OPTIONS_LAYOUT.size:
        raise ValueError("no launcher options")
    adapted = spec._replace(**dict(zip(_OPTIONS, _OPTIONS_LAYOUT.unpack(options), strict=True)))
    keeps = bool(spec.handler) or adapted.log_stderr or adapted.hold
    identity = spec.identity
    limits = [[each for each in part if each.which != resource.RLIMIT_NOFILE] for part in identity[-2:]]
    files = [each for part in identity[-2:] for each in part if each.which == resource.RLIMIT_NOFILE]
    own, handler = map(tuple, limits)
    if files:
        own, handler = place_files(own, handler, files[0], keeps=keeps)
    return adapted._replace(identity=identity._replace(own_limits=own, handler_limits=handler))
