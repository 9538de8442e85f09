"""A server that forks processes which have imported Twisted and svcd already: python preload_server.py FD.

FD is a SOCK_SEQPACKET socket. Each request is a JSON object with the arguments after the interpreter, the working
directory, the environment and the numbers of the passed descriptors, and the descriptors themselves: standard input,
output and error, the passed ones, and a pipe for the exit status. The answer is the process id. When the process has
exited, its status (wait(2)) is written to the pipe as text.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

#: Modules that a daemon imports before its reactor.
_MODULES = (
    "twisted.application.app",
    "twisted.plugins",
    "twisted.scripts.twistd",
    "twisted.scripts._twistd_unix",
    "svcd.cli",
    "svcd.daemon.later_imports",
    "svcd.reactor.core",
    "svcd.tap",
    "uvloop",
)
#: The size of the largest request, in bytes, and the most descriptors in it.
_SIZE, _FDS = 1 << 18, 64


def _preload() -> None:
    for name in _MODULES:
        importlib.import_module(name)
    for name in importlib.import_module("svcd.daemon.later_imports").module_names():
        importlib.import_module(name)
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()


def _serve(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Answer requests until the client closes its end.

    Returns:
        None; in a forked process the request and the received descriptors, without the pipe for the status.
    """
    # The pid and the pipe of each process, by its pidfd.
    statuses: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _report(*statuses.pop(key.fd))
                    continue
                data, fds, _, _ = socket.recv_fds(control, _SIZE, _FDS)
                if not data:
                    return None
                pipe = fds.pop()
                pid = os.fork()
                if not pid:
                    for fd in (pipe, *statuses, *(pipe for _, pipe in statuses.values())):
                        os.close(fd)
                    return json.loads(data), fds
                for fd in fds:
                    os.close(fd)
                watched = os.pidfd_open(pid)
                statuses[watched] = (pid, pipe)
                selector.register(watched, selectors.EVENT_READ)
                control.send(str(pid).encode())


def _report(pid: int, pipe: int) -> None:
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, str(status).encode())
    os.close(pipe)


def _run(request: dict[str, Any], fds: list[int]) -> None:
    """Run a program of Python in this process as an interpreter with these arguments would."""
    numbers = [0, 1, 2, *request["fds"]]
    # Above all of the numbers, so that none is overwritten before it is copied.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for fd in fds]
    for fd in fds:
        os.close(fd)
    for number, fd in zip(numbers, copies, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    arguments = request["arguments"]
    sys.orig_argv = [sys.executable, *arguments]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[:0] = [str(Path.cwd()), *paths]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[:0] = [str(Path(arguments[0]).parent), *paths]
        runpy.run_path(arguments[0], run_name="__main__")


def _main() -> None:
    # The directory of this file. The directories of PYTHONPATH are taken out after the imports: a request has its own.
    del sys.path[0]
    _preload()
    for path in os.environ.get("PYTHONPATH", "").split(":"):
        if path in sys.path:
            sys.path.remove(path)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        found = _serve(control)
    if found is not None:
        _run(*found)


if __name__ == "__main__":
    _main()
