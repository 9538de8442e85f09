"""Upgrades of a daemon under test: commands, and modules that its new daemon imports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.real import preloaded
from tests.real.daemon import PATIENCE, environment
from tests.real.processes import Process, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.real.daemon import Daemon

__all__ = [
    "MARKS",
    "SERVICES",
    "ask",
    "children",
    "end_process",
    "import_from",
    "importing",
    "svcctl",
    "upgrade_daemon",
]

SERVICES = "@defaults bind=127.0.0.1\necho 0/tcp\nday 0/tcp daytime\necho 0/udp per_source_rate=none\n"
SERVICES += "cat 0/tcp server=/bin/cat\n"
#: Module that creates a file when it is imported, and then waits while the file `wait` exists.
MARKS = """
import os, pathlib, time
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo
folder = pathlib.Path(os.environ["MARKS"])
(folder / f"imported-{os.getpid()}").touch()
deadline = time.monotonic() + 60
while (folder / "wait").exists() and time.monotonic() < deadline:
    time.sleep(0.001)

def make():
    return Factory.forProtocol(Echo)
"""


def svcctl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run svcctl with the control socket in a directory."""
    command = [sys.executable, "-m", "svcd", "--control", str(folder / "control"), *words]
    return preloaded.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 2)


def upgrade_daemon(folder: Path, *words: str) -> dict[str, int]:
    """Run `svcctl upgrade` and return its JSON output."""
    done = svcctl(folder, "upgrade", "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def ask(folder: Path, command: str, **arguments: object) -> dict[str, Any]:
    """Send a command to the control socket and return the answer, without a process."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE * 2)
        client.connect(str(folder / "control"))
        client.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
        with client.makefile("rb") as answers:
            found: dict[str, Any] = json.loads(answers.readline())
            return found


def import_from(folder: Path) -> dict[str, str]:
    """Return the environment of a daemon that imports modules from a directory."""
    return {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{folder}"}


@contextlib.contextmanager
def importing(
    start_controlled: Callable[..., Daemon], folder: Path, services: str
) -> Iterator[tuple[Daemon, socket.socket]]:
    """Start an upgrade whose new daemon imports while the file `wait` exists; return daemon and control client."""
    (folder / "marks.py").write_text(MARKS)
    daemon = start_controlled(services, env={**import_from(folder), "MARKS": str(folder)})
    (folder / "wait").touch()
    marks = len(list(folder.glob("imported-*")))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(folder / "control"))
        client.sendall(b'{"command":"upgrade"}\n')
        wait_until(lambda: len(list(folder.glob("imported-*"))) > marks, "the module is imported")
        yield daemon, client


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def end_process(pid: int) -> None:
    """Send SIGTERM to a process that runs, and wait for its end."""
    process = Process(pid)
    if process.alive:
        os.kill(pid, signal.SIGTERM)
        process.wait()
