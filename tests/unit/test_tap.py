"""The command line of `twistd svcd`, without a reactor."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from twisted.python import usage

import svcd
from svcd.daemon.options import Options
from svcd.errors import StartFailure
from svcd.log.events import STOP
from svcd.tap import makeService
from svcd.upgrade.channel import CHANNEL_VARIABLE
from tests.doubles import unused_port

if TYPE_CHECKING:
    from pathlib import Path


def _options(*arguments: str, **parent: Any) -> Options:
    options = Options()
    options.parent = {"nodaemon": True, "pidfile": "", **parent}  # type: ignore[assignment]
    options.parseOptions(list(arguments))
    return options


@pytest.fixture
def good(tmp_path: Path) -> str:
    """Return the path of a services file without mistakes."""
    path = tmp_path / "services"
    path.write_text("echo 7/tcp4\n")
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """Return the path of a services file with two mistakes."""
    path = tmp_path / "bad"
    path.write_text("ecoh 7/tcp\necho 9/sctp\n")
    return str(path)


def test_options_have_defaults() -> None:
    """Every option has a default."""
    options = _options()
    assert (options["services"], options["port-offset"], options["log-format"]) == (None, 0, None)
    assert options["log-addresses"] == "full"


def test_a_new_daemon_reports_mistakes_of_its_command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The old daemon reads the standard error; twistd would print them on the standard output."""
    monkeypatch.setenv(CHANNEL_VARIABLE, "0 0 0")
    with pytest.raises(StartFailure) as caught:
        _options("--max-connections", "no")
    assert caught.value.code == os.EX_USAGE
    # Another pid than this one's: the variable is for another process, and was removed when that was found.
    monkeypatch.setenv(CHANNEL_VARIABLE, "0 0 0")
    with pytest.raises(StartFailure):
        _options(pidfile=str(tmp_path / "no" / "pid"))
    command_line, pid_file = capfd.readouterr().err.splitlines()
    assert command_line.startswith("svcd: can't start: ")
    assert command_line.endswith("--max-connections takes a whole number of at least 1, not 'no'")
    assert pid_file.startswith(f"svcd: can't start: can't write the pid file {tmp_path}/no/pid in {tmp_path}/no; ")


def test_help_of_options_ends_with_one_full_stop(good: str) -> None:
    """Twisted adds the description of values after the text of an option."""
    options = _options("--services", good)
    text = " ".join(options.getUsage(width=80).split())
    assert "of all services. --port-offset=" in text
    assert re.search(r"\w\.\.", text) is None


def test_options_are_converted(good: str) -> None:
    """Each option is converted to its type."""
    options = _options("--services", good, "--port-offset", "-3", "--log-format", "json")
    assert (options["services"], options["port-offset"]) == (good, -3)
    assert options.log_output.log_writer.template(STOP, {}, ()) == '"event":"stop","level":"notice"}'
    assert [endpoint.address for endpoint in options.services()] == ["0.0.0.0:4"]


@pytest.mark.parametrize(
    "arguments",
    [["--port-offset", "x"], ["--log-format", "xml"], ["--log-addresses", "no"], ["--no-such-option"], ["a-word"]],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    """A wrong command line is a usage.UsageError, as in twistd."""
    with pytest.raises(usage.UsageError):
        _options(*arguments)


@pytest.mark.parametrize("destination", [{"logfile": "-"}, {"syslog": True}, {"logger": object()}])
def test_the_journal_excludes_other_destinations(destination: dict[str, Any]) -> None:
    """--log-format journald with another log destination is a usage error."""
    with pytest.raises(usage.UsageError, match="remove --logfile, --syslog and --logger"):
        _options("--log-format", "journald", **destination)


def test_the_limit_of_connections() -> None:
    """--max-connections is a whole number of at least 1; without it there is no limit."""
    assert _options()["max-connections"] is None
    assert _options("--max-connections", "5")["max-connections"] == 5
    for word in ("0", "-1", "x", "1.5", ""):
        with pytest.raises(usage.UsageError, match="--max-connections takes a whole number of at least 1, not"):
            _options("--max-connections", word)


def test_shortened_addresses() -> None:
    """--log-addresses short shortens the addresses in the log of all services."""
    assert _options("--log-addresses", "short").log_output.log_writer.anonymize
    assert not _options().log_output.log_writer.anonymize


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the version of svcd, not of Twisted."""
    with pytest.raises(SystemExit) as caught:
        _options("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"svcd {svcd.__version__}\n"


def test_check_of_a_good_file(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--check of a file without mistakes prints a line for each listener, and exits with 0."""
    port = unused_port()
    with pytest.raises(SystemExit) as caught:
        _options("--check", "--services", good, "--port-offset", str(port - 7))
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"echo/tcp4  0.0.0.0:{port}  echo\n"


def test_check_of_a_bad_file(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    """--check of a file with mistakes prints a line for each, and exits with EX_CONFIG."""
    with pytest.raises(SystemExit) as caught:
        _options("--check", "--services", bad)
    assert caught.value.code == 78
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_a_start_with_a_bad_file(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    """makeService() raises StartFailure after it has printed all mistakes to standard error."""
    with pytest.raises(StartFailure) as caught:
        makeService(_options("--services", bad))
    assert caught.value.code == 78
    assert str(caught.value) == "the services file has mistakes"
    assert capfd.readouterr().err.startswith(f"{bad}:1:1: ")


def _pid_file(options: Options) -> object:
    assert options.parent is not None
    return options.parent["pidfile"]


def test_a_pid_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A --pidfile that can't be written is a usage error; twistd's default is dropped in the foreground."""
    missing = tmp_path / "none"
    with pytest.raises(usage.UsageError, match="--pidfile"):
        _options(pidfile=str(missing / "x.pid"))
    with pytest.raises(usage.UsageError, match="--pidfile"):
        _options(pidfile="twistd.pid", rundir=str(missing), nodaemon=False)
    assert _pid_file(_options(pidfile="twistd.pid", rundir=str(missing))) == ""
    assert _pid_file(_options(pidfile="twistd.pid", rundir=str(tmp_path))) == "twistd.pid"


def test_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log file that can't be written is reported in one line, and the status is EX_CANTCREAT."""
    output = _options(logfile=str(tmp_path / "none" / "log"), nodaemon=True).log_output
    with pytest.raises(StartFailure) as caught:
        output.observer()
    assert caught.value.code == 73
    assert "No such file" in capsys.readouterr().err


def test_the_bases_of_a_start_failure() -> None:
    """A StartFailure is a SystemExit for twistd, and an Exception for its clean-up."""
    failure = StartFailure(errno.ENOENT, "why")
    assert isinstance(failure, SystemExit)
    assert isinstance(failure, Exception)
    assert (failure.code, str(failure)) == (errno.ENOENT, "why")
