"""The servers that are compared: how each is built and started, and what it can be asked."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import svcd

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOAD", "REFERENCE", "SERVERS", "Kind", "Running", "build"]

_HERE = Path(__file__).parent
#: What all ratios are to.
REFERENCE = "C epoll"
#: The load generator's name in the folder of built programs.
LOAD = "load"

_ECHO_PORT = 7
TCP = frozenset({"pingpong 1", "pingpong 64", "pingpong 1000", "bulk", "connect", "idle", "start"})
EVERYTHING = TCP | {"udp"}


@dataclass(slots=True)
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int

    def stop(self) -> None:
        """End it and reap it."""
        self.process.terminate()
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server.

    Attributes:
        name: as the table has it.
        start: starts it, pinned by the words it is given, with the folder of built programs and scratch files.
        modes: what it can be asked.
        here: whether this machine has it.
    """

    name: str
    start: Callable[[list[str], Path], Running]
    modes: frozenset[str]
    here: Callable[[], bool] = lambda: True


def build(folder: Path) -> None:
    """Compile the programs in C, and in Go where that is there.

    Raises:
        SystemExit: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the benchmark needs a C compiler (cc)")
    for name in ("echo", LOAD):
        words = [compiler, "-O2", "-o", str(folder / name), str(_HERE / "native" / f"{name}.c")]
        subprocess.run(words, check=True)
    go = shutil.which("go")
    if go is not None:
        environment = {**os.environ, "GOCACHE": str(folder / "go-cache"), "GO111MODULE": "off"}
        words = [go, "build", "-o", str(folder / "echo-go"), str(_HERE / "native" / "echo.go")]
        subprocess.run(words, check=True, env=environment, cwd=folder)


def _spawn(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _says_its_port(*words: str) -> Callable[[list[str], Path], Running]:
    def start(pin: list[str], folder: Path) -> Running:
        process = _spawn([*pin, *(word.replace("FOLDER", str(folder)) for word in words)], folder)
        assert process.stdout is not None
        return Running(process, int(process.stdout.readline()))

    return start


def _svcd(line: str, *reactor: str) -> Callable[[list[str], Path], Running]:
    """svcd with one service over TCP and, where it has one, UDP; its log goes to a file as a daemon's does."""

    def start(pin: list[str], folder: Path) -> Running:
        port = _free_port()
        services = folder / f"services-{port}"
        lines = [f"bench {port}/tcp {line} bind=127.0.0.1 backlog=1024"]
        if line.startswith("echo"):
            lines.append(f"bench {port}/udp echo bind=127.0.0.1")
        services.write_text("\n".join(lines) + "\n")
        log = folder / f"log-{port}"
        twistd = [sys.executable, str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", *reactor]
        words = [*pin, *twistd, "--logfile", str(log), "svcd", "--services", str(services)]
        process = _spawn(words, folder, PYTHONPATH=str(Path(svcd.__file__).parent.parent))
        _wait_for(port)
        return Running(process, port)

    return start


def _xinetd(pin: list[str], folder: Path) -> Running:
    port = _free_port()
    ids = "user = root\n" if os.geteuid() == 0 else ""
    common = f"wait = {{}}\n{ids}type = INTERNAL UNLISTED\nport = {port}\nbind = 127.0.0.1\ndisable = no\n"
    config = folder / f"xinetd-{port}"
    config.write_text(
        "defaults\n{\ninstances = UNLIMITED\ncps = 0 0\nlog_type = FILE /dev/null\n}\n"
        f"service echo\n{{\nid = t\nsocket_type = stream\nprotocol = tcp\n{common.format('no')}}}\n"
        f"service echo\n{{\nid = u\nsocket_type = dgram\nprotocol = udp\n{common.format('yes')}}}\n"
    )
    words = [*pin, _which("xinetd"), "-dontfork", "-f", str(config), "-pidfile", str(folder / f"pid-{port}")]
    process = _spawn(words, folder)
    _wait_for(port)
    return Running(process, port)


def _inetd(pin: list[str], folder: Path) -> Running:
    # Its built-ins go by their names in /etc/services, so it needs port 7, and root for it.
    config = folder / "inetd.conf"
    config.write_text("127.0.0.1:echo stream tcp nowait root internal\n127.0.0.1:echo dgram udp wait root internal\n")
    process = _spawn([*pin, _which("inetd"), "-i", "-R", "1000000", str(config)], folder)
    _wait_for(_ECHO_PORT)
    return Running(process, _ECHO_PORT)


def _can_run_inetd() -> bool:
    if os.geteuid() != 0 or not _has("inetd")():
        return False
    try:
        socket.create_server(("127.0.0.1", _ECHO_PORT)).close()
    except OSError:
        return False
    return True


def _which(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


def _has(name: str) -> Callable[[], bool]:
    return lambda: Path(_which(name)).is_absolute()


def _free_port() -> int:
    """A port that was free a moment ago, for servers that can't be given port 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    """Until the server accepts."""
    for _ in range(100_000):
        try:
            socket.create_connection(("127.0.0.1", port), 10).close()
        except ConnectionRefusedError:
            continue
        else:
            return
    raise SystemExit(f"no server came up on port {port}")


_PEERS = [sys.executable, str(_HERE / "peers.py")]

SERVERS = [
    Kind(REFERENCE, _says_its_port("FOLDER/echo"), EVERYTHING),
    # With the buffer that uvloop has: how much is read at once decides most of bulk.
    Kind("C epoll, 256 kB", _says_its_port("FOLDER/echo", "256000"), frozenset({"bulk"})),
    Kind("svcd echo (uv)", _svcd("echo", "-r", "uv"), EVERYTHING),
    Kind("svcd echo (uv), no log", _svcd("echo log_on_success=none", "-r", "uv"), frozenset({"connect"})),
    Kind("svcd upper (uv)", _svcd("upper", "-r", "uv"), TCP - {"start", "idle", "connect"}),
    Kind("svcd echo (epoll)", _svcd("echo", "-r", "epoll"), EVERYTHING),
    Kind("Go net", _says_its_port("FOLDER/echo-go"), EVERYTHING, _has("go")),
    Kind("uvloop", _says_its_port(*_PEERS, "uvloop"), EVERYTHING),
    Kind("asyncio", _says_its_port(*_PEERS, "asyncio"), EVERYTHING),
    Kind("plain Twisted", _says_its_port(*_PEERS, "twisted"), EVERYTHING - {"connect"}),
    Kind("xinetd", _xinetd, EVERYTHING - {"pingpong 1000"}, _has("xinetd")),
    # It takes no datagrams from the loopback network, and no thousands of connections.
    Kind("openbsd-inetd", _inetd, TCP - {"pingpong 1000", "connect", "idle"}, _can_run_inetd),
]
