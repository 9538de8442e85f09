"""One measurement of one server: a number, and what it counts."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from tests.bench.running import LOAD, TLS_LOAD

if TYPE_CHECKING:
    from tests.bench.running import Kind, Running

__all__ = [
    "MODES",
    "Mode",
    "Result",
    "cpu_seconds",
    "measure_idle",
    "measure_launcher",
    "measure_load",
    "measure_start",
]

IDLE_CONNECTIONS = 5000


@dataclass(frozen=True, slots=True)
class Mode:
    """What is measured.

    Attributes:
        name: as the table and the command line have it.
        unit: of its number.
        words: for the load generator, without the port: mode, connections, bytes; None for those that need none.
        scale: what its number is divided by.
        more_is_better: whether a ratio above 1 is good news.
        reference: the server that ratios are to; empty for none.
        program: the load generator.
        share: of the time that loads last by the command line.
        by_cpu: whether a second is one of the server's processor time, since the load is the bottleneck.
    """

    name: str
    unit: str
    words: tuple[str, int, int] | None
    scale: float = 1
    more_is_better: bool = True
    reference: str = "C epoll"
    program: str = LOAD
    share: float = 1
    by_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What one measurement gave.

    Attributes:
        value: in the mode's unit.
        cpu: the server's own processor time for each operation, in µs; 0 where it was not measured. Where the load
            is the bottleneck, this still tells servers apart.
    """

    value: float
    cpu: float = 0


#: Over TLS 1.3. Each handshake comes with one echo, so that it is known to be done on both sides.
_TLS = [
    Mode("tls handshake", "handshakes/s of server CPU", ("handshake", 16, 64), by_cpu=True),
    Mode("tls pingpong 64", "echoes/s", ("pingpong", 64, 64)),
    Mode("tls bulk", "MB/s", ("bulk", 1, 65_536), 1e6),
]
MODES = [
    Mode("pingpong 1", "echoes/s", ("pingpong", 1, 64)),
    Mode("pingpong 64", "echoes/s", ("pingpong", 64, 64)),
    Mode("pingpong 1000", "echoes/s", ("pingpong", 1000, 64)),
    Mode("bulk", "MB/s", ("bulk", 4, 65_536), 1e6),
    Mode("connect", "connections/s", ("connect", 64, 64)),
    Mode("udp", "echoes/s", ("udp", 64, 64)),
    Mode("idle", "bytes/connection", None, more_is_better=False),
    Mode("start", "ms to the first answer", None, more_is_better=False),
    # A closed loop: each connection asks with six bytes, half-closes, and reads the answer to its end.
    Mode("program", "starts of /bin/cat/s", ("connect", 32, 6), reference="tcpserver"),
    Mode("python", "starts of a Python handler/s", ("connect", 32, 6), reference="tcpserver, python"),
    Mode("launcher", "KB of a launcher", None, more_is_better=False, reference=""),
    *(replace(mode, reference="hitch", program=TLS_LOAD, share=1 / 3) for mode in _TLS),
]


def cpu_seconds(pids: list[int]) -> float:
    """The processor time of processes, their children and those they have reaped (proc(5), stat).

    A tick of stat's is more than each of many children may use, so who is alive is asked for nanoseconds, those of
    threads that have ended included.
    """
    total = 0.0
    for each in [each for pid in pids for each in _tree(pid)]:
        with suppress(OSError):
            # clock_getcpuclockid(3), which Python has not: it is gone, or this is its clock.
            total += time.clock_gettime(~each << 3 | 2)
        after_name = _read(Path(f"/proc/{each}/stat")).rpartition(")")[2].split()
        total += sum(map(int, after_name[13:15])) / os.sysconf("SC_CLK_TCK")
    return total


def measure_load(mode: Mode, running: Running, pin: list[str], folder: Path, seconds: float) -> Result:
    """Run the load generator; its rate, and what it cost the server between the start and the end of its clock.

    Raises:
        RuntimeError: an answer was wrong, or none came.
    """
    assert mode.words is not None
    name, connections, size = mode.words
    seconds *= mode.share
    words = [*pin, str(folder / mode.program), name, str(running.port), str(connections), str(seconds), str(size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        limit = Timer(seconds + 60, load.kill)
        limit.start()
        # To open a thousand connections costs as much as many echoes, and is another mode's figure.
        load.stdout.readline()
        before = cpu_seconds(running.pids)
        line = load.stdout.readline()
        used = cpu_seconds(running.pids) - before
        _, errors = load.communicate()
        limit.cancel()
    if load.returncode:
        raise RuntimeError(errors.strip() or f"the load ended by {load.returncode}")
    operations, took = line.split()
    if not int(operations):
        raise RuntimeError("no answer at all")
    took_by = used if mode.by_cpu else float(took)
    return Result(int(operations) / took_by / mode.scale, used / int(operations) * mode.scale * 1e6)


def _tree(pid: int) -> list[int]:
    """A process and all its children, some of which may be gone when they are looked at."""
    found = [pid]
    for child in _children(pid):
        found += _tree(child)
    return found


def _children(pid: int) -> list[int]:
    return list(map(int, _read(Path(f"/proc/{pid}/task/{pid}/children")).split()))


def _read(path: Path) -> str:
    """A file of proc(5); nothing of a process that has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _memory(pid: int) -> int:
    """The memory of a process and its children, in bytes."""
    return sum(map(_memory_of, _tree(pid)))


def _memory_of(pid: int) -> int:
    """The proportional set size of a process, in bytes (proc(5), smaps_rollup)."""
    text = _read(Path(f"/proc/{pid}/smaps_rollup"))
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def measure_idle(running: Running, pin: list[str], folder: Path) -> Result:
    """Bytes for each of many connections that have been answered once and then say nothing."""
    before = _memory(running.process.pid)
    words = [*pin, str(folder / LOAD), "idle", str(running.port), str(IDLE_CONNECTIONS), "0", "64"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "open\n":
            raise RuntimeError("the connections could not be opened")
        after = _memory(running.process.pid)
        holder.communicate("\n")
    return Result((after - before) / IDLE_CONNECTIONS)


def measure_launcher(running: Running) -> Result:
    """KB of a service's launcher, the share of what it has in common with others included (PSS)."""
    # It is there once it serves, which an answer shows; and so is the zygote, whose child it is.
    with socket.create_connection(("127.0.0.1", running.port), 10) as client:
        client.sendall(b"?")
        client.recv(1)
        zygote = _children(running.process.pid)[0]
        return Result(_memory_of(_children(zygote)[0]) / 1024)


def measure_start(kind: Kind, pin: list[str], folder: Path) -> Result:
    """Milliseconds from the start of the process to its first answer."""
    started = time.perf_counter()
    running = kind.start(pin, folder)
    try:
        with socket.create_connection(("127.0.0.1", running.port), 10) as client:
            client.sendall(b"?")
            client.recv(1)
        return Result((time.perf_counter() - started) * 1000)
    finally:
        running.stop()
