"""Processes of svcd and twistd without the time of their imports: a server beside the tests forks them.

An interpreter needs half a second of a processor to import Twisted and svcd, and the tests start hundreds. Popen is
subprocess.Popen; but a command line of this interpreter with `twistd` or `-m svcd`, with nothing that needs an
interpreter of its own, is run by a fork of the server. Tests of the start itself use subprocess.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import svcd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Popen", "run"]

_SERVER = Path(__file__).with_name("preload_server.py")
_ROOT = str(Path(svcd.__file__).parent.parent)
_TWISTD = str(Path(sys.executable).parent / "twistd")
#: Variables that the interpreter, its libraries or the dynamic linker read at the start of a process.
_EARLY = ("PYTHON", "LD_", "LC_", "LANG", "COV", "FAKETIME", "OPENSSL", "UV_", "MALLOC", "GLIBC")
#: Options of twistd that change the user of the daemon: its modules have to be readable by that user.
_IDENTITY = ("--uid", "--gid", "-u", "-g", "--chroot")


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name.startswith(_EARLY) and name != "PYTHONPATH" and value
    }


class _Server:
    """The server, started for the first process, and ended with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid = 0
        self.early: dict[str, str] = {}

    def _start(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "PYTHONPATH": _ROOT, "PYTHONUNBUFFERED": "1"}
        with its:
            process = subprocess.Popen(
                [sys.executable, str(_SERVER), str(its.fileno())],
                cwd="/", env=environment, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip

        def end() -> None:
            ours.close()
            process.wait()

        atexit.register(end)
        self._pid, self._socket, self.early = os.getpid(), ours, _early(environment)
        return ours

    def fork(self, request: dict[str, Any], fds: Sequence[int]) -> int:
        """Return the pid of a new process."""
        with self._lock:
            if self._socket is None:
                self._start()
            assert self._socket is not None
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            return int(self._socket.recv(32))


_server = _Server()


def _forkable(args: object, env: Mapping[str, str] | None, others: Mapping[str, object]) -> bool:
    """Return whether a process that the server forks is like one that an interpreter starts."""
    if not isinstance(args, list) or args[0] != sys.executable or any(others.values()):
        return False
    if args[1:3] != ["-m", "svcd"] and (args[1] != _TWISTD or any(word.startswith(_IDENTITY) for word in args)):
        return False
    needed = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return _early(needed if env is None else env) | {"PYTHONUNBUFFERED": "1"} == _early(needed)


class Popen(subprocess.Popen[Any]):
    """subprocess.Popen, with the methods replaced that start a process and wait for it.

    These are private methods of the standard library (CPython 3.11 to 3.14): the tests fail at once if they change.
    """

    #: The pipe of the server with the exit status; None for a process that is a child of this one.
    _status: int | None = None

    def _execute_child(self, *given: Any) -> None:
        names = inspect.signature(super()._execute_child).parameters  # type: ignore[misc]
        how = dict(zip(names, given, strict=True))
        others = {name: how[name] for name in ("executable", "preexec_fn", "shell", "start_new_session")}
        others |= {name: how[name] is not None for name in ("gid", "gids", "uid")}
        if not (how["close_fds"] and _forkable(how["args"], how["env"], others)):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        standard = [how[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        fds = [number if fd == -1 else fd for number, fd in enumerate(standard)]
        if any(os.isatty(fd) for fd in fds):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        environment = os.environ if how["env"] is None else how["env"]
        request = {
            "arguments": how["args"][1:],
            "cwd": str(Path(how["cwd"] or ".").absolute()),
            "env": dict(environment),
            "fds": list(how["pass_fds"]),
        }
        self._status, write = os.pipe()
        try:
            self.pid = _server.fork(request, [*fds, *how["pass_fds"], write])
        finally:
            os.close(write)
        self._child_created = True
        self._close_pipe_fds(*(how[name] for name in list(names)[10:16]))  # type: ignore[attr-defined]

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._status is None:
            polled: int | None = super()._internal_poll(*given, **named)  # type: ignore[misc]
            return polled
        self._ask(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._status is None:
            waited: int = super()._wait(timeout)  # type: ignore[misc]
            return waited
        self._ask(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _ask(self, timeout: float | None) -> None:
        """Wait for the exit status; another thread may do the same."""
        assert self._status is not None
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        with self._reading:
            if self.returncode is None and poll.poll(None if timeout is None else timeout * 1000):
                found = os.read(self._status, 32)
                self.returncode = os.waitstatus_to_exitcode(int(found)) if found else -signal.SIGKILL
                os.close(self._status)

    @functools.cached_property
    def _reading(self) -> threading.Lock:
        return threading.Lock()


def run(
    args: Sequence[str], *, timeout: float, capture_output: bool = False, check: bool = False, **how: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a command as subprocess.run() does."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen([*args], **how) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        done = subprocess.CompletedProcess(args, process.wait(), out, error)
    if check:
        done.check_returncode()
    return done
