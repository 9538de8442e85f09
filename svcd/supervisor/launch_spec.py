"""Conversion of the options of spawned services to launch specs; names of users and groups become ids."""

from __future__ import annotations

import os
import pwd
import resource
import sys
from typing import TYPE_CHECKING

from svcd.config.value_types import UNLIMITED
from svcd.host.accounts import group_id, user_id
from svcd.process.environment import service_environment
from svcd.process.launch_options import LIMITS
from svcd.process.spec import LaunchSpec, ProcessCredentials, ResourceLimit, add_nofile_limit

if TYPE_CHECKING:
    from svcd.config.options import ServiceOptions
    from svcd.config.service import Service
    from svcd.supervisor.daemon_account import DaemonAccount

__all__ = ["launch_spec"]

#: Limits of handlers only: a launcher would fail with them, or they would count it as well.
_FOR_HANDLERS = {name: LIMITS[name] for name in LIMITS if name not in ("rlimit_core", "rlimit_nofile")}


def launch_spec(service: Service, account: DaemonAccount) -> LaunchSpec:
    """Return the launch spec of a service.

    Raises:
        KeyError: passwd(5) or group(5) no longer has a name that the options have.
    """
    options = service.options
    user = _entry(options.user)
    program = options.server[0] if options.server else ""
    # With TLS or WebSocket the daemon keeps the connection and counts; the kernel counts none of UNIX sockets.
    uncounted = options.wait or service.piped or service.net.local
    holds = "TRAFFIC" in service.logged and service.runs in ("server", "python") and not uncounted
    # Standard error of a CGI program has no other place to go.
    logs_stderr = options.stderr == "log" or bool(options.cgi)
    keeps = service.runs == "python" or logs_stderr or holds
    environment = service_environment(service.name, user, options.env, options.passenv, os.environ)
    if options.listen_fds:
        # A connection is named as systemd names it with Accept=yes (systemd.socket(5), FileDescriptorName=).
        environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": service.name if options.wait else "connection"}
    return LaunchSpec(
        name=service.id,
        identity=_identity(options, user, account, keeps=keeps),
        environment=environment,
        program=program,
        argv=(options.argv0 or program, *options.server[1:]),
        handler=options.python,
        path=(*options.python_path, *sys.path) if options.python else (),
        threads=options.model == "thread",
        log_stderr=logs_stderr,
        listen_fds=options.listen_fds,
        hold=holds,
        own_path=options.python_path,
        stderr_lines=0 if options.stderr_rate is None else options.stderr_rate.lines,
        stderr_bytes=0 if options.stderr_rate is None else options.stderr_rate.size,
        idle=options.launcher_idle or 0.0,
        start_timeout=options.start_timeout,
        cgi=options.cgi,
        symlinks=bool(options.cgi) and options.symlinks,
    )


def _entry(name: str) -> pwd.struct_passwd | None:
    """Return a user's passwd(5) entry, by name or id; None for no name, and for an id without an entry.

    Raises:
        KeyError: passwd(5) has no entry for the name.
    """
    if not name:
        return None
    if not name.isdecimal():
        return pwd.getpwnam(name)
    try:
        return pwd.getpwuid(int(name))
    except KeyError:
        return None


def _identity(
    options: ServiceOptions, entry: pwd.struct_passwd | None, account: DaemonAccount, *, keeps: bool
) -> ProcessCredentials:
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
        ResourceLimit(which, value, value)
        for name, which in _FOR_HANDLERS.items()
        if (value := getattr(options, name)) is not None
    ]
    own = []
    if options.rlimit_core is not None:
        own.append(ResourceLimit(resource.RLIMIT_CORE, options.rlimit_core, options.rlimit_core))
    own_limits, handler_limits = add_nofile_limit(
        tuple(own), tuple(handler), _open_files(options, account), keeps=keeps
    )
    return ProcessCredentials(
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


def _open_files(options: ServiceOptions, account: DaemonAccount) -> ResourceLimit:
    """Return the limit of open files: rlimit_nofile=, by default the limit that the daemon was started with.

    The daemon raises its own limit so far that some programs can't work with it.
    """
    value = options.rlimit_nofile
    if value is None:
        return ResourceLimit(resource.RLIMIT_NOFILE, *account.open_files)
    if value == UNLIMITED:
        # The kernel requires a limit of open files (fs.nr_open): use the hard limit.
        _, value = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ResourceLimit(resource.RLIMIT_NOFILE, value, value)
