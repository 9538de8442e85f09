"""The command line of `twistd svcd`, as far as no reactor is needed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from twisted.python import usage

import svcd
from svcd.daemon.options import Options
from svcd.errors import StartFailure
from svcd.log.events import STOP
from svcd.tap import makeService

if TYPE_CHECKING:
    from pathlib import Path


def _options(*arguments: str, **parent: Any) -> Options:
    options = Options()
    options.parent = {"nodaemon": True, "pidfile": "", **parent}  # type: ignore[assignment]
    options.parseOptions(list(arguments))  # type: ignore[no-untyped-call]
    return options


@pytest.fixture
def good(tmp_path: Path) -> str:
    """A services file without mistakes."""
    path = tmp_path / "services"
    path.write_text("echo 7/tcp4\n")
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """A services file with two mistakes."""
    path = tmp_path / "bad"
    path.write_text("ecoh 7/tcp\necho 9/sctp\n")
    return str(path)


def test_options_have_defaults() -> None:
    """Nothing needs to be said."""
    options = _options()
    assert (options["services"], options["port-offset"], options["log-format"]) == (None, 0, None)
    assert options["log-addresses"] == "full"


def test_options_are_read(good: str) -> None:
    """Each has its type."""
    options = _options("--services", good, "--port-offset", "-3", "--log-format", "json")
    assert (options["services"], options["port-offset"]) == (good, -3)
    assert options.log_output.log_writer.template(STOP, {}, ()) == '"event":"stop","level":"notice"}'
    assert [endpoint.address for endpoint in options.services()] == ["0.0.0.0:4"]


@pytest.mark.parametrize(
    "arguments",
    [["--port-offset", "x"], ["--log-format", "xml"], ["--log-addresses", "no"], ["--no-such-option"], ["a-word"]],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    """It is a usage error, in twistd's own way."""
    with pytest.raises(usage.UsageError):
        _options(*arguments)


@pytest.mark.parametrize("place", [{"logfile": "-"}, {"syslog": True}, {"logger": object()}])
def test_the_journal_is_a_place_of_its_own(place: dict[str, Any]) -> None:
    """A second place on the command line is a usage error."""
    with pytest.raises(usage.UsageError, match="leave out --logfile, --syslog and --logger"):
        _options("--log-format", "journald", **place)


def test_connections_can_be_limited() -> None:
    """By a whole number, at least 1; without one there is no limit."""
    assert _options()["max-connections"] is None
    assert _options("--max-connections", "5")["max-connections"] == 5
    for word in ("0", "-1", "x", "1.5", ""):
        with pytest.raises(usage.UsageError, match=r"is less than 1|is no whole number"):
            _options("--max-connections", word)


def test_addresses_can_be_shortened() -> None:
    """By a word on the command line, for all services."""
    assert _options("--log-addresses", "short").log_output.log_writer.anonymize
    assert not _options().log_output.log_writer.anonymize


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version of svcd, not of Twisted."""
    with pytest.raises(SystemExit) as caught:
        _options("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"svcd {svcd.__version__}\n"


def test_check_of_a_good_file(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every listener is a line, and the process ends well."""
    with pytest.raises(SystemExit) as caught:
        _options("--check", "--services", good, "--port-offset", "10000")
    assert caught.value.code == 0
    assert capsys.readouterr().out == "echo/tcp4  0.0.0.0:10007  echo\n"


def test_check_of_a_bad_file(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Problem is a line, and the status is EX_CONFIG."""
    with pytest.raises(SystemExit) as caught:
        _options("--check", "--services", bad)
    assert caught.value.code == 78
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_bad_file_starts_nothing(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """makeService ends by a StartFailure, once every Problem is on the standard error."""
    with pytest.raises(StartFailure) as caught:
        makeService(_options("--services", bad))
    assert caught.value.code == 78
    assert str(caught.value) == "the services file has mistakes"
    assert capsys.readouterr().err.startswith(f"{bad}:1:1: ")


def _pid_file(options: Options) -> object:
    assert options.parent is not None
    return options.parent["pidfile"]


def test_a_pid_file_that_cannot_be_written(tmp_path: Path) -> None:
    """One that was named is a usage error; twistd's default is given up in the foreground."""
    missing = tmp_path / "none"
    with pytest.raises(usage.UsageError, match="--pidfile"):
        _options(pidfile=str(missing / "x.pid"))
    with pytest.raises(usage.UsageError, match="--pidfile"):
        _options(pidfile="twistd.pid", rundir=str(missing), nodaemon=False)
    assert _pid_file(_options(pidfile="twistd.pid", rundir=str(missing))) == ""
    assert _pid_file(_options(pidfile="twistd.pid", rundir=str(tmp_path))) == "twistd.pid"


def test_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said in one line, with the status EX_CANTCREAT."""
    output = _options(logfile=str(tmp_path / "none" / "log"), nodaemon=True).log_output
    with pytest.raises(StartFailure) as caught:
        output.observer()
    assert caught.value.code == 73
    assert "No such file" in capsys.readouterr().err


def test_a_start_failure_ends_a_program_and_is_an_exception() -> None:
    """twistd passes it on as an exit, and cleans up as after any failure."""
    failure = StartFailure(errno.ENOENT, "why")
    assert isinstance(failure, SystemExit)
    assert isinstance(failure, Exception)
    assert (failure.code, str(failure)) == (errno.ENOENT, "why")
