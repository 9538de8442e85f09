"""Where a daemon and svcctl meet when nobody names a place: the control socket's usual path."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

__all__ = ["ControlPlace", "control_places", "folder_problem", "make_folder"]


class ControlPlace(NamedTuple):
    """A place where the control socket may be.

    Attributes:
        path: of the socket.
        private: whether no other user may enter its folder: others can write where the folder stands, or the path is
            found by a variable that another user's session has left.
    """

    path: str
    private: bool = True

    @property
    def folder(self) -> str:
        """Where the socket is."""
        return self.path.rpartition("/")[0]


def control_places() -> list[ControlPlace]:
    """Return the usual places of the control socket for the current user, the best one first; there is at least one.

    Under systemd it is the unit's own folder (RUNTIME_DIRECTORY, systemd.exec(5)), for root /run/svcd. Others have a
    folder of their session (XDG_RUNTIME_DIR, XDG Base Directory Specification), which is there without the variable as
    well, or else one below /tmp.
    """
    folder, user = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0], os.geteuid()
    if folder or user == 0:
        return [ControlPlace(f"{folder or '/run/svcd'}/control", private=False)]
    session, usual = os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"
    folders = [f"{session}/svcd"] if session.startswith("/") else []
    if session != usual and os.path.isdir(usual):  # noqa: PTH112 - as text
        folders.append(f"{usual}/svcd")
    return [ControlPlace(f"{each}/control") for each in (*folders, f"/tmp/svcd-{user}")]  # noqa: S108 - it is looked at


def folder_problem(folder: str) -> str:
    """Say why a folder is not the current user's alone; empty if it is, and if it is not there."""
    try:
        status = os.lstat(folder)
    except OSError as error:
        return "" if isinstance(error, FileNotFoundError) else f"{folder}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is no folder; remove it"
    if status.st_uid != os.geteuid():
        return f"{folder} belongs to user {status.st_uid}, not to {os.geteuid()}; remove it"
    if status.st_mode & 0o077:
        return f"others may enter {folder}; remove it, or chmod 700 {folder}"
    return ""


def make_folder(place: ControlPlace, user: int | None = None, group: int | None = None) -> str:
    """Make the folder of a socket at its usual place, as far as we may; others may not even look into it.

    Args:
        place: the place.
        user: who is to have the folder, as root makes it.
        group: the same.

    Returns:
        Why the socket can't be there; empty if it can.
    """
    folder = Path(place.folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not one that was given wider permissions: an administrator has said whose that is.
        own = os.geteuid() == 0 and stat.S_IMODE(os.lstat(folder).st_mode) == 0o700
        if own and (user, group) != (None, None):
            os.chown(folder, -1 if user is None else user, -1 if group is None else group, follow_symlinks=False)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if place.private and (problem := folder_problem(place.folder)):
        return problem
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: it can't be written"
