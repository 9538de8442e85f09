"""Lexer of services files: logical lines and words, with their locations.

A line that begins with white space continues the logical line before; `#` outside quotes begins a comment. Quotes and
backslashes are those of a POSIX shell (XCU 2.2), without its expansions. A syntax error becomes a ConfigProblem, and
the rest of the line is skipped; nothing is raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.model import ConfigProblem, SourceLocation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LogicalLine", "Word", "decode", "split"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word without its quotes, and its location."""

    text: str
    location: SourceLocation

    def after(self, characters: int) -> SourceLocation:
        """Return the location of a character in the word; exact if the word is not quoted up to there."""
        return SourceLocation(self.location.file, self.location.line, self.location.column + characters)


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """A logical line. `broken` means that it has a syntax error, so that it must not be used."""

    words: tuple[Word, ...]
    broken: bool = False


def decode(data: bytes, file: str) -> tuple[str, list[ConfigProblem]]:
    """Return the text of a file, and a problem for its first byte that is not UTF-8.

    Such bytes are replaced, so that problems in the rest of the file are found, too.
    """
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        good = data[: error.start]
        line = good.count(b"\n") + 1
        column = len(good[good.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        text = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file in UTF-8"
        return data.decode("utf-8-sig", "replace"), [ConfigProblem(SourceLocation(file, line, column), text)]


def split(text: str, file: str) -> Iterator[LogicalLine | ConfigProblem]:
    """Yield the logical lines of a text, and its problems, in order."""
    words: list[Word] = []
    broken = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r")
        found, problem = _words(line, SourceLocation(file, number, 1))
        continues = line[:1] in (" ", "\t")
        if problem is None and not found:
            continue
        if continues and not words and not broken and (found or problem):
            location = SourceLocation(file, number, 1)
            yield ConfigProblem(
                location, "white space at the start continues the previous line, but there is none; remove it"
            )
            continue
        if not continues:
            if words:
                yield LogicalLine(tuple(words), broken)
            words, broken = [], False
        if problem is not None:
            yield problem
            broken = True
        words += found
    if words:
        yield LogicalLine(tuple(words), broken)


def _words(line: str, start: SourceLocation) -> tuple[list[Word], ConfigProblem | None]:
    """Return the words of one physical line up to the first mistake, and the problem."""
    words: list[Word] = []
    position, end = 0, len(line)
    while position < end:
        character = line[position]
        if character in " \t":
            position += 1
        elif character == "#":
            break
        else:
            begin = position
            text, position, mistake = _word(line, position)
            if mistake:
                return words, ConfigProblem(SourceLocation(start.file, start.line, position + 1), mistake)
            words.append(Word(text, SourceLocation(start.file, start.line, begin + 1)))
    return words, None


# A piece of a word: in single quotes, in double quotes, after a backslash, or plain.
_PIECE = re.compile(
    r"""'(?P<single>[^'\x00-\x08\x0a-\x1f]*)'"""
    r"""|"(?P<double>(?:[^"\\\x00-\x08\x0a-\x1f]|\\[^\x00-\x08\x0a-\x1f])*)\""""
    r"""|\\(?P<escaped>[^\x00-\x08\x0a-\x1f])"""
    r"""|(?P<plain>[^\x00-\x20'"\\#]+)"""
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f]")


def _word(line: str, position: int) -> tuple[str, int, str]:
    """Read a word that begins at a position.

    Returns:
        The text, the position of its end, and an empty text; or after a mistake an empty text, the position of the
        mistake, and its description.
    """
    text: list[str] = []
    while position < len(line) and line[position] not in " \t#":
        piece = _PIECE.match(line, position)
        if piece is None:
            return "", *_mistake(line, position)
        found = piece[piece.lastgroup or 0]
        text.append(re.sub(r'\\(["\\])', r"\1", found) if piece.lastgroup == "double" else found)
        position = piece.end()
    return "".join(text), position, ""


def _mistake(line: str, position: int) -> tuple[int, str]:
    """Return the position and the description of the mistake at a position where no piece of a word begins."""
    control = _CONTROL.search(line, position)
    if control is not None:
        return control.start(), f"control character U+{ord(control[0]):04X}; remove it"
    if line[position] == "\\":
        return position, "backslash at the end of the line; to continue a line, begin the next one with white space"
    return position, f"no closing {line[position]}; close it on the same line"
