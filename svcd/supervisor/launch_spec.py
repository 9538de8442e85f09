"""From the options of a spawned service to what its launcher is told: names become numbers, limits find their place."""

from __future__ import annotations

import os
import pwd
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.config.options import TABLE
from svcd.config.value_types import UNLIMITED
from svcd.host.accounts import group_id, user_id
from svcd.process.environment import service_environment
from svcd.process.launch_options import LIMITS, changed_variables
from svcd.process.spec import LaunchSpec, ProcessCredentials, ResourceLimit, add_nofile_limit
from svcd.supervisor.root_given_up import RESTART, START

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from svcd.config.options import ServiceOptions
    from svcd.config.service import Service
    from svcd.model import ConfigProblem
    from svcd.upgrade.handover import Handover

__all__ = ["FOLLOWS_USER", "DaemonAccount", "account_of", "launch_spec", "needs_root", "roots_refusals"]

#: Among twistd's options: whether a daemon before this one has given root up, as --uid says.
FOLLOWS_USER = "svcd-follows-user"
#: Limits that a launcher can't have itself, or that would be about it instead of its handlers.
_FOR_HANDLERS = {name: LIMITS[name] for name in LIMITS if name not in ("rlimit_core", "rlimit_nofile")}


#: Variables that come from passwd(5).
_ACCOUNT_VARIABLES = frozenset({"HOME", "USER", "LOGNAME", "SHELL"})


@dataclass(frozen=True, slots=True)
class DaemonAccount:
    """Who runs the daemon once it serves, and with which limit of open files it was started.

    Attributes:
        open_files: soft and hard limit, before the daemon raised its own.
        user, group: numbers that root is given up for (twistd --uid, --gid); None for what it has.
        groups: the supplementary groups that go with them.
        follows: whether the daemon took over from one that had given root up.
    """

    open_files: tuple[int, int]
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    follows: bool = False

    @property
    def gave_up_root(self) -> bool:
        """Whether the daemon was root once, and is so no more when it serves."""
        return self.user is not None or self.follows


def launch_spec(service: Service, account: DaemonAccount) -> LaunchSpec:
    """What the launcher of a service is told.

    Raises:
        KeyError: passwd(5) or group(5) no longer has a name that the options have.
    """
    options = service.options
    user = _entry(options.user)
    program = options.server[0] if options.server else ""
    # With TLS the daemon has the connection itself, and counts; of UNIX sockets the kernel does not.
    uncounted = options.wait or service.tls or service.net.local
    holds = "TRAFFIC" in service.logged and service.runs in ("server", "python") and not uncounted
    keeps = service.runs == "python" or options.stderr == "log" or holds
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
        log_stderr=options.stderr == "log",
        listen_fds=options.listen_fds,
        hold=holds,
        own_path=options.python_path,
        stderr_lines=0 if options.stderr_rate is None else options.stderr_rate.lines,
        stderr_bytes=0 if options.stderr_rate is None else options.stderr_rate.size,
        idle=options.launcher_idle or 0.0,
        start_timeout=options.start_timeout,
    )


def needs_root(service: Service, account: DaemonAccount) -> Iterator[ConfigProblem]:
    """What a service asks for that only root can give, if we are not root.

    Raises:
        KeyError: as spec_of.
    """
    if os.geteuid() == 0:
        return
    identity = launch_spec(service, account).identity
    options = service.options
    others = {
        "user": identity.user not in (None, os.geteuid()),
        "group": identity.group not in (None, os.getegid(), *os.getgroups()),
        "chroot": bool(options.chroot),
        "nice": options.nice < 0,
    }
    if account.gave_up_root:
        # Else it is the launcher that says so: a check does not know the limits of the daemon.
        limits = {each.which: each.hard for each in (*identity.own_limits, *identity.handler_limits)}
        others |= {name: which in limits and _is_above_own(which, limits[which]) for name, which in LIMITS.items()}
    for option, needed in others.items():
        if needed and getattr(options, option):
            remedy = RESTART if account.gave_up_root else START
            yield service.fault(option, f"only root can give this; {remedy}, or remove the option")


def _is_above_own(which: int, limit: int) -> bool:
    _, most = resource.getrlimit(which)
    return most != UNLIMITED and (limit == UNLIMITED or limit > most)


def roots_refusals(
    service: Service, account: DaemonAccount, row: LaunchSpec | None, options: Iterable[str]
) -> Iterator[ConfigProblem]:
    """Yield why the zygote that was started as root does not start a service, at each option that is the reason.

    Args:
        service: it.
        account: who runs the daemon.
        row: what the zygote's table has for it; None if it has nothing, or the zygote has ended.
        options: by which the service would have other or more rights than in the table.

    Raises:
        KeyError: as spec_of.
    """
    if row is None:
        yield from needs_root(service, account)
        return
    variables = changed_variables(row, launch_spec(service, account))
    found = list(options)
    if "env" in found:
        found = [each for each in found if each != "env"] + [_option_of(name, service.options) for name in variables]
    if "user" in found:
        # These follow from it.
        found = [each for each in found if each not in ("group", "groups")]
    for option in dict.fromkeys(found):
        named = ", ".join(name for name in variables if _option_of(name, service.options) == option)
        value = _value_text(service, option) or f"the removal of {named or option}"
        text = f"{value} gives handlers what they did not have at the start; {RESTART}, or {_kept_text(option, row)}"
        yield service.fault(option, text)


def _option_of(variable: str, options: ServiceOptions) -> str:
    """Return the option that a variable of the environment comes from; env for one that comes from none any more."""
    if variable in dict(options.env):
        return "env"
    if variable in options.passenv:
        return "passenv"
    if variable in _ACCOUNT_VARIABLES:
        return "user"
    return "listen_fds" if variable.startswith("LISTEN_") else "env"


def _value_text(service: Service, option: str) -> str:
    """Return the value of an option, as a services file has it; empty where the line does not have it."""
    if option not in service.places:
        return ""
    return TABLE[option].kind.write(getattr(service.options, option))


def _kept_text(option: str, row: LaunchSpec) -> str:
    """Return what a reload can give a handler, where that is a range; else that the option is to be as it was."""
    identity = row.identity
    limits = {each.which: each.soft for each in (*identity.own_limits, *identity.handler_limits)}
    if option == "umask" and identity.umask is not None:
        return f"give a umask that has the bits of {identity.umask:04o}, which it had then"
    if option == "nice":
        return f"give at least {identity.nice}, which it had then"
    if option in LIMITS and LIMITS[option] in limits:
        return f"give at most {limits[LIMITS[option]]}, which it had then"
    return "undo the change"


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
    """By default what the daemon was started with: the many that it took for itself are too many for some programs."""
    value = options.rlimit_nofile
    if value is None:
        return ResourceLimit(resource.RLIMIT_NOFILE, *account.open_files)
    if value == UNLIMITED:
        # The kernel knows no open files without a limit: as many as may be.
        _, value = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ResourceLimit(resource.RLIMIT_NOFILE, value, value)


def account_of(options: Mapping[str, Any], handover: Handover | None = None) -> DaemonAccount:
    """Who will serve, when twistd has given root up.

    Args:
        options: twistd's.
        handover: knows the limit of open files that the daemon was first started with, if another was before this one.
    """
    open_files = handover.open_files if handover is not None else resource.getrlimit(resource.RLIMIT_NOFILE)
    user, group = options.get("uid"), options.get("gid")
    if user is None:
        return DaemonAccount(open_files, None, group, follows=bool(options.get(FOLLOWS_USER)))
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return DaemonAccount(open_files, user, group, ())
    group = entry.pw_gid if group is None else group
    return DaemonAccount(open_files, user, group, tuple(os.getgrouplist(entry.pw_name, group)))
