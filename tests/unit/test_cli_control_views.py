"""Answers of the control socket as text."""

from __future__ import annotations

from typing import Any

import pytest

from svcd.cli.control_views import duration, status_lines, view
from svcd.cli.terminal import Output
from svcd.cli.top import show_top
from svcd.wire.control_protocol import COMMANDS

RELOADED: dict[str, Any] = {
    name: [] for name in ("changes", "faults", "added", "removed", "changed", "opened", "closed", "broken")
}


def _row(service: str, state: str = "on", **more: object) -> dict[str, Any]:
    row = {"service": service, "state": state, "addresses": ["127.0.0.1:7", "[::1]:7"], "runs": "echo"}
    return row | {"connections": 0, "refused": {}, "arrived": 0, "failed": 0} | more


def _status(*rows: dict[str, Any], leaving: int = 0) -> dict[str, Any]:
    return {
        "version": "1",
        "pid": 2,
        "reactor": "R",
        "uptime": 65,
        "connections": {"open": 3, "limit": 9},
        "descriptors": {"open": 4, "limit": 61},
        "services": list(rows),
        "leaving": leaving,
    }


@pytest.mark.parametrize(
    ("command", "result", "lines"),
    [
        ("reload", {}, ["reloaded: nothing has changed"]),
        (
            "reload",
            {"changed": ["a/tcp", "b/tcp"], "added": ["c/tcp"], "changes": ["+ c/tcp"]},
            ["reloaded: 2 services changed, 1 added", "  + c/tcp"],
        ),
        ("reload", {"broken": ["a/tcp"]}, ["reloaded: nothing has changed; 1 broken"]),
        ("reload", {"added": ["a/tcp"], "broken": ["a/tcp"]}, ["reloaded: 1 service added; 1 broken"]),
        ("reload", {"removed": ["a/tcp"], "closed": ["x"]}, ["reloaded: 1 service removed"]),
        ("reload", {"opened": ["x", "y"]}, ["reloaded: 2 sockets opened"]),
        ("diff", {}, ["a reload would change nothing"]),
        ("diff", {"changes": ["- a/tcp"]}, ["- a/tcp"]),
        ("enable", {"service": "a/tcp"}, ["a/tcp is on"]),
        ("enable", {"service": "a/tcp", "already": True}, ["a/tcp is on already"]),
        ("disable", {"service": "a/tcp", "connections": 0}, ["a/tcp is disabled until svcctl enable or a reload"]),
        (
            "disable",
            {"service": "a/tcp", "connections": 2},
            ["a/tcp is disabled until svcctl enable or a reload; its 2 connections may continue"],
        ),
        ("disable", {"service": "a/tcp", "connections": 0, "already": True}, ["a/tcp is disabled already"]),
        ("pause", {"services": ["a/tcp"]}, ["paused: a/tcp; new clients wait until svcctl resume"]),
        ("pause", {"services": ["a/tcp", "b"]}, ["paused: 2 services; new clients wait until svcctl resume"]),
        ("resume", {"services": ["a/tcp", "b", "c"]}, ["resumed: 3 services"]),
        ("kick", {"ended": 1}, ["1 connection ended"]),
        (
            "restart",
            {"pid": 8, "before": 7},
            ["launcher 8 starts the handlers now; launcher 7 ends after its last handler"],
        ),
        ("restart", {"pid": 8, "before": 0}, ["launcher 8 starts the handlers now"]),
        ("drain", {"connections": 0}, ["svcd accepts no more connections and stops now"]),
        ("drain", {"connections": 1}, ["svcd accepts no more connections and stops after its 1 connection"]),
        (
            "drain",
            {"connections": 2},
            ["svcd accepts no more connections and stops after the last of its 2 connections"],
        ),
        ("stop", {"connections": 0}, ["svcd stops"]),
        ("stop", {"connections": 2}, ["svcd stops; 2 connections may end within shutdown_timeout"]),
        ("log-level", {"level": "warn"}, ["the log has events of level warn and above"]),
    ],
)
def test_replies_are_words(command: str, result: dict[str, Any], lines: list[str]) -> None:
    """Each command says what has happened."""
    complete = RELOADED | result if command in ("reload", "diff") else result
    assert view(command, complete, Output()) == lines


def test_every_command_has_a_view() -> None:
    """An answer of a daemon of another version is shown as it is."""
    from svcd.cli.control_views import _VIEWS

    assert set(_VIEWS) == set(COMMANDS)
    assert view("pause", {"listeners": 2}, Output()) == ["{", '  "listeners": 2', "}"]


def test_status_has_the_states() -> None:
    """With colours on a terminal, and a row of dashes for what does not run."""
    rows = [
        _row("a/tcp", connections=2, refused={"rate": 3, "load": 1}, failed=5),
        _row("b/tcp", "paused"),
        {"service": "c/tcp", "state": "disabled", "addresses": [], "runs": "/bin/cat"},
        {"service": "d/tcp", "state": "broken", "addresses": ["x"], "runs": "e", "problems": ["d/tcp: why", "f:1: w"]},
    ]
    result = _status(*rows, leaving=1)
    assert list(status_lines(result, Output())) == [
        "svcd 1, pid 2, R, up 1m05s, connections: 3 of 9, descriptors: 4 of 61",
        "SERVICE  STATE     OPEN  REFUSED  FAILED  ADDRESSES            RUNS",
        "a/tcp    on           2        4       5  127.0.0.1:7 [::1]:7  echo",
        "b/tcp    paused       0        0       0  127.0.0.1:7 [::1]:7  echo",
        "c/tcp    disabled     -        -       -                       /bin/cat",
        "d/tcp    broken       -        -       -  x                    e",
        "d/tcp: why",
        "d/tcp: f:1: w",
        "1 connection of removed services",
    ]
    narrow = list(status_lines(result, Output(68, 24, True, "…")))
    assert narrow[0] == "svcd 1, pid 2, R, up 1m05s, connections: 3 of 9"
    assert [line for line in narrow if "127.0.0.1:7 +1" in line]
    for state, number in {"on": 32, "paused": 33, "disabled": 2, "broken": 31}.items():
        assert any(f"\x1b[{number}m{state:8}\x1b[0m" in line for line in narrow)
    assert "\x1b[31md/tcp: why\x1b[0m" in narrow


def test_durations() -> None:
    """In the two largest units."""
    assert [duration(each) for each in (4.25, 303, 7500, 273_600)] == ["4.2s", "5m03s", "2h05m", "3d04h"]


def test_top_has_rates_between_two_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """None at first, nor for a new service; a daemon that has been replaced counts from 0."""
    answers = [
        _status(_row("a/tcp", arrived=10), _row("b/udp", arrived=5)),
        _status(_row("a/tcp", arrived=11), _row("b/udp", arrived=65), _row("c/tcp")),
        _status(_row("a/tcp", arrived=0), _row("b/udp", arrived=65)),
    ]
    times = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr("svcd.cli.top.time.sleep", lambda _seconds: None)
    monkeypatch.setattr("svcd.cli.top.time.monotonic", lambda: next(times))
    waiting = iter(answers)
    show_top(lambda: next(waiting), "rate", 3)
    lines = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if "/" in line.split()[0]]
    assert lines == [
        ["a/tcp", "on", "0", "-"],
        ["b/udp", "on", "0", "-"],
        ["b/udp", "on", "0", "30/s"],
        ["a/tcp", "on", "0", "0.5/s"],
        ["c/tcp", "on", "0", "-"],
        ["a/tcp", "on", "0", "0/s"],
        ["b/udp", "on", "0", "0/s"],
    ]
