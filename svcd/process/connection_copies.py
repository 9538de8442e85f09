"""Copies of connections that a launcher keeps while their handlers run, to read their byte counts at the end.

A client does not see the end of its connection while any process has it open. So a copy is closed as soon as neither
the handler nor a process that it has started has the connection open any more (proc(5), /proc/PID/fd); the kernel does
not notify of that. The descriptors of a fork of a launcher that was root are hidden (PR_SET_DUMPABLE, prctl(2)), so
Python handlers report that they close their connection: see svcd.process.connection_closes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from svcd.net.stream_sockets import UNKNOWN, close_counted

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ConnectionCopies"]

#: The interval of the checks of all copies, in seconds.
_CHECK_SECONDS = 0.1
#: Maximum share of the time that checks may take, if there are very many copies.
_MAX_TIME_SHARE = 1 / 20


class _Copy(NamedTuple):
    """A copy of a connection.

    Attributes:
        fd: the copy.
        pid: the pid of the handler.
        reported: whether the handler reports that it closes the connection.
    """

    fd: int
    pid: int
    reported: bool


class ConnectionCopies:
    """The copies of a launcher.

    Args:
        clock: returns seconds, monotonic.

    Attributes:
        due: the time of the next call of check(), by the clock; None while there is nothing to check.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._copies: dict[int, _Copy] = {}
        self._counts: dict[int, tuple[int, int]] = {}
        # Connections whose handler's descriptors were hidden at the last check.
        self._hidden: set[int] = set()
        # In most chroot= directories there is no /proc, and processes of other users may be hidden.
        self._can_inspect = os.access("/proc/self/fd", os.R_OK)
        self.due: float | None = None

    def keep(self, connection_id: int, pid: int, fd: int, *, reported: bool = False) -> None:
        """Keep a copy of a connection; close it at once if the close by its handler would not be noticed.

        Args:
            connection_id: the connection.
            pid: the pid of its handler.
            fd: the descriptor of the copy. Takes ownership of it.
            reported: whether the handler reports that it closes the connection.
        """
        if not (self._can_inspect or reported):
            os.close(fd)
            return
        self._copies[connection_id] = _Copy(fd, pid, reported)
        if self._can_inspect and self.due is None:
            self.due = self._clock() + _CHECK_SECONDS

    def close_copy(self, connection_id: int) -> tuple[int, int]:
        """Close the copy of a connection whose handler has exited.

        Returns:
            The numbers of bytes received from the client and sent to it; -1 if unknown.
        """
        copy = self._copies.pop(connection_id, None)
        self._hidden.discard(connection_id)
        return self._counts.pop(connection_id, UNKNOWN) if copy is None else close_counted(copy.fd)

    def handler_left(self, connection_id: int, *, closed: bool) -> None:
        """Close the copy of a connection that its handler has left, unless check() can find the processes with it.

        Args:
            connection_id: the id of the connection; an unknown one is ignored.
            closed: whether the handler closes it; otherwise it passes it to other code, as for TLS, and the counts are
                unknown.
        """
        copy = self._copies.get(connection_id)
        if copy is None or (self._can_inspect and _fds_visible(copy.pid)):
            return
        del self._copies[connection_id]
        self._hidden.discard(connection_id)
        counts = close_counted(copy.fd)
        self._counts[connection_id] = counts if closed else UNKNOWN

    def check(self) -> None:
        """Close the copies of connections that no handler has open any more, if a check is due."""
        if self.due is None:
            return
        now = self._clock()
        if now < self.due:
            return
        for connection_id, copy in list(self._copies.items()):
            try:
                if _has_open(copy.pid, f"socket:[{os.fstat(copy.fd).st_ino}]"):
                    continue
                self._counts[connection_id] = close_counted(copy.fd)
            except PermissionError:
                # The program has other rights, such as by a set-user-ID bit, or is a hidden fork. A program that is
                # being executed is hidden for a moment, too, if the launcher is: execve(2) lets posix_spawn(3) return
                # before it makes the process dumpable.
                if copy.reported or connection_id not in self._hidden:
                    self._hidden.add(connection_id)
                    continue
                os.close(copy.fd)
            self._hidden.discard(connection_id)
            del self._copies[connection_id]
        end = self._clock()
        self.due = end + max(_CHECK_SECONDS, (end - now) / _MAX_TIME_SHARE) if self._copies else None

    def close(self) -> None:
        """Close all copies, in a process other than the launcher."""
        for copy in self._copies.values():
            os.close(copy.fd)
        self._copies.clear()


def _has_open(pid: int, link: str) -> bool:
    """Return whether a process or a descendant has a socket open; True for an ended one until it is reaped.

    Raises:
        PermissionError: the descriptors of the process are hidden.
    """
    try:
        if any(_target(f"/proc/{pid}/fd/{name}") == link for name in os.listdir(f"/proc/{pid}/fd")):  # noqa: PTH208 - names
            return True
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names
    except (FileNotFoundError, ProcessLookupError):
        return True
    return any(_has_open(child, link) for task in tasks for child in _children(pid, task))


def _fds_visible(pid: int) -> bool:
    """Return whether this process may list the descriptors of another one."""
    return os.access(f"/proc/{pid}/fd", os.R_OK)


def _target(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - many of them
    except FileNotFoundError:
        return ""


def _children(pid: int, task: str) -> list[int]:
    """Return the children of a thread (proc_tid_children(5)); empty if the kernel does not list them."""
    try:
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:  # noqa: PTH123 - one system call less
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
