"""systemd's journal and syslog as places of the log; files and pipes are in test_log_sinks.py."""

from __future__ import annotations

import errno
import os
import socket
import syslog
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from twisted.logger import LogLevel

from svcd.log import sinks as places
from svcd.log.sinks import JournaldSink, syslog_sink, twisted_sink
from tests.doubles import LogCatcher
from tests.journald import FakeJournald

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[FakeJournald]:
    """A journald in the test's own folder."""
    fake = FakeJournald(tmp_path / "socket")
    yield fake
    if fake.path.exists():
        fake.close()


def _descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


@pytest.fixture
def place(journald: FakeJournald) -> Iterator[JournaldSink]:
    """The way to it."""
    made = JournaldSink(str(journald.path))
    yield made
    made._socket.close()


def test_each_line_is_a_datagram(journald: FakeJournald, place: JournaldSink) -> None:
    """In order, with their fields."""
    assert place.write(["A=1\nMESSAGE=first", 'A="x\\ny"\nMESSAGE=second']) == 2
    assert journald.take() == {"A": "1", "MESSAGE": "first"}
    assert journald.take() == {"A": "x\ny", "MESSAGE": "second"}
    assert journald.empty()


@pytest.mark.parametrize("buffer", [None, 4608])
def test_a_large_entry_goes_as_a_file_in_memory(
    journald: FakeJournald, place: JournaldSink, buffer: int | None
) -> None:
    """What is too large for a datagram, which depends on the system's buffers, arrives whole and sealed."""
    size = 100_000 if buffer else 5_000_000
    if buffer:
        place._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    before = _descriptors()
    assert place.write([f"MESSAGE={'x' * size}", "MESSAGE=next"]) == 2
    assert _descriptors() == before
    large = journald.take()
    assert (large.in_memory, large["MESSAGE"]) == (True, "x" * size)
    assert not journald.take().in_memory


def test_without_files_in_memory_a_large_entry_is_cut(
    journald: FakeJournald, place: JournaldSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox may forbid them; one entry must not hold up all that come after it."""

    def forbidden(*_arguments: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", forbidden)
    assert place.write([f"A=1\nMESSAGE={'x' * 5_000_000}", "MESSAGE=next"]) == 2
    assert journald.take() == {"A": "1", "MESSAGE": "x" * places._MAX_VALUE}
    assert journald.take() == {"MESSAGE": "next"}


def test_a_file_in_memory_that_can_not_be_filled_costs_no_descriptor(
    place: JournaldSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory is short the entry is cut."""

    def short(*_arguments: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("fcntl.fcntl", short)
    before = _descriptors()
    assert place.write([f"MESSAGE={'x' * 5_000_000}"]) == 1
    assert _descriptors() == before


def test_what_journald_has_read_is_known(journald: FakeJournald, place: JournaldSink) -> None:
    """Entries of both kinds are unread until it takes them, or is no more."""
    assert not place.unread
    place.write(["MESSAGE=1", f"MESSAGE={'x' * (1 << 24)}"])
    for _ in range(2):
        assert place.unread
        _, descriptors, _, _ = socket.recv_fds(journald._socket, 1 << 20, 4)
        for each in descriptors:
            os.close(each)
    assert not place.unread
    place.write(["MESSAGE=2"])
    assert place.unread
    journald._socket.close()
    assert not place.unread


def test_a_slow_journald_is_waited_for_once(journald: FakeJournald, place: JournaldSink) -> None:
    """What it does not take is not counted as written, and arrives later; nothing is lost or doubled."""
    lines = [f"MESSAGE={number}" for number in range(10_000)]
    written = place.write(lines)
    assert 0 < written < len(lines)
    assert place.write(lines[written:]) == 0
    got = 0
    while got < len(lines):
        while not journald.empty():
            assert journald.take() == {"MESSAGE": str(got)}
            got += 1
        written += place.write(lines[written:])
    assert (got, written) == (len(lines), len(lines))


def test_a_journald_that_was_started_again_is_found(journald: FakeJournald, place: JournaldSink) -> None:
    """While it is away lines wait; then they go to its new socket."""
    journald.close()
    assert place.write(["MESSAGE=1"]) == 0
    assert place.write(["MESSAGE=1"]) == 0
    again = FakeJournald(journald.path)
    assert place.write(["MESSAGE=1", "MESSAGE=2"]) == 2
    assert [again.take()["MESSAGE"] for _ in range(2)] == ["1", "2"]
    again.close()


def test_nobody_listens(tmp_path: Path) -> None:
    """It is an error, and no descriptor stays."""
    before = _descriptors()
    with pytest.raises(FileNotFoundError):
        JournaldSink(str(tmp_path / "none"))
    assert _descriptors() == before


def test_syslog_gets_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line with its own, and without the sign of it."""
    told: list[object] = []
    monkeypatch.setattr(syslog, "openlog", lambda *arguments: told.append(arguments))
    monkeypatch.setattr(syslog, "syslog", lambda *arguments: told.append(arguments))
    assert syslog_sink("me")(["<6>accept id=1", "<3>lost lines=2"]) == 2
    assert told == [
        ("me", syslog.LOG_PID, syslog.LOG_DAEMON),
        (syslog.LOG_INFO, "accept id=1"),
        (syslog.LOG_ERR, "lost lines=2"),
    ]


def test_another_logger_gets_levels() -> None:
    """twisted.logger knows no notices: they are information."""
    with LogCatcher() as log:
        assert twisted_sink(["<5>ready", "<4>refuse id=1", "<2>log"]) == 3
    assert [(each["log_level"], each["line"]) for each in log.events] == [
        (LogLevel.info, "ready"),
        (LogLevel.warn, "refuse id=1"),
        (LogLevel.critical, "log"),
    ]
