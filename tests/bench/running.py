"""How a server is started for a measurement, and ended after it."""

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
    "HERE",
    "LOAD",
    "PEM",
    "SCRAPER",
    "TLS_LOAD",
    "Kind",
    "Running",
    "Start",
    "build",
    "free_port",
    "has",
    "pins",
    "says_its_port",
    "spawn",
    "svcd_serving",
    "svcd_with",
    "wait_for",
    "which",
]

HERE = Path(__file__).parent
#: The load generator's name in the folder of built programs.
LOAD = "load"
#: And that of what asks for metrics.
SCRAPER = "scrape"
#: The load generator of TLS, where OpenSSL's headers are.
TLS_LOAD = "tls"
#: What all speak TLS with: a key and a certificate for it, made for the run.
PEM = "tls.pem"


@dataclass(slots=True)
class Running:
    """A server that runs.

    Attributes:
        process: its own.
        port: where it serves.
        behind: the server that it passes connections on to, which it is one with.
    """

    process: subprocess.Popen[str]
    port: int
    behind: Running | None = None

    @property
    def pids(self) -> list[int]:
        """Of its processes, but not of their children."""
        return [self.process.pid, *(self.behind.pids if self.behind else [])]

    def stop(self) -> None:
        """End it and reap it."""
        if self.behind is not None:
            self.behind.stop()
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


#: Starts a server, pinned by the words it is given, with the folder of built programs and scratch files.
Start: TypeAlias = "Callable[[list[str], Path], Running]"


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
    start: Start
    modes: frozenset[str]
    here: Callable[[], bool] = lambda: True


def build(folder: Path) -> None:
    """Compile the programs in C, and in Go where that is there; for TLS, if OpenSSL is there.

    Raises:
        SystemExit: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the benchmark needs a C compiler (cc)")
    for name in ("echo", LOAD, SCRAPER):
        subprocess.run(_compiling(compiler, folder, name), check=True)
    go = shutil.which("go")
    if go is not None:
        environment = {**os.environ, "GOCACHE": str(folder / "go-cache"), "GO111MODULE": "off"}
        for name in ("echo", "tls"):
            words = [go, "build", "-o", str(folder / f"{name}-go"), str(HERE / "native" / f"{name}.go")]
            subprocess.run(words, check=True, env=environment, cwd=folder)
    openssl = shutil.which("openssl")
    if openssl is not None and _has_headers(compiler):
        subprocess.run([*_compiling(compiler, folder, TLS_LOAD), "-lssl", "-lcrypto"], check=True)
        _make_certificate(openssl, folder / PEM)


def _compiling(compiler: str, folder: Path, name: str) -> list[str]:
    return [compiler, "-O2", "-o", str(folder / name), str(HERE / "native" / f"{name}.c")]


def _has_headers(compiler: str) -> bool:
    asking = [compiler, "-E", "-x", "c", "-"]
    return not subprocess.run(asking, input="#include <openssl/ssl.h>", text=True, capture_output=True).returncode


def _make_certificate(openssl: str, pem: Path) -> None:
    """An ECDSA key on P-256 and its own certificate, in one file."""
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words = [openssl, "req", "-x509", *kind, "-subj", "/CN=localhost", "-days", "2", "-keyout", "-", "-out", "-"]
    made = subprocess.run(words, check=True, capture_output=True).stdout
    pem.touch(0o600)
    pem.write_bytes(made)


def pins() -> tuple[list[str], list[str]]:
    """The words that keep a server on one core, and its load on another."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("only one core: server and load share it, and the figures say little", file=sys.stderr)
    return ["taskset", "-c", str(cores[0])], ["taskset", "-c", str(cores[-1])]


def spawn(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process of the benchmark; it ends by SIGTERM, or at the end of its standard input."""
    return subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def says_its_port(*words: str) -> Start:
    """A server that picks its port and prints it."""

    def start(pin: list[str], folder: Path) -> Running:
        process = spawn([*pin, *(word.replace("FOLDER", str(folder)) for word in words)], folder)
        assert process.stdout is not None
        return Running(process, int(process.stdout.readline()))

    return start


def svcd_with(line: str, *reactor: str) -> Start:
    """svcd with one service over TCP and, where it has one, UDP; its log goes to a file as a daemon's does."""

    def start(pin: list[str], folder: Path) -> Running:
        port = free_port()
        lines = [f"bench {port}/tcp {line.replace('FOLDER', str(folder))} bind=127.0.0.1 backlog=1024"]
        if line.startswith("echo"):
            # The load is one source, and asks more than one may by default.
            lines.append(f"bench {port}/udp echo bind=127.0.0.1 per_source_rate=none")
        return svcd_serving(lines, port, pin, folder, *reactor)

    return start


def svcd_serving(lines: list[str], port: int, pin: list[str], folder: Path, *reactor: str) -> Running:
    """svcd with a services file, once a port of it is open."""
    services = folder / f"services-{port}"
    services.write_text("\n".join(lines) + "\n")
    log = folder / f"log-{port}"
    twistd = [sys.executable, str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", *reactor]
    words = [*pin, *twistd, "--logfile", str(log), "svcd", "--services", str(services)]
    process = spawn(words, folder, PYTHONPATH=str(Path(svcd.__file__).parent.parent))
    wait_for(port)
    return Running(process, port)


def which(name: str) -> str:
    """The path of a program, or its bare name where there is none."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


def has(name: str) -> Callable[[], bool]:
    """Whether there is a program, for Kind.here."""
    return lambda: Path(which(name)).is_absolute()


def free_port() -> int:
    """A port that was free a moment ago, for servers that can't be given port 0."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Until the server accepts."""
    for _ in range(100_000):
        try:
            socket.create_connection(("127.0.0.1", port), 10).close()
        except (ConnectionRefusedError, ConnectionResetError):
            # Some listen, and close that, to find out whether they could.
            continue
        else:
            return
    raise SystemExit(f"no server came up on port {port}")
