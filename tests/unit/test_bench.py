"""Arithmetic of the benchmark: processor time, and the processes of a server."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from tests.bench.measure import cpu_seconds
from tests.bench.overview import PAGE, PICTURE, draw_overview, medians
from tests.bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

import pytest

#: Processor time of the thread, in seconds: more than the resolution of the clock.
_WORK = 0.02


def _work() -> None:
    while time.thread_time() < _WORK:
        pass


@pytest.fixture
def proxy() -> Iterator[Running]:
    """Yield a running server with a backend; both end with their input."""

    def start(backend: Running | None) -> Running:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return Running(process, 0, backend)

    running = start(start(None))
    yield running
    running.stop()


def test_threads_that_have_ended_count() -> None:
    """The processor time of threads that have ended is counted."""
    before = cpu_seconds([os.getpid()])
    thread = threading.Thread(target=_work)
    thread.start()
    thread.join()
    assert cpu_seconds([os.getpid()]) - before >= _WORK


def test_a_process_that_is_gone_counts_nothing(proxy: Running) -> None:
    """A process that has ended counts as 0 s, and is no error."""
    pids = proxy.pids
    proxy.stop()
    assert cpu_seconds(pids) == 0


def test_a_proxy_includes_its_backend(proxy: Running) -> None:
    """A proxy's pids include its backend's; stop() ends both."""
    assert proxy.backend is not None
    assert proxy.pids == [proxy.process.pid, proxy.backend.process.pid]
    proxy.stop()
    assert None not in (proxy.process.returncode, proxy.backend.process.returncode)


def test_the_picture_of_the_readme() -> None:
    """docs/explanation/overview.svg agrees with the tables of the page."""
    if not PAGE.exists():
        pytest.skip("an installed wheel has no documentation")
    assert PICTURE.read_text("utf-8") == draw_overview(PAGE.read_text("utf-8"))


def test_medians_are_those_of_one_table() -> None:
    """Only the rows of one table are read; a missing heading is an error."""
    page = "### a (x/s)\n\n| server | median |\n|---|---:|\n| svcd | 1,234 |\n\n### b (x/s)\n\n| svcd | 5 |\n"
    assert medians(page, "a") == {"svcd": 1234}
    with pytest.raises(ValueError, match="no table 'c'"):
        medians(page, "c")
