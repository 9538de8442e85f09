"""Data that the old daemon hands over when it starts the new daemon: names of sockets, and the limit of open files.

It is JSON in a file in memory (memfd_create(2)), since an environment variable and an argument hold 128 KiB each
(execve(2)), which the names of some thousand UNIX sockets exceed.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["HANDOVER_VARIABLE", "Handover", "write_handover"]

#: Environment variable: the descriptor of the file.
HANDOVER_VARIABLE = "SVCD_HANDOVER"


class Handover(NamedTuple):
    """Data handed over to the new daemon.

    Attributes:
        names: names of the sockets, in the order of their descriptors.
        open_files: the soft and hard RLIMIT_NOFILE with which the first daemon was started.
        unanswered: names in bind= without an address, whose services are broken therefore.
    """

    names: tuple[str, ...]
    open_files: tuple[int, int]
    unanswered: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Handover | None:
        """Read the file that the environment names; remove the variable, and close the file.

        Returns:
            The data; None without a file: older versions pass all data in the environment.
        """
        value = environment.pop(HANDOVER_VARIABLE, "")
        if not value.isdecimal():
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), os.fdopen(int(value), "rb") as file:
            file.seek(0)
            found = json.load(file)
            soft, hard = found["open_files"]
            unanswered = frozenset(map(str, found.get("unanswered", ())))
            return cls(tuple(map(str, found["names"])), (int(soft), int(hard)), unanswered)
        return None


def write_handover(values: dict[str, object]) -> int:
    """Write values to a file in memory; return its descriptor, at the start of the file. The caller owns it."""
    fd = os.memfd_create("svcd-handover")
    try:
        with os.fdopen(fd, "w", closefd=False) as file:
            json.dump(values, file)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
