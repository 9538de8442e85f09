"""Permissions of a user on a path, computed without changing to that user."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

__all__ = ["PathUser", "cannot_enter", "cannot_execute", "cannot_read"]

#: The maximum number of symbolic links that Linux follows in a path (path_resolution(7)).
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class PathUser:
    """User and groups whose permissions are checked.

    Attributes:
        name: the name in messages.
        user: the uid.
        groups: all gids.
    """

    name: str
    user: int
    groups: frozenset[int]

    def may_execute(self, path: str, status: os.stat_result) -> bool:
        """Return whether the user may execute a file, or enter a directory."""
        if self.user == 0:
            return stat.S_ISDIR(status.st_mode) or bool(stat.S_IMODE(status.st_mode) & 0o111)
        return self._may(path, status, stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH)

    def may_read(self, path: str, status: os.stat_result) -> bool:
        """Return whether the user may read a file."""
        return self.user == 0 or self._may(path, status, stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH)

    def _may(self, path: str, status: os.stat_result, owner: int, group: int, others: int) -> bool:
        bits = stat.S_IMODE(status.st_mode)
        if status.st_uid == self.user:
            return bool(bits & owner)
        # An ACL may allow or deny any user and is not evaluated; its effect shows when the program runs.
        if _has_access_list(path):
            return True
        return bool(bits & (group if status.st_gid in self.groups else others))


def _has_access_list(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def cannot_execute(path: str, account: PathUser, root: str = "") -> str:
    """Return why a user can't execute a file; empty if it can, as far as this process can determine.

    Args:
        path: the absolute path of the file.
        account: the user.
        root: the root directory of the process (chroot(2)); empty for the host's own.
    """
    try:
        full, status = _walk(path, account, root)
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if not account.may_execute(full, status):
            return f"{account.name} may not execute it"
        if _is_script(full) and not account.may_read(full, status):
            return f"{account.name} may not read it, and it is a script, which its interpreter reads"
        if os.statvfs(full).f_flag & os.ST_NOEXEC:
            return "its file system is mounted with noexec"
    except OSError as error:
        return _unless_hidden(error, account)
    return ""


def cannot_enter(path: str, account: PathUser, root: str = "") -> str:
    """Return why a user can't enter a directory; empty if it can. Otherwise as cannot_execute()."""
    try:
        full, status = _walk(path, account, root)
        if not stat.S_ISDIR(status.st_mode):
            return os.strerror(errno.ENOTDIR)
        if not account.may_execute(full, status):
            return f"{account.name} may not enter it"
    except OSError as error:
        return _unless_hidden(error, account)
    return ""


def cannot_read(path: str, account: PathUser, root: str = "") -> str:
    """Return why a user can't read a file; empty if it can. Otherwise as cannot_execute()."""
    try:
        full, status = _walk(path, account, root)
        if not account.may_read(full, status):
            return f"{account.name} may not read it"
    except OSError as error:
        return _unless_hidden(error, account)
    return ""


def _is_script(path: str) -> bool:
    """Return whether a file begins with #! (execve(2)); False if this process may not read it."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


class _ForbiddenError(OSError):
    """Denial for the checked user, as opposed to a denial for this process."""


def _unless_hidden(error: OSError, account: PathUser) -> str:
    """Return the reason of an error; empty if it is a denial for this process alone."""
    hidden = error.errno == errno.EACCES and not isinstance(error, _ForbiddenError) and account.user != os.geteuid()
    return "" if hidden else error.strerror or str(error)


def _walk(path: str, account: PathUser, root: str) -> tuple[str, os.stat_result]:
    """Resolve a path as the kernel does for a process with this root, links included.

    Returns:
        The path seen from this process, and its stat(2).

    Raises:
        OSError: the path does not exist, or the user may not enter a directory on the way.
    """
    todo = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            del done[-1:]
        if name in ("", ".", ".."):
            continue
        folder = "/".join([root, *done])
        status = os.stat(folder or "/")  # noqa: PTH116 - one system call
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not account.may_execute(folder or "/", status):
            raise _ForbiddenError(errno.EACCES, f"{account.name} may not enter {'/'.join(['', *done]) or '/'}")
        if not stat.S_ISLNK(os.lstat(f"{folder}/{name}").st_mode):
            done.append(name)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(f"{folder}/{name}")  # noqa: PTH115 - as text, unchanged
        if target.startswith("/"):
            done.clear()
        todo += target.split("/")[::-1]
    full = "/".join([root, *done]) or "/"
    return full, os.stat(full)  # noqa: PTH116 - one system call
