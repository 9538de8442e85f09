"""Users and groups by name or number (passwd(5), group(5))."""

from __future__ import annotations

import grp
import pwd

__all__ = ["group_id", "login", "user_id"]


def user_id(name: str) -> int:
    """The number of a user, who may be given by number.

    Raises:
        KeyError: passwd(5) does not know the name.
    """
    return _number(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


def login(name: str) -> pwd.struct_passwd | None:
    """What passwd(5) says of a user, who may be given by number; None if it knows none."""
    try:
        return pwd.getpwuid(_number(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        return None


def group_id(name: str) -> int:
    """The number of a group, which may be given by number.

    Raises:
        KeyError: group(5) does not know the name.
    """
    return _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid


def _number(digits: str) -> int:
    """A number for chown(2), whose greatest one means no change.

    Raises:
        KeyError: it is too great.
    """
    number = int(digits)
    if number >= 0xFFFF_FFFF:
        raise KeyError(f"{digits} is too great")
    return number
