"""Rights of spawned services that only root can grant, and the zygote that was started as root."""

from __future__ import annotations

import os
import resource
from functools import partial
from typing import TYPE_CHECKING

from svcd.config.options import TABLE
from svcd.process.launch_options import LIMITS, changed_variables, is_above
from svcd.supervisor.launch_spec import launch_spec
from svcd.supervisor.root_given_up import RESTART, START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from svcd.config.options import ServiceOptions
    from svcd.config.service import Service
    from svcd.model import ConfigProblem
    from svcd.process.launcher_client import LauncherClient, LauncherEvents
    from svcd.process.spec import LaunchSpec
    from svcd.process.zygote_client import ZygoteClient
    from svcd.supervisor.daemon_account import DaemonAccount
    from svcd.supervisor.running_service import ServiceContext


__all__ = ["launcher_maker", "lost_rights", "needs_root", "rights_missing", "roots_refusals"]


#: Variables that come from passwd(5).
_ACCOUNT_VARIABLES = frozenset({"HOME", "USER", "LOGNAME", "SHELL"})


def needs_root(service: Service, account: DaemonAccount) -> Iterator[ConfigProblem]:
    """Yield a problem for each option of a service that only root can apply; none if the process runs as root.

    Raises:
        KeyError: passwd(5) or group(5) has no entry for a name of the options.
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
        # Otherwise the launcher reports it: `svcctl check` does not know the limits of the daemon.
        limits = {each.which: each.hard for each in (*identity.own_limits, *identity.handler_limits)}
        others |= {name: which in limits and _is_above_own(which, limits[which]) for name, which in LIMITS.items()}
    for option, needed in others.items():
        if needed and getattr(options, option):
            remedy = RESTART if account.gave_up_root else START
            yield service.fault(option, f"this requires root; {remedy}, or remove the option")


def _is_above_own(which: int, limit: int) -> bool:
    _, own = resource.getrlimit(which)
    return is_above(limit, own)


def roots_refusals(
    service: Service, account: DaemonAccount, row: LaunchSpec | None, options: Iterable[str]
) -> Iterator[ConfigProblem]:
    """Yield a problem for each option because of which the zygote that was started as root refuses to start a service.

    Args:
        service: the service.
        account: the account of the daemon.
        row: the launch spec of the service in the zygote's table; None if it has none, or the zygote has exited.
        options: the options by which the service would have other or more rights than in the table.

    Raises:
        KeyError: passwd(5) or group(5) has no entry for a name of the options.
    """
    if row is None:
        yield from needs_root(service, account)
        return
    variables = changed_variables(row, launch_spec(service, account))
    found = list(options)
    if "env" in found:
        found = [each for each in found if each != "env"] + [_option_of(name, service.options) for name in variables]
    if "user" in found:
        # group= and groups= follow from user=.
        found = [each for each in found if each not in ("group", "groups")]
    for option in dict.fromkeys(found):
        named = ", ".join(name for name in variables if _option_of(name, service.options) == option)
        value = _value_text(service, option) or f"the removal of {named or option}"
        text = f"{value} gives handlers rights that they did not have at the start"
        yield service.fault(option, f"{text}; {RESTART}, or {_kept_text(option, row)}")


def _option_of(variable: str, options: ServiceOptions) -> str:
    """Return the name of the option that sets a variable of the environment; env if no option sets it any more."""
    if variable in dict(options.env):
        return "env"
    if variable in options.passenv:
        return "passenv"
    if variable in _ACCOUNT_VARIABLES:
        return "user"
    return "listen_fds" if variable.startswith("LISTEN_") else "env"


def _value_text(service: Service, option: str) -> str:
    """Return the value of an option as in a services file; empty if the service's line does not set it."""
    if option not in service.locations:
        return ""
    return TABLE[option].value_type.write(getattr(service.options, option))


def _kept_text(option: str, row: LaunchSpec) -> str:
    """Return the remedy for an option: the range of values that a reload may set, or to undo the change."""
    identity = row.identity
    limits = {each.which: each.soft for each in (*identity.own_limits, *identity.handler_limits)}
    if option == "umask" and identity.umask is not None:
        return f"use a umask that has the bits of {identity.umask:04o}, as at the start"
    if option == "nice":
        return f"use at least {identity.nice}, as at the start"
    if option in LIMITS and LIMITS[option] in limits:
        return f"use at most {limits[LIMITS[option]]}, as at the start"
    return "undo the change"


def launcher_maker(
    context: ServiceContext, service: Service, spec: LaunchSpec, zygote_client: ZygoteClient
) -> Callable[[LauncherEvents], LauncherClient]:
    """Return a function that creates the launcher client of a service.

    Args:
        context: holds the zygote that was started as root.
        service: the service.
        spec: the launch spec of the service.
        zygote_client: starts the launcher, unless only the zygote that was started as root has the required rights.
    """
    first = context.first_zygote_client
    if first is not None and any(needs_root(service, context.account)):
        row = first.row_startable_as_root(spec)
        if row is not None:
            return partial(first.new_launcher_client, row, spec=spec)
    return partial(zygote_client.launcher_client, spec)


def rights_missing(context: ServiceContext, service: Service) -> list[ConfigProblem]:
    """Return the problems of a spawned service: options that need root and that the first zygote can't apply either.

    Raises:
        KeyError: passwd(5) or group(5) no longer has a name that the options have.
    """
    account, first = context.account, context.first_zygote_client
    problems = list(needs_root(service, account))
    if not problems or first is None:
        return problems
    row, excess = first.spec_in_table(service.id), first.excess(launch_spec(service, account))
    if first.has_root and not excess:
        return []
    return list(roots_refusals(service, account, row if first.has_root else None, excess))


def lost_rights(services: Iterable[Service], account: DaemonAccount) -> list[ConfigProblem]:
    """Return the problems of spawned services that a process with the daemon's present rights can't start."""
    return [problem for service in services for problem in needs_root(service, account)]
