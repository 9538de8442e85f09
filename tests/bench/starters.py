"""Super-servers that are compared: each starts a program or a Python handler for every connection."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tests.bench.running import HERE, Kind, Running, Start, free_port, has, spawn, svcd_with, wait_for, which

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["STARTERS"]

_PROGRAM = frozenset({"program"})
_PYTHON = frozenset({"python"})
_LAUNCHER = frozenset({"launcher"})
#: The user of programs that do not run as this process's user.
_USER = "nobody"


def _starts(*words: str, **environment: str) -> Start:
    """Return the start function of a server whose command line names its port as PORT."""

    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        arguments = [word.replace("PORT", str(port)) for word in words[1:]]
        process = spawn([*pin, which(words[0]), *arguments], folder, **environment)
        wait_for(port)
        return Running(process, port)

    return start


def _xinetd(user: str) -> Start:
    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        ids = f"user = {user}\n" if os.geteuid() == 0 else ""
        config = folder / f"xinetd-{port}"
        config.write_text(
            "defaults\n{\ninstances = UNLIMITED\ncps = 0 0\nlog_type = FILE /dev/null\n}\n"
            f"service cat\n{{\nsocket_type = stream\nprotocol = tcp\nwait = no\n{ids}type = UNLISTED\nport = {port}\n"
            "bind = 127.0.0.1\nserver = /bin/cat\ndisable = no\n}\n"
        )
        words = [*pin, which("xinetd"), "-dontfork", "-f", str(config), "-pidfile", str(folder / f"pid-{port}")]
        process = spawn(words, folder)
        wait_for(port)
        return Running(process, port)

    return start


def _inetd(pin: list[str], folder: Path) -> Running:
    port = free_port()
    config = folder / f"inetd-{port}"
    config.write_text(f"127.0.0.1:{port} stream tcp nowait root /bin/cat cat\n")
    process = spawn([*pin, which("inetd"), "-i", "-R", "1000000", str(config)], folder)
    wait_for(port)
    return Running(process, port)


def _as_root(*programs: str) -> Callable[[], bool]:
    return lambda: os.geteuid() == 0 and all(has(program)() for program in programs)


# Without lookups, and with the same limit of connections as the others.
_TCPSERVER = ("tcpserver", "-H", "-R", "-l", "0", "-c", "200", "-b", "128", "127.0.0.1", "PORT")
_TCPSVD = ("tcpsvd", "-l", "0", "-c", "200", "-b", "128", "127.0.0.1", "PORT")
_SYSTEMD = ("systemd-socket-activate", "--accept", "--inetd", "-l", "127.0.0.1:PORT")
_QUEUE = "instances=200 on_limit=queue"
_HANDLER = f"python=handler:serve python_path={HERE} {_QUEUE}"

STARTERS = [
    Kind("tcpserver", _starts(*_TCPSERVER, "/bin/cat"), _PROGRAM, has("tcpserver")),
    Kind("svcd", svcd_with(f"server=/bin/cat {_QUEUE}"), _PROGRAM | _LAUNCHER),
    Kind("svcd, user=", svcd_with(f"server=/bin/cat user={_USER} {_QUEUE}"), _PROGRAM | _LAUNCHER, _as_root()),
    Kind("svcd, no log", svcd_with(f"server=/bin/cat log_on_success=none {_QUEUE}"), _PROGRAM),
    Kind("tcpsvd", _starts(*_TCPSVD, "/bin/cat"), _PROGRAM, has("tcpsvd")),
    Kind("tcpsvd, -u", _starts("tcpsvd", "-u", _USER, *_TCPSVD[1:], "/bin/cat"), _PROGRAM, _as_root("tcpsvd")),
    Kind("xinetd", _xinetd("root"), _PROGRAM, has("xinetd")),
    Kind("xinetd, user =", _xinetd(_USER), _PROGRAM, _as_root("xinetd")),
    Kind("openbsd-inetd", _inetd, _PROGRAM, _as_root("inetd")),
    # Without its log, which is written to the terminal and doubles the cost.
    Kind(
        "systemd-socket-activate",
        _starts(*_SYSTEMD, "/bin/cat", SYSTEMD_LOG_LEVEL="err"),
        _PROGRAM,
        has("systemd-socket-activate"),
    ),
    Kind("tcpserver, python", _starts(*_TCPSERVER, sys.executable, f"{HERE}/handler.py"), _PYTHON, has("tcpserver")),
    Kind("svcd, model=process", svcd_with(f"{_HANDLER} model=process"), _PYTHON | _LAUNCHER),
    Kind("svcd, model=thread", svcd_with(f"{_HANDLER} model=thread"), _PYTHON | _LAUNCHER),
]
