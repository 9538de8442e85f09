"""svcctl help, options, names, and the JSON documents of check, explain, options and diff."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import svcd.cli
from svcd.cli import _parser, main
from svcd.cli.completion import bash, zsh
from svcd.cli.parser_model import commands_of
from svcd.config.options import TABLE
from svcd.protocols.catalog import BUILTINS

FILE = "@defaults bind=127.0.0.1\necho 7/tcp only_from=10.0.0.0/8\nold 9/tcp discard disable=yes\n"


@pytest.fixture
def services(tmp_path: Path) -> str:
    """A services file without mistakes."""
    path = tmp_path / "services"
    path.write_text(FILE)
    return str(path)


def _valid(name: str, text: str) -> dict[str, Any]:
    """Return a document after its validation against the schema."""
    jsonschema = pytest.importorskip("jsonschema", reason="the extra test has it")
    schema = json.loads((Path(svcd.cli.__file__).parent / f"schemas/{name}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(document)
    # A field that the schema does not have would be undocumented.
    assert set(document) == set(schema["properties"])
    return document


def test_check_as_json(services: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listeners, faults with exit status 1, and mistakes with 78."""
    assert main(["check", "--json", services]) == 0
    found = _valid("check", capsys.readouterr().out)
    assert (found["ok"], found["problems"], found["file"]) == (True, [], services)
    assert found["listeners"] == [{"service": "echo/tcp", "address": "127.0.0.1:7", "runs": "echo", "tls": False}]
    bad = tmp_path / "bad"
    bad.write_text("ecoh 7/tcp\n")
    assert main(["check", "--json", str(bad)]) == 78
    found = _valid("check", capsys.readouterr().out)
    (problem,) = found["problems"]
    assert (found["ok"], problem["severity"], problem["line"], problem["column"]) == (False, "mistake", 1, 1)
    faulty = tmp_path / "faulty"
    faulty.write_text("echo 7/tcp bind=127.0.0.1\ngone 8/tcp bind=127.0.0.1 server=/no/such\n")
    assert main(["check", "--json", str(faulty)]) == 1
    found = _valid("check", capsys.readouterr().out)
    # Root gets a warning, too: the handler would run as root.
    faults = [each for each in found["problems"] if each["severity"] != "warning"]
    assert [(each["severity"], each["service"]) for each in faults] == [("fault", "gone/tcp")]
    assert not found["ok"]


def test_explain_as_json(services: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps with their rules, and the verdict of the text."""
    words = ["explain", "echo", "10.1.2.3", "--services", services, "--at", "12:00"]
    assert main([*words, "--json"]) == 0
    (found,) = _valid("explain", capsys.readouterr().out)["explanations"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert found["verdict"] in text
    assert (found["service"], found["client"], found["admitted"]) == ("echo/tcp", "10.1.2.3", True)
    assert "T12:00:00" in found["time"]
    assert next(step["rule"] for step in found["steps"] if step["check"] == "address") in text
    assert main(["explain", "echo", "192.0.2.1", "--services", services, "--json"]) == 1
    (found,) = _valid("explain", capsys.readouterr().out)["explanations"]
    assert (found["admitted"], found["steps"][-1]["outcome"]) == (False, "refuses")
    assert found["steps"][-1]["location"] == {"file": services, "line": 2, "column": 22}


def test_options_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, or those of a name."""
    assert main(["options", "--json"]) == 0
    found = _valid("options", capsys.readouterr().out)
    assert [each["name"] for each in found["options"]] == list(TABLE)
    assert [each["name"] for each in found["builtins"]] == list(BUILTINS)
    assert main(["options", "--json", "rate="]) == 0
    found = _valid("options", capsys.readouterr().out)
    assert ([each["name"] for each in found["options"]], found["builtins"]) == (["rate"], [])


def test_diff_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer of the daemon."""
    from svcd.config.diff import diff
    from svcd.control.commands import _reloaded
    from svcd.supervisor.supervisor import ReloadResult

    answer = _reloaded(ReloadResult(diff((), ()), ()))
    monkeypatch.setattr("svcd.cli.control_commands.send_command", lambda *_: {"ok": True, "result": answer})
    assert main(["--control", "/c", "diff", "--json"]) == 0
    assert _valid("diff", capsys.readouterr().out)["version"] == 1


@pytest.mark.parametrize("command", ["diff", "reload"])
def test_mistakes_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """The problems are those of check --json; each list of changes is empty."""
    from twisted.python.failure import Failure

    from svcd.config.parser import parse_text
    from svcd.control.commands import _as_command_error
    from svcd.errors import CommandError, ConfigError
    from svcd.protocols.catalog import BUILTINS
    from svcd.wire.control_protocol import mistake
    from tests.doubles import FakeFiles

    text = "ecoh 7/tcp\nx 8/tcp echo bad=1\n"
    _, problems = parse_text(text, "s", FakeFiles(), BUILTINS)
    with pytest.raises(CommandError) as caught:
        _as_command_error(Failure(ConfigError(problems)))
    error = caught.value
    line = mistake(1, error.code, str(error), [each.document() for each in error.problems])
    monkeypatch.setattr("svcd.cli.control_commands.send_command", lambda *_: json.loads(line))
    assert main(["--control", "/c", command, "--json"]) == os.EX_CONFIG
    found = _valid("diff", capsys.readouterr().out)
    assert [(each["line"], each["severity"]) for each in found["problems"]] == [(1, "mistake"), (2, "mistake")]
    assert not any(found[name] for name in found if name not in ("version", "problems"))
    bad = tmp_path / "bad"
    bad.write_text(text)
    assert main(["check", "--json", str(bad)]) == os.EX_CONFIG
    same = [{**each, "file": found["problems"][0]["file"]} for each in json.loads(capsys.readouterr().out)["problems"]]
    assert found["problems"] == same
    assert main(["explain", "echo", "192.0.2.1", "--services", str(bad), "--json"]) == os.EX_CONFIG
    explained = _valid("explain", capsys.readouterr().out)
    assert (explained["explanations"], len(explained["problems"])) == ([], 2)


def test_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Its description, and the nearest name for one that is not known."""
    assert main(["options", "per_source"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("  per_source=\n")
    assert "xinetd: per_source" in said
    assert main(["options", "chargen"]) == 0
    assert "Usual port: 19" in capsys.readouterr().out
    assert main(["options", "per_sorce"]) == os.EX_USAGE
    assert "did you mean 'per_source'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("cps", "no option 'cps': write rate=NUMBER/s"),
        ("cps=25", "no option 'cps': write rate=25/s"),
        ("flags", "no option 'flags': KEEPALIVE is keepalive=yes"),
        ("flags=", "no option 'flags': KEEPALIVE is keepalive=yes"),
        ("server_args", "no option 'server_args': write the arguments after the program"),
        ("log_type", "no option 'log_type': svcd writes one log"),
        ("libwrap", "no option 'libwrap': write only_from="),
        ("interface", "no option 'interface': write bind=NAME"),
        ("deny_time", "no option 'deny_time': SENSOR is not supported"),
        ("socket_type", "no option 'socket_type': the protocol selects the socket type"),
    ],
)
def test_words_of_xinetd(capsys: pytest.CaptureFixture[str], name: str, advice: str) -> None:
    """The replacement that check gives, not the nearest name."""
    assert main(["options", name]) == os.EX_USAGE
    assert capsys.readouterr().err.startswith(f"svcctl options: {advice}")


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The same as with --help; the exit status is 64 for an unknown command."""
    with pytest.raises(SystemExit):
        main(["reload", "--help"])
    wanted = capsys.readouterr().out
    assert main(["help", "reload"]) == 0
    assert capsys.readouterr().out == wanted
    assert main(["help"]) == 0
    said = capsys.readouterr().out
    assert all(f"    {command.name} " in said for command in commands_of(_parser())[1:] if len(command.name) < 18)
    assert main(["help", "relod"]) == os.EX_USAGE
    assert "did you mean reload?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "hint"), [("relaod", "did you mean reload?"), ("zzz", "svcctl help lists the commands")]
)
def test_an_unknown_command(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines: the usage, and the nearest command."""
    with pytest.raises(SystemExit) as caught:
        main([word])
    assert caught.value.code == os.EX_USAGE
    said = capsys.readouterr().err.splitlines()
    assert said == ["usage: svcctl [-h] [--version] [--control PATH] COMMAND ...",
                    f"svcctl: there is no command '{word}'; {hint}"]  # fmt: skip


def test_names(services: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the file, or of the running daemon."""
    assert main(["names", "--services", services]) == 0
    assert capsys.readouterr().out == "echo/tcp\nold/tcp\n"
    status = {"services": [{"service": "a/tcp"}, {"service": "b/udp"}]}
    monkeypatch.setattr("svcd.cli.control_commands.send_command", lambda *_: {"ok": True, "result": status})
    assert main(["--control", "/c", "names"]) == 0
    assert capsys.readouterr().out == "a/tcp\nb/udp\n"
    assert main(["names", "--services", "/no/such"]) == 78


def test_bash_completes_services_and_options(tmp_path: Path) -> None:
    """Svcctl itself lists them, with the same --control."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    program = tmp_path / "svcctl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m svcd "$@"\n')
    program.chmod(0o755)
    asks = tmp_path / "asks"
    prints = "printf '%s\\n' echo/tcp time/udp '$(touch ran)`touch ran`'"
    asks.write_text(f'#!/bin/sh\n[ "$*" = "--control /c names" ] && {prints}\n')
    asks.chmod(0o755)
    code = bash(_parser()) + 'COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _svcctl; printf "%s\\n" "${COMPREPLY[@]}"\n'

    def completed(*words: str) -> list[str]:
        words_of_shell = [shell, "-c", code, "-", *words]
        done = subprocess.run(words_of_shell, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        return done.stdout.splitlines()

    *names, odd = completed(str(asks), "--control", "/c", "pause", "")
    assert names == ["echo/tcp", "time/udp"]
    # Nothing of a name is run, neither now nor when it is on the command line.
    assert odd == r"\$\(touch\ ran\)\`touch\ ran\`"
    assert not (tmp_path / "ran").exists()
    assert completed(str(asks), "--control", "/c", "explain", "t") == ["time/udp"]
    assert completed(str(program), "options", "per_source_r") == ["per_source_rate"]


def test_zsh_completes_services() -> None:
    """By the same commands."""
    made = zsh(_parser())
    assert """'::SERVICE:{compadd -- ${(f)"$(svcctl names 2>/dev/null)"}}'""" in made
    assert """'::OPTION:{compadd -- ${(f)"$(svcctl options --format names 2>/dev/null)"}}'""" in made


def test_explain_of_a_service_that_is_not_in_the_file(services: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message has the nearest name, or else the command that lists them."""
    for name, hint in (("ecoh", " (did you mean 'echo'?)"), ("NOPE", "; svcctl names lists the services")):
        assert main(["explain", name, "192.0.2.1", "--services", services]) == os.EX_USAGE
        assert capsys.readouterr().err.endswith(f"the file has no service {name!r}{hint}\n")


def test_a_control_socket_without_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the users that have access."""
    path = str(tmp_path / "control")

    def connect(_socket: object, _path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("svcd.cli.control_commands.socket.socket", type("", (socket.socket,), {"connect": connect}))
    assert main(["--control", path, "status"]) == os.EX_UNAVAILABLE
    assert capsys.readouterr().err == (
        f"svcctl: no access to {path}: Permission denied; run svcctl as root or as the user of the daemon\n"
    )


def test_an_installation_whose_output_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end of the reader, such as head(1), is not a failure of the installation."""
    given_up = []

    def place(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("svcd.cli.file_installer.FileInstaller.place", place)
    monkeypatch.setattr("svcd.cli._give_up_output", lambda: given_up.append(True))
    assert main(["install", "--dry-run", "--prefix", str(tmp_path)]) == 0
    assert given_up


@pytest.mark.parametrize("words", [["check"], ["check", "--json"]])
def test_a_problem_of_defaults_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A problem at one place with one text is one line, however many services it concerns; JSON names each service."""
    path = tmp_path / "services"
    line = "{} 0/tcp bind=127.0.0.1 server=/bin/cat\n"
    path.write_text("@defaults user=nosuchuser\n" + line.format("a") + line.format("b") + line.format("c"))
    assert main([*words, str(path)]) == 1
    output = capsys.readouterr()
    if "--json" in words:
        assert [each["service"] for each in json.loads(output.out)["problems"]] == ["a/tcp", "b/tcp", "c/tcp"]
    else:
        assert output.err.count("no user 'nosuchuser' on this machine") == 1
        assert "the machine can't serve a/tcp, b/tcp, c/tcp at the moment" in output.err
