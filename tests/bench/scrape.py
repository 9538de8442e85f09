"""`python -m tests.bench.scrape`: the cost of 1,000 scrapes per second for an echo service, with 200 services.

The daemon runs on one core, the load and the scraper on another. Rounds without and with the scraper alternate. If
other programs disturb the rate of echoes, the daemon's processor time for each, which includes the scrapes, still
shows their cost.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import MODES, measure_load
from tests.bench.running import SCRAPER, Running, build, pins, svcd_serving, wait_for

__all__ = ["main"]

_PINGPONG = next(mode for mode in MODES if mode.name == "pingpong 64")
_CASES = ("no scrapes", "gzip", "identity")


@dataclass(frozen=True, slots=True)
class _Figures:
    """Figures of one round: echoes per second and µs of the daemon for each, scrapes per second and bytes of each."""

    echoes: float
    cost: float
    scrapes: float = 0.0
    size: float = 0.0


def _start(pin: list[str], folder: Path, services: int) -> tuple[Running, int]:
    """Start svcd with an echo, a status service and others that have had a connection; return the status port, too."""
    with ExitStack() as stack:
        # All ports are reserved at once: a port that was closed a moment ago may be given out again.
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(services)]
        echo, status, *ports = [probe.getsockname()[1] for probe in probes]
    lines = [f"bench {echo}/tcp4 echo bind=127.0.0.1 backlog=1024", f"status {status}/tcp4"]
    lines += [f"service{number} {port}/tcp4 echo bind=127.0.0.1" for number, port in enumerate(ports)]
    running = svcd_serving(lines, echo, pin, folder, "-r", "uv")
    # The services listen in the order of the file.
    wait_for(ports[-1])
    for port in ports:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
            client.recv(5)
    return running, status


def _round(case: str, running: Running, status: int, folder: Path, chosen: argparse.Namespace) -> _Figures:
    _, load_pin = pins()
    if case == "no scrapes":
        load = measure_load(_PINGPONG, running, load_pin, folder, chosen.seconds)
        return _Figures(load.value, load.cpu)
    # The scraper starts before the load's clock, and ends after it.
    words = [*load_pin, str(folder / SCRAPER), str(status), str(chosen.rate), str(chosen.seconds + 1), case]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as scraper:
        time.sleep(0.5)
        load = measure_load(_PINGPONG, running, load_pin, folder, chosen.seconds)
        answer, _ = scraper.communicate()
    if scraper.returncode:
        raise SystemExit("the scraper failed")
    answers, took, size = map(float, answer.split())
    return _Figures(load.value, load.cpu, answers / took, size / answers)


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scrape", description="scrapes beside an echo")
    parser.add_argument("--services", type=int, default=200)
    parser.add_argument("--rate", type=int, default=1000, help="scrapes a second")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each round lasts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verbose", action="store_true", help="print each round, too")
    chosen = parser.parse_args()
    found: dict[str, list[_Figures]] = {case: [] for case in _CASES}
    with tempfile.TemporaryDirectory(prefix="svcd-bench-") as name:
        folder = Path(name)
        build(folder)
        server_pin, _ = pins()
        running, status = _start(server_pin, folder, chosen.services)
        try:
            for number in range(chosen.rounds):
                print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
                for case in _CASES:
                    found[case].append(_round(case, running, status, folder, chosen))
        finally:
            running.stop()
    if chosen.verbose:
        for case, rounds in found.items():
            print(case, *rounds, sep="\n  ")
    medians = {case: _median(rounds) for case, rounds in found.items()}
    base = medians["no scrapes"]
    print("| scrapes | echoes/s | to none | daemon's µs for an echo | to none | scrapes/s | bytes of one |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for case, each in medians.items():
        print(f"| {case} | {each.echoes:,.0f} | {each.echoes / base.echoes:.3f} | {each.cost:.2f} "
              f"| {each.cost / base.cost:.3f} | {each.scrapes:,.0f} | {each.size:,.0f} |")  # fmt: skip


def _median(rounds: list[_Figures]) -> _Figures:
    names = ("echoes", "cost", "scrapes", "size")
    return _Figures(*(statistics.median(getattr(each, name) for each in rounds) for name in names))


if __name__ == "__main__":
    main()
