"""Formatting of numbers, durations and charts for the page. page.js formats in the same way, so updates don't jump."""

from __future__ import annotations

import math
from datetime import UTC, datetime

__all__ = ["ago", "bars", "count", "day", "duration", "rate", "size", "steps"]

#: The height of a chart, the height of the base of its line, and the height of the smallest bar, in its own units.
_HEIGHT, _BASE, _LEAST = 100, 98, 8
_WIDTH = 2


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Format a number with three digits, truncated, and a unit."""
    step = 0
    while value >= 1000 and step < len(units) - 1:
        value /= 1000
        step += 1
    places = 2 if value < 10 else 1 if value < 100 else 0
    return f"{math.floor(value * 10**places) / 10**places:.{places}f} {units[step]}"


def count(value: float) -> str:
    """Format a count: 12,345 or 1.23 M."""
    whole = math.floor(value)
    return f"{whole:,}" if whole < 100_000 else _scaled(whole, ("", "k", "M", "G", "T"))


def size(value: float) -> str:
    """Format a number of bytes: 512 B, 1.23 kB; a dash if it is negative, which means unknown."""
    if value < 0:
        return "–"  # noqa: RUF001 - a dash
    return f"{math.floor(value)} B" if value < 1000 else _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def rate(value: float) -> str:
    """Format a number per second: 0, 0.3, 12."""
    if value == 0 or value >= 10:
        return count(value)
    return f"{math.floor(value * 10) / 10:.1f}"


def duration(seconds: float) -> str:
    """Format a duration: 0.42 ms, 12 ms, 3.4 s, 5 min 3 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 1:
        return _scaled(seconds * 1000, ("ms",)) if seconds < 0.1 else f"{math.floor(seconds * 1000)} ms"
    if seconds < 60:
        return f"{math.floor(seconds * 10) / 10:.1f} s"
    return _long(math.floor(seconds))


def ago(seconds: float) -> str:
    """Format the age of an event, in whole seconds or larger units."""
    return f"{math.floor(seconds)} s" if seconds < 60 else _long(math.floor(seconds))


def day(seconds: float) -> str:
    """Format a time in seconds since 1970 as a day in UTC: 2026-11-21."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _long(seconds: int) -> str:
    for large, small, names in ((86_400, 3600, "d h"), (3600, 60, "h min"), (60, 1, "min s")):
        if seconds >= large:
            upper, lower = names.split()
            return f"{seconds // large} {upper} {seconds % large // small} {lower}"
    return f"{seconds} s"


def steps(values: list[int], most: int, samples: int) -> tuple[str, str]:
    """Return the line of a chart and the area below it, as SVG paths; the newest sample is at the right.

    Args:
        values: the values of the samples; if all are 0 the paths are empty.
        most: the value that reaches the top; above 0.
        samples: the number of samples that the chart has room for.
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
    """Return bars as an SVG path, for values that are mostly 0; small values have a visible height."""
    start = samples - len(values)
    return "".join(
        f"M{(start + index) * _WIDTH} {_HEIGHT}V{_HEIGHT - max(value * _BASE // most, _LEAST)}h{_WIDTH}V{_HEIGHT}Z"
        for index, value in enumerate(values)
        if value
    )
