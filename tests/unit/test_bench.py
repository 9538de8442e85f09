"""The benchmark's own arithmetic: whose processor time counts, and which processes are a server's."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from tests.bench.measure import cpu_seconds
from tests.bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

import pytest

#: More than a clock's steps, in seconds.
_WORK = 0.02


def _work() -> None:
    while time.thread_time() < _WORK:
        pass


@pytest.fixture
def proxy() -> Iterator[Running]:
    """A process with another behind it; both end with their input."""

    def waiting(behind: Running | None) -> Running:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return Running(process, 0, behind)

    running = waiting(waiting(None))
    yield running
    running.stop()


def test_threads_that_have_ended_count() -> None:
    """A server with a thread for each connection is charged for those whose connection is over."""
    before = cpu_seconds([os.getpid()])
    thread = threading.Thread(target=_work)
    thread.start()
    thread.join()
    assert cpu_seconds([os.getpid()]) - before >= _WORK


def test_a_process_that_is_gone_counts_nothing(proxy: Running) -> None:
    """Children come and go while they are counted."""
    pids = proxy.pids
    proxy.stop()
    assert cpu_seconds(pids) == 0


def test_a_proxy_is_one_with_the_server_behind_it(proxy: Running) -> None:
    """Both are charged for, and both are ended."""
    assert proxy.behind is not None
    assert proxy.pids == [proxy.process.pid, proxy.behind.process.pid]
    proxy.stop()
    assert None not in (proxy.process.returncode, proxy.behind.process.returncode)
