"""Chaos test: inject faults, reload, upgrade, and report the response times of the healthy services."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.chaos.subjects import Subject, free_port, probe, subjects
from tests.chaos.watch import serve
from tests.real.daemon import Daemon, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

#: shutdown_timeout of the daemon, and the additional time that a stop may take, in seconds.
SHUTDOWN, MARGIN = 2.0, 2.0
#: Timeout of a control command, in seconds.
COMMAND = 60.0
_INSIDE = "SVCD_CHAOS_INSIDE"


def _enter_namespaces(arguments: list[str]) -> int:
    """Run this program in new namespaces; return its exit status, or 77 if there can be none."""
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        words += ["--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True).returncode:
        print("no namespaces of one's own here")
        return 77
    # A daemon whose parent is process 1 takes itself for the main process of a container, which an upgrade must
    # not end.
    words += ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*words, sys.executable, "-m", "tests.chaos", *arguments]
    return subprocess.run(command, env={**os.environ, _INSIDE: "1"}).returncode


def _start_network(folder: Path) -> socket.socket:
    """Bring the loopback interface up, and bind a name server that never answers; return its socket."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv = folder / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    subprocess.run(["mount", "--bind", str(resolv), os.path.realpath("/etc/resolv.conf")], check=True)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.53", 53))
    return server


class Chaos:
    """One run of the chaos test.

    Args:
        folder: the directory of all files.
        reactor: the reactor of the daemon.
        seed: the seed of the random choices.
    """

    def __init__(self, folder: Path, reactor: str, seed: int) -> None:
        random.seed(seed)
        self._folder = folder
        self.healthy = [free_port(), free_port()]
        self._subjects = subjects(folder)
        self._faults = Counter[str]()
        self._answers = Counter[str]()
        self._durations: dict[str, list[float]] = {}
        self._failures: list[str] = []
        self._events: list[tuple[float, str]] = []
        self._cpu_waits: list[tuple[float, int, float]] = []
        self._over = threading.Event()
        modules = ":".join(str(folder / name) for name in ("makes", "builds"))
        self._daemon = Daemon(
            folder, self._services_text(), "--control", "control",
            twistd_arguments=["--reactor", reactor],
            env={"PYTHONPATH": f"{environment()['PYTHONPATH']}:{modules}"},
        )  # fmt: skip

    def _services_text(self) -> str:
        lines = [f"@defaults bind=127.0.0.1 shutdown_timeout={SHUTDOWN:.0f}s instances=50"]
        lines += [f"echo{number} {port}/tcp echo" for number, port in enumerate(self.healthy)]
        return "\n".join([*lines, *(each.line() for each in self._subjects if each.listed), ""])

    def _command(self, command: str) -> dict[str, Any]:
        """Send a command to the daemon; retry while the answer is `busy`, as during an upgrade."""
        end = time.monotonic() + COMMAND
        while (found := self._command_once(command)).get("code") == "busy" and time.monotonic() < end:
            time.sleep(0.01)
        return found

    def _command_once(self, command: str) -> dict[str, Any]:
        began = time.monotonic()
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(COMMAND)
                client.connect(str(self._folder / "control"))
                client.sendall(json.dumps({"command": command, "arguments": {}}).encode() + b"\n")
                with client.makefile("rb") as answers:
                    found: dict[str, Any] = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            self._failures.append(f"{command}: no answer: {error!r}")
            return {}
        took = time.monotonic() - began
        self._durations.setdefault(command, []).append(took)
        self._events.append((began, f"{command} for {took:.2f} s"))
        self._answers[f"{command} {'obeyed' if found.get('ok') else 'refused: ' + _reason(found)}"] += 1
        return found

    def _probe(self) -> None:
        while not self._over.wait(random.uniform(0, 0.05)):
            probe(random.choice([each for each in self._subjects if each.address]))

    def _inject_faults(self) -> None:
        while not self._over.wait(random.uniform(0, 0.2)):
            subject: Subject = random.choice(self._subjects)
            name = random.choice(list(subject.actions))
            with contextlib.suppress(FileNotFoundError):
                subject.actions[name]()
            self._faults[f"{subject.name}: {name}"] += 1
            self._events.append((time.monotonic(), f"{subject.name}: {name}"))

    @property
    def _daemons(self) -> list[int]:
        return [pid for pid in (self._daemon.process.pid, *self._daemon.new_daemons) if _is_running(pid)]

    def _sample(self) -> None:
        """Record how long each daemon was runnable without a processor (schedstat, in the kernel's sched-stats)."""
        while not self._over.wait(0.05):
            for pid in self._daemons:
                with contextlib.suppress(OSError):
                    waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
                    self._cpu_waits.append((time.monotonic(), pid, waited))

    def _cpu_wait(self, begin: float, end: float) -> float:
        """Return the longest time that a daemon waited for a processor between two moments, in seconds."""
        longest = 0.0
        for pid in {each[1] for each in self._cpu_waits}:
            samples = [(when, waited) for when, of, waited in self._cpu_waits if of == pid and begin < when < end]
            longest = max([longest, *(samples[-1][1] - waited for _, waited in samples[:1])])
        return longest

    def _each_second(self) -> Iterator[None]:
        """Yield once per second, or as soon as the previous turn is done, until the run is over."""
        due = time.monotonic()
        while not self._over.wait(max(0, due - time.monotonic())):
            due = max(due + 1, time.monotonic())
            yield
            if not self._daemons:
                self._failures.append("no daemon runs")
                self._over.set()

    def _reload(self) -> None:
        new = self._folder / "services.new"
        for _ in self._each_second():
            new.write_text(self._services_text())
            new.rename(self._daemon.file)
            self._command("reload")

    def _upgrade(self) -> None:
        """Upgrade while reloads are requested: the daemon runs one of the two at a time."""
        for _ in self._each_second():
            self._command("upgrade")
            # A reload that waited for the upgrade is refused by the old daemon, and is the new daemon's first command.
            self._over.wait(0.05)

    def run(self, seconds: float) -> None:
        """Inject faults and repair them, reload and upgrade, for a time in seconds."""
        tasks = (self._probe, self._probe, self._inject_faults, self._sample, self._reload, self._upgrade)
        threads = [threading.Thread(target=task) for task in tasks]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Send SIGTERM; check that the daemons and all processes that they have started end in time."""
        serving = self._command("status").get("result", {}).get("pid", self._daemon.process.pid)
        began = time.monotonic()
        daemons = self._daemons
        for pid in daemons:
            os.kill(pid, signal.SIGTERM)
        while any(map(_is_running, daemons)) and time.monotonic() - began < COMMAND:
            time.sleep(0.02)
            if not _is_running(serving) and serving in daemons:
                daemons.remove(serving)
                print(f"SIGTERM: the daemon has ended after {time.monotonic() - began:.2f} s")
        took = time.monotonic() - began
        print(f"SIGTERM: all daemons have ended after {took:.2f} s")
        if took > SHUTDOWN + MARGIN:
            self._failures.append(f"the stop took {took:.1f} s")
        time.sleep(SHUTDOWN)
        for pid, words in _processes():
            if "twistd" in words or "svcd.process" in words or str(self._folder) in words:
                self._failures.append(f"still there: {pid} {words[:150]}")
        self._daemon.end()

    def report(self, watched: list[str], bound: float, log: Path) -> int:
        """Print the results; return 1 if a check has failed, else 0.

        Args:
            watched: the lines that the watchers have written.
            bound: how late an answer of a healthy service may be, in seconds, besides delays of the machine.
            log: where to write the daemon's log.
        """
        log.write_text("\n".join(self._daemon.lines))
        kinds = f"{len(self._faults)} kinds at {len(self._subjects)} services"
        print(f"{sum(self._faults.values())} faults and repairs of {kinds}")
        for name, count in self._answers.most_common():
            print(f"{count:5} {name}")
        for name, times in self._durations.items():
            print(f"{len(times):5} {name}: {min(times):.2f} to {max(times):.2f} s, median {median(times):.2f} s")
        for mark in (" broken service=", " recovered service=", "Traceback", "level=critical"):
            print(f"{sum(mark in line for line in self._daemon.lines):5} lines of the log with {mark.strip()}")
        # Tracebacks are expected in the output of handlers, and from the factories here with "RuntimeError: no".
        for line in self._daemon.lines:
            if "Traceback" in line and " output service=" not in line and "RuntimeError: no " not in line:
                self._failures.append(line[:300])
        self._judge([json.loads(line) for line in watched], bound)
        for wrong in self._failures:
            print(f"WRONG: {wrong}")
        return bool(self._failures)

    def _judge(self, watched: list[dict[str, Any]], bound: float) -> None:
        """Distinguish late answers of the healthy services from delays of the machine."""
        machine = [(each["at"], each["took"]) for each in watched if each.get("server") == "reference"]
        for each in watched:
            if "sum" in each:
                print(f"{each['sum']}: asked {each['asked']}, failed {each['failed']}, slowest {each['slowest']:.3f} s")
            elif each["server"] == "service" and (each["error"] or each["took"] > bound):
                at, took = each["at"], each["took"]
                busy = max((t for a, t in machine if a < at + took + 0.2 and a + t > at - 0.2), default=0)
                waited = self._cpu_wait(at - 0.2, at + took + 0.2)
                near = [what for when, what in self._events if at - 1.5 < when < at + took]
                text = f"{each['error'] or 'late'} after {took:.3f} s near {near[-6:]}"
                text += f" (reference {busy:.3f} s, no processor for {waited:.3f} s)"
                if each["error"] or took - max(busy, waited) > bound:
                    self._failures.append(text)
                else:
                    print(f"the machine was late: {text}")


def _reason(answer: dict[str, Any]) -> str:
    return str(answer.get("error") or answer)[:100]


def _processes() -> Iterator[tuple[int, str]]:
    """Yield pid and command line of each other process of this namespace that runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid != os.getpid() and _is_running(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield pid, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _is_running(pid: int) -> bool:
    """Return whether a process runs; reap ended children."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main(arguments: list[str]) -> int:
    """Run in new namespaces; return 0 if all checks have passed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="faults of every kind in a running daemon"
    )
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--bound", type=float, default=0.1, help="how late a healthy service may be, in seconds")
    parser.add_argument("--reactor", default="uv")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--log", type=Path, default=None, help="where to keep the daemon's log")
    options = parser.parse_args(arguments)
    if _INSIDE not in os.environ:
        return _enter_namespaces([*arguments, f"--seed={options.seed}"])
    print(f"--seed={options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="svcd-chaos-") as name:
        folder = Path(name)
        server = _start_network(folder)
        listening = socket.create_server(("127.0.0.1", 0))
        reference = multiprocessing.get_context("fork").Process(target=serve, args=(listening,), daemon=True)
        reference.start()
        chaos = Chaos(folder, options.reactor, options.seed)
        watchers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.watch", str(options.seconds), *map(str, ports)],
                stdout=subprocess.PIPE, text=True,
            )
            for ports in zip(chaos.healthy, [listening.getsockname()[1]] * 2, strict=True)
        ]  # fmt: skip
        chaos.run(options.seconds)
        watched = [line for watcher in watchers for line in watcher.communicate()[0].splitlines()]
        chaos.stop()
        status = chaos.report(watched, options.bound, options.log or folder / "log")
        reference.terminate()
        server.close()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
