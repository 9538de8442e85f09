"""Output on a terminal: its width, colours, and tables that fit it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Output", "shorten", "table"]

#: A column is not made narrower than this.
_NARROWEST = 8
_GAP = "  "
#: SGR parameters (ECMA-48, 8.3.117) by the names of styles.
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
#: C0 and C1 control characters, which would act on a terminal.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Output:
    """The destination of what a command prints.

    Attributes:
        width: the columns of a terminal; None for a file or a pipe, where lines are written whole.
        height: the lines of a terminal; None as for width.
        colour: whether styles are used.
        ellipsis: the mark of omitted text.
    """

    width: int | None = None
    height: int | None = None
    colour: bool = False
    ellipsis: str = "..."

    @classmethod
    def of(cls, stream: TextIO) -> Output:
        """Return the properties of a stream; NO_COLOR (https://no-color.org) and TERM=dumb turn colours off."""
        if not stream.isatty():
            return cls()
        try:
            size = os.get_terminal_size(stream.fileno())
        except OSError:
            size = os.terminal_size((0, 0))
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
        ellipsis = "…" if (stream.encoding or "").lower().replace("-", "") == "utf8" else "..."
        return cls(size.columns or 80, size.lines or 24, not plain, ellipsis)

    @classmethod
    def current(cls) -> Output:
        """Return the properties of the standard output."""
        return cls.of(sys.stdout)

    def styled(self, text: str, style: str) -> str:
        """Return text in a style: bold, dim, red, green or yellow; unchanged without colours or for no style."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and style and text else text

    def fold(self, words: Sequence[str]) -> Iterator[str]:
        """Yield words with commas between them, in as many lines as the width needs."""
        line = ""
        for word in words:
            longer = f"{line}, {word}" if line else word
            if self.width is not None and line and len(longer) > self.width:
                yield line
                longer = word
            line = longer
        yield line


def shorten(text: str, width: int, ellipsis: str) -> str:
    """Return text of at most a width; longer text is shortened in the middle."""
    if len(text) <= width:
        return text
    keep = max(width - len(ellipsis), 0)
    tail = keep // 2
    return f"{text[: keep - tail]}{ellipsis}{text[len(text) - tail :]}"[:width]


def table(
    rows: Sequence[Sequence[str]],
    output: Output,
    *,
    right: frozenset[int] = frozenset(),
    flexible: frozenset[int] = frozenset(),
    brief: Mapping[int, Callable[[str], str]] | None = None,
    styles: Mapping[int, Callable[[str], str]] | None = None,
) -> Iterator[str]:
    """Yield the lines of a table that fits the output.

    Args:
        rows: the cells; the first row is the heading.
        output: the destination.
        right: the columns that are aligned to the right.
        flexible: the columns whose cells may be shortened in the middle.
        brief: by column a function that returns a shorter form of a cell, for rows that are too wide.
        styles: by column a function that returns the style of a cell.
    """
    if output.width is not None:
        rows = [[_CONTROLS.sub("?", cell) for cell in row] for row in rows]
    widths = _widths(rows)
    if brief and output.width is not None and _total(widths) > output.width:
        rows = [[brief.get(column, str)(cell) for column, cell in enumerate(row)] for row in rows]
        widths = _widths(rows)
    _fit(widths, [len(cell) for cell in rows[0]], output.width, flexible)
    for number, row in enumerate(rows):
        cells: list[str] = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=False)):
            text = shorten(cell, width, output.ellipsis)
            padded = text.rjust(width) if column in right else text.ljust(width)
            style = "bold" if not number else (styles or {}).get(column, _no_style)(cell)
            last = column == len(widths) - 1 and column not in right
            cells.append(output.styled(text if last else padded, style))
        yield _GAP.join(cells).rstrip()


def _no_style(_cell: str) -> str:
    return ""


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _fit(widths: list[int], least: Sequence[int], total: int | None, flexible: frozenset[int]) -> None:
    """Make the widest flexible columns narrower; drop columns at the right that still do not fit."""
    if total is None:
        return
    while _total(widths) > total:
        wide = [column for column in flexible if widths[column] > max(least[column], _NARROWEST)]
        if not wide:
            break
        widths[max(wide, key=lambda column: widths[column])] -= 1
    while _total(widths) > total and len(widths) > 1:
        widths.pop()
