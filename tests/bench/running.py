"""Starting and stopping of the servers that are measured."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import svcd

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CGI",
    "HERE",
    "LOAD",
    "PEM",
    "SCRAPER",
    "TLS_LOAD",
    "WEBSOCKET_LOAD",
    "Kind",
    "Running",
    "Start",
    "build",
    "free_port",
    "has",
    "pins",
    "prints_its_port",
    "spawn",
    "svcd_serving",
    "svcd_with",
    "wait_for",
    "which",
]

HERE = Path(__file__).parent
#: File name of the load generator in the directory of built programs.
LOAD = "load"
#: File name of the program that requests metrics.
SCRAPER = "scrape"
#: File name of the load generator for WebSocket.
WEBSOCKET_LOAD = "websocket"
#: File name of the program that the servers run by CGI.
CGI = "cgi"
#: File name of the load generator for TLS; it is built if OpenSSL's headers are installed.
TLS_LOAD = "tls"
#: File name of the key and the certificate that all TLS servers use; it is made for the run.
PEM = "tls.pem"


@dataclass(slots=True)
class Running:
    """Running server.

    Attributes:
        process: its process.
        port: the port that it serves.
        backend: the server that it forwards connections to, which is measured with it.
    """

    process: subprocess.Popen[str]
    port: int
    backend: Running | None = None

    @property
    def pids(self) -> list[int]:
        """Pids of the server and its backend, without those of their children."""
        return [self.process.pid, *(self.backend.pids if self.backend else [])]

    def stop(self) -> None:
        """Stop the server and its backend, and reap the processes."""
        if self.backend is not None:
            self.backend.stop()
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


#: Starts a server; takes the command that pins it to a core, and the directory of built programs and scratch files.
Start: TypeAlias = "Callable[[list[str], Path], Running]"


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of server.

    Attributes:
        name: the name in the table.
        start: starts the server.
        modes: the names of the modes that it can be measured in.
        is_available: returns whether this machine has the server.
    """

    name: str
    start: Start
    modes: frozenset[str]
    is_available: Callable[[], bool] = lambda: True


def build(folder: Path) -> None:
    """Compile the programs in C, those in Go if it is installed, and those for TLS if OpenSSL is.

    Args:
        folder: the directory of the built programs.

    Raises:
        SystemExit: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the benchmark needs a C compiler (cc)")
    for name in ("echo", LOAD, SCRAPER, WEBSOCKET_LOAD, CGI):
        subprocess.run(_compile_command(compiler, folder, name), check=True)
    go = shutil.which("go")
    if go is not None:
        environment = {**os.environ, "GOCACHE": str(folder / "go-cache"), "GO111MODULE": "off"}
        for name in ("echo", "tls"):
            words = [go, "build", "-o", str(folder / f"{name}-go"), str(HERE / "native" / f"{name}.go")]
            subprocess.run(words, check=True, env=environment, cwd=folder)
    openssl = shutil.which("openssl")
    if openssl is not None and _has_headers(compiler):
        subprocess.run([*_compile_command(compiler, folder, TLS_LOAD), "-lssl", "-lcrypto"], check=True)
        _make_certificate(openssl, folder / PEM)


def _compile_command(compiler: str, folder: Path, name: str) -> list[str]:
    return [compiler, "-O2", "-o", str(folder / name), str(HERE / "native" / f"{name}.c")]


def _has_headers(compiler: str) -> bool:
    command = [compiler, "-E", "-x", "c", "-"]
    return not subprocess.run(command, input="#include <openssl/ssl.h>", text=True, capture_output=True).returncode


def _make_certificate(openssl: str, pem: Path) -> None:
    """Make an ECDSA key on P-256 and its self-signed certificate, in one file."""
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words = [openssl, "req", "-x509", *kind, "-subj", "/CN=localhost", "-days", "2", "-keyout", "-", "-out", "-"]
    made = subprocess.run(words, check=True, capture_output=True).stdout
    pem.touch(0o600)
    pem.write_bytes(made)


def pins() -> tuple[list[str], list[str]]:
    """Return the commands that pin a server to one core and its load to another."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("only one core: server and load share it, and the figures say little", file=sys.stderr)
    return ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[-1])]


def spawn(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a process of the benchmark, which ends by SIGTERM or at the end of its standard input."""
    return subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def prints_its_port(*words: str) -> Start:
    """Return the start function of a server that chooses its port and prints it."""

    def start(pin: list[str], folder: Path) -> Running:
        process = spawn([*pin, *(word.replace("FOLDER", str(folder)) for word in words)], folder)
        assert process.stdout is not None
        return Running(process, int(process.stdout.readline()))

    return start


def svcd_with(line: str, *reactor: str) -> Start:
    """Return the start function of svcd with one service over TCP and, for echo, UDP; its log is a file, as usual."""

    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        lines = [f"bench {port}/tcp {line.replace('FOLDER', str(folder))} bind=127.0.0.1 backlog=1024"]
        if line.startswith("echo"):
            # The load is one source, and sends more datagrams than the default per_source_rate admits.
            lines.append(f"bench {port}/udp echo bind=127.0.0.1 per_source_rate=none")
        return svcd_serving(lines, port, pin, folder, *reactor)

    return start


def svcd_serving(lines: list[str], port: int, pin: list[str], folder: Path, *reactor: str) -> Running:
    """Start svcd with a services file; return when a port of it accepts connections."""
    services = folder / f"services-{port}"
    services.write_text("\n".join(lines) + "\n")
    log = folder / f"log-{port}"
    twistd = [sys.executable, str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", *reactor]
    words = [*pin, *twistd, "--logfile", str(log), "svcd", "--services", str(services)]
    process = spawn(words, folder, PYTHONPATH=str(Path(svcd.__file__).parent.parent))
    wait_for(port)
    return Running(process, port)


def which(name: str) -> str:
    """Return the path of a program, or its bare name if it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


def has(name: str) -> Callable[[], bool]:
    """Return a function that returns whether a program is installed, for Kind.is_available."""
    return lambda: Path(which(name)).is_absolute()


def free_port() -> int:
    """Return a port that was free a moment ago, for servers that cannot be given port 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Wait until a server accepts connections on a port.

    Raises:
        SystemExit: it does not after many attempts.
    """
    for _ in range(100_000):
        try:
            socket.create_connection(("127.0.0.1", port), 10).close()
        except (ConnectionRefusedError, ConnectionResetError):
            # Some servers listen and close that socket first, to find out whether they can.
            continue
        else:
            return
    raise SystemExit(f"no server came up on port {port}")
