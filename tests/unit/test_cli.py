"""svcctl from the command line."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

import pytest

import svcd
from svcd.cli import main
from svcd.config.option_info import GROUPS
from svcd.config.options import TABLE
from svcd.protocols.catalog import BUILTINS
from tests.doubles import unused_port

if TYPE_CHECKING:
    from pathlib import Path

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def good(tmp_path: Path) -> str:
    """A services file without mistakes."""
    path = tmp_path / "services"
    path.write_text("@defaults bind=127.0.0.1\necho 7/tcp\ndiscard /run/d.sock/unix\n")
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """A services file with three mistakes."""
    path = tmp_path / "bad"
    path.write_text("ecoh 7/tcp\necho 8/tcp backlog=x\necho 9/sctp\n")
    return str(path)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version of the package."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"svcd {svcd.__version__}\n"


def test_checking_a_good_file(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every listener is a line on the standard output."""
    assert main(["check", good]) == 0
    said = capsys.readouterr()
    assert said.out == "echo/tcp      127.0.0.1:7  echo\ndiscard/unix  /run/d.sock  discard\n"
    assert said.err == f"svcctl check: {good}; as user {USER}\n"


def test_checking_a_file_with_an_offset(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ports are shown as they would be; an offset that does not fit is a Problem."""
    port = unused_port()
    assert main(["check", "--port-offset", str(port - 7), good]) == 0
    assert f"127.0.0.1:{port}" in capsys.readouterr().out
    assert main(["check", "--port-offset=70000", good]) == 78
    assert "--port-offset" in capsys.readouterr().err


def test_checking_a_bad_file(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Problem is a line on the standard error, and the status is EX_CONFIG."""
    assert main(["check", bad]) == 78
    said = capsys.readouterr()
    assert said.out == ""
    first, *problems = said.err.splitlines()
    assert first == f"svcctl check: {bad}; as user {USER}"
    assert [line.split(": ")[0] for line in problems] == [f"{bad}:1:1", f"{bad}:2:20", f"{bad}:3:8"]


def test_checking_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a Problem, too."""
    assert main(["check", str(tmp_path / "none")]) == 78
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["chek"], ["check", "--port-offset", "x"], ["check", "a", "b"], ["options", "--format", "pdf"]]
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The status is EX_USAGE, and the usage is shown."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 64
    assert capsys.readouterr().err.startswith("usage: svcctl")


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_the_options_are_all_there(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every format has every option with the values that it takes, and every built-in."""
    assert main(["options", "--format", form]) == 0
    said = capsys.readouterr().out
    for name, info in TABLE.items():
        written = {
            "text": f"  {name}=\n",
            "markdown": f"| `{name}` | {info.value_type.accepts} |",
        }
        assert written[form] in said
    assert all(name in said for name in BUILTINS)
    if form != "markdown":
        assert all(heading in said for heading in GROUPS.values())
    assert said.endswith("\n")


def test_text_is_the_default_format(capsys: pytest.CaptureFixture[str]) -> None:
    """For people at a terminal."""
    main(["options"])
    first = capsys.readouterr().out
    main(["options", "--format", "text"])
    assert capsys.readouterr().out == first
    assert max(map(len, first.splitlines())) <= 200


@pytest.mark.parametrize(
    ("count", "rest"), [(0, "ends"), (1, "ends after its 1 connection"), (2, "ends after its 2 connections")]
)
def test_what_an_upgrade_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int, rest: str
) -> None:
    """Whether the old process still has somebody to serve."""
    answer = {"ok": True, "result": {"pid": 2, "before": 1, "connections": count}}
    monkeypatch.setattr("svcd.cli.control_commands.send_command", lambda *_: answer)
    assert main(["--control", "/c", "upgrade"]) == 0
    assert capsys.readouterr().out == f"process 2 serves; process 1 {rest}\n"


def test_what_status_says_of_certificates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """When they expire, and why new ones are not in use."""
    row = {"state": "on", "addresses": ["a"], "runs": "echo"}
    rows = [
        row | {"service": f"s{days}/tcp", "certificate": {"file": "/c", "days": days, "warn": 21}}
        for days in (-1, 0, 1, 2, 21)
    ]
    rows[-1]["problems"] = ["s:1:1: tls_cert: can't use /c: why"]
    result = {"uptime": 0, "version": "", "pid": 1, "reactor": "", "leaving": 0}
    result |= {"connections": {"open": 200, "limit": None}, "descriptors": {"open": 3, "limit": 61}}
    monkeypatch.setattr(
        "svcd.cli.control_commands.send_command", lambda *_: {"ok": True, "result": result | {"services": rows}}
    )
    assert main(["--control", "/c", "status"]) == 0
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "s-1/tcp: /c has expired",
        "s0/tcp: /c expires within a day",
        "s1/tcp: /c expires in 1 day",
        "s2/tcp: /c expires in 2 days",
        "s21/tcp: s:1:1: tls_cert: can't use /c: why",
    ]


@pytest.mark.parametrize(
    "words", [["upgrade", "--timeout", "nan"], ["upgrade", "--timeout", "inf"], ["top", "--count", "x"]]
)
def test_a_number_that_is_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon is not asked, and it is said what there should be."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == os.EX_USAGE
    assert f"{words[1]}: {words[2]!r} is not a " in capsys.readouterr().err
