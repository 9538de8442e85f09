"""Log destinations: whole lines, a new file after SIGUSR1, and no blocking on a pipe that is not read."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
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
def restore_sigusr1() -> Iterator[None]:
    """Restore the handler of SIGUSR1."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


def _output(path: Path | str, **options: object) -> LogSetup:
    output = LogSetup({"logfile": str(path), **options})
    assert output.observer() is not None
    return output


def test_lines_are_appended(tmp_path: Path) -> None:
    """Lines are appended to an existing file."""
    path = tmp_path / "log"
    path.write_text("old\n")
    output = _output(path)
    output.log_writer.write("new")
    output.log_writer.flush()
    old, new = path.read_text().splitlines()
    assert old == "old"
    assert new.endswith(" new")


def test_a_signal_opens_the_file_again(tmp_path: Path) -> None:
    """After logrotate has renamed the file, SIGUSR1 creates a new one, and the renamed one receives no more lines."""
    path = tmp_path / "log"
    output = _output(path)
    output.log_writer.write("first")
    path.rename(tmp_path / "log.1")
    output.log_writer.write("second")
    signal.raise_signal(signal.SIGUSR1)
    output.log_writer.write("third")
    assert [line.split()[-1] for line in (tmp_path / "log.1").read_text().splitlines()] == ["first", "second"]
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["third"]


def test_a_file_that_can_not_be_opened_again(tmp_path: Path) -> None:
    """If the file can't be opened again, the open one stays in use."""
    folder = tmp_path / "logs"
    folder.mkdir()
    output = _output(folder / "log")
    folder.rename(tmp_path / "moved")
    signal.raise_signal(signal.SIGUSR1)
    output.log_writer.write("still")
    assert (tmp_path / "moved" / "log").read_text().endswith(" still\n")


def test_a_full_disk(tmp_path: Path) -> None:
    """Lines that do not fit are kept whole, and written in order once there is room."""
    path = tmp_path / "log"
    output = _output(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        for number in range(10):
            output.log_writer.write(f"line number={number}")
        limited = path.read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert limited.endswith("\n")
    assert len(limited.splitlines()) < 10
    output.log_writer.write("line number=10")
    assert [line.split("=")[-1] for line in path.read_text().splitlines()] == [str(number) for number in range(11)]


def test_a_log_file_that_can_not_be_opened(tmp_path: Path) -> None:
    """A log file that can't be opened ends the start with the reason."""
    with pytest.raises(StartFailure, match="No such file or directory; use --logfile FILE"):
        _output(tmp_path / "no" / "log")


def test_a_fifo(tmp_path: Path) -> None:
    """A FIFO is neither truncated nor replaced; lines wait while it is not read, and the daemon does not block."""
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
    output.log_writer.write("no reader")
    output.log_writer.write("no reader")
    assert path.is_fifo()


def test_standard_output_needs_the_foreground() -> None:
    """Logging to `-` needs the foreground (-n)."""
    with pytest.raises(StartFailure, match="use --logfile FILE, or -n"):
        LogSetup({"logfile": "-"}).observer()


def test_a_logger_option() -> None:
    """With --logger svcd opens no destination."""
    assert LogSetup({"logger": object()}).observer() is None


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJournald]:
    """Yield a journald that LogSetup connects to."""
    fake = FakeJournald(tmp_path / "socket")
    monkeypatch.setattr("svcd.log.setup.JournaldSink", lambda: JournaldSink(str(fake.path)))
    yield fake
    if fake.path.exists():
        fake.close()


@pytest.fixture
def stdout_is_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the file of a standard output that $JOURNAL_STREAM names."""
    path = tmp_path / "stdout"
    with path.open("w") as stream:
        # pytest captures by sys itself, so only the module's reference is replaced.
        monkeypatch.setattr("svcd.log.setup.sys", SimpleNamespace(stdout=stream, stderr=sys.stderr))
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        yield path


def test_the_journald_format(journald: FakeJournald) -> None:
    """--log-format journald writes entries with fields, and neither to the terminal nor to a file."""
    output = LogSetup({"nodaemon": True}, "journald")
    assert not output.on_terminal
    assert isinstance(output.observer(), LogObserver)
    output.log_writer.record(STOP, {"connections": 3})
    entry = journald.take()
    assert (entry["SVCD_EVENT"], entry["SVCD_CONNECTIONS"], entry["PRIORITY"]) == ("stop", "3", "5")
    output._write.__self__._socket.close()  # type: ignore[attr-defined]


def _failed_start(output: LogSetup, capfd: pytest.CaptureFixture[str]) -> str:
    """Report a failed start; return what was printed to the standard error."""
    capfd.readouterr()
    output.report_start_failure(StartFailure(78, "one", ["one", "two"]))
    return capfd.readouterr().err


@pytest.mark.parametrize("same", [True, False])
def test_a_failed_start_in_the_journal(
    journald: FakeJournald, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], same: bool
) -> None:
    """Each reason is an entry of the priority err; the standard error has it only if it is not the journal."""
    with os.fdopen(os.dup(2), "w") as error:
        found = os.fstat(error.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}" if same else "0:0")
        monkeypatch.setattr("svcd.log.setup.sys", SimpleNamespace(stdout=sys.stdout, stderr=error))
        output = LogSetup({"nodaemon": True}, "journald")
    assert _failed_start(output, capfd) == ("" if same else "svcd: one\nsvcd: two\n")
    entries = [journald.take(), journald.take()]
    assert [(each["SVCD_EVENT"], each["SVCD_TEXT"], each["PRIORITY"]) for each in entries] == [
        ("problem", "one", "3"),
        ("problem", "two", "3"),
    ]
    output._write.__self__._socket.close()  # type: ignore[attr-defined]


def test_a_failed_start_in_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The log and the standard error have it."""
    output = LogSetup({"logfile": str(tmp_path / "log")}, "json")
    assert _failed_start(output, capfd) == "svcd: one\nsvcd: two\n"
    assert [json.loads(line)["level"] for line in (tmp_path / "log").read_text().splitlines()] == ["error", "error"]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("same", [True, False])
def test_a_failed_start_in_the_foreground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], log_format: str, same: bool
) -> None:
    """A JSON log on the standard output has each reason once; a text log that is the standard error does as well."""
    with (tmp_path / "log").open("w") as stream, (tmp_path / "error").open("w") as other:
        error = stream if same else other
        monkeypatch.setattr("svcd.log.setup.sys", SimpleNamespace(stdout=stream, stderr=error))
        monkeypatch.setattr("svcd.errors.sys", SimpleNamespace(__stderr__=error))
        assert not _failed_start(LogSetup({"nodaemon": True}, log_format), capfd)
    lines, printed = ((tmp_path / name).read_text().splitlines() for name in ("log", "error"))
    plain = ["svcd: one", "svcd: two"]
    if log_format == "json":
        assert ([json.loads(line)["text"] for line in lines], printed) == (["one", "two"], [])
    elif same:
        assert (lines, printed) == (plain, [])
    else:
        assert ([line.split(" ", 1)[1] for line in lines], printed) == (["problem text=one", "problem text=two"], plain)


@pytest.mark.parametrize(("redirected", "shown"), [(True, "svcd: one"), (False, "")])
def test_a_failed_start_with_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], redirected: bool, shown: str
) -> None:
    """A terminal has each reason once: as JSON if the log is there, as text if the log is redirected to a file."""
    reader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as screen, (tmp_path / "log").open("w") as log:
        output = log if redirected else screen
        monkeypatch.setattr("svcd.log.setup.sys", SimpleNamespace(stdout=output, stderr=screen))
        monkeypatch.setattr("svcd.errors.sys", SimpleNamespace(__stderr__=screen))
        _failed_start(LogSetup({"nodaemon": True}, "json"), capfd)
        screen.flush()
        text = ""
        while text.count("\n") < 2:
            text += os.read(reader, 10_000).decode()
    lines = text.splitlines()
    os.close(reader)
    assert len(lines) == 2
    assert lines[0].startswith(shown or '{"time":')


def test_the_journald_format_without_journald(journald: FakeJournald) -> None:
    """With --log-format journald a missing journald ends the start with the reason."""
    output = LogSetup({"nodaemon": True}, "journald")
    journald.close()
    with pytest.raises(StartFailure, match="can't reach journald: No such file or directory; use another --log-format"):
        output.observer()


def test_finish_waits_until_journald_has_read_everything(
    journald: FakeJournald, monkeypatch: pytest.MonkeyPatch
) -> None:
    """finish() waits until journald has read all entries: the unit of an entry is looked up by its process."""
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


def test_finish_reports_missing_lines(journald: FakeJournald, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a timeout finish() reports the number of missing lines on standard error."""
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
    text = f"svcd: the log does not have the last {missing} lines, which could not be written within 5 s\n"
    assert (tmp_path / "error").read_text() == text
    assert next(times) < 10
    assert output._journald is not None
    output._journald._socket.close()


def test_a_standard_output_that_is_the_journal(journald: FakeJournald, stdout_is_journal: Path) -> None:
    """If standard output is the journal, entries with fields are sent to journald."""
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
def test_an_explicit_destination_takes_precedence(
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
def test_another_standard_output(stream: str, stdout_is_journal: Path, journald: FakeJournald,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """If $JOURNAL_STREAM does not name standard output, as after a redirection, lines are text."""
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    output = LogSetup({"nodaemon": True})
    output.observer()
    output.log_writer.record(STOP, {})
    assert stdout_is_journal.read_text().endswith(" stop\n")
    assert journald.empty()


def test_a_journal_without_journald(stdout_is_journal: Path, journald: FakeJournald) -> None:
    """If journald's socket is missing, as in some containers, lines are written to standard output."""
    journald.close()
    output = LogSetup({"nodaemon": True})
    output.observer()
    output.log_writer.record(STOP, {})
    assert stdout_is_journal.read_text().endswith(" stop\n")


def test_lines_for_syslog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for syslog have no time; their identifier is twistd's --prefix."""
    calls: list[object] = []
    monkeypatch.setattr("syslog.openlog", lambda *arguments: calls.append(arguments[0]))
    monkeypatch.setattr("syslog.syslog", lambda *arguments: calls.append(arguments))
    output = LogSetup({"syslog": True, "prefix": "me"}, "json")
    assert not output.on_terminal
    output.observer()
    output.log_writer.record(STOP, {})
    assert calls == ["me", (5, '{"event":"stop","level":"notice"}')]


def test_anonymized_addresses() -> None:
    """anonymize= applies to the addresses that the LogWriter formats."""
    assert LogSetup({"logger": object()}, anonymize=True).log_writer.format_peer("192.0.2.1", 7) == "192.0.2.0"
    log_writer = LogSetup({"logger": object()}).log_writer
    assert log_writer.format_peer("192.0.2.1", 7) == "192.0.2.1:7"
    assert log_writer.template(ACCEPT, {}, ()) == "<6>accept"
