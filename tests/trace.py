"""`python -m tests.trace [FILE]`: the modules of svcd that a connection runs through, from accept to its end line.

The list is printed, or written between the markers of a Markdown file: docs/architecture.md.

A daemon with one service runs under a profiler. After a first connection, which starts what is started once, the
modules are counted whose functions run in the daemon for each of three connections: to TCP echo, to a program for each
connection, and to such a program behind TLS.

Where Twisted itself calls svcd's clock, timers or log prefix, as it does for every event and every delayed call, that
is not counted.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import svcd
import twisted
from tests.certificates import Authority

if TYPE_CHECKING:
    from types import FrameType
    from typing import IO

#: The kinds of connections, with the options of their services.
KINDS = {"TCP echo": "echo", "a program": "server=/bin/cat", "a program over TLS": "server=/bin/cat tls_cert={cert}"}
_PACKAGE = f"{Path(svcd.__file__).parent}{os.sep}"
_TWISTED = f"{Path(twisted.__file__).parent}{os.sep}"
#: Modules that are not counted where Twisted calls them.
_BOOKKEEPING = tuple(f"{_PACKAGE}{name}.py" for name in ("net/monotonic", "reactor/core", "reactor/log_context"))


def _module(path: str) -> str:
    """The name of a module below svcd, by its file."""
    return path.removeprefix(_PACKAGE).removesuffix(".py").removesuffix("/__init__").replace(os.sep, ".")


def _is_bookkeeping(frame: FrameType) -> bool:
    """Whether a call is one of Twisted to the reactor's clock, timers or log prefix, or a part of such a call."""
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename in _BOOKKEEPING:
        caller = caller.f_back
    return caller is not frame and caller is not None and caller.f_code.co_filename.startswith(_TWISTED)


def _daemon(arguments: list[str]) -> None:
    """Run twistd; each line on standard input is answered by the modules that have run since the line before.

    Nothing is noted behind the end line of a connection: what runs then writes the log's buffer to its file.
    """
    from twisted.scripts.twistd import run

    found: dict[str, None] = {}
    ended = False

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal ended
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(_PACKAGE) and not ended and not _is_bookkeeping(frame):
            found.setdefault(path)
            ended = frame.f_code.co_qualname == "LogWriter.write" and " end " in f" {frame.f_locals['line']}"

    def answer() -> None:
        nonlocal ended
        for _ in sys.stdin:
            words = ["trace", *map(_module, found)]
            found.clear()
            ended = False
            os.write(1, f"{' '.join(words)}\n".encode())  # what is printed under twistd is logged

    threading.Thread(target=answer, daemon=True).start()
    threading.setprofile(note)
    sys.setprofile(note)
    sys.argv = ["twistd", "-n", "--pidfile=", "svcd", *arguments]
    run()


def _connect(port: int, context: ssl.SSLContext | None) -> None:
    """Send a line to a service that returns it, and wait for the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), 60) as plain:
        client = context.wrap_socket(plain, server_hostname="localhost") if context else plain
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        if isinstance(client, ssl.SSLSocket):
            client.unwrap().close()
        else:
            client.shutdown(socket.SHUT_WR)
            assert not client.recv(1)


def _until(output: IO[str], word: str) -> list[str]:
    """Read lines up to the first with a word in it, and return the words of that line."""
    for line in output:
        if word in (words := line.split()):
            return words
    raise AssertionError(f"the daemon ended without {word}")


def modules_of(options: str) -> list[str]:
    """Return the modules that a connection to a service with these options runs through, in the order of their use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = None
        if "tls_cert" in options:
            authority = Authority()
            (folder / "both.pem").touch(0o600)
            (folder / "both.pem").write_bytes(authority.sign("localhost").bundle)
            options = options.format(cert=folder / "both.pem")
            context = ssl.create_default_context(cadata=authority.pem.decode())
        services = folder / "services"
        services.write_text(f"traced 0/tcp {options} bind=127.0.0.1\n")
        command = [sys.executable, "-m", "tests.trace", "daemon", "--services", str(services), "--control", ""]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as daemon:
            assert daemon.stdin is not None
            assert daemon.stdout is not None
            try:
                [address] = [word for word in _until(daemon.stdout, "listen") if word.startswith("address=")]
                _until(daemon.stdout, "ready")
                runs = []
                for _ in range(4):
                    time.sleep(0.5)  # what the start, or the connection before, leaves to be done
                    daemon.stdin.write("\n")
                    _until(daemon.stdout, "trace")
                    _connect(int(address.rpartition(":")[2]), context)
                    _until(daemon.stdout, "end")
                    daemon.stdin.write("\n")
                    runs.append(_until(daemon.stdout, "trace")[1:])
                # Without what the first of all needs, and what timers did meanwhile.
                return [module for module in runs[-1] if all(module in run for run in runs[1:])]
            finally:
                daemon.terminate()


def table() -> str:
    """Return the modules of each kind of connection as a table in Markdown."""
    lines = ["| connection | modules | in the order of their first use |", "|---|---|---|"]
    for kind, options in KINDS.items():
        modules = modules_of(options)
        lines.append(f"| {kind} | {len(modules)} | {', '.join(modules)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Print the table, or write it into a file."""
    if not arguments:
        print(table(), end="")
        return
    path = Path(arguments[0])
    before, begin, rest = path.read_text("utf-8").partition("<!-- trace -->\n")
    _, end, after = rest.partition("<!-- /trace -->")
    assert begin
    assert end
    path.write_text(f"{before}{begin}{table()}{end}{after}", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["daemon"]:
        _daemon(sys.argv[2:])
    else:
        main(sys.argv[1:])
