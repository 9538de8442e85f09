"""The thread that bounds the duration of a stop."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from typing import Any

import pytest

from svcd.daemon.stop_deadline import StopDeadline

PATIENCE = 20.0


def test_threads_are_reported_at_the_deadline() -> None:
    """At the deadline the main thread and the threads joined at exit are reported, and the process exits."""
    events: queue.Queue[object] = queue.Queue()
    rest = threading.Event()
    thread = threading.Thread(target=rest.wait, args=(PATIENCE,), name="Rester")
    thread.start()
    try:
        StopDeadline(events.put, events.put).start(0.01)
        text = str(events.get(timeout=PATIENCE))
        assert events.get(timeout=PATIENCE) == 0
    finally:
        rest.set()
        thread.join()
    assert text.startswith("main thread in ")
    assert "; Rester in wait (" in text


@pytest.mark.parametrize("hangs", [True, False])
def test_a_report_that_hangs_or_fails(hangs: bool) -> None:
    """The process exits even if the report hangs or fails."""
    rest, ended = threading.Event(), threading.Event()

    def report(_text: str) -> None:
        if not hangs:
            raise ValueError
        rest.wait(PATIENCE)

    StopDeadline(report, lambda _status: ended.set()).start(0)
    assert ended.wait(PATIENCE)
    rest.set()


def test_the_shortest_deadline_takes_precedence() -> None:
    """A second, shorter deadline takes precedence."""
    ended = threading.Event()
    deadline = StopDeadline(lambda _text: None, lambda _status: ended.set())
    deadline.start(PATIENCE * 10)
    deadline.start(0.01)
    assert ended.wait(PATIENCE)


def test_the_thread_runs_when_start_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that begins to run while the interpreter exits would crash CPython 3.11."""
    order: list[str] = []
    end_after = StopDeadline._end_after

    def begin(deadline: StopDeadline, *arguments: Any) -> None:
        order.append("begun")
        end_after(deadline, *arguments)

    monkeypatch.setattr(StopDeadline, "_end_after", begin)
    # Python lets another thread run every 5 ms; here it must be because start() waits.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE)
    try:
        StopDeadline(lambda _text: None, lambda _status: None).start(0)
        order.append("returned")
    finally:
        sys.setswitchinterval(interval)
    assert order == ["begun", "returned"]


def test_a_system_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal handler that calls start() goes on if no thread can be started (RLIMIT_NPROC)."""

    def refuse(*_arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    StopDeadline(lambda _text: None, lambda _status: None).start(0)


_UNNOTICED = """
import _thread, signal, threading, time
from svcd.daemon.stop_deadline import StopDeadline

lock = threading.Lock()
lock.acquire()

def handler(number, frame):
    lock.release()

def send():
    time.sleep(0.3)  # the main thread waits for the lock
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)

signal.signal(signal.SIGTERM, handler)
StopDeadline(print, print).start(50)
_thread.start_new_thread(send, ())
lock.acquire()
print("handled", flush=True)
"""


def test_a_signal_that_does_not_interrupt_the_main_thread_is_handled() -> None:
    """A signal that comes to another thread, or before the main thread waits, is handled while the deadline runs."""
    done = subprocess.run([sys.executable, "-c", _UNNOTICED], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.returncode) == ("handled\n", 0), done.stderr
