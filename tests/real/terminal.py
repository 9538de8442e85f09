"""A program on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Terminal"]


class Terminal:
    """A process whose standard input, output and error are a terminal of its own.

    Args:
        words: the command line.
        columns, lines: the size of the terminal.
        variables: more environment variables.

    Attributes:
        process: the process.
        written: what it has written so far.
    """

    def __init__(
        self, words: Sequence[str], columns: int = 80, lines: int = 24, variables: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm", **(variables or {})}
        self.process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            # Its controlling terminal, so that Ctrl-C is SIGINT (tty_ioctl(4)).
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.written = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def until(self, text: str) -> str:
        """Read until the process has written a text; return all that it has written."""
        while text not in self.written:
            assert self._read(), f"{text!r} is not in {self.written!r}"
        return self.written

    def end(self) -> str:
        """Read until the process ends; return all that it has written."""
        while self._read():
            pass
        self.process.wait(PATIENCE)
        return self.written

    def close(self) -> None:
        """Kill the process if a test has left it, and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], PATIENCE)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # EIO: the last process has closed the terminal.
            return False
        self.written += data.decode(errors="replace")
        return True
