"""From the options of a spawned service to what its launcher is told: names become numbers, limits find their place."""

from __future__ import annotations

import os
import pwd
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.config.kinds import UNLIMITED
from svcd.handlers.environment import service_environment
from svcd.handlers.spec import Identity, Limit, Spec, place_files
from svcd.transport.machine import group_id, user_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.config.options import Options
    from svcd.config.service import Service
    from svcd.model import Problem

__all__ = ["Account", "root_needed", "spec_of"]

#: Limits that a launcher can't have itself, or that would be about it instead of its handlers.
_FOR_HANDLERS = {
    "rlimit_as": resource.RLIMIT_AS,
    "rlimit_data": resource.RLIMIT_DATA,
    "rlimit_stack": resource.RLIMIT_STACK,
    "rlimit_cpu": resource.RLIMIT_CPU,
    "rlimit_nproc": resource.RLIMIT_NPROC,
}


_START = "start svcd as root, under systemd with the drop-in spawn-as-users.conf (etc/systemd/drop-ins)"
_RESTART = (
    "root was given up at the start (--uid, as in the drop-in spawn-as-users.conf), so restart svcd, under systemd by "
    "systemctl restart svcd"
)


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the daemon once it serves, and with which limit of open files it was started.

    Attributes:
        open_files: soft and hard limit, before the daemon raised its own.
        user, group: numbers that root is given up for (twistd --uid, --gid); None for what it has.
        groups: the supplementary groups that go with them.
    """

    open_files: tuple[int, int]
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None


def spec_of(service: Service, account: Account) -> Spec:
    """What the launcher of a service is told.

    Raises:
        KeyError: passwd(5) or group(5) no longer has a name that the options have.
    """
    options = service.options
    user = _entry(options.user)
    program = options.server[0] if options.server else ""
    # With TLS the daemon has the connection itself, and counts; of UNIX sockets the kernel does not.
    uncounted = options.wait or service.tls or service.net.local
    holds = "TRAFFIC" in service.logged and service.runs == "server" and not uncounted
    keeps = service.runs == "python" or options.stderr == "log" or holds
    environment = service_environment(service.name, user, options.env, options.passenv, os.environ)
    if options.listen_fds:
        # A connection is named as systemd names it with Accept=yes (systemd.socket(5), FileDescriptorName=).
        environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": service.name if options.wait else "connection"}
    return Spec(
        name=service.id,
        identity=_identity(options, user, account, keeps=keeps),
        environment=environment,
        program=program,
        argv=(options.argv0 or program, *options.server[1:]),
        handler=options.python,
        path=(*options.python_path, *sys.path) if options.python else (),
        threads=options.model == "thread",
        log_stderr=options.stderr == "log",
        listen_fds=options.listen_fds,
        hold=holds,
        own_path=options.python_path,
        stderr_lines=0 if options.stderr_rate is None else options.stderr_rate.lines,
        stderr_bytes=0 if options.stderr_rate is None else options.stderr_rate.size,
        idle=options.launcher_idle or 0.0,
        start_timeout=options.start_timeout,
    )


def root_needed(service: Service, account: Account) -> Iterator[Problem]:
    """What a service asks for that only root can give, if we are not root.

    Raises:
        KeyError: as spec_of.
    """
    if os.geteuid() == 0:
        return
    identity = spec_of(service, account).identity
    options = service.options
    others = {
        "user": identity.user not in (None, os.geteuid()),
        "group": identity.group not in (None, os.getegid(), *os.getgroups()),
        "chroot": bool(options.chroot),
        "nice": options.nice < 0,
    }
    for option, needed in others.items():
        if needed and getattr(options, option):
            remedy = _RESTART if account.user is not None else _START
            yield service.fault(option, f"only root can give this; {remedy}, or remove the option")


def _entry(name: str) -> pwd.struct_passwd | None:
    """A user, by name or number; None for no name, and for a number that passwd(5) does not know."""
    if not name:
        return None
    if not name.isdecimal():
        return pwd.getpwnam(name)
    try:
        return pwd.getpwuid(int(name))
    except KeyError:
        return None


def _identity(options: Options, entry: pwd.struct_passwd | None, account: Account, *, keeps: bool) -> Identity:
    user, group, groups = account.user, account.group, account.groups
    if options.user:
        user = user_id(options.user)
        group = entry.pw_gid if entry is not None else user
    if options.group:
        group = group_id(options.group)
    if options.user or options.group:
        groups = ()
        if options.groups and entry is not None and group is not None:
            groups = tuple(os.getgrouplist(entry.pw_name, group))
    handler = [
        Limit(which, value, value)
        for name, which in _FOR_HANDLERS.items()
        if (value := getattr(options, name)) is not None
    ]
    own = []
    if options.rlimit_core is not None:
        own.append(Limit(resource.RLIMIT_CORE, options.rlimit_core, options.rlimit_core))
    own_limits, handler_limits = place_files(tuple(own), tuple(handler), _open_files(options, account), keeps=keeps)
    return Identity(
        user=user,
        group=group,
        groups=groups,
        umask=options.umask,
        nice=options.nice,
        root=options.chroot,
        folder=options.cwd,
        no_new_privs=options.no_new_privs,
        own_limits=own_limits,
        handler_limits=handler_limits,
    )


def _open_files(options: Options, account: Account) -> Limit:
    """By default what the daemon was started with: the many that it took for itself are too many for some programs."""
    value = options.rlimit_nofile
    if value is None:
        return Limit(resource.RLIMIT_NOFILE, *account.open_files)
    if value == UNLIMITED:
        # The kernel knows no open files without a limit: as many as may be.
        _, value = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Limit(resource.RLIMIT_NOFILE, value, value)
