"""Twisted's own reactor tests, on the epoll reactor and on uv, side by side.

    python -m tests.reactor.run_twisted_tests

prints a table of both, and exits by 1 if a test that passes on epoll does not pass on uv. It takes about half a
minute, and at most twice LIMIT.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["main"]

MODULES = ["tcp", "unix", "udp", "time", "core", "threads", "fdset", "tls", "process", "endpoints"]
#: The reactors that ReactorBuilder makes, by the name of the one that is the process's own meanwhile.
REACTORS = {"epoll": "twisted.internet.epollreactor.EPollReactor", "uv": "tests.reactor.under_test.UvReactor"}
#: How long one reactor may take for all of them, in seconds.
LIMIT = 240.0
_ROOT = Path(__file__).parents[2]


def run_here(short_name: str, results: Path) -> None:
    """Run all modules in this process, and write each test's outcome into a file, a JSON object."""
    from twisted.application.reactors import installReactor

    # Some tests use the reactor of the process.
    installReactor(short_name)
    from twisted.internet.test.reactormixins import ReactorBuilder
    from twisted.trial.reporter import TextReporter
    from twisted.trial.runner import TestLoader, TestSuite, TrialRunner

    outcomes: dict[str, str] = {}

    class Recorder(TextReporter):
        """Trial's reporter, which also keeps what became of each test; the worst, if it was told twice."""

        def _record(self, outcome: str, test: Any) -> None:
            name = test.id().replace(REACTORS[short_name].rsplit(".", 1)[1], "Reactor")
            if outcome != "passed" or name not in outcomes:
                outcomes[name] = outcome

        def addSuccess(self, test: Any) -> None:
            self._record("passed", test)
            super().addSuccess(test)  # type: ignore[no-untyped-call]

        def addFailure(self, test: Any, fail: Any) -> None:
            self._record("failed", test)
            super().addFailure(test, fail)  # type: ignore[no-untyped-call]

        def addError(self, test: Any, error: Any) -> None:
            self._record("failed", test)
            super().addError(test, error)  # type: ignore[no-untyped-call]

        def addSkip(self, test: Any, reason: Any) -> None:
            self._record("skipped", test)
            super().addSkip(test, reason)  # type: ignore[no-untyped-call]

        def addExpectedFailure(self, test: Any, failure: Any, todo: Any = None) -> None:
            self._record("expected", test)
            super().addExpectedFailure(test, failure, todo)  # type: ignore[no-untyped-call]

    ReactorBuilder._reactors = [REACTORS[short_name]]
    loader = TestLoader()
    suite = TestSuite([loader.loadByName(f"twisted.internet.test.test_{module}") for module in MODULES])
    TrialRunner(Recorder, workingDirectory=str(results.parent / "trial")).run(suite)
    results.write_text(json.dumps(outcomes))


def outcomes_on(short_name: str) -> tuple[dict[str, str], str]:
    """Run all modules in a process of their own; what became of each test, by name, and what was printed.

    Raises:
        SystemExit: they did not end in time, or could not run; what they printed was shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, "-m", "tests.reactor.run_twisted_tests", short_name, str(results)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        output = ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                command, cwd=_ROOT, env=environment, timeout=LIMIT, check=False, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            output = done.stdout
        if not results.exists():
            print(output)
            raise SystemExit(f"Twisted's tests did not end on {short_name} within {LIMIT:.0f} s")
        outcomes: dict[str, str] = json.loads(results.read_text())
        return outcomes, output


def _row(name: str, outcomes: Mapping[str, str]) -> str:
    counts = Counter(outcomes.values())
    return f"{name:8}{len(outcomes):8}" + "".join(f"{counts[kind]:10}" for kind in ("passed", "skipped", "failed"))


def main(arguments: list[str]) -> int:
    """Run both and compare; 0 if uv is no worse."""
    if arguments:
        run_here(arguments[0], Path(arguments[1]))
        return 0
    found, printed = {}, {}
    for name in REACTORS:
        found[name], printed[name] = outcomes_on(name)
    print(f"{'reactor':8}{'tests':>8}{'passed':>10}{'skipped':>10}{'failed':>10}")
    for name, outcomes in found.items():
        print(_row(name, outcomes))
    for test, outcome in sorted(found["epoll"].items()):
        if outcome == "failed":
            print(f"fails on epoll: {test} (uv: {found['uv'].get(test, 'missing')})")
    worse = sorted(
        test for test, outcome in found["epoll"].items() if outcome == "passed" and found["uv"].get(test) != "passed"
    )
    if worse:
        print(printed["uv"])
    for test in worse:
        print(f"passes on epoll, but not on uv: {test} ({found['uv'].get(test, 'missing')})")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
