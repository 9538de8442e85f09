"""Run the test suites of Twisted, treq and klein on the uv reactor.

    python -m tests.reactor.run_suites [--all] [--peers PYTHON]

Two suites run at a time on uv. Tests that fail run again, on uv and on epoll; the exit status is 1 if a test passes on
epoll and fails on uv twice. A test that fails on both is ignored: it requires another machine, user or package. The run
takes about a minute.

Twisted's tests of reactors, which ReactorBuilder makes for each reactor of Twisted, run on uv only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

#: The reactor that ReactorBuilder makes, by the name of the reactor that is installed in the process.
REACTORS = {"epoll": "twisted.internet.epollreactor.EPollReactor", "uv": "tests.reactor.under_test.UvReactor"}
#: The time limit of a job, in seconds.
LIMIT = 240.0
#: The number of concurrent jobs.
_WORKERS = 2
_ROOT = Path(__file__).parents[2]
#: As root this module gives /dev/null the mode of a log file, so that other users can't write to it.
_TWISTED_TEST_HARMS = "twisted.test.test_logfile"
_TWISTED_TEST_SLOW = ("twisted.test.test_process", "twisted.test.test_sslverify")


@dataclass(frozen=True)
class Job:
    """Tests that a process runs.

    Attributes:
        names: the names of packages, modules or tests.
        without: the modules of the packages that are omitted.
        peers: whether the job needs the Python of --peers.
        slow: whether the job runs with --all only.
    """

    names: Sequence[str]
    without: Sequence[str] = ()
    peers: bool = False
    slow: bool = False


#: The jobs, the longest first, so that the workers end at about the same time.
JOBS = [
    Job(["twisted.test.test_process"]),
    Job(["twisted.internet"]),
    Job(["twisted.test"], without=(*_TWISTED_TEST_SLOW, _TWISTED_TEST_HARMS)),
    # It makes RSA keys for half a minute.
    Job(["twisted.test.test_sslverify"], slow=True),
    Job(["treq"], peers=True),
    Job(["twisted.web", "twisted.protocols"]),
    Job(["klein"], peers=True),
]


@dataclass(frozen=True)
class Result:
    """Result of a job.

    Attributes:
        outcomes: passed, skipped, failed or expected, by the name of the test.
        seconds: the duration.
        output: the output.
    """

    outcomes: dict[str, str]
    seconds: float
    output: str


def _modules(name: str, without: Sequence[str]) -> Iterator[str]:
    """Yield the name itself, or the names of all modules of a package except some."""
    from twisted.python.modules import getModule

    if not without:
        yield name
        return
    for module in getModule(name).walkModules():
        if module.name.rsplit(".", 1)[1].startswith("test_") and module.name not in without:
            yield module.name


def run_here(reactor: str, results: Path, without: Sequence[str], names: Sequence[str]) -> None:
    """Run tests in this process, and write the outcome of each into a file, a JSON object.

    Args:
        reactor: the short name of the reactor.
        results: the file.
        without: the modules to omit.
        names: the names of packages, modules or tests.
    """
    from twisted.application.reactors import installReactor

    installReactor(reactor)
    from twisted.internet.test.reactormixins import ReactorBuilder
    from twisted.trial.reporter import TextReporter
    from twisted.trial.runner import TestLoader, TestSuite, TrialRunner

    outcomes: dict[str, str] = {}
    made = f"_{REACTORS[reactor].rsplit('.', 1)[1]}Tests"

    class Recorder(TextReporter):
        """Trial's reporter, which also records the outcome of each test; the worst, if a test has several."""

        def _record(self, outcome: str, test: Any) -> None:
            name = test.id().replace(made, "_ReactorTests")
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

    ReactorBuilder._reactors = [REACTORS[reactor]]
    loader = TestLoader()
    wanted = [module for name in names for module in _modules(name.replace("_ReactorTests", made), without)]
    suite = TestSuite([loader.loadByName(name, recurse=True) for name in wanted])
    TrialRunner(Recorder, workingDirectory=str(results.parent / "trial")).run(suite)
    results.write_text(json.dumps(outcomes))


def run(job: Job, reactor: str, python: str) -> Result:
    """Run a job in a separate process.

    Raises:
        SystemExit: the job did not end in time, or could not run; its output was printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [python, "-m", "tests.reactor.run_suites", "--here", reactor, str(results)]
        command += [f"--without={','.join(job.without)}", *job.names]
        paths = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        started = time.monotonic()
        with subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ, "PYTHONPATH": paths}, text=True, errors="replace",
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                output = process.communicate(timeout=LIMIT)[0]
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                output = process.communicate()[0]
        seconds = time.monotonic() - started
        if not results.exists():
            print(output)
            raise SystemExit(f"{', '.join(job.names)} did not end on {reactor} within {LIMIT:.0f} s")
        return Result(json.loads(results.read_text()), seconds, output)


def _failed(result: Result) -> list[str]:
    return sorted(name for name, outcome in result.outcomes.items() if outcome == "failed")


def _row(job: Job, result: Result) -> str:
    counts = Counter(result.outcomes.values())
    name = " ".join(job.names) + " ..." * bool(job.without)
    numbers = "".join(f"{counts[kind]:10}" for kind in ("passed", "skipped", "failed"))
    return f"{name:36}{len(result.outcomes):8}{numbers}{result.seconds:9.1f}"


def _worse(job: Job, names: Sequence[str], python: str) -> list[str]:
    """Return the tests that fail on uv again and pass on epoll; print their output."""
    again = Job(names, peers=job.peers)
    on_epoll, on_uv = run(again, "epoll", python), run(again, "uv", python)
    worse = []
    for name in names:
        outcomes = on_uv.outcomes.get(name, "missing"), on_epoll.outcomes.get(name, "missing")
        print(f"failed on uv: {name} (again: {outcomes[0]}; on epoll: {outcomes[1]})")
        if outcomes[0] not in ("passed", "skipped") and outcomes[1] == "passed":
            worse.append(name)
    if worse:
        print(on_uv.output)
    return worse


def main(arguments: Sequence[str]) -> int:
    """Run the suites; return the exit status, 0 if no test fails on uv only."""
    parser = argparse.ArgumentParser(prog="python -m tests.reactor.run_suites", description="other suites on uv")
    parser.add_argument("--all", action="store_true", help="run the slow ones, too")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has treq, klein and what svcd needs")
    parser.add_argument("--here", nargs=2, metavar=("REACTOR", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--without", default="", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help="run these packages, modules or tests alone")
    options = parser.parse_args(arguments)
    if options.here:
        run_here(options.here[0], Path(options.here[1]), list(filter(None, options.without.split(","))), options.names)
        return 0
    pythons = {False: sys.executable, True: options.peers}
    jobs = [job for job in JOBS if (options.all or not job.slow) and pythons[job.peers]]
    if options.names:
        jobs = [Job(options.names, peers=bool(options.peers))]
    print(f"{'':36}{'tests':>8}{'passed':>10}{'skipped':>10}{'failed':>10}{'seconds':>9}", flush=True)
    worse = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = pool.map(lambda job: run(job, "uv", pythons[job.peers]), jobs)
        for job, result in zip(jobs, results, strict=True):
            print(_row(job, result), flush=True)
            if names := _failed(result):
                worse += _worse(job, names, pythons[job.peers])
    for name in worse:
        print(f"passes on epoll, but not on uv: {name}")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
