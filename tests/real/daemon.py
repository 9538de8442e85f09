"""A svcd daemon under test: started by twistd, watched through its log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import svcd
from tests.real import preloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["PATIENCE", "Daemon", "environment", "exchange", "fields", "twistd"]

#: Time for which a test waits for an event, in seconds; long enough for a loaded machine.
PATIENCE = 60.0


def twistd(*arguments: str) -> list[str]:
    """Return a command line of the twistd beside this Python."""
    return [sys.executable, str(Path(sys.executable).parent / "twistd"), *arguments]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a daemon that runs the svcd that the tests import."""
    root = str(Path(svcd.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1", **more}


def fields(line: str) -> dict[str, str]:
    """Return the fields of a line of the log, with the event under `event`."""
    _, event, *rest = line.split(" ", 2)
    found = {"event": event}
    for name, plain, quoted in re.findall(r'(\w+)=(?:([^" ]+)|("(?:[^"\\]|\\.)*"))', "".join(rest)):
        found[name] = json.loads(quoted) if quoted else plain
    return found


class Daemon:
    """A running daemon.

    Args:
        folder: its working directory, with its services file.
        services: the text of that file; None for the embedded default.
        arguments: the arguments after `twistd svcd`.
        before: words before its command line, as of setpriv.
        twistd_arguments: options of twistd, before the word svcd.
        ready: whether to wait for the `ready` line of its log.
        env: additional environment variables.
        preexec_fn: called in its process before exec.
        pass_fds: additional descriptors that it inherits.
        usual_control: whether its control socket is at the default path.
    """

    def __init__(
        self,
        folder: Path,
        services: str | None = None,
        *arguments: str,
        before: Sequence[str] = (),
        twistd_arguments: Sequence[str] = (),
        ready: bool = True,
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], None] | None = None,
        pass_fds: Sequence[int] = (),
        usual_control: bool = False,
    ) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        words = [*before, *twistd("--nodaemon", "--pidfile=", *twistd_arguments, "svcd")]
        if services is not None:
            self.file = folder / "services"
            self.file.write_text(services)
            words += ["--services", str(self.file)]
        if "--control" not in arguments and not usual_control:
            # The default path of the socket is the same for all daemons of a user.
            words += ["--control", ""]
        self.process = preloaded.Popen(
            [*words, *arguments],
            cwd=folder,
            env=environment(**(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            preexec_fn=preexec_fn,
            pass_fds=pass_fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if ready:
            try:
                # The log has such lines of launchers, too.
                self.wait_for(lambda line: " ready services=" in line or '"event":"ready"' in line)
            except BaseException:
                self.end()
                raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for(self, wanted: Callable[[str], bool], count: int = 1) -> list[str]:
        """Return the lines of the log that satisfy a condition, once there are `count` of them."""
        found: list[str] = []
        seen = 0

        def enough() -> bool:
            nonlocal seen
            found.extend(line for line in self.lines[seen:] if wanted(line))
            seen = len(self.lines)
            return len(found) >= count

        with self._changed:
            self._changed.wait_for(lambda: enough() or self._closed, PATIENCE)
            if len(found) < count:
                raise AssertionError("the log never said it:\n" + "\n".join(self.lines))
            return found

    def wait_event(self, event: str, service: str, count: int = 1) -> list[dict[str, str]]:
        """Return the fields of the lines of an event of a service, once there are `count` of them."""
        lines = self.wait_for(lambda line: f" {event} service={service} " in f"{line} ", count)
        return [fields(line) for line in lines]

    def zygote(self, count: int = 1) -> int:
        """Return the pid of the zygote that was started last, once `count` were started."""
        lines = self.wait_for(lambda line: " zygote " in line and " state=started" in line, count)
        return int(fields(lines[-1])["pid"])

    def launcher(self, service: str, count: int = 1) -> int:
        """Return the pid of the launcher of a service that was ready last, once `count` were ready."""
        mark = f" launcher service={service} "
        lines = self.wait_for(lambda line: mark in line and " state=ready" in line, count)
        return int(fields(lines[-1])["pid"])

    def handlers(self, service: str, count: int = 1) -> list[int]:
        """Return the pids of `count` handlers of a service, in the order of their connections."""
        return [int(each["pid"]) for each in self.wait_event("accept", service, count)]

    def addresses(self, service: str) -> list[str]:
        """Return the addresses of a service from the log."""
        return [each["address"] for each in self.wait_event("listen", service)]

    def connect(self, service: str, family: int = socket.AF_INET) -> socket.socket:
        """Return a connection, or a connected datagram socket, to a service."""
        net = service.rpartition("/")[2]
        kind = socket.SOCK_DGRAM if net in ("udp", "udp4", "udp6", "unixgram") else socket.SOCK_STREAM
        client = socket.socket(family, kind)
        client.settimeout(PATIENCE)
        try:
            for address in self.addresses(service):
                if family == socket.AF_UNIX:
                    if kind == socket.SOCK_DGRAM:
                        client.bind("")  # the kernel picks a name (unix(7), autobind)
                    client.connect(address)
                    return client
                host, port = re.fullmatch(r"\[?(.*?)\]?:(\d+)", address).groups()  # type: ignore[union-attr]
                if (":" in host) == (family == socket.AF_INET6):
                    client.connect((host, int(port)))
                    return client
            raise AssertionError(f"{service} has no address of family {family}")
        except BaseException:
            client.close()
            raise

    def port(self, service: str) -> int:
        """Return the port of the first listener of a service."""
        return int(self.addresses(service)[0].rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the daemon, wait for its end, and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def end(self) -> None:
        """End the daemon and its successors if they still run, and reap it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE)
        # They have the log open as well, and their lines may be unread.
        deadline = time.monotonic() + PATIENCE
        while self._reader.is_alive() and time.monotonic() < deadline:
            self._end_new_daemons()
            self._reader.join(0.1)
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def new_daemons(self) -> list[int]:
        """The pids of the daemons that upgrades have started, in order."""
        return [int(fields(line)["pid"]) for line in self.lines if " upgrade pid=" in line]

    def _end_new_daemons(self) -> None:
        for pid in self.new_daemons:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert match is not None
        return int(match[1]) * 1024

    def cpu_seconds(self) -> float:
        """Return its processor time in seconds."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Return the number of open descriptors, without those of modules that are being imported.

        Only root can look into a daemon that hides its memory.
        """
        if os.geteuid() != 0:
            pytest.skip("needs root: the daemon's own user can't look into it")
        count = 0
        for each in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += not each.readlink().name.endswith((".py", ".pyc", ".so"))
        return count


def exchange(client: socket.socket, question: bytes = b"") -> bytes:
    """Send a question, half-close, and return the answer up to the end."""
    with client:
        if question:
            client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65_536):
            answer += piece
        return answer
