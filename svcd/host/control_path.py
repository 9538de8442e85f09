"""Default paths of the control socket, which the daemon and svcctl use without --control."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

__all__ = ["ControlPath", "control_paths", "directory_problem", "make_directory"]


class ControlPath(NamedTuple):
    """Default path of the control socket.

    Attributes:
        path: the path of the socket.
        private: whether other users must have no access to its directory, since they can write in the parent
            directory, or the path is from a variable that another user's session may have left.
    """

    path: str
    private: bool = True

    @property
    def directory(self) -> str:
        """The directory of the socket, without a final slash."""
        return self.path.rpartition("/")[0]


def control_paths() -> list[ControlPath]:
    """Return the default paths of the control socket for the current user, by preference; there is at least one.

    Under systemd it is in the unit's RUNTIME_DIRECTORY (systemd.exec(5)), for root in /run/svcd. For other users it is
    in the directory of their session (XDG_RUNTIME_DIR, XDG Base Directory Specification), which may exist without the
    variable, too, or in a directory below /tmp.
    """
    directory, user = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0], os.geteuid()
    if directory or user == 0:
        return [ControlPath(f"{directory or '/run/svcd'}/control", private=False)]
    session, usual = os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"
    directories = [f"{session}/svcd"] if session.startswith("/") else []
    if session != usual and os.path.isdir(usual):  # noqa: PTH112 - as text
        directories.append(f"{usual}/svcd")
    return [ControlPath(f"{each}/control") for each in (*directories, f"/tmp/svcd-{user}")]  # noqa: S108 - directory_problem() checks it


def directory_problem(directory: str) -> str:
    """Return why other users have access to a directory; empty if they have none, or if it does not exist."""
    try:
        status = os.lstat(directory)
    except OSError as error:
        return "" if isinstance(error, FileNotFoundError) else f"{directory}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{directory} is not a directory; remove it"
    if status.st_uid != os.geteuid():
        return f"{directory} belongs to user {status.st_uid}, not to {os.geteuid()}; remove it"
    if status.st_mode & 0o077:
        return f"other users may enter {directory}; remove it, or chmod 700 {directory}"
    return ""


def make_directory(control_path: ControlPath, user: int | None = None, group: int | None = None) -> str:
    """Make the directory of a control socket, with mode 0700.

    Args:
        control_path: the path of the socket.
        user: the uid of the directory if root makes it; None for no change.
        group: the gid of the directory in this case; None for no change.

    Returns:
        The reason why the socket can't be in the directory; empty if it can.
    """
    directory = Path(control_path.directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # With a wider mode an administrator has made the directory and set its owner.
        own = os.geteuid() == 0 and stat.S_IMODE(os.lstat(directory).st_mode) == 0o700
        if own and (user, group) != (None, None):
            os.chown(directory, -1 if user is None else user, -1 if group is None else group, follow_symlinks=False)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if control_path.private and (problem := directory_problem(control_path.directory)):
        return problem
    return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory}: it can't be written"
