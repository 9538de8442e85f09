"""`python -m tests.bench.reload`: the duration of a reload with 1,000 services, from the request to its answer.

The request is made over the control socket, as by svcctl, so that the figure includes reading the file, comparing
it and changing the services. Reloads of an unchanged file alternate with those of one in which some lines have
changed. The first reload is shown separately: its file is not in the kernel's cache, and the daemon has not
reloaded before.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import svcd
from tests.bench.running import pins, spawn

if TYPE_CHECKING:
    import subprocess

__all__ = ["main"]

_BUILT_INS = ("echo", "discard", "daytime", "time", "upper")


def _services(count: int, changed: int = 0) -> str:
    """Return a services file; `changed` services are replaced, and as many others have another option."""
    lines = ["@defaults bind=127.0.0.1 instances=500 per_source=50"]
    for number in range(count):
        name = f"service{number}" if number >= changed else f"other{number}"
        more = " backlog=64" if changed <= number < 2 * changed else ""
        only = f"only_from=127.0.0.1,10.{number // 250}.{number % 250}.0/24"
        lines.append(f"{name} 0/tcp4 {_BUILT_INS[number % 5]} {only} description=number{number}{more}")
    return "\n".join(lines) + "\n"


def _command(control: Path, command: str) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control))
        client.sendall(json.dumps({"command": command}).encode() + b"\n")
        with client.makefile("rb") as answers:
            found: dict[str, object] = json.loads(answers.readline())
    if not found["ok"]:
        raise SystemExit(f"{command}: {found['error']}")
    return found


def _start(pin: list[str], folder: Path) -> subprocess.Popen[str]:
    control = folder / "control"
    twistd = [sys.executable, str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "--logfile=log"]
    words = [*pin, *twistd, "svcd", "--services", str(folder / "services"), "--control", str(control)]
    process = spawn(words, folder, PYTHONPATH=str(Path(svcd.__file__).parent.parent))
    for _ in range(600):
        try:
            _command(control, "status")
        except OSError:
            time.sleep(0.1)
        else:
            return process
    raise SystemExit("svcd did not come up")


def _cpu(pid: int) -> float:
    """Return the processor time of a process's threads, in milliseconds (schedstat, in the kernel's sched-stats)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


def _reload(pid: int, folder: Path, text: str, *, cold: bool = False) -> tuple[float, float]:
    """Reload a services file; return the time to the answer and the processor time, both in milliseconds."""
    file = folder / "services"
    file.write_text(text)
    if cold:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    used, began = _cpu(pid), time.perf_counter()
    _command(folder / "control", "reload")
    return (time.perf_counter() - began) * 1000, _cpu(pid) - used


def main() -> None:
    """Measure and print the durations."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reload", description="reloads of many services")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    texts = [_services(chosen.services), _services(chosen.services, 5)]
    cases = ("first, nothing changes", "nothing changes", "15 services change")
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="svcd-bench-") as name:
        folder = Path(name)
        (folder / "services").write_text(texts[0])
        process = _start(pins()[0], folder)
        try:
            found["first, nothing changes"].append(_reload(process.pid, folder, texts[0], cold=True))
            for number in range(chosen.rounds):
                found["nothing changes"].append(_reload(process.pid, folder, texts[number % 2]))
                found["15 services change"].append(_reload(process.pid, folder, texts[1 - number % 2]))
        finally:
            process.terminate()
            process.wait()
    print(f"ms for {chosen.services} services\n")
    print("| reload | median | least | greatest | processor time |\n|---|---:|---:|---:|---:|")
    for case, each in found.items():
        times, used = zip(*each, strict=True)
        figures = (statistics.median(times), min(times), max(times), statistics.median(used))
        print(f"| {case} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
