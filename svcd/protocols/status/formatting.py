"""Numbers as people read them. page.js writes them in the very same way, so that nothing jumps when it takes over."""

from __future__ import annotations

import math
from datetime import UTC, datetime

__all__ = ["ago", "bars", "count", "day", "duration", "rate", "size", "steps"]

#: A chart's height in its own units, of which the line uses those between its base and the top.
_HEIGHT, _BASE, _LEAST = 100, 98, 8
_WIDTH = 2


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three digits, cut and not rounded, and a unit."""
    step = 0
    while value >= 1000 and step < len(units) - 1:
        value /= 1000
        step += 1
    places = 2 if value < 10 else 1 if value < 100 else 0
    return f"{math.floor(value * 10**places) / 10**places:.{places}f} {units[step]}"


def count(value: float) -> str:
    """A number of things: 12,345 or 1.23 M."""
    whole = math.floor(value)
    return f"{whole:,}" if whole < 100_000 else _scaled(whole, ("", "k", "M", "G", "T"))


def size(value: float) -> str:
    """Bytes: 512 B, 1.23 kB; a dash if nobody counted them."""
    if value < 0:
        return "–"  # noqa: RUF001 - a dash
    return f"{math.floor(value)} B" if value < 1000 else _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def rate(value: float) -> str:
    """So many a second: 0, 0.3, 12."""
    if value == 0 or value >= 10:
        return count(value)
    return f"{math.floor(value * 10) / 10:.1f}"


def duration(seconds: float) -> str:
    """A span: 0.42 ms, 12 ms, 3.4 s, 5 min 3 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 1:
        return _scaled(seconds * 1000, ("ms",)) if seconds < 0.1 else f"{math.floor(seconds * 1000)} ms"
    if seconds < 60:
        return f"{math.floor(seconds * 10) / 10:.1f} s"
    return _long(math.floor(seconds))


def ago(seconds: float) -> str:
    """How long ago something was."""
    return f"{math.floor(seconds)} s" if seconds < 60 else _long(math.floor(seconds))


def day(seconds: float) -> str:
    """The day of a time since 1970: 2026-11-21."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _long(seconds: int) -> str:
    for large, small, names in ((86_400, 3600, "d h"), (3600, 60, "h min"), (60, 1, "min s")):
        if seconds >= large:
            upper, lower = names.split()
            return f"{seconds // large} {upper} {seconds % large // small} {lower}"
    return f"{seconds} s"


def steps(values: list[int], most: int, samples: int) -> tuple[str, str]:
    """A chart's line and the area below it, as paths of SVG; the newest sample is at the right.

    Args:
        values: of the samples; where all are 0 nothing is drawn.
        most: what reaches the top, above 0.
        samples: for how many there is room.
    """
    if not any(values):
        return "", ""
    x = start = (samples - len(values)) * _WIDTH
    heights = [_BASE - value * (_BASE - 2) // most for value in values]
    path = f"M{x} {heights[0]}"
    for height in heights:
        x += _WIDTH
        path += f"V{height}H{x}"
    return path, f"{path}V{_HEIGHT}H{start}Z"


def bars(values: list[int], most: int, samples: int) -> str:
    """The same as bars, for values that are 0 most of the time; a small one is still seen."""
    start = samples - len(values)
    return "".join(
        f"M{(start + index) * _WIDTH} {_HEIGHT}V{_HEIGHT - max(value * _BASE // most, _LEAST)}h{_WIDTH}V{_HEIGHT}Z"
        for index, value in enumerate(values)
        if value
    )
