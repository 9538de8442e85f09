"""The command svcd: its help and wrong command lines; what it suggests after a start."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

import svcd
from svcd.config.endpoints import Endpoint
from svcd.config.parser import parse_text
from svcd.daemon import command, hints
from svcd.daemon.options import Options
from svcd.host.control_path import control_paths
from svcd.protocols.catalog import BUILTINS
from tests.doubles import FakeFiles

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Run the command with these words; return the exit status."""

    def run_it(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["svcd", *words])
        with pytest.raises(SystemExit) as caught:
            command.main()
        return caught.value.code

    return run_it


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--services", "x", "--help"]])
def test_the_help_is_short(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option is in it, and it fits a terminal of 80 columns and 32 lines."""
    monkeypatch.setattr(sys, "argv", ["svcd", *words])
    command.main()
    said = capsys.readouterr().out
    rows: Any = [*Options.optParameters, *Options.optFlags]
    assert all(f"--{row[0]} " in said for row in rows)
    assert max(map(len, said.splitlines())) <= 80
    assert len(said.splitlines()) <= 32


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """That of the package."""
    monkeypatch.setattr(sys, "argv", ["svcd", "--version"])
    command.main()
    assert capsys.readouterr().out == f"svcd {svcd.__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--servces", "x"], "option --servces not recognized (did you mean '--services'?)"),
        (["--services"], "option --services requires argument"),
        (["services"], "unexpected argument 'services'; set the services file with --services FILE"),
        (["--max-connections", "x"], "--max-connections takes a whole number of at least 1, not 'x'"),
        (["--port-offset", "x"], "--port-offset takes a whole number, not 'x'"),
        (["--log-format", "xml"], "--log-format takes text, json or journald, not 'xml'"),
    ],
)
def test_a_wrong_command_line(
    run: Callable[..., object], words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two lines, and the exit status of sysexits(3)."""
    assert run(*words) == 64
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"svcd: {text}",
        "usage: svcd [--services FILE] [OPTION ...]; svcd --help lists the options",
    ]
    assert said.out == ""


def test_a_wrong_command_line_of_a_unit(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal gets it with a priority."""
    monkeypatch.setattr(command, "_is_journal", lambda: True)
    assert run("--x") == 64
    assert all(line.startswith("<3>") for line in capsys.readouterr().err.splitlines())


def _listening(*lines: str) -> list[tuple[Endpoint, str]]:
    config, problems = parse_text("\n".join(lines), "services", FakeFiles(), BUILTINS)
    assert not problems
    return [(Endpoint(each, 0, ""), each.path or f"127.0.0.1:{each.port}") for each in config.services]


@pytest.mark.parametrize(
    ("lines", "suggested"),
    [
        (["time 37/tcp", "http 80/tcp", "echo 7/tcp"], "svcctl echo 127.0.0.1 7 hello"),
        (["time 37/tcp", "http 80/tcp"], "svcctl get http://127.0.0.1:80/"),
        (["daytime 13/tcp", "time 37/tcp"], "svcctl daytime 127.0.0.1 13"),
        (["discard 9/tcp"], "svcctl probe 127.0.0.1 9"),
        (["echo /run/e.sock/unix"], "svcctl echo /run/e.sock hello"),
        (["echo 7/tcp only_from=10.0.0.0/8", "echo 7/udp", "discard 9/tcp", "time 37/tcp"], "svcctl time 127.0.0.1 37"),
    ],
)
def test_a_client_is_suggested(lines: list[str], suggested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a service that admits a client of this machine."""
    monkeypatch.setattr("svcd.daemon.hints.shutil.which", lambda _name: "/usr/bin/svcctl")
    usual = control_paths()[0].path
    assert hints.next_steps(_listening(*lines), usual) == [
        f"Try in another terminal: {suggested}",
        "Status: svcctl status   Stop: Ctrl-C",
    ]


def test_wildcards_and_control_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gets a loopback address, and a control socket at another place is named."""
    monkeypatch.setattr("svcd.daemon.hints.shutil.which", lambda _name: None)
    ((endpoint, _),) = _listening("echo 7/tcp")
    first, second = hints.next_steps([(endpoint, "[::]:7")], "/x y")
    assert first.endswith("svcctl echo ::1 7 hello")
    assert second.endswith("svcctl --control '/x y' status   Stop: Ctrl-C")
    assert hints.next_steps([], "") == ["Stop: Ctrl-C"]
