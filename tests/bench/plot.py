"""Bar chart of the results as SVG: for each mode, the ratio of each server to the mode's reference."""

from __future__ import annotations

import html
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.measure import Mode

__all__ = ["draw"]

_WIDTH, _LEFT, _BAR, _GAP, _HEAD = 760, 190, 16, 5, 30
_SCALE_MOST = 1.5
_OWN, _OTHER, _REFERENCE = "#0b7285", "#adb5bd", "#495057"


def draw(figures: Mapping[str, Mapping[str, Sequence[float]]], modes: Sequence[Mode]) -> str:
    """Draw the modes in which more is better as SVG; a bar ends at 1.5 times the reference."""
    parts: list[str] = []
    y = 10.0
    for mode in modes:
        measured = figures.get(mode.name)
        if not measured or mode.reference not in measured or not mode.more_is_better:
            continue
        base = statistics.median(measured[mode.reference])
        parts.append(f'<text x="10" y="{y + 16}" class="h">{mode.name} ({mode.unit})</text>')
        y += _HEAD
        for name, values in measured.items():
            median = statistics.median(values)
            width = min(median / base, _SCALE_MOST) / _SCALE_MOST * (_WIDTH - _LEFT - 160)
            colour = _REFERENCE if name == mode.reference else _OWN if name.startswith("svcd") else _OTHER
            label = f"{median:,.0f}  ({median / base:.2f})"
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" class="n">{html.escape(name)}</text>')
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + 12}" class="v">{label}</text>')
            y += _BAR + _GAP
        y += 12
    style = (
        "text{font:12px system-ui,sans-serif;fill:#212529}.h{font-weight:600;font-size:14px}.n{text-anchor:end}"
        ".v{fill:#495057}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}" width="{_WIDTH}" height="{y:.0f}">'
        f'<rect width="100%" height="100%" fill="#fff"/><style>{style}</style>{"".join(parts)}</svg>\n'
    )
