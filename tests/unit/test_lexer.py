"""Lexer: lines and words of a services file, with their locations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.config.lexer import LogicalLine, Word, decode, split
from svcd.model import ConfigProblem


def _lines(text: str) -> list[list[str]]:
    """Return the words of each line of a text without mistakes."""
    lines = []
    for line in split(text, "s"):
        assert isinstance(line, LogicalLine), str(line)
        assert not line.broken
        lines.append([word.text for word in line.words])
    return lines


def _mistakes(text: str) -> list[str]:
    return [str(each) for each in split(text, "s") if isinstance(each, ConfigProblem)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n \n\t\n", []),
        ("# only a comment", []),
        ("echo 7/tcp", [["echo", "7/tcp"]]),
        ("echo\t 7/tcp  ", [["echo", "7/tcp"]]),
        ("echo 7/tcp # a comment 'with a quote", [["echo", "7/tcp"]]),
        ("echo 7/tcp#glued", [["echo", "7/tcp"]]),
        ("a '#' \"#\" \\#", [["a", "#", "#", "#"]]),
        ("a 'b c' \"d e\" f\\ g", [["a", "b c", "d e", "f g"]]),
        ("a b'c'\"d\"e", [["a", "bcde"]]),
        ("a '' \"\"", [["a", "", ""]]),
        (r"""a 'b\c' "b\c" "b\\c" "b\"c" b\\c b\'c""", [["a", r"b\c", r"b\c", r"b\c", 'b"c', r"b\c", "b'c"]]),
        ("a \"b\tc\" 'd\te'", [["a", "b\tc", "d\te"]]),
        ("a\n b\n\tc\nd", [["a", "b", "c"], ["d"]]),
        ("a\r\n b\r\nc\r\n", [["a", "b"], ["c"]]),
        ("a\n# between\n\n b", [["a", "b"]]),
        ("a\n   # an indented comment\n b\n \nc", [["a", "b"], ["c"]]),
        ("  # an indented comment is no continuation\na", [["a"]]),
        ("größe 7/tcp", [["größe", "7/tcp"]]),
        ("a\N{NO-BREAK SPACE}b\N{LINE SEPARATOR}c", [["a\N{NO-BREAK SPACE}b\N{LINE SEPARATOR}c"]]),
    ],
)
def test_words(text: str, lines: list[list[str]]) -> None:
    """White space separates words, quotes and backslashes join them, white space at the start continues a line."""
    assert _lines(text) == lines


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        (" a", ["s:1:1: white space at the start continues the previous line, but there is none; remove it"]),
        ("\n\ta\nb", ["s:2:1: white space at the start continues the previous line, but there is none; remove it"]),
        ("a 'b", ["s:1:3: no closing '; close it on the same line"]),
        ('a "b\nc', ['s:1:3: no closing "; close it on the same line']),
        ('a "b\\"', ['s:1:3: no closing "; close it on the same line']),
        ("a b\\", [("s:1:4: backslash at the end of the line; to continue a line, begin the next one with "
                    "white space")]),
        ("a\0b", ["s:1:2: control character U+0000; remove it"]),
        ("a 'b\x07c'", ["s:1:5: control character U+0007; remove it"]),
        ("ab\rc", ["s:1:3: control character U+000D; remove it"]),
        ("a \\\x1b", ["s:1:4: control character U+001B; remove it"]),
        ("é 'x", ["s:1:3: no closing '; close it on the same line"]),
        ("a 'b\nc \"d\ne \0", [
            "s:1:3: no closing '; close it on the same line",
            's:2:3: no closing "; close it on the same line',
            "s:3:3: control character U+0000; remove it",
        ]),
    ],
)  # fmt: skip
def test_mistakes(text: str, mistakes: list[str]) -> None:
    """A syntax error is a problem at its exact location, and the lexer continues."""
    assert _mistakes(text) == mistakes


def test_a_line_with_a_mistake_is_broken_as_a_whole() -> None:
    """Neither the words before the mistake nor the continuation lines are used."""
    found = list(split("a 'b\n c\nd", "s"))
    assert [type(each) for each in found] == [ConfigProblem, LogicalLine, LogicalLine]
    assert [each.broken for each in found if isinstance(each, LogicalLine)] == [True, False]


def test_continuation_of_a_line_that_begins_with_a_mistake() -> None:
    """A continuation of a broken line has no problem of its own."""
    found = list(split("'b\n c\nd", "s"))
    assert sum(isinstance(each, ConfigProblem) for each in found) == 1
    assert [
        [word.text for word in each.words] for each in found if isinstance(each, LogicalLine) and not each.broken
    ] == [["d"]]


def test_locations_count_characters_from_1() -> None:
    """The location of a word is that of its first character, quotes included."""
    (line,) = (each for each in split("é 'b c'\n  d", "s") if isinstance(each, LogicalLine))
    assert [str(word.location) for word in line.words] == ["s:1:1", "s:1:3", "s:2:3"]
    assert str(line.words[0].after(3)) == "s:1:4"


def test_byte_order_mark_is_skipped() -> None:
    """A byte order mark at the start of the file does not count as a character."""
    assert decode(b"\xef\xbb\xbfecho", "s") == ("echo", [])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff", "s:1:1: byte 0xff is not UTF-8; save the file in UTF-8"),
        (b"echo 7/tcp\n\xc3\xa9 \xe9t\xe9", "s:2:3: byte 0xe9 is not UTF-8; save the file in UTF-8"),
        (b"a\r\nb\xc3", "s:2:2: byte 0xc3 is not UTF-8; save the file in UTF-8"),
        (b"\xed\xa0\x80", "s:1:1: byte 0xed is not UTF-8; save the file in UTF-8"),
    ],
)
def test_bytes_that_are_not_utf_8(data: bytes, problem: str) -> None:
    """The problem has the line and the column, in characters, of the first invalid byte."""
    text, problems = decode(data, "s")
    assert list(map(str, problems)) == [problem]
    # The rest is there to be looked at as well.
    assert text == data.decode("utf-8", "replace")


@given(st.text(st.sampled_from("ab \t\n\r'\"\\#=@/\0é\x85")))
def test_any_text_gives_lines_and_problems(text: str) -> None:
    """For any text, every line has words, and every location is in the text."""
    rows = text.split("\n")
    for each in split(text, "s"):
        if isinstance(each, LogicalLine):
            assert each.words
            assert all(isinstance(word, Word) for word in each.words)
            places = [word.location for word in each.words]
        else:
            places = [each.location]
        for place in places:
            assert 1 <= place.column <= len(rows[place.line - 1]) + 1
