"""The run: it breaks and mends, reloads and upgrades, and tells what became of the healthy services."""

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

from tests.chaos.subjects import Subject, free_port, poke, subjects
from tests.chaos.watch import serve
from tests.real.daemon import Daemon, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

#: shutdown_timeout of the daemon, and what a stop may take besides, in seconds.
SHUTDOWN, MARGIN = 2.0, 2.0
#: How long a command may take, in seconds.
COMMAND = 60.0
_INSIDE = "SVCD_CHAOS_INSIDE"


def _enter(arguments: list[str]) -> int:
    """Run again in namespaces of one's own; its exit status, or 77 if there are none here."""
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        words += ["--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True).returncode:
        print("no namespaces of one's own here")
        return 77
    # A child of process 1 would take itself for the main process of a container, which an upgrade must not end.
    words += ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*words, sys.executable, "-m", "tests.chaos", *arguments]
    return subprocess.run(command, env={**os.environ, _INSIDE: "1"}).returncode


def _silence(folder: Path) -> socket.socket:
    """Bring the loopback interface up, with a name server that takes questions and answers none."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv = folder / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    subprocess.run(["mount", "--bind", str(resolv), os.path.realpath("/etc/resolv.conf")], check=True)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.53", 53))
    return server


class Chaos:
    """One run.

    Args:
        folder: of everything that is made.
        reactor: of the daemon.
        seed: of what is drawn.
    """

    def __init__(self, folder: Path, reactor: str, seed: int) -> None:
        random.seed(seed)
        self._folder = folder
        self.healthy = [free_port(), free_port()]
        self._subjects = subjects(folder)
        self._done = Counter[str]()
        self._answers = Counter[str]()
        self._times: dict[str, list[float]] = {}
        self._wrong: list[str] = []
        self._happened: list[tuple[float, str]] = []
        self._waited: list[tuple[float, int, float]] = []
        self._over = threading.Event()
        modules = ":".join(str(folder / name) for name in ("makes", "builds"))
        self._daemon = Daemon(
            folder, self._text(), "--control", "control",
            twistd_arguments=["--reactor", reactor],
            env={"PYTHONPATH": f"{environment()['PYTHONPATH']}:{modules}"},
        )  # fmt: skip

    def _text(self) -> str:
        lines = [f"@defaults bind=127.0.0.1 shutdown_timeout={SHUTDOWN:.0f}s instances=50"]
        lines += [f"echo{number} {port}/tcp echo" for number, port in enumerate(self.healthy)]
        return "\n".join([*lines, *(each.line() for each in self._subjects if each.listed), ""])

    def _ask(self, command: str) -> dict[str, Any]:
        """Put a command to the daemon that has the control socket; again, if an upgrade has just replaced that."""
        end = time.monotonic() + COMMAND
        while (found := self._ask_once(command)).get("code") == "busy" and time.monotonic() < end:
            time.sleep(0.01)
        return found

    def _ask_once(self, command: str) -> dict[str, Any]:
        began = time.monotonic()
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(COMMAND)
                client.connect(str(self._folder / "control"))
                client.sendall(json.dumps({"command": command, "arguments": {}}).encode() + b"\n")
                with client.makefile("rb") as answers:
                    found: dict[str, Any] = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            self._wrong.append(f"{command}: no answer: {error!r}")
            return {}
        took = time.monotonic() - began
        self._times.setdefault(command, []).append(took)
        self._happened.append((began, f"{command} for {took:.2f} s"))
        self._answers[f"{command} {'obeyed' if found.get('ok') else 'refused: ' + _reason(found)}"] += 1
        return found

    def _poke(self) -> None:
        while not self._over.wait(random.uniform(0, 0.05)):
            poke(random.choice([each for each in self._subjects if each.address]))

    def _break(self) -> None:
        while not self._over.wait(random.uniform(0, 0.2)):
            subject: Subject = random.choice(self._subjects)
            name = random.choice(list(subject.flips))
            with contextlib.suppress(FileNotFoundError):
                subject.flips[name]()
            self._done[f"{subject.name}: {name}"] += 1
            self._happened.append((time.monotonic(), f"{subject.name}: {name}"))

    @property
    def _daemons(self) -> list[int]:
        return [pid for pid in (self._daemon.process.pid, *self._daemon.new_daemons) if _runs(pid)]

    def _sample(self) -> None:
        """Keep how long daemons were ready to run and another process had the processor (sched-stats)."""
        while not self._over.wait(0.05):
            for pid in self._daemons:
                with contextlib.suppress(OSError):
                    waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
                    self._waited.append((time.monotonic(), pid, waited))

    def _processor(self, begin: float, end: float) -> float:
        """How long a daemon waited for a processor in a time, in seconds; of several daemons the longest."""
        longest = 0.0
        for pid in {each[1] for each in self._waited}:
            samples = [(when, waited) for when, of, waited in self._waited if of == pid and begin < when < end]
            longest = max([longest, *(samples[-1][1] - waited for _, waited in samples[:1])])
        return longest

    def _each_second(self) -> Iterator[None]:
        """Yield once a second, or as soon as the turn before is done, until the time is over."""
        due = time.monotonic()
        while not self._over.wait(max(0, due - time.monotonic())):
            due = max(due + 1, time.monotonic())
            yield
            if not self._daemons:
                self._wrong.append("no daemon runs")
                self._over.set()

    def _reload(self) -> None:
        new = self._folder / "services.new"
        for _ in self._each_second():
            new.write_text(self._text())
            new.rename(self._daemon.file)
            self._ask("reload")

    def _upgrade(self) -> None:
        """Upgrade while reloads come: each waits for the one before it, whichever of the two that is."""
        for _ in self._each_second():
            self._ask("upgrade")
            # A reload that has waited for the upgrade is refused by the old daemon, and is the new one's first.
            self._over.wait(0.05)

    def run(self, seconds: float) -> None:
        """Break and mend, reload and upgrade, until the time is over."""
        works = (self._poke, self._poke, self._break, self._sample, self._reload, self._upgrade)
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """SIGTERM: the daemon, those before it and all that they have started are to be gone in time."""
        serving = self._ask("status").get("result", {}).get("pid", self._daemon.process.pid)
        began = time.monotonic()
        daemons = self._daemons
        for pid in daemons:
            os.kill(pid, signal.SIGTERM)
        while any(map(_runs, daemons)) and time.monotonic() - began < COMMAND:
            time.sleep(0.02)
            if not _runs(serving) and serving in daemons:
                daemons.remove(serving)
                print(f"SIGTERM: the daemon has ended after {time.monotonic() - began:.2f} s")
        took = time.monotonic() - began
        print(f"SIGTERM: all daemons have ended after {took:.2f} s")
        if took > SHUTDOWN + MARGIN:
            self._wrong.append(f"the stop took {took:.1f} s")
        time.sleep(SHUTDOWN)
        for pid, words in _processes():
            if "twistd" in words or "svcd.process" in words or str(self._folder) in words:
                self._wrong.append(f"still there: {pid} {words[:150]}")
        self._daemon.end()

    def tell(self, watched: list[str], bound: float, log: Path) -> int:
        """Print what happened; 1 if something did that must not.

        Args:
            watched: what the watchers have written.
            bound: how late a healthy service may be besides the machine, in seconds.
            log: where to keep the daemon's.
        """
        log.write_text("\n".join(self._daemon.lines))
        kinds = f"{len(self._done)} kinds at {len(self._subjects)} services"
        print(f"{sum(self._done.values())} faults and repairs of {kinds}")
        for name, count in self._answers.most_common():
            print(f"{count:5} {name}")
        for name, times in self._times.items():
            print(f"{len(times):5} {name}: {min(times):.2f} to {max(times):.2f} s, median {median(times):.2f} s")
        for mark in (" broken service=", " recovered service=", "Traceback", "level=critical"):
            print(f"{sum(mark in line for line in self._daemon.lines):5} lines of the log with {mark.strip()}")
        # What handlers say is theirs, and what factories raise here says so.
        for line in self._daemon.lines:
            if "Traceback" in line and " output service=" not in line and "RuntimeError: no " not in line:
                self._wrong.append(line[:300])
        self._judge([json.loads(line) for line in watched], bound)
        for wrong in self._wrong:
            print(f"WRONG: {wrong}")
        return bool(self._wrong)

    def _judge(self, watched: list[dict[str, Any]], bound: float) -> None:
        """Tell the healthy services' stalls from the machine's."""
        machine = [(each["at"], each["took"]) for each in watched if each.get("who") == "reference"]
        for each in watched:
            if "sum" in each:
                print(f"{each['sum']}: asked {each['asked']}, failed {each['failed']}, slowest {each['slowest']:.3f} s")
            elif each["who"] == "service" and (each["error"] or each["took"] > bound):
                at, took = each["at"], each["took"]
                busy = max((t for a, t in machine if a < at + took + 0.2 and a + t > at - 0.2), default=0)
                waited = self._processor(at - 0.2, at + took + 0.2)
                near = [what for when, what in self._happened if at - 1.5 < when < at + took]
                text = f"{each['error'] or 'late'} after {took:.3f} s near {near[-6:]}"
                text += f" (reference {busy:.3f} s, no processor for {waited:.3f} s)"
                if each["error"] or took - max(busy, waited) > bound:
                    self._wrong.append(text)
                else:
                    print(f"the machine was late: {text}")


def _reason(answer: dict[str, Any]) -> str:
    return str(answer.get("error") or answer)[:100]


def _processes() -> Iterator[tuple[int, str]]:
    """The other processes of this namespace that run: pid and command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid != os.getpid() and _runs(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield pid, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _runs(pid: int) -> bool:
    """Whether a process runs; ended children are reaped."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main(arguments: list[str]) -> int:
    """Run in namespaces of one's own; 0 if all that had to hold did."""
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
        return _enter([*arguments, f"--seed={options.seed}"])
    print(f"--seed={options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="svcd-chaos-") as name:
        folder = Path(name)
        server = _silence(folder)
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
        status = chaos.tell(watched, options.bound, options.log or folder / "log")
        reference.terminate()
        server.close()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
