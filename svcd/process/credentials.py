"""Becoming somebody else: user, groups, limits, priority, root and working directory of the current process."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcd.process.spec import ProcessCredentials, ResourceLimit

__all__ = ["apply_credentials", "apply_limits", "become_subreaper", "hide_memory"]

# prctl(2).
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def apply_credentials(identity: ProcessCredentials) -> None:
    """Become what an identity says, for good; the limits of handlers alone are not taken.

    What needs root comes before root is given up, and the working directory after, so that it must be the user's to
    enter.

    Raises:
        OSError: the system refuses; its text says which step, and the process is good for nothing but to end.
    """
    step = ""
    try:
        step = "the limits"
        apply_limits(identity.own_limits)
        step = f"nice={identity.nice}"
        if identity.nice:
            os.nice(identity.nice)
        if identity.umask is not None:
            os.umask(identity.umask)
        if identity.root:
            step = f"chroot={identity.root}"
            os.chroot(identity.root)
            os.chdir("/")
        step = "the supplementary groups" if identity.group is None else f"the group {identity.group}"
        if identity.groups is not None and not _same_groups(identity.groups, identity.group):
            os.setgroups(identity.groups)
        if identity.group is not None:
            os.setresgid(identity.group, identity.group, identity.group)
        step = f"the user {identity.user}"
        if identity.user is not None:
            os.setresuid(identity.user, identity.user, identity.user)
        step = f"cwd={identity.folder}"
        os.chdir(identity.folder)
        step = "no_new_privs=yes"
        if identity.no_new_privs:
            _prctl(_PR_SET_NO_NEW_PRIVS)
    except OSError as error:
        raise OSError(error.errno, f"can't take {step}: {error.strerror}") from error


def apply_limits(limits: tuple[ResourceLimit, ...]) -> None:
    """Set the limits of this process.

    Raises:
        OSError: one is above the hard limit, and the process is not root.
    """
    for which, soft, hard in limits:
        try:
            resource.setrlimit(which, (soft, hard))
        except ValueError as error:
            # What Python makes of EPERM.
            raise PermissionError(errno.EPERM, str(error)) from error


def become_subreaper() -> None:
    """Let processes whose parent has ended become children of this one, if an ancestor of it they had.

    Raises:
        OSError: the system has no such thing.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER)


def hide_memory() -> None:
    """Let no other process of this user trace this process, or read its memory, environment and descriptors in /proc.

    It leaves no core dump either (PR_SET_DUMPABLE, prctl(2)). Programs that it executes are as ever.

    Raises:
        OSError: the system refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _same_groups(groups: tuple[int, ...], group: int | None) -> bool:
    """Return whether the supplementary groups need no change.

    setgroups(2) fails without root, and for root of a user namespace that may not call it (user_namespaces(7)). Root's
    own group is among the supplementary groups as a rule: it must go where the process gets another group.
    """
    own = os.getegid()
    before = {*os.getgroups(), own}
    if os.geteuid() != 0:
        return set(groups) <= before
    return group in (None, own) and {*groups, own} == before


def _prctl(option: int, value: int = 1) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
