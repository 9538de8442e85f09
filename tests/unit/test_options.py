"""The types of values, and the one table made of them."""

from __future__ import annotations

from typing import Any

import pytest

from svcd.catalog import BUILTINS
from svcd.config import kinds
from svcd.config.options import GROUPS, TABLE, Options
from svcd.model import Net

_CHOICE = kinds.choice("a", "b")
_CHOICES = kinds.choices("X", "Y", "Z")
_RUNS = {*BUILTINS}
_SCOPES = {"any", "stream", "inet", "tcp", "local"}


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (kinds.YES_NO, "yes", True),
        (kinds.YES_NO, "no", False),
        (kinds.COUNT, "1", 1),
        (kinds.COUNT, "9999999", 9_999_999),
        (kinds.MODE, "660", 0o660),
        (kinds.MODE, "0007", 0o007),
        (kinds.DURATION, "10", 10.0),
        (kinds.DURATION, "10s", 10.0),
        (kinds.DURATION, "1.5m", 90.0),
        (kinds.DURATION, "2h", 7200.0),
        (kinds.DURATION, "0.001", 0.001),
        (kinds.PATH, "/", "/"),
        (kinds.PATH, "/a b", "/a b"),
        (kinds.WORD, "ü#'", "ü#'"),
        (kinds.WORDS, "a,b", ("a", "b")),
        (kinds.TEXT, "", ""),
        (kinds.TEXT, " any = \" thing' ", " any = \" thing' "),
        (_CHOICE, "b", "b"),
        (_CHOICES, "none", ()),
        (_CHOICES, "Z,X", ("X", "Z")),
        (_CHOICES, "Y,Y", ("Y",)),
    ],
)
def test_what_is_read_can_be_written_and_read(kind: kinds.Kind[Any], word: str, value: object) -> None:
    """A word reads as its value, and the value's own spelling reads as the same."""
    assert kind.read(word) == value
    assert kind.read(kind.write(value)) == value


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (kinds.YES_NO, ["", "Yes", "true", "1", "yes "]),
        (kinds.COUNT, ["", "0", "-1", "1.5", "10000000", "٣", "1_0", " 1"]),
        (kinds.MODE, ["", "66", "888", "00660", "1777", "0o66", "rw-"]),
        (kinds.DURATION, ["", "s", "-1", "1d", "1 s", "1.", ".5", "1e3", "inf", "nan", "1,5s", "٣s", "9999999999"]),
        (kinds.PATH, ["", "a", "./a", "~/a"]),
        (kinds.WORD, ["", "a b", "a\tb", "a\u00a0b"]),
        (kinds.WORDS, ["", ",", "a,", ",a", "a,,b", "a, b"]),
        (_CHOICE, ["", "c", "A", "a,b"]),
        (_CHOICES, ["", "x", "X,", "X,none", "X Y"]),
    ],
)
def test_what_is_not_of_the_kind_is_refused(kind: kinds.Kind[Any], words: list[str]) -> None:
    """Any other word is a ValueError, for the Problem to say what is accepted."""
    for word in words:
        with pytest.raises(ValueError):
            kind.read(word)
    assert kind.accepts


@pytest.mark.parametrize("name", TABLE)
def test_a_row_of_the_table_is_whole(name: str) -> None:
    """Every option has a known group and scope, a sentence of help, and a default that reads back."""
    info = TABLE[name]
    assert info.name == name
    assert info.group in GROUPS
    assert info.scope in _SCOPES | _RUNS
    assert info.scope_text
    assert info.help.endswith(".")
    assert info.default == getattr(Options(), name)
    if info.default_text:
        assert info.kind.read(info.default_text) == info.default


def test_a_groups_options_stand_together() -> None:
    """The table is in the order of the manual's headings."""
    groups = [info.group for info in TABLE.values()]
    order = list(GROUPS)
    assert groups == sorted(groups, key=order.index)


@pytest.mark.parametrize(
    ("option", "takers"),
    [
        ("disable", set(Net)),
        ("backlog", {Net.TCP, Net.TCP4, Net.TCP6, Net.UNIX}),
        ("bind", set(Net) - {Net.UNIX, Net.UNIXGRAM}),
        ("nodelay", {Net.TCP, Net.TCP4, Net.TCP6}),
        ("mode", {Net.UNIX, Net.UNIXGRAM}),
        ("utc", set()),
    ],
)
def test_a_scope_decides_who_takes_an_option(option: str, takers: set[Net]) -> None:
    """An option applies to the protocols of its scope, one of a built-in only where that runs."""
    assert {net for net in Net if TABLE[option].applies_to(net, "echo")} == takers
    assert TABLE["utc"].applies_to(Net.UDP, "daytime")
