"""The state of processes from /proc: handlers, launchers and zygotes of a daemon under test."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Process", "all_gone", "ignore_and_block", "wait_until"]


class Process:
    """A process that may be no child of the test."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = Path(f"/proc/{pid}")
        self._born = self._begun()

    def _begun(self) -> str:
        """Return its start time; its pid may be reused after its end."""
        try:
            return self.stat()[19]
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def status(self, name: str) -> str:
        """Return a field of its status (proc_pid_status(5))."""
        match = re.search(rf"^{name}:[ \t]*(.*)$", (self._folder / "status").read_text(), re.MULTILINE)
        assert match is not None
        return match[1].strip()

    @property
    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        try:
            return self.stat()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def stat(self) -> list[str]:
        """Return its fields after the name (proc_pid_stat(5)), from the third one, the state, on."""
        return (self._folder / "stat").read_text().rpartition(")")[2].split()

    @property
    def parent(self) -> int:
        """The pid of its parent."""
        return int(self.stat()[1])

    @property
    def session(self) -> int:
        """The pid of the leader of its session."""
        return int(self.stat()[3])

    @property
    def nice(self) -> int:
        """Its nice value."""
        return int(self.stat()[16])

    def limits(self) -> dict[str, tuple[str, str]]:
        """Return its limits from /proc: soft and hard by name."""
        text = (self._folder / "limits").read_text()
        found = re.findall(r"^Max (.*?)\s{2,}(\S+)\s+(\S+)", text, re.MULTILINE)
        return {name: (soft, hard) for name, soft, hard in found}

    def environment(self) -> dict[str, str]:
        """Return the environment that it was started with."""
        items = (self._folder / "environ").read_bytes().decode().split("\0")
        return dict(item.split("=", 1) for item in items if item)

    def descriptors(self) -> dict[int, str]:
        """Return the targets of its open descriptors; of a daemon that hides its memory only root can read them."""
        if not os.access(self._folder / "fd", os.R_OK):
            pytest.skip("needs root: the daemon's own user can't look into it")
        found = {}
        for each in (self._folder / "fd").iterdir():
            # In the test's own process the descriptor of the listing is closed by now.
            with contextlib.suppress(FileNotFoundError):
                found[int(each.name)] = str(each.readlink())
        return found

    def flags(self, descriptor: int) -> int:
        """Return the flags of a descriptor, as of open(2)."""
        text = (self._folder / "fdinfo" / str(descriptor)).read_text()
        match = re.search(r"^flags:\s+(\d+)$", text, re.MULTILINE)
        assert match is not None
        return int(match[1], 8)

    def link(self, name: str) -> str:
        """Return the target of its `cwd` or `root`."""
        return str((self._folder / name).readlink())

    def children(self) -> list[int]:
        """Return the pids of its children, zombies included."""
        return [int(pid) for pid in (self._folder / "task" / str(self.pid) / "children").read_text().split()]

    def kilobytes(self, name: str) -> int:
        """Return a sum over its memory in KiB (smaps_rollup); Pss counts shared pages in proportion."""
        match = re.search(rf"^{name}:\s+(\d+) kB", (self._folder / "smaps_rollup").read_text(), re.MULTILINE)
        assert match is not None
        return int(match[1])

    def wait(self) -> None:
        """Return when it has ended; its parent has to reap it."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self._begun() != self._born:
                return
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            assert poll.poll(PATIENCE * 1000), f"process {self.pid} does not end"
        finally:
            os.close(descriptor)


def all_gone(processes: list[Process]) -> None:
    """Return when all processes have ended."""
    for process in processes:
        process.wait()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Poll until a condition holds that has no event."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def ignore_and_block() -> None:
    """Ignore and block signals, also 32 and 33 of the C library; called in a child process before exec."""
    libc = ctypes.CDLL(None)
    for number in range(1, 65):
        if number in (32, 33):
            # rt_sigaction(2) with SIG_IGN; 13 is its number on x86-64.
            if os.uname().machine == "x86_64":
                libc.syscall(13, number, (1).to_bytes(8, "little") + bytes(56), None, 8)
        elif number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if os.uname().machine == "x86_64":
        # rt_sigprocmask(2), SIG_SETMASK: pthread_sigmask(3) leaves 32 and 33 out.
        libc.syscall(14, 2, b"\xff" * 8, None, 8)
    else:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
