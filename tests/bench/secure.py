"""Echo servers over TLS: servers with TLS of their own, and TLS proxies before the echo server in C."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tests.bench.running import (
    HERE,
    PEM,
    Kind,
    Running,
    free_port,
    has,
    prints_its_port,
    spawn,
    svcd_with,
    wait_for,
    which,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.running import Start

__all__ = ["SECURE"]

_MODES = frozenset({"tls handshake", "tls pingpong 64", "tls bulk"})
_echo = prints_its_port("FOLDER/echo")


def _before_echo(words_for: Callable[[int, int, Path], list[str]]) -> Start:
    """Return the start function of a proxy and its backend on one core; the command is made from both ports."""

    def start(pin: list[str], folder: Path) -> Running:
        backend = _echo(pin, folder)
        port = free_port()
        running = Running(spawn([*pin, *words_for(port, backend.port, folder)], folder), port, backend)
        try:
            wait_for(port)
        except BaseException:
            # The proxy does not end with this process.
            running.stop()
            raise
        return running

    return start


def _hitch(port: int, backend: int, folder: Path) -> list[str]:
    ends = [f"--frontend=[127.0.0.1]:{port}", f"--backend=[127.0.0.1]:{backend}", "--backlog=1024"]
    user = ["--user=nobody"] if os.geteuid() == 0 else []
    log = f"--log-filename={folder / f'log-{port}'}"
    return [which("hitch"), *ends, *user, log, "--workers=1", "--tls-protos=TLSv1.3", str(folder / PEM)]


def _stunnel(port: int, backend: int, folder: Path) -> list[str]:
    config = folder / f"stunnel-{port}"
    config.write_text(
        f"foreground = quiet\nsyslog = no\npid =\noutput = {folder / f'log-{port}'}\ndebug = err\n"
        f"[echo]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{backend}\ncert = {folder / PEM}\n"
        "sslVersionMin = TLSv1.3\n"
    )
    return [which("stunnel"), str(config)]


_PEERS = [sys.executable, str(HERE / "peers.py")]
_PEM = f"FOLDER/{PEM}"

SECURE = [
    Kind("hitch", _before_echo(_hitch), _MODES, has("hitch")),
    Kind("svcd echo (uv)", svcd_with(f"echo tls_cert={_PEM}", "-r", "uv"), _MODES),
    Kind("stunnel", _before_echo(_stunnel), _MODES, has("stunnel")),
    Kind("Go crypto/tls", prints_its_port("FOLDER/tls-go", _PEM), _MODES, has("go")),
    Kind("uvloop, its own TLS", prints_its_port(*_PEERS, "uvloop", _PEM), _MODES),
    Kind("plain Twisted, TLS", prints_its_port(*_PEERS, "twisted", _PEM), _MODES),
]
