"""Lines and words of a services file, each with its place.

A line that begins with white space continues the logical line before; `#` outside quotes begins a comment. Quotes and
backslashes are those of a POSIX shell (XCU 2.2), without its expansions. What can't be read becomes a Problem and
the rest of that line is skipped; nothing is raised.
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
    """A word without its quotes, and where it begins."""

    text: str
    place: SourceLocation

    def after(self, characters: int) -> SourceLocation:
        """The place so many characters into the word (exact for a word whose beginning is not quoted)."""
        return SourceLocation(self.place.file, self.place.line, self.place.column + characters)


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """A logical line. `broken` says that a part of it could not be read, so that it must not be used."""

    words: tuple[Word, ...]
    broken: bool = False


def decode(data: bytes, file: str) -> tuple[str, list[ConfigProblem]]:
    """The text of a file, with a Problem for its first byte that is no UTF-8; the rest is read for its own Problems."""
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        good = data[: error.start]
        line = good.count(b"\n") + 1
        column = len(good[good.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        text = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file in UTF-8"
        return data.decode("utf-8-sig", "replace"), [ConfigProblem(SourceLocation(file, line, column), text)]


def split(text: str, file: str) -> Iterator[LogicalLine | ConfigProblem]:
    """The logical lines of a text, and its Problems, in order."""
    words: list[Word] = []
    broken = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r")
        found, problem = _words(line, SourceLocation(file, number, 1))
        continues = line[:1] in (" ", "\t")
        if problem is None and not found:
            continue
        if continues and not words and not broken and (found or problem):
            place = SourceLocation(file, number, 1)
            yield ConfigProblem(
                place, "white space at the beginning continues a line, but none stands before; remove it"
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
    """The words of one physical line, up to the first mistake."""
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


# A piece of a word: in single quotes, in double quotes, behind a backslash, or plain.
_PIECE = re.compile(
    r"""'(?P<single>[^'\x00-\x08\x0a-\x1f]*)'"""
    r"""|"(?P<double>(?:[^"\\\x00-\x08\x0a-\x1f]|\\[^\x00-\x08\x0a-\x1f])*)\""""
    r"""|\\(?P<escaped>[^\x00-\x08\x0a-\x1f])"""
    r"""|(?P<plain>[^\x00-\x20'"\\#]+)"""
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f]")


def _word(line: str, position: int) -> tuple[str, int, str]:
    """One word from a position on: its text, where it ends, and what is wrong (then: where)."""
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
    """Why no piece of a word stands here, and where exactly."""
    control = _CONTROL.search(line, position)
    if control is not None:
        return control.start(), f"control character U+{ord(control[0]):04X}; remove it"
    if line[position] == "\\":
        return position, "nothing after the backslash; to continue a line, begin the next with white space"
    return position, f"no closing {line[position]}; close it on the same line"
