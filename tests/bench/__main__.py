"""`python -m tests.bench`: runs the comparison, prints its table and draws its plot.

The servers run on one core, and the load on another. Rounds are interleaved, so that a machine whose speed drifts
drifts for all servers; each figure is the median of the rounds, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.http_load import HTTP_MODES, WRK, HttpMode, measure_http
from tests.bench.measure import MODES, Mode, Result, measure_idle, measure_launcher, measure_load, measure_start
from tests.bench.network import enter_network
from tests.bench.plot import draw
from tests.bench.running import Kind, build, has, pins
from tests.bench.secure import SECURE
from tests.bench.servers import SERVERS
from tests.bench.starters import STARTERS
from tests.bench.web import WEB, make_site

if TYPE_CHECKING:
    from collections.abc import Iterator

Figures = dict[str, dict[str, list[Result]]]
_MODES = [*MODES, *HTTP_MODES]


def _can_be_measured(mode: Mode, folder: Path) -> bool:
    """Return whether the load generator of a mode was built or is installed; print a message if not."""
    if isinstance(mode, HttpMode):
        there, needs = has(WRK)(), WRK
    else:
        there, needs = (folder / mode.program).exists(), "openssl and its headers (libssl-dev)"
    if not there:
        print(f"{mode.name} is left out: it needs {needs}", file=sys.stderr)
    return there


def _round(kinds: list[Kind], mode: Mode, folder: Path, seconds: float) -> Iterator[tuple[str, Result]]:
    """Measure every server once; each is started before its measurement and stopped after it: one runs at a time."""
    server_pin, load_pin = pins()
    for kind in kinds:
        if mode.name not in kind.modes:
            continue
        if mode.name == "start":
            yield kind.name, measure_start(kind, server_pin, folder)
            continue
        running = kind.start(server_pin, folder)
        try:
            if mode.name == "launcher":
                yield kind.name, measure_launcher(running)
            elif isinstance(mode, HttpMode):
                yield kind.name, measure_http(mode, running, load_pin, seconds)
            elif mode.words is None:
                yield kind.name, measure_idle(running, load_pin, folder)
            else:
                yield kind.name, measure_load(mode, running, load_pin, folder, seconds)
        except RuntimeError as error:
            print(f"{mode.name}, {kind.name}: {error}", file=sys.stderr)
        finally:
            running.stop()


def _table(figures: Figures) -> Iterator[str]:
    for mode in _MODES:
        measured = figures.get(mode.name)
        if not measured:
            continue
        yield f"\n{mode.name} ({mode.unit})\n"
        to = f"to {mode.reference}" if mode.reference else ""
        yield f"| server | median | least | greatest | {to} | server CPU µs each |"
        yield "|---|---:|---:|---:|---:|---:|"
        reference = [result.value for result in measured.get(mode.reference, [])]
        for name, results in measured.items():
            values = [result.value for result in results]
            median = statistics.median(values)
            ratio = f"{median / statistics.median(reference):.2f}" if reference else ""
            cpu = statistics.median(result.cpu for result in results)
            spent = f"{cpu:,.1f}" if cpu else ""
            yield f"| {name} | {median:,.0f} | {min(values):,.0f} | {max(values):,.0f} | {ratio} | {spent} |"


def _values(figures: Figures) -> dict[str, dict[str, list[float]]]:
    return {
        mode: {name: [result.value for result in results] for name, results in measured.items()}
        for mode, measured in figures.items()
    }


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="svcd beside its peers")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each load lasts")
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured")
    parser.add_argument("--modes", default="", help="some of: " + ", ".join(mode.name for mode in _MODES))
    parser.add_argument("--servers", default="", help="words that a server's name must hold one of")
    parser.add_argument("--plot", type=Path, default=Path("bench.svg"), help="where to draw the plot, as SVG")
    chosen = parser.parse_args()
    names = [name.strip() for name in chosen.modes.split(",") if name.strip()]
    words = [word.strip() for word in chosen.servers.split(",") if word.strip()]
    modes = [mode for mode in _MODES if not names or mode.name in names]
    references = {mode.reference for mode in _MODES}
    kinds = [
        kind
        for kind in (*SERVERS, *STARTERS, *SECURE, *WEB)
        if kind.is_available() and (not words or kind.name in references or any(word in kind.name for word in words))
    ]
    figures: Figures = {mode.name: {} for mode in modes}
    network = enter_network()
    with tempfile.TemporaryDirectory(prefix="svcd-bench-") as name:
        folder = Path(name)
        build(folder)
        make_site(folder)
        modes = [mode for mode in modes if _can_be_measured(mode, folder)]
        for number in range(chosen.rounds):
            for mode in modes:
                print(f"round {number + 1} of {chosen.rounds}: {mode.name}", file=sys.stderr)
                for server, value in _round(kinds, mode, folder, chosen.seconds):
                    figures[mode.name].setdefault(server, []).append(value)
    print(_machine())
    times = f"median of {chosen.rounds} rounds, {chosen.seconds} s each (over TLS a third of it)"
    print(f"{times}; server on one core, load on another; {network}")
    print("\n".join(_table(figures)))
    chosen.plot.write_text(draw(_values(figures), _MODES))
    print(f"the plot is {chosen.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
