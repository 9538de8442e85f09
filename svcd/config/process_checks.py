"""What the handlers of services need of the machine: programs, users, directories, Python modules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from svcd.interfaces import STILL_IMPORTING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svcd.config.service import Service
    from svcd.interfaces import HostInfo
    from svcd.model import ConfigProblem

__all__ = ["handler_problems"]

#: The most services that one warning names.
_MOST_NAMES = 5


def handler_problems(services: Sequence[Service], machine: HostInfo) -> Iterator[ConfigProblem]:
    """Every Problem of handlers that the machine shows.

    What only root may ask for (another user, a root directory) is none here: a check may be run by anyone.
    """
    importing, served = [], []
    for service in services:
        if service.spawned:
            problems = list(_accounts(service, machine)) or list(_places(service, machine))
            yield from problems
            if not problems and service.runs == "python":
                importing.append(service)
        elif service.runs == "factory":
            served.append(service)
    # All at once, since each may take its time.
    wanted = [
        (each.options.python, each.options.python_path, each.runner, each.options.start_timeout) for each in importing
    ]
    for service, reason in zip(importing, machine.cannot_import(wanted) if wanted else (), strict=True):
        if reason:
            yield service.fault("python", f"can't import {service.options.python}: {reason}")
    makers = [(each.options.factory, each.options, each.options.start_timeout) for each in served]
    for service, reason in zip(served, machine.cannot_serve(makers) if makers else (), strict=True):
        if reason:
            pending = reason.endswith(STILL_IMPORTING)
            yield replace(service.fault("factory", reason), pending=pending)
    yield from _reach(services, machine)


def _reach(services: Sequence[Service], machine: HostInfo) -> Iterator[ConfigProblem]:
    """Warn of handlers that run as the daemon's own user: they may do what it may."""
    own = [service for service in services if service.spawned and not service.options.user]
    user = machine.handlers_user() if own else ""
    if not user:
        return
    names = ", ".join(service.id for service in own[:_MOST_NAMES])
    if len(own) > _MOST_NAMES:
        names += f" and {len(own) - _MOST_NAMES} more"
    run = "runs" if len(own) == 1 else "run"
    if user == "root":
        text = f"{names} {run} as root, and a mistake in a handler gives the machine away; add user=NAME"
    else:
        keys = dict.fromkeys(path for service in services for path in _keys(service) if machine.can_read(path))
        things = ", ".join(["the daemon's log and control socket", *keys])
        text = f"{names} {run} as the daemon's own user, {user}, and can reach what that may: {things}; add user=NAME"
    yield own[0].warning("user", text)


def _keys(service: Service) -> Iterator[str]:
    """Yield the files of a service that have or may have a private key."""
    options = service.options
    for path in (options.tls_key or options.tls_cert, options.tls_sni):
        if path is not None:
            yield path


def _accounts(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    user, group = service.options.user, service.options.group
    if group and not machine.has_group(group):
        yield service.fault("group", f"no group {group!r} on this machine")
    if not user:
        return
    if not machine.has_user(user):
        yield service.fault("user", f"no user {user!r} on this machine")
    elif not group and not machine.has_login_group(user):
        yield service.fault("user", f"nobody knows the group of user {user}; add group=")


def _places(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    options, runner = service.options, service.runner
    inside = f" inside {runner.root}" if runner.root else ""
    if runner.root:
        reason = machine.cannot_enter("/", runner)
        if reason:
            # Nothing else can be there.
            yield service.fault("chroot", f"can't use {runner.root}: {reason}")
            return
    if options.server:
        reason = machine.cannot_execute(options.server[0], runner)
        if reason:
            yield service.fault("server", f"can't run {options.server[0]}{inside}: {reason}")
    for option, folder in (("cwd", options.cwd), *(("python_path", each) for each in options.python_path)):
        reason = machine.cannot_enter(folder, runner)
        if reason:
            yield service.fault(option, f"can't use {folder}{inside}: {reason}")
