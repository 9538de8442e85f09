"""Credentials of the current process: user, groups, limits, priority, root and working directory."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcd.process.spec import ProcessCredentials, ResourceLimit

__all__ = ["apply_credentials", "apply_limits", "become_subreaper", "hide_memory", "signal_at_parent_end"]

# prctl(2).
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def apply_credentials(identity: ProcessCredentials) -> None:
    """Change this process to the given credentials, irreversibly; handler_limits are not applied.

    Steps that need root are done before root is given up. The working directory is changed after that, so the user must
    be allowed to enter it.

    Raises:
        OSError: the system refuses; its text names the step. The process must exit then.
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
        raise OSError(error.errno, f"can't set {step}: {error.strerror}") from error


def apply_limits(limits: tuple[ResourceLimit, ...]) -> None:
    """Set resource limits of this process (setrlimit(2)).

    Raises:
        OSError: a limit is above the hard limit, and the process is not root.
    """
    for which, soft, hard in limits:
        try:
            resource.setrlimit(which, (soft, hard))
        except ValueError as error:
            # Python turns EPERM into a ValueError.
            raise PermissionError(errno.EPERM, str(error)) from error


def become_subreaper() -> None:
    """Become the new parent of descendants whose parent has exited (PR_SET_CHILD_SUBREAPER, prctl(2)).

    Raises:
        OSError: the system does not support it.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER)


def signal_at_parent_end(number: int) -> None:
    """Set the signal that this process gets when its parent exits (PR_SET_PDEATHSIG, prctl(2)); 0 for none.

    Raises:
        OSError: the system refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, number)


def hide_memory() -> None:
    """Forbid other processes of this user to trace this process or to read its memory, environment and fds in /proc.

    This also disables core dumps (PR_SET_DUMPABLE, prctl(2)). Programs that the process executes are not affected.

    Raises:
        OSError: the system refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _same_groups(groups: tuple[int, ...], group: int | None) -> bool:
    """Return whether the supplementary groups need no change.

    setgroups(2) fails without root, and for root of a user namespace that may not call it (user_namespaces(7)). Root's
    own group is usually among the supplementary groups; it must be removed if the process gets another group.
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
