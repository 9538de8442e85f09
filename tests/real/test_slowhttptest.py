"""slowhttptest(1) in its four modes at once: other clients are answered."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE
from tests.real.http_requests import get
from tests.real.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

#: The options of each mode: slow heads, slow bodies, ranges, and slow reading of a large file.
_MODES = {
    "headers": ["-H", "-i", "1", "-x", "24"],
    "body": ["-B", "-i", "1", "-s", "100000"],
    "range": ["-R", "-a", "1", "-b", "3000"],
    "read": ["-X", "-w", "10", "-y", "20", "-n", "1", "-z", "10"],
}
#: Connections of each mode, as many for each second, and seconds.
_CONNECTIONS, _RATE, _SECONDS = "250", "250", "5"
_LARGE = 3_000_000


def test_slowhttptest(start: Callable[..., Daemon], open_folder: Path, program: Callable[[str], str]) -> None:
    """The tool, which sends requests of its own beside the slow ones, never finds the service unavailable."""
    path = program("slowhttptest")
    (open_folder / "index.html").write_text("hello")
    (open_folder / "large").write_bytes(b"x" * _LARGE)
    daemon = start(f"http 0/tcp root={open_folder} bind=127.0.0.1\n")
    port = daemon.port("http/tcp")
    watch = Watch({"small": partial(get, port), "large": partial(get, port, "/large")}, pause=0.05)
    words = [path, "-c", _CONNECTIONS, "-r", _RATE, "-l", _SECONDS, "-p", "5", "-u", f"http://127.0.0.1:{port}/large"]
    with watch.going_on():
        running = {
            mode: subprocess.Popen([*words, *options], stdout=subprocess.PIPE, text=True, cwd=open_folder)
            for mode, options in _MODES.items()
        }
        texts = {mode: each.communicate(timeout=PATIENCE)[0] for mode, each in running.items()}
    for mode, text in texts.items():
        assert "service available:" in text, mode
        assert "NO" not in text.split(), mode
    assert watch.wrong == []
    # They take far less; the bound excludes that they wait for the slow clients.
    assert max(watch.worst.values()) < 10, watch.worst
    assert daemon.stop() == 0
