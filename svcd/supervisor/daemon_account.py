"""The account that runs the daemon while it serves: user, groups, limit of open files."""

from __future__ import annotations

import os
import pwd
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from svcd.upgrade.handover import Handover


__all__ = ["FOLLOWS_USER", "DaemonAccount", "account_of"]


#: Key in twistd's options: whether an old daemon, which this one replaces, has given up root (--uid).
FOLLOWS_USER = "svcd-follows-user"


@dataclass(frozen=True, slots=True)
class DaemonAccount:
    """The account of the daemon while it serves, and the limit of open files that it was started with.

    Attributes:
        open_files: the soft and hard limit before the daemon raised its own.
        user, group: the ids that the daemon changes to from root (twistd --uid, --gid); None for no change.
        groups: the supplementary groups of that user.
        follows: whether the daemon took over from an old daemon that had given up root.
    """

    open_files: tuple[int, int]
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    follows: bool = False

    @property
    def gave_up_root(self) -> bool:
        """Whether the daemon gives up root before it serves, or took over from an old daemon that had done so."""
        return self.user is not None or self.follows


def account_of(options: Mapping[str, Any], handover: Handover | None = None) -> DaemonAccount:
    """Return the account of the daemon after twistd has given up root.

    Args:
        options: twistd's options.
        handover: carries the limit of open files of the first daemon; None if there is no old daemon.
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
