"""The thread that bounds how long a stop may take."""

from __future__ import annotations

import queue
import threading

import pytest

from svcd.daemon.stop_deadline import StopDeadline

PATIENCE = 20.0


def test_the_process_ends_and_says_what_runs() -> None:
    """At the deadline what still runs is reported, threads that are joined at exit with it, then the process ends."""
    happened: queue.Queue[object] = queue.Queue()
    rest = threading.Event()
    thread = threading.Thread(target=rest.wait, args=(PATIENCE,), name="Rester")
    thread.start()
    try:
        StopDeadline(happened.put, happened.put).start(0.01)
        text = str(happened.get(timeout=PATIENCE))
        assert happened.get(timeout=PATIENCE) == 0
    finally:
        rest.set()
        thread.join()
    assert text.startswith("main thread in ")
    assert "; Rester in wait (" in text


@pytest.mark.parametrize("hangs", [True, False])
def test_a_report_that_hangs_or_fails_is_not_waited_for(hangs: bool) -> None:
    """Whatever becomes of the report, the process ends."""
    rest, ended = threading.Event(), threading.Event()

    def report(_text: str) -> None:
        if not hangs:
            raise ValueError
        rest.wait(PATIENCE)

    StopDeadline(report, lambda _status: ended.set()).start(0)
    assert ended.wait(PATIENCE)
    rest.set()


def test_the_shortest_deadline_holds() -> None:
    """A second request shortens the time."""
    ended = threading.Event()
    deadline = StopDeadline(lambda _text: None, lambda _status: ended.set())
    deadline.start(PATIENCE * 10)
    deadline.start(0.01)
    assert ended.wait(PATIENCE)
