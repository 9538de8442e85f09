"""Tables and colours on a terminal, and whole lines elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.cli.terminal import Output, shorten, table

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = [
    ("NAME", "N", "ADDRESSES", "RUNS"),
    ("echo/tcp", "1", "127.0.0.1:7 [::1]:7", "echo"),
    ("a-service-with-a-long-name/tcp", "12345", "/run/a/b/c/d/e/f/g/h", "/usr/libexec/something/long"),
]


@pytest.fixture
def screen() -> Iterator[io.TextIOWrapper]:
    """The slave of a pseudo-terminal of 70 columns and 10 lines."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 70, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        yield stream
    os.close(master)


def test_a_terminal_has_a_size_and_colours(screen: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR with any text and a dumb terminal have none."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Output.of(screen) == Output(70, 10, True, "…")
    monkeypatch.setenv("NO_COLOR", "")
    assert Output.of(screen).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output.of(screen).colour
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Output.of(screen) == Output(70, 10, False, "…")


def test_a_pipe_has_neither() -> None:
    """Lines are whole there."""
    assert Output.of(io.StringIO()) == Output()
    assert Output().styled("x", "red") == "x"
    assert Output(colour=True).styled("x", "red") == "\x1b[31mx\x1b[0m"


def test_a_table_is_whole_on_a_pipe() -> None:
    """Columns are aligned, and nothing is left out."""
    assert list(table(ROWS, Output(), right=frozenset({1}), flexible=frozenset({0, 2, 3}))) == [
        "NAME                                N  ADDRESSES             RUNS",
        "echo/tcp                            1  127.0.0.1:7 [::1]:7   echo",
        "a-service-with-a-long-name/tcp  12345  /run/a/b/c/d/e/f/g/h  /usr/libexec/something/long",
    ]


def test_long_columns_are_shortened_in_the_middle() -> None:
    """Numbers stay whole; the widest columns give way first, and a brief form is tried before that."""
    output = Output(60, 24, False, "…")
    lines = list(table(ROWS, output, right=frozenset({1}), flexible=frozenset({0, 2, 3})))
    assert max(map(len, lines)) <= 60
    assert lines[2] == "a-servic…ame/tcp  12345  /run/a/b…e/f/g/h  /usr/lib…ing/long"
    brief = list(table(ROWS, output, flexible=frozenset({0, 2, 3}), brief={2: lambda cell: cell[:4]}))
    assert brief[1].split()[2] == "127."


@given(width=st.integers(1, 120), colour=st.booleans())
def test_a_table_fits_any_width(width: int, colour: bool) -> None:
    """Columns at the right are left out where nothing else helps; styles take no width."""
    output = Output(width, 24, colour, "…")
    lines = list(table(ROWS, output, flexible=frozenset({0, 2, 3}), styles={0: lambda _: "red"}))
    shown = [re.sub("\x1b\\[[0-9]+m", "", line) for line in lines]
    assert len(shown) == 3
    assert max(map(len, shown)) <= max(width, 8)
    assert (shown == lines) is not colour


@given(text=st.text(max_size=30), width=st.integers(1, 40))
def test_shortening(text: str, width: int) -> None:
    """Short text is unchanged; of long text begin and end remain."""
    for ellipsis in ("…", "..."):
        found = shorten(text, width, ellipsis)
        assert len(found) <= width
        if len(text) <= width:
            assert found == text
        elif width > 4:
            assert found[0] == text[0]
            assert found[-1] == text[-1]
            assert ellipsis in found


def test_what_a_daemon_sends_does_not_act_on_the_terminal() -> None:
    """Control characters are replaced there; a pipe has them as they are."""
    rows = [("A", "B"), ("x\x1b[2J", "y\x9b")]
    assert list(table(rows, Output(80, 24)))[1] == "x?[2J  y?"
    assert list(table(rows, Output()))[1] == "x\x1b[2J  y\x9b"


def test_a_line_of_facts_is_folded() -> None:
    """Between facts, on a terminal alone."""
    facts = ["svcd 1", "pid 2", "connections: 3"]
    assert list(Output().fold(facts)) == ["svcd 1, pid 2, connections: 3"]
    assert list(Output(16).fold(facts)) == ["svcd 1, pid 2", "connections: 3"]
    assert list(Output(3).fold(facts)) == facts
