"""A daemon for each test that asks for one, and the real clients it talks to."""

from __future__ import annotations

import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons in the test's own folder; each is ended and reaped with the test."""
    started: list[Daemon] = []

    def starter(services: str | None = None, *arguments: str, **settings: object) -> Daemon:
        folder = tmp_path / f"daemon-{len(started)}"
        folder.mkdir()
        daemon = Daemon(folder, services, *arguments, **settings)  # type: ignore[arg-type]
        started.append(daemon)
        return daemon

    yield starter
    for daemon in started:
        daemon.end()


@pytest.fixture
def program() -> Callable[[str], str]:
    """The path of a program; the test is skipped where the machine has none."""

    def find(name: str) -> str:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find


@pytest.fixture(scope="session")
def has_ipv6() -> bool:
    """Whether the machine has IPv6 on its loopback interface."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def as_root() -> None:
    """Skip a test that needs root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
