"""Checks whether Python handlers can be imported, each in a separate process and as the user of the handler.

The import of a module may end or crash the interpreter, or never return. So each module is imported in a child of a
small interpreter, which the daemon starts for all of them; the other modules are not affected.
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

#: The default of ImportCheck.seconds.
START_TIMEOUT = 30.0
#: Maximum number of simultaneous imports.
_AT_ONCE = 4
#: Functions whose call only returns an object to run, by the flags of their code (inspect.CO_*).
_LAZY = {0x80: "an async function", 0x200: "an async generator", 0x20: "a generator"}
_CALL = "__call__"
#: The longest reason, in bytes; it fits into a pipe that is not read yet.
_MAX_REASON = 4000
_CODE = "import json, sys; request = json.load(sys.stdin); sys.path[:] = request['path']; import svcd.process.import_check as c; c.main(request)"  # noqa: E501 - one statement line is all that -c takes


class ImportCheck(NamedTuple):
    """One import to check.

    Attributes:
        reference: `package.module:name`.
        path: directories that are searched before Python's own.
        user, group, groups: the ids to change to as root; None keeps the current ones.
        root: the root directory, which only root can change; empty keeps it.
        options: the options of a service with factory=, pickled, in hexadecimal digits; empty for a handler.
        seconds: the time limit of the import, in seconds.
    """

    reference: str
    path: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    root: str = ""
    options: str = ""
    seconds: float = START_TIMEOUT


def check_imports(checks: Sequence[ImportCheck], wait: float | None = None) -> list[str]:
    """Return the reason of failure for each import; empty for a success. Block until all are checked.

    Args:
        checks: the imports.
        wait: the limit of the whole time in seconds; an import that takes longer has an empty reason. None waits for
            the time limit of each.
    """
    if not checks:
        return []
    # Absolute paths, so that the working directory of the interpreter does not matter.
    path = [os.path.abspath(each) for each in sys.path]  # noqa: PTH100 - as Python itself does
    request = json.dumps({"path": path, "wait": wait, "checks": checks})
    ended = subprocess.run(  # noqa: S603 - the interpreter of this process
        [sys.executable, "-c", _CODE], input=request, capture_output=True, text=True, check=False
    )
    try:
        reasons: list[str] = json.loads(ended.stdout)
    except ValueError:
        last = ended.stderr.strip().rpartition("\n")[2]
        return [f"the interpreter that imports it has failed: {last}"] * len(checks)
    return reasons


def main(request: dict[str, object]) -> None:
    """Run the requested checks, in the separate interpreter, and print the reasons."""
    reset_inherited_signals()
    checks: list[list[object]] = request["checks"]  # type: ignore[assignment]
    results = _ImportChecks([ImportCheck(*each) for each in checks], request["wait"])  # type: ignore[arg-type]
    results.run()
    print(json.dumps(results.reasons))


class _ImportChecks:
    def __init__(self, checks: Sequence[ImportCheck], wait: float | None) -> None:
        self._waiting = list(enumerate(checks))[::-1]
        self._until = float("inf") if wait is None else time.monotonic() + wait
        self._running: dict[int, tuple[int, int, float]] = {}
        self._checks = checks
        self._poll = select.poll()
        self.reasons = [""] * len(checks)

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
                    seconds = self._checks[index].seconds
                    self._finish(fd, f"its import takes longer than start_timeout={seconds:g}s")

    def _start(self, index: int, check: ImportCheck) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _run_check(check, writing)
        os.close(writing)
        # The group exists before it may have to be killed.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        self._running[reading] = index, pid, time.monotonic() + check.seconds
        self._poll.register(reading, select.POLLIN)

    def _finish(self, fd: int, reason: str = "", *, late: bool = False) -> None:
        index, pid, _ = self._running.pop(fd)
        self._poll.unregister(fd)
        answer = b"" if reason or late else os.read(fd, _MAX_REASON)
        os.close(fd)
        # Kill also processes that the module has started. This is done before the child is reaped, which frees the pid;
        # a child that has already exited keeps its exit status.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if answer:
            reason = answer[1:].decode("utf-8", "replace")
        elif not reason and not late:
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            reason = f"the interpreter ends when it imports the module ({how})"
        self.reasons[index] = reason


def _run_check(check: ImportCheck, writing: int) -> NoReturn:
    """Run a check in a child: write a byte, which shows that the check has finished, and then the reason."""
    try:
        os.setpgid(0, 0)
        devnull = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(devnull, fd)
        os.write(writing, b"=" + _reason(check).encode("utf-8", "replace")[: _MAX_REASON - 1])
    finally:
        os._exit(1)


def _reason(check: ImportCheck) -> str:
    try:
        if os.geteuid() == 0:
            apply_credentials(
                ProcessCredentials(user=check.user, group=check.group, groups=check.groups, root=check.root)
            )
        elif check.root:
            # Only root can change to the root directory of the handler.
            return ""
        else:
            os.chdir("/")
        sys.path[:0] = check.path
        if check.options:
            return _factory_reason(check)
        found = import_object(check.reference)
    except (OSError, ImportError) as error:
        return str(error)
    if not callable(found):
        return f"{check.reference} is neither callable nor a request handler"
    kind = _kind(found)
    return f"{check.reference} is {kind}, which no model can run; write a plain function" if kind else ""


def _factory_reason(check: ImportCheck) -> str:
    """Return the reason why a reference does not lead to a Factory; empty if it does."""
    import pickle

    # Imported late: it imports Twisted, which handlers need not have.
    from svcd.process.factories import FactoryError, make_factory

    try:
        make_factory(check.reference, pickle.loads(bytes.fromhex(check.options)))  # noqa: S301 - pickled by the parent process
    except FactoryError as error:
        return str(error)
    return ""


def _kind(found: object) -> str:
    """Return the kind of a function whose call only returns an object to run, such as a coroutine; else empty."""
    for each in (found, getattr(found, "handle", None), getattr(type(found), _CALL, None)):
        function = getattr(each, "func", each)
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        for bit, kind in _LAZY.items():
            if flags & bit:
                return kind
    return ""
