"""The places of the log: whole lines or none, a new file on a signal, and no waiting for a reader that is away."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from svcd.errors import StartFailure
from svcd.logs import LogOutput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def usr1() -> Iterator[None]:
    """The signal's handler is given back."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


def _output(path: Path | str, **options: object) -> LogOutput:
    output = LogOutput({"logfile": str(path), **options}, as_json=False)
    assert output.observer() is not None
    return output


def test_lines_are_appended(tmp_path: Path) -> None:
    """What stands in the file stays, and new lines come behind it."""
    path = tmp_path / "log"
    path.write_text("old\n")
    output = _output(path)
    output.journal.write("new")
    output.journal.flush()
    old, new = path.read_text().splitlines()
    assert old == "old"
    assert new.endswith(" new")


def test_a_signal_opens_the_file_again(tmp_path: Path) -> None:
    """After logrotate has moved the file away, SIGUSR1 makes a new one, and the moved one gets no more lines."""
    path = tmp_path / "log"
    output = _output(path)
    output.journal.write("first")
    path.rename(tmp_path / "log.1")
    output.journal.write("second")
    signal.raise_signal(signal.SIGUSR1)
    output.journal.write("third")
    assert [line.split()[-1] for line in (tmp_path / "log.1").read_text().splitlines()] == ["first", "second"]
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["third"]


def test_a_signal_that_finds_no_place_changes_nothing(tmp_path: Path) -> None:
    """When the file can't be opened again, the open one stays in use."""
    folder = tmp_path / "logs"
    folder.mkdir()
    output = _output(folder / "log")
    folder.rename(tmp_path / "moved")
    signal.raise_signal(signal.SIGUSR1)
    output.journal.write("still")
    assert (tmp_path / "moved" / "log").read_text().endswith(" still\n")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """Lines that do not fit are kept whole and written once there is room, in order, none torn and none lost."""
    path = tmp_path / "log"
    output = _output(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        for number in range(10):
            output.journal.write(f"line number={number}")
        torn = path.read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert torn.endswith("\n")
    assert len(torn.splitlines()) < 10
    output.journal.write("line number=10")
    assert [line.split("=")[-1] for line in path.read_text().splitlines()] == [str(number) for number in range(11)]


def test_a_place_that_is_none(tmp_path: Path) -> None:
    """A log that can't be opened ends the start with the cause."""
    with pytest.raises(StartFailure, match="No such file or directory; use --logfile FILE"):
        _output(tmp_path / "no" / "log")


def test_a_device_is_written_to_and_left_alone(tmp_path: Path) -> None:
    """A FIFO is no file to be cut or replaced; while nobody reads it the lines wait, and the daemon does not."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        output = _output(path)
        line = "x" * 1000
        for _ in range(200):
            output.journal.write(line)
        got = b""
        while got.count(b"\n") < 200:
            try:
                got += os.read(reader, 1_000_000)
            except BlockingIOError:
                output.journal.flush()
        output.journal.write("last")
        assert os.read(reader, 1000).endswith(b" last\n")
    finally:
        os.close(reader)
    output.journal.write("nobody reads")
    output.journal.write("nobody reads")
    assert path.is_fifo()


def test_a_daemon_has_no_standard_output() -> None:
    """Logging to - is for the foreground."""
    with pytest.raises(StartFailure, match="use --logfile FILE, or -n"):
        LogOutput({"logfile": "-"}, as_json=False).observer()


def test_a_logger_of_the_users_own_is_left_alone() -> None:
    """With --logger there is no place of ours."""
    assert LogOutput({"logger": object()}, as_json=False).observer() is None
