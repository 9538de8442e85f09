"""Users and groups by name or number (passwd(5), group(5))."""

from __future__ import annotations

import grp
import pwd

__all__ = ["group_id", "login", "user_id"]


def user_id(name: str) -> int:
    """Return the uid of a user name or number.

    Raises:
        KeyError: passwd(5) has no such name.
    """
    return _number(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


def login(name: str) -> pwd.struct_passwd | None:
    """Return the passwd(5) entry of a user name or number; None without an entry."""
    try:
        return pwd.getpwuid(_number(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        return None


def group_id(name: str) -> int:
    """Return the gid of a group name or number.

    Raises:
        KeyError: group(5) has no such name.
    """
    return _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid


def _number(digits: str) -> int:
    """Convert digits to a uid or gid below 2**32 - 1, the value that means no change in chown(2).

    Raises:
        KeyError: the number is too great.
    """
    number = int(digits)
    if number >= 0xFFFF_FFFF:
        raise KeyError(f"{digits} is too large")
    return number
