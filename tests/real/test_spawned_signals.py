"""Signals that are ignored or blocked at the start of the daemon or of svcctl."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import PATIENCE, environment, exchange
from tests.real.processes import ignore_and_block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

MODULE = """
import signal, subprocess

def serve(sock, address):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ignored = {each.name for each in signal.Signals if signal.getsignal(each) == signal.SIG_IGN}
    status = subprocess.run(["/bin/sh", "-c", "exit 3"]).returncode
    sock.sendall(repr((sorted(blocked), sorted(ignored), status)).encode())
"""


@pytest.fixture
def services(open_folder: Path) -> str:
    """A services file with Python handlers of both models."""
    (open_folder / "sigs.py").write_text(MODULE)
    return "".join(
        f"{model} 0/tcp bind=127.0.0.1 python=sigs:serve python_path={open_folder} model={model}\n"
        for model in ("process", "thread")
    )


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_python_handlers(start: Callable[..., Daemon], services: str, reactor: str) -> None:
    """They are imported, reap their children, and have default signals (SIGPIPE as in Python)."""
    daemon = start(services, preexec_fn=ignore_and_block, twistd_arguments=["--reactor", reactor])
    assert exchange(daemon.connect("process/tcp")) == b"([], ['SIGPIPE'], 3)"
    # The launcher catches SIGPIPE.
    assert exchange(daemon.connect("thread/tcp")) == b"([], [], 3)"
    assert daemon.stop() == 0


def test_check(services: str, tmp_path: Path) -> None:
    """svcctl check and twistd svcd --check import modules in child processes and wait for their exit."""
    (tmp_path / "services").write_text(services)
    for words in (["-m", "svcd", "check"], ["-m", "twisted", "svcd", "--check", "--services"]):
        done = subprocess.run(
            [sys.executable, *words, str(tmp_path / "services")],
            env=environment(),
            preexec_fn=ignore_and_block,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        assert "Error" not in done.stderr
