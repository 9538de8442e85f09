"""Launcher options in messages to the zygote, and the rule for which of them a daemon without root may change.

A daemon that has given up root (twistd --uid) can be compromised while its zygote still runs as root. The table that
the zygote was started with limits the rights that it gives: for each service the user, groups, root directory, program,
arguments, environment, working directory and Python module are those of the table. Arguments and variables matter as
well: with `-c COMMAND` or LD_PRELOAD the sender makes a program run other code, with the rights of the program's user.
Options of the launcher itself may change, and options that take rights away from handlers: more bits of umask=, a
greater nice=, lower rlimit_*, no_new_privs=yes. The comparison is always with the table, so such a change can be
undone.

Imports little, for bare interpreters.
"""

from __future__ import annotations

import resource
import struct
from typing import TYPE_CHECKING

from svcd.process.spec import LaunchSpec, ResourceLimit, add_nofile_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svcd.process.spec import ProcessCredentials

__all__ = ["LIMITS", "apply_options", "changed_variables", "excess", "inherited_limits", "is_above",
           "launcher_options"]  # fmt: skip

#: Limits of a handler, by the option that sets them, in the order of a LaunchSpec.
LIMITS = {
    "rlimit_core": resource.RLIMIT_CORE,
    "rlimit_as": resource.RLIMIT_AS,
    "rlimit_data": resource.RLIMIT_DATA,
    "rlimit_stack": resource.RLIMIT_STACK,
    "rlimit_cpu": resource.RLIMIT_CPU,
    "rlimit_nproc": resource.RLIMIT_NPROC,
    "rlimit_nofile": resource.RLIMIT_NOFILE,
}
#: Attributes of a LaunchSpec that only the launcher uses.
_OWN = ("threads", "log_stderr", "hold", "stderr_lines", "stderr_bytes", "idle", "start_timeout")
_LAYOUT = struct.Struct(f"=???QQddii?{2 * len(LIMITS)}q")
#: Values in a message: no umask, and no limit.
_NO_UMASK = -1
_NO_LIMIT = -2
_GREATEST_NICE = 19
#: Attributes of LaunchSpec and ProcessCredentials that must be as in the table, with the option that sets each.
_FIXED = {
    "name": "",
    "program": "server",
    "handler": "python",
    "path": "python_path",
    "listen_fds": "listen_fds",
    "environment": "env",
    "cgi": "cgi",
    "symlinks": "symlinks",
}
_FIXED_IDENTITY = {"user": "user", "group": "group", "groups": "groups", "root": "chroot", "folder": "cwd"}


def launcher_options(spec: LaunchSpec) -> bytes:
    """Return the part of a LaunchSpec that a message to the zygote may change."""
    identity, limits = spec.identity, _limits(spec.identity)
    umask = _NO_UMASK if identity.umask is None else identity.umask
    numbers: list[int] = []
    for which in LIMITS.values():
        numbers += limits[which][1:] if which in limits else (_NO_LIMIT, _NO_LIMIT)
    own = (getattr(spec, name) for name in _OWN)
    return _LAYOUT.pack(*own, umask, identity.nice, identity.no_new_privs, *numbers)


def apply_options(spec: LaunchSpec, options: bytes) -> LaunchSpec:
    """Return a LaunchSpec with the launcher options of another one.

    Raises:
        ValueError: the options are invalid.
    """
    if len(options) != _LAYOUT.size:
        raise ValueError("no launcher options")
    values = _LAYOUT.unpack(options)
    umask, nice, no_new_privs, *numbers = values[len(_OWN) :]
    adapted = spec._replace(**dict(zip(_OWN, values, strict=False)))
    limits = {}
    for which, soft, hard in zip(LIMITS.values(), numbers[::2], numbers[1::2], strict=True):
        if (soft, hard) == (_NO_LIMIT, _NO_LIMIT):
            continue
        if min(soft, hard) < resource.RLIM_INFINITY:
            # -1 as an unsigned number would be a very large limit.
            raise ValueError("no limit")
        limits[which] = ResourceLimit(which, soft, hard)
    files, core = limits.pop(resource.RLIMIT_NOFILE, None), limits.pop(resource.RLIMIT_CORE, None)
    own, handler = () if core is None else (core,), tuple(limits.values())
    if files is not None:
        keeps = bool(spec.handler) or adapted.log_stderr or adapted.hold
        own, handler = add_nofile_limit(own, handler, files, keeps=keeps)
    identity = spec.identity._replace(
        umask=None if umask == _NO_UMASK else umask,
        nice=nice,
        no_new_privs=no_new_privs,
        own_limits=own,
        handler_limits=handler,
    )
    return adapted._replace(identity=identity)


def inherited_limits() -> dict[int, tuple[int, int]]:
    """Return the soft and hard limits of this process, which apply to handlers of services without limits."""
    return {which: resource.getrlimit(which) for which in LIMITS.values()}


def excess(row: LaunchSpec, wanted: LaunchSpec, inherited: Mapping[int, tuple[int, int]]) -> list[str]:
    """Return the options by which a LaunchSpec gives a handler more or other rights than the zygote's table.

    Args:
        row: the LaunchSpec in the table.
        wanted: the requested LaunchSpec.
        inherited: the limits of the zygote, by RLIMIT number.

    Returns:
        The names of the options, an empty name for the service's name; no names if the zygote may start the launcher.
    """
    have, want = row.identity, wanted.identity
    found = [option for name, option in _FIXED.items() if getattr(row, name) != getattr(wanted, name)]
    if row.argv != wanted.argv and "server" not in found:
        found.append("argv0" if row.argv[1:] == wanted.argv[1:] else "server")
    found += [option for name, option in _FIXED_IDENTITY.items() if getattr(have, name) != getattr(want, name)]
    if want.umask != have.umask and not _takes_permissions(have.umask, want.umask):
        found.append("umask")
    if want.nice != have.nice and not have.nice < want.nice <= _GREATEST_NICE:
        found.append("nice")
    if have.no_new_privs and not want.no_new_privs:
        found.append("no_new_privs")
    return found + _raised_limits(have, want, inherited)


def _takes_permissions(before: int | None, after: int | None) -> bool:
    """Return whether the second umask is valid and has all bits of the first; False if one of them is unknown."""
    return before is not None and after is not None and 0 <= after <= 0o777 and after & before == before


def _raised_limits(
    have: ProcessCredentials, want: ProcessCredentials, inherited: Mapping[int, tuple[int, int]]
) -> list[str]:
    """Return the options of limits whose soft or hard limit is higher than in the table."""
    found, bounds, limits = [], _limits(have), _limits(want)
    for option, which in LIMITS.items():
        unset = ResourceLimit(which, *inherited.get(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
        _, *bound = bounds.get(which, unset)
        _, *wanted = limits.get(which, unset)
        if any(is_above(*each) for each in zip(wanted, bound, strict=True)):
            found.append(option)
    return found


def is_above(limit: int, bound: int) -> bool:
    """Return whether a resource limit is above another one; RLIM_INFINITY is above all others."""
    unlimited = resource.RLIM_INFINITY
    return bound != unlimited and (limit == unlimited or limit > bound)


def _limits(identity: ProcessCredentials) -> dict[int, ResourceLimit]:
    return {limit.which: limit for limit in (*identity.own_limits, *identity.handler_limits)}


def changed_variables(row: LaunchSpec, wanted: LaunchSpec) -> list[str]:
    """Return the names of variables that differ between two LaunchSpecs."""
    before, after = row.environment, wanted.environment
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
