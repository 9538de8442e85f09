"""Fixtures: daemons under test, directories, users and programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.daemon import Daemon, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Uid of the ordinary user in tests that root runs.
NOBODY = 65534


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts daemons in the directory of the test; they are ended and reaped with the test."""
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
def open_folder() -> Iterator[Path]:
    """Return a directory that all users can read and write, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="svcd-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def start_controlled(start: Callable[..., Daemon], open_folder: Path) -> Callable[..., Daemon]:
    """Return a function that starts a daemon with its control socket, `control`, in the open directory."""

    def starter(services: str, **settings: object) -> Daemon:
        return start(services, "--control", str(open_folder / "control"), **settings)

    return starter


@pytest.fixture
def as_nobody(program: Callable[[str], str]) -> list[str]:
    """Return the words before a command line that root runs as an ordinary user; skip if that user can't run Python."""
    before = [program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # The first process may have been found with the rights of root, so a second one is started.
    code = "import subprocess, sys, svcd; subprocess.run([sys.executable, '-c', ''], check=True)"
    if subprocess.run(
        [*before, sys.executable, "-c", code], cwd="/", env=environment(), capture_output=True
    ).returncode:
        pytest.skip("another user can't read this Python")
    return before


@pytest.fixture
def ordinary(request: pytest.FixtureRequest, open_folder: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts daemons as an ordinary user: the user of the tests, or `nobody` if that is root."""
    before: list[str] = request.getfixturevalue("as_nobody") if os.geteuid() == 0 else []
    started: list[Daemon] = []

    def starter(services: str | None = None, *arguments: str, **settings: Any) -> Daemon:
        folder = open_folder / f"daemon-{len(started)}"
        folder.mkdir()
        # Another user can't write the data of a coverage run.
        env = {name: "" for name in os.environ if before and name.startswith("COVERAGE")}
        settings["env"] = env | settings.get("env", {})
        daemon = Daemon(folder, services, *arguments, before=before, **settings)
        started.append(daemon)
        return daemon

    yield starter
    for daemon in started:
        daemon.end()


@pytest.fixture
def program() -> Callable[[str], str]:
    """Return a function that returns the path of a program, and skips the test if it is not installed."""

    def find(name: str) -> str:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find


@pytest.fixture(scope="session")
def has_ipv6() -> bool:
    """Return whether the machine has IPv6 on its loopback interface."""
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
