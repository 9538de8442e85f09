"""Trying whether Python handlers can be imported, each in a process of its own and as the user it will run as.

A module may do anything when it is imported: end the interpreter, crash it, never return. So each is tried in a child
of a small interpreter, which the daemon starts for all of them; the other modules do not notice.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from svcd.process.credentials import apply_credentials
from svcd.process.imports import import_object
from svcd.process.signals import reset_inherited_signals
from svcd.process.spec import ProcessCredentials

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["START_TIMEOUT", "ImportCheck", "check_imports", "main"]

#: How long the import of a module may take, in seconds, unless its trial says otherwise.
START_TIMEOUT = 30.0
#: So many are tried at a time.
_AT_ONCE = 4
#: Functions that only make something to be run, by the flags of their code (inspect.CO_*).
_LAZY = {0x80: "an async function", 0x200: "an async generator", 0x20: "a generator"}
_CALL = "__call__"
#: The longest reason, in bytes; it fits into a pipe that nobody reads yet.
_MAX_REASON = 4000
_CODE = "import json, sys; asked = json.load(sys.stdin); sys.path[:] = asked['path']; import svcd.process.import_check as t; t.main(asked)"  # noqa: E501 - one statement line is all that -c takes


class ImportCheck(NamedTuple):
    """One import to try.

    Attributes:
        reference: `package.module:name`.
        path: directories that are looked through before Python's own.
        user, group, groups: numbers, for root to become; None stays who we are.
        root: the root directory, which only root can change; empty leaves it.
        options: of a service with factory=, whose reference gives a Factory, in hexadecimal digits as pickle has them;
            empty for a handler.
        seconds: how long the import may take.
    """

    reference: str
    path: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    root: str = ""
    options: str = ""
    seconds: float = START_TIMEOUT


def check_imports(trials: Sequence[ImportCheck], wait: float | None = None) -> list[str]:
    """Why each of them can't be imported and called; empty for those that can. Blocks until all are tried.

    Args:
        trials: what to try.
        wait: for how long in all, in seconds; of those that take longer nothing is known, and the reason is empty. None
            for as long as each may take.
    """
    if not trials:
        return []
    # As this process finds modules, wherever the other one starts.
    path = [os.path.abspath(each) for each in sys.path]  # noqa: PTH100 - as Python itself does
    asked = json.dumps({"path": path, "wait": wait, "trials": trials})
    ended = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _CODE], input=asked, capture_output=True, text=True, check=False
    )
    try:
        reasons: list[str] = json.loads(ended.stdout)
    except ValueError:
        last = ended.stderr.strip().rpartition("\n")[2]
        return [f"the interpreter that tries it has failed: {last}"] * len(trials)
    return reasons


def main(asked: dict[str, object]) -> None:
    """Try what was asked for, in the other interpreter, and print the reasons."""
    reset_inherited_signals()
    trials: list[list[object]] = asked["trials"]  # type: ignore[assignment]
    results = _ImportChecks([ImportCheck(*each) for each in trials], asked["wait"])  # type: ignore[arg-type]
    results.run()
    print(json.dumps(results.reasons))


class _ImportChecks:
    def __init__(self, trials: Sequence[ImportCheck], wait: float | None) -> None:
        self._waiting = list(enumerate(trials))[::-1]
        self._until = float("inf") if wait is None else time.monotonic() + wait
        self._running: dict[int, tuple[int, int, float]] = {}
        self._trials = trials
        self._poll = select.poll()
        self.reasons = [""] * len(trials)

    def run(self) -> None:
        while self._waiting or self._running:
            if time.monotonic() >= self._until:
                for fd in list(self._running):
                    self._finish(fd, late=True)
                return
            while self._waiting and len(self._running) < _AT_ONCE:
                self._start(*self._waiting.pop())
            next_deadline = min(self._until, *(deadline for _, _, deadline in self._running.values()))
            for fd, _ in self._poll.poll(max(0.0, next_deadline - time.monotonic()) * 1000):
                self._finish(fd)
            for fd, (index, _, deadline) in list(self._running.items()):
                if deadline <= time.monotonic():
                    seconds = self._trials[index].seconds
                    self._finish(fd, f"its import takes longer than start_timeout={seconds:g}s")

    def _start(self, index: int, trial: ImportCheck) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _run_check(trial, writing)
        os.close(writing)
        # The group is there before anybody has to kill it.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._running[reading] = index, pid, time.monotonic() + trial.seconds
        self._poll.register(reading, select.POLLIN)

    def _finish(self, fd: int, reason: str = "", *, late: bool = False) -> None:
        index, pid, _ = self._running.pop(fd)
        self._poll.unregister(fd)
        told = b"" if reason or late else os.read(fd, _MAX_REASON)
        os.close(fd)
        # With what the module may have started. Before it is reaped, since its number is its own so long; a process
        # that has closed its pipe by ending keeps the status that it ended with.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if told:
            reason = told[1:].decode("utf-8", "replace")
        elif not reason and not late:
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            reason = f"the interpreter ends when it imports the module ({how})"
        self.reasons[index] = reason


def _run_check(trial: ImportCheck, writing: int) -> NoReturn:
    """In the child: tell the reason, behind a byte that says that there is an answer at all."""
    try:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nothing, fd)
        os.write(writing, b"=" + _reason(trial).encode("utf-8", "replace")[: _MAX_REASON - 1])
    finally:
        os._exit(1)


def _reason(trial: ImportCheck) -> str:
    try:
        if os.geteuid() == 0:
            apply_credentials(
                ProcessCredentials(user=trial.user, group=trial.group, groups=trial.groups, root=trial.root)
            )
        elif trial.root:
            # What is inside only root can see as the handler will.
            return ""
        else:
            os.chdir("/")
        sys.path[:0] = trial.path
        if trial.options:
            return _factory_reason(trial)
        found = import_object(trial.reference)
    except (OSError, ImportError) as error:
        return str(error)
    if not callable(found):
        return f"{trial.reference} is neither callable nor a request handler"
    kind = _kind(found)
    return f"{trial.reference} is {kind}, which no model runs; write a plain function" if kind else ""


def _factory_reason(trial: ImportCheck) -> str:
    """Return why a reference gives no Factory; empty if it does."""
    import pickle

    # Twisted, which handlers can do without.
    from svcd.process.factories import FactoryError, make_factory

    try:
        make_factory(trial.reference, pickle.loads(bytes.fromhex(trial.options)))  # noqa: S301 - our own process's
    except FactoryError as error:
        return str(error)
    return ""


def _kind(found: object) -> str:
    """Return what kind of function is called for a connection, if that does nothing by being called; else empty."""
    for each in (found, getattr(found, "handle", None), getattr(type(found), _CALL, None)):
        function = getattr(each, "func", each)
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        for bit, kind in _LAZY.items():
            if flags & bit:
                return kind
    return ""
