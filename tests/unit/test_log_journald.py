"""Log sinks for systemd's journal and syslog; those for files and pipes are tested in test_log_sinks.py."""

from __future__ import annotations

import errno
import os
import socket
import syslog
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from twisted.logger import LogLevel

from svcd.log import sinks
from svcd.log.sinks import JournaldSink, syslog_sink, twisted_sink
from tests.doubles import LogCatcher
from tests.journald import FakeJournald

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[FakeJournald]:
    """Yield a journald with a socket in the test's directory."""
    fake = FakeJournald(tmp_path / "socket")
    yield fake
    if fake.path.exists():
        fake.close()


def _descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


@pytest.fixture
def sink(journald: FakeJournald) -> Iterator[JournaldSink]:
    """Yield a sink that sends to the journald."""
    made = JournaldSink(str(journald.path))
    yield made
    made._socket.close()


def test_each_line_is_a_datagram(journald: FakeJournald, sink: JournaldSink) -> None:
    """Each line is sent as one datagram, in order."""
    assert sink.write(["A=1\nMESSAGE=first", 'A="x\\ny"\nMESSAGE=second']) == 2
    assert journald.take() == {"A": "1", "MESSAGE": "first"}
    assert journald.take() == {"A": "x\ny", "MESSAGE": "second"}
    assert journald.empty()


@pytest.mark.parametrize("buffer", [None, 4608])
def test_a_large_entry_is_sent_as_a_memfd(journald: FakeJournald, sink: JournaldSink, buffer: int | None) -> None:
    """An entry that is too large for a datagram is sent as a sealed memfd."""
    size = 100_000 if buffer else 5_000_000
    if buffer:
        sink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    before = _descriptors()
    assert sink.write([f"MESSAGE={'x' * size}", "MESSAGE=next"]) == 2
    assert _descriptors() == before
    large = journald.take()
    assert (large.in_memory, large["MESSAGE"]) == (True, "x" * size)
    assert not journald.take().in_memory


def test_without_memfds_a_large_entry_is_cut(
    journald: FakeJournald, sink: JournaldSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If memfd_create() is forbidden, as in a sandbox, the values of a large entry are cut; the next one is sent."""

    def forbidden(*_arguments: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", forbidden)
    assert sink.write([f"A=1\nMESSAGE={'x' * 5_000_000}", "MESSAGE=next"]) == 2
    assert journald.take() == {"A": "1", "MESSAGE": "x" * sinks._MAX_VALUE}
    assert journald.take() == {"MESSAGE": "next"}


def test_a_memfd_that_can_not_be_filled_is_closed(sink: JournaldSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the memfd can't be filled it is closed, and the entry is cut."""

    def short(*_arguments: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("fcntl.fcntl", short)
    before = _descriptors()
    assert sink.write([f"MESSAGE={'x' * 5_000_000}"]) == 1
    assert _descriptors() == before


def test_unread_entries(journald: FakeJournald, sink: JournaldSink) -> None:
    """`unread` is true until journald has received all entries, or its socket is closed."""
    assert not sink.unread
    sink.write(["MESSAGE=1", f"MESSAGE={'x' * (1 << 24)}"])
    for _ in range(2):
        assert sink.unread
        _, descriptors, _, _ = socket.recv_fds(journald._socket, 1 << 20, 4)
        for each in descriptors:
            os.close(each)
    assert not sink.unread
    sink.write(["MESSAGE=2"])
    assert sink.unread
    journald._socket.close()
    assert not sink.unread


def test_a_slow_journald(journald: FakeJournald, sink: JournaldSink) -> None:
    """Entries that a slow journald does not accept are not counted as written; nothing is lost or duplicated."""
    lines = [f"MESSAGE={number}" for number in range(10_000)]
    written = sink.write(lines)
    assert 0 < written < len(lines)
    assert sink.write(lines[written:]) == 0
    got = 0
    while got < len(lines):
        while not journald.empty():
            assert journald.take() == {"MESSAGE": str(got)}
            got += 1
        written += sink.write(lines[written:])
    assert (got, written) == (len(lines), len(lines))


def test_a_restarted_journald(journald: FakeJournald, sink: JournaldSink) -> None:
    """Entries wait while journald is down, and are sent to its new socket."""
    journald.close()
    assert sink.write(["MESSAGE=1"]) == 0
    assert sink.write(["MESSAGE=1"]) == 0
    restarted = FakeJournald(journald.path)
    assert sink.write(["MESSAGE=1", "MESSAGE=2"]) == 2
    assert [restarted.take()["MESSAGE"] for _ in range(2)] == ["1", "2"]
    restarted.close()


def test_a_missing_journald(tmp_path: Path) -> None:
    """A missing socket is an error, and no descriptor is left open."""
    before = _descriptors()
    with pytest.raises(FileNotFoundError):
        JournaldSink(str(tmp_path / "none"))
    assert _descriptors() == before


def test_priorities_for_syslog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is logged with its priority, and without the prefix."""
    calls: list[object] = []
    monkeypatch.setattr(syslog, "openlog", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(syslog, "syslog", lambda *arguments: calls.append(arguments))
    assert syslog_sink("me")(["<6>accept id=1", "<3>lost lines=2"]) == 2
    assert calls == [
        ("me", syslog.LOG_PID, syslog.LOG_DAEMON),
        (syslog.LOG_INFO, "accept id=1"),
        (syslog.LOG_ERR, "lost lines=2"),
    ]


def test_levels_for_twisted_logger() -> None:
    """Levels are those of twisted.logger, which has no notice: that is info."""
    with LogCatcher() as log:
        assert twisted_sink(["<5>ready", "<4>refuse id=1", "<2>log"]) == 3
    assert [(each["log_level"], each["line"]) for each in log.events] == [
        (LogLevel.info, "ready"),
        (LogLevel.warn, "refuse id=1"),
        (LogLevel.critical, "log"),
    ]
