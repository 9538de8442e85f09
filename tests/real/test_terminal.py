"""What people see on a terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.real.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

NAMES = [f"service-number-{number}" for number in range(30)]
SERVICES = "@defaults bind=127.0.0.1\n" + "".join(f"{name} 0/tcp echo\n" for name in NAMES)


@pytest.fixture
def svcctl(start: Callable[..., Daemon], open_folder: Path) -> list[str]:
    """The beginning of a command line for a daemon with many services."""
    control = open_folder / "control"
    start(SERVICES, "--control", str(control))
    return [sys.executable, "-m", "svcd", "--control", str(control)]


def _plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9]*m", "", text)


def test_status_fits_the_terminal(svcctl: list[str]) -> None:
    """In 60 columns names are shortened; colours are used unless NO_COLOR is set."""
    written = Terminal([*svcctl, "status"], 60).end()
    assert "\x1b[32mon" in written
    lines = _plain(written).splitlines()
    assert max(map(len, lines)) <= 60
    assert len([line for line in lines if re.match(r"ser\S*…\S*/tcp +on +0 +0 +0 +127\.0", line)]) == len(NAMES)
    assert "\x1b" not in Terminal([*svcctl, "status"], 200, variables={"NO_COLOR": "1"}).end()


def test_top_fits_the_screen_and_ends_by_a_key(svcctl: list[str]) -> None:
    """Lines for which there is no room are counted, and the screen of before comes back."""
    terminal = Terminal([*svcctl, "top"], 80, 20)
    terminal.until("\x1b[J")
    terminal.type("q")
    written = terminal.end()
    assert terminal.process.returncode == 0
    assert written.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    assert written.endswith("\x1b[?25h\x1b[?1049l")
    frame = _plain(written.partition("\x1b[H")[2].partition("\x1b[J")[0]).replace("\x1b[K", "").split("\r\n")
    assert len(frame) == 20
    assert re.fullmatch("… 1[0-9] more lines", frame[-1])
    assert "RATE" in frame[2] or "RATE" in frame[1]
