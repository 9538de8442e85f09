"""`svcctl top`: the status of a running daemon, refreshed each second."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from svcd.cli.control_views import status_lines
from svcd.cli.terminal import Output, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["show_top"]

_SECONDS = 1.0
#: The alternate screen without a cursor, and back (ctlseqs: DECSET 1049, DECTCEM).
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def show_top(status: Callable[[], dict[str, Any]], sort: str, count: int) -> None:
    """Print the status once each second; on a terminal in place, until q is pressed.

    Args:
        status: returns the result of the command `status`.
        sort: connections, rate or service: what the first rows have most of, or the names.
        count: how often to print it; 0 for no limit.
    """
    terminal = sys.stdout.isatty()
    screen = _terminal_screen() if terminal else contextlib.nullcontext()
    rates = _Rates()
    with screen:
        shown = 0
        while True:
            result = status()
            found = rates.update(result, time.monotonic())
            result["services"].sort(key=_order(sort, rates))
            _print(result, found, terminal=terminal)
            shown += 1
            if shown == count or _quit_pressed(terminal=terminal):
                return


class _Rates:
    """Arrivals a second of each service, between the last two answers."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._at = 0.0
        self.values: dict[str, float] = {}

    def update(self, result: Mapping[str, Any], now: float) -> dict[str, str]:
        """Return the rates as text by service; a service that is new has none."""
        arrived = {row["service"]: row["arrived"] for row in result["services"] if "arrived" in row}
        passed = now - self._at
        # A new daemon, after an upgrade, counts from 0.
        self.values = {
            name: max(number - self._last[name], 0) / passed
            for name, number in arrived.items()
            if name in self._last and passed > 0
        }
        self._last, self._at = arrived, now
        return {name: _rate(value) for name, value in self.values.items()}


def _rate(value: float) -> str:
    return f"{value:.0f}/s" if value >= 10 or not value else f"{value:.1f}/s"


def _order(sort: str, rates: _Rates) -> Callable[[Mapping[str, Any]], Any]:
    if sort == "service":
        return lambda row: row["service"]
    if sort == "rate":
        return lambda row: -rates.values.get(row["service"], 0)
    return lambda row: -row.get("connections", 0)


def _print(result: Mapping[str, Any], rates: Mapping[str, str], *, terminal: bool) -> None:
    output = Output.current()
    if not terminal:
        print("\n".join(status_lines(result, output, rates)), flush=True)
        return
    # Cursor home; then each line and the rest of the screen are cleared (ECMA-48), which avoids flicker.
    lines = list(_fitting(result, rates, output))
    print("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J", end="", flush=True)


def _fitting(result: Mapping[str, Any], rates: Mapping[str, str], output: Output) -> Iterator[str]:
    """Yield the lines of the screen: those that do not fit are counted in the last line."""
    width, height = output.width or 80, output.height or 24
    plain = list(status_lines(result, replace(output, colour=False), rates))
    lines = list(status_lines(result, output, rates))
    # A longer line would take two lines of the screen; without its style, which would have to be ended.
    lines = [shorten(text, width, output.ellipsis) if len(text) > width else line
             for text, line in zip(plain, lines, strict=True)]  # fmt: skip
    if len(lines) > height:
        more = len(lines) - height + 1
        lines[height - 1 :] = [f"{output.ellipsis} {more} more lines"]
    yield from lines


@contextlib.contextmanager
def _terminal_screen() -> Iterator[None]:
    """Use the alternate screen, and read keys without a line end and without echo."""
    keyboard = sys.stdin.isatty()
    before = termios.tcgetattr(sys.stdin) if keyboard else None
    try:
        if keyboard:
            tty.setcbreak(sys.stdin)
        print(_ENTER, end="", flush=True)
        yield
    finally:
        print(_LEAVE, end="", flush=True)
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quit_pressed(*, terminal: bool) -> bool:
    """Wait for the next refresh; return whether q was pressed meanwhile."""
    if not (terminal and sys.stdin.isatty()):
        time.sleep(_SECONDS)
        return False
    end = time.monotonic() + _SECONDS
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False
