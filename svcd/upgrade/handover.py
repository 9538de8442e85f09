"""What the old daemon tells the new one as it starts it: the names of the sockets, and the limit of open files.

It is JSON in a file in memory (memfd_create(2)), for it may be long: an environment variable and an argument hold
128 KiB each (execve(2)), which is less than the names of some thousand UNIX sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["HANDOVER", "Handover", "write"]

#: Names the descriptor of the file.
HANDOVER = "SVCD_HANDOVER"


class Handover(NamedTuple):
    """What the new daemon is told.

    Attributes:
        names: of the sockets, in the order of their descriptors.
        open_files: the soft and the hard limit that the first daemon was started with.
        unanswered: names of bind= whose services are broken, since they lead to no address.
    """

    names: tuple[str, ...]
    open_files: tuple[int, int]
    unanswered: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Handover | None:
        """Read the file that the environment names; its variable is taken out, and the file closed.

        Returns:
            None where there is none: older versions have everything in the environment.
        """
        number = environment.pop(HANDOVER, "")
        if not number.isdecimal():
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), os.fdopen(int(number), "rb") as file:
            file.seek(0)
            found = json.load(file)
            soft, hard = found["open_files"]
            unanswered = frozenset(map(str, found.get("unanswered", ())))
            return cls(tuple(map(str, found["names"])), (int(soft), int(hard)), unanswered)
        return None


def write(values: dict[str, object]) -> int:
    """Write a file in memory; returns its descriptor, at the file's beginning."""
    descriptor = os.memfd_create("svcd-handover")
    try:
        with os.fdopen(descriptor, "w", closefd=False) as file:
            json.dump(values, file)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
