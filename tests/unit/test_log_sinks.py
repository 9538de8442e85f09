"""The places of the log: whole lines or none, a new file on a signal, and no waiting for a reader that is away."""

from __future__ import annotations

import os
import resource
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from svcd.errors import StartFailure
from svcd.log.events import ACCEPT, STOP
from svcd.log.setup import LogSetup
from svcd.log.sinks import JournaldSink
from svcd.log.writer import LogObserver
from tests.journald import FakeJournald

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def usr1() -> Iterator[None]:
    """The signal's handler is given back."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


def _output(path: Path | str, **options: object) -> LogSetup:
    output = LogSetup({"logfile": str(path), **options})
    assert output.observer() is not None
    return output


def test_lines_are_appended(tmp_path: Path) -> None:
    """What stands in the file stays, and new lines come behind it."""
    path = tmp_path / "log"
    path.write_text("old\n")
    output = _output(path)
    output.log_writer.write("new")
    output.log_writer.flush()
    old, new = path.read_text().splitlines()
    assert old == "old"
    assert new.endswith(" new")


def test_a_signal_opens_the_file_again(tmp_path: Path) -> None:
    """After logrotate has moved the file away, SIGUSR1 makes a new one, and the moved one gets no more lines."""
    path = tmp_path / "log"
    output = _output(path)
    output.log_writer.write("first")
    path.rename(tmp_path / "log.1")
    output.log_writer.write("second")
    signal.raise_signal(signal.SIGUSR1)
    output.log_writer.write("third")
    assert [line.split()[-1] for line in (tmp_path / "log.1").read_text().splitlines()] == ["first", "second"]
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["third"]


def test_a_signal_that_finds_no_place_changes_nothing(tmp_path: Path) -> None:
    """When the file can't be opened again, the open one stays in use."""
    folder = tmp_path / "logs"
    folder.mkdir()
    output = _output(folder / "log")
    folder.rename(tmp_path / "moved")
    signal.raise_signal(signal.SIGUSR1)
    output.log_writer.write("still")
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
            output.log_writer.write(f"line number={number}")
        torn = path.read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert torn.endswith("\n")
    assert len(torn.splitlines()) < 10
    output.log_writer.write("line number=10")
    assert [line.split("=")[-1] for line in path.read_text().splitlines()] == [str(number) for number in range(11)]


def test_a_place_that_is_none(tmp_path: Path) -> None:
    """A log that can't be opened ends the start with the cause."""
    with pytest.raises(StartFailure, match="No such file or directory; use --logfile FILE"):
        _output(tmp_path / "no" / "log")


def test_a_device_is_written_to_and_left_alone(tmp_path: Path) -> None:
    """A FIFO is not truncated or replaced; while it is not read the lines wait, and the daemon does not."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        output = _output(path)
        line = "x" * 1000
        for _ in range(200):
            output.log_writer.write(line)
        got = b""
        while got.count(b"\n") < 200:
            try:
                got += os.read(reader, 1_000_000)
            except BlockingIOError:
                output.log_writer.flush()
        output.log_writer.write("last")
        assert os.read(reader, 1000).endswith(b" last\n")
    finally:
        os.close(reader)
    output.log_writer.write("nobody reads")
    output.log_writer.write("nobody reads")
    assert path.is_fifo()


def test_a_daemon_has_no_standard_output() -> None:
    """Logging to - is for the foreground."""
    with pytest.raises(StartFailure, match="use --logfile FILE, or -n"):
        LogSetup({"logfile": "-"}).observer()


def test_a_logger_of_the_users_own_is_left_alone() -> None:
    """With --logger svcd opens no destination."""
    assert LogSetup({"logger": object()}).observer() is None


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJournald]:
    """A journald that LogSetup finds."""
    fake = FakeJournald(tmp_path / "socket")
    monkeypatch.setattr("svcd.log.setup.JournaldSink", lambda: JournaldSink(str(fake.path)))
    yield fake
    if fake.path.exists():
        fake.close()


@pytest.fixture
def stdout_is_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A standard output that $JOURNAL_STREAM names."""
    path = tmp_path / "stdout"
    with path.open("w") as stream:
        # sys itself is pytest's, which captures by it.
        monkeypatch.setattr("svcd.log.setup.sys", SimpleNamespace(stdout=stream))
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        yield path


def test_the_journal_can_be_asked_for(journald: FakeJournald) -> None:
    """--log-format journald writes neither to the terminal nor to a file; all lines are entries with fields."""
    output = LogSetup({"nodaemon": True}, "journald")
    assert not output.on_terminal
    assert isinstance(output.observer(), LogObserver)
    output.log_writer.record(STOP, {"connections": 3})
    entry = journald.take()
    assert (entry["SVCD_EVENT"], entry["SVCD_CONNECTIONS"], entry["PRIORITY"]) == ("stop", "3", "5")
    output._write.__self__._socket.close()  # type: ignore[attr-defined]


def test_a_journal_that_was_asked_for_must_be_there(journald: FakeJournald) -> None:
    """Otherwise the start ends with the cause."""
    output = LogSetup({"nodaemon": True}, "journald")
    journald.close()
    with pytest.raises(StartFailure, match="can't reach journald: No such file or directory; use another --log-format"):
        output.observer()


def test_the_end_waits_until_journald_has_read_everything(
    journald: FakeJournald, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was sent, for an entry has its unit only if its process is there when it is read."""
    output = LogSetup({"nodaemon": True}, "journald")
    output.observer()
    output.log_writer.start_buffering(lambda *_call: None)
    count = 2000
    for number in range(count):
        output.log_writer.write(f"MESSAGE={number}")
    taken: list[str] = []

    def pause(_seconds: float) -> None:
        while not journald.empty():
            taken.append(journald.take()["MESSAGE"])

    monkeypatch.setattr("svcd.log.setup.time", SimpleNamespace(sleep=pause, monotonic=lambda: 0.0))
    output.finish()
    assert journald.empty()
    assert taken == list(map(str, range(count)))
    assert output._journald is not None
    output._journald._socket.close()


def test_what_the_log_lacks_at_the_end_is_said(
    journald: FakeJournald, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journald that reads nothing is waited for so long; then the standard error has how much is missing."""
    output = LogSetup({"nodaemon": True}, "journald")
    output.observer()
    output.log_writer.start_buffering(lambda *_call: None)
    for number in range(2000):
        output.log_writer.write(f"MESSAGE={number}")
    times = iter(range(100))
    monkeypatch.setattr("svcd.log.setup.time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: next(times)))
    with (tmp_path / "error").open("w") as error:
        monkeypatch.setattr("svcd.log.setup.sys", SimpleNamespace(__stderr__=error))
        output.finish(5)
    taken = 0
    while not journald.empty():
        assert journald.take()["MESSAGE"] == str(taken)
        taken += 1
    missing = 2000 - taken
    text = f"svcd: the log lacks the last {missing} lines: they could not be written within 5 s\n"
    assert (tmp_path / "error").read_text() == text
    assert next(times) < 10
    assert output._journald is not None
    output._journald._socket.close()


def test_a_standard_output_that_is_the_journal(journald: FakeJournald, stdout_is_journal: Path) -> None:
    """The same lines go there with their fields, without a word of the user's."""
    output = LogSetup({"nodaemon": True})
    assert output.observer() is not None
    output.log_writer.record(STOP, {"connections": 3})
    assert journald.take()["MESSAGE"] == "stop connections=3"
    assert stdout_is_journal.read_text() == ""
    output._write.__self__._socket.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("log_format", "options", "line"),
    [("text", {}, " stop"), ("json", {}, '"event":"stop","level":"notice"}'), (None, {"logfile": "log"}, " stop")],
)
@pytest.mark.usefixtures("stdout_is_journal")
def test_a_word_of_the_users_wins(
    log_format: str | None, options: dict[str, str], line: str, journald: FakeJournald, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An explicit format or file takes precedence, also if the journal reads the standard output."""
    monkeypatch.chdir(tmp_path)
    output = LogSetup({"nodaemon": True, **options}, log_format)
    output.observer()
    output.log_writer.record(STOP, {})
    assert (tmp_path / options.get("logfile", "stdout")).read_text().endswith(f"{line}\n")
    assert journald.empty()


@pytest.mark.parametrize("stream", ["", "0:0", "nonsense"])
def test_another_standard_output_stays_text(stream: str, stdout_is_journal: Path, journald: FakeJournald,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """As of a program whose output was redirected."""
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    output = LogSetup({"nodaemon": True})
    output.observer()
    output.log_writer.record(STOP, {})
    assert stdout_is_journal.read_text().endswith(" stop\n")
    assert journald.empty()


def test_a_journal_that_can_not_be_reached_is_written_by_the_output(
    stdout_is_journal: Path, journald: FakeJournald
) -> None:
    """A container may have the one and not the other."""
    journald.close()
    output = LogSetup({"nodaemon": True})
    output.observer()
    output.log_writer.record(STOP, {})
    assert stdout_is_journal.read_text().endswith(" stop\n")


def test_syslog_gets_lines_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is twistd's --prefix."""
    told: list[object] = []
    monkeypatch.setattr("syslog.openlog", lambda *arguments: told.append(arguments[0]))
    monkeypatch.setattr("syslog.syslog", lambda *arguments: told.append(arguments))
    output = LogSetup({"syslog": True, "prefix": "me"}, "json")
    assert not output.on_terminal
    output.observer()
    output.log_writer.record(STOP, {})
    assert told == ["me", (5, '{"event":"stop","level":"notice"}')]


def test_shortening_is_the_journals() -> None:
    """Keepers ask it."""
    assert LogSetup({"logger": object()}, anonymize=True).log_writer.format_peer("192.0.2.1", 7) == "192.0.2.0"
    journal = LogSetup({"logger": object()}).log_writer
    assert journal.format_peer("192.0.2.1", 7) == "192.0.2.1:7"
    assert journal.template(ACCEPT, {}, ()) == "<6>accept"
