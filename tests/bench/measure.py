"""Measurements of one server: each returns one figure."""

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

from tests.bench.running import LOAD, TLS_LOAD, WEBSOCKET_LOAD

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
    """Kind of measurement.

    Attributes:
        name: the name in the table and on the command line.
        unit: the unit of the figure.
        words: arguments of the load generator, without the port: mode, connections, bytes; None for a measurement
            without load.
        scale: the divisor of the figure.
        more_is_better: whether a ratio above 1 is better.
        reference: the server that ratios refer to; empty for none.
        program: the load generator.
        share: the share of the time given on the command line for which the load runs.
        by_cpu: whether the rate refers to the server's processor time, since the load is the bottleneck.
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
    """Result of one measurement.

    Attributes:
        value: the figure, in the mode's unit.
        cpu: the server's processor time for each operation, in µs; 0 if it was not measured. Servers differ in it
            also where the load is the bottleneck.
    """

    value: float
    cpu: float = 0


#: Over TLS 1.3. Each handshake is followed by one echo, so that it is complete on both sides.
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
    # A closed loop: each connection sends six bytes, shuts down its write side, and reads the answer to its end.
    Mode("program", "starts of /bin/cat/s", ("connect", 32, 6), reference="tcpserver"),
    Mode("python", "starts of a Python handler/s", ("connect", 32, 6), reference="tcpserver, python"),
    # Lines through /bin/cat: a message of 64 bytes each way.
    *(
        Mode(f"websocket {name}", unit, (name, count, 64), reference="websocketd", program=WEBSOCKET_LOAD)
        for name, unit, count in (("pingpong", "messages/s", 64), ("starts", "starts of /bin/cat/s", 32))
    ),
    Mode("launcher", "KB of a launcher", None, more_is_better=False, reference=""),
    *(replace(mode, reference="hitch", program=TLS_LOAD, share=1 / 3) for mode in _TLS),
]


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time of processes, their children and those they have reaped (proc(5), stat), in seconds.

    A clock tick of stat is longer than the time that each of many children uses, so the time of running processes is
    read in nanoseconds, with that of threads that have ended.
    """
    total = 0.0
    for each in [each for pid in pids for each in _tree(pid)]:
        with suppress(OSError):
            # clock_getcpuclockid(3), which Python does not have; it fails if the process has ended.
            total += time.clock_gettime(~each << 3 | 2)
        after_name = _read(Path(f"/proc/{each}/stat")).rpartition(")")[2].split()
        total += sum(map(int, after_name[13:15])) / os.sysconf("SC_CLK_TCK")
    return total


def measure_load(mode: Mode, running: Running, pin: list[str], folder: Path, seconds: float) -> Result:
    """Run the load generator; return its rate, and the server's processor time between start and end of its clock.

    Raises:
        RuntimeError: an answer was wrong or missing.
    """
    assert mode.words is not None
    name, connections, size = mode.words
    seconds *= mode.share
    words = [*pin, str(folder / mode.program), name, str(running.port), str(connections), str(seconds), str(size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        limit = Timer(seconds + 60, load.kill)
        limit.start()
        # Opening a thousand connections costs as much as many echoes, and is another mode's figure.
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
    """Return a process and all its descendants; some of them may have ended."""
    found = [pid]
    for child in _children(pid):
        found += _tree(child)
    return found


def _children(pid: int) -> list[int]:
    return list(map(int, _read(Path(f"/proc/{pid}/task/{pid}/children")).split()))


def _read(path: Path) -> str:
    """Return the content of a file of proc(5); an empty text if the process has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _memory(pid: int) -> int:
    """Return the memory of a process and its descendants, in bytes."""
    return sum(map(_memory_of, _tree(pid)))


def _memory_of(pid: int) -> int:
    """Return the proportional set size of a process, in bytes (proc(5), smaps_rollup)."""
    text = _read(Path(f"/proc/{pid}/smaps_rollup"))
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


def measure_idle(running: Running, pin: list[str], folder: Path) -> Result:
    """Measure the bytes for each of many idle connections that have been answered once."""
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
    """Measure the memory of a service's launcher in KB, with its share of pages that other processes map (PSS)."""
    # The launcher runs once a connection is answered; its parent is the zygote.
    with socket.create_connection(("127.0.0.1", running.port), 10) as client:
        client.sendall(b"?")
        client.recv(1)
        zygote = _children(running.process.pid)[0]
        return Result(_memory_of(_children(zygote)[0]) / 1024)


def measure_start(kind: Kind, pin: list[str], folder: Path) -> Result:
    """Measure the milliseconds from the start of the process to its first answer."""
    started = time.perf_counter()
    running = kind.start(pin, folder)
    try:
        with socket.create_connection(("127.0.0.1", running.port), 10) as client:
            client.sendall(b"?")
            client.recv(1)
        return Result((time.perf_counter() - started) * 1000)
    finally:
        running.stop()
