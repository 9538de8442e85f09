"""`python -m tests.bench.overview`: draws the README's picture from the tables of docs/explanation/performance.md."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGE", "PICTURE", "draw_overview", "medians"]

_DOCS = Path(__file__).parents[2] / "docs/explanation"
PAGE = _DOCS / "performance.md"
PICTURE = _DOCS / "overview.svg"
_WIDTH, _PANEL, _LABEL, _VALUE, _ROW, _BAR, _TITLE, _MARGIN = 860, 420, 150, 62, 21, 14, 30, 10
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#212529}.t{font-weight:600;font-size:13px}.n{text-anchor:end}"
    ".own{fill:#0b7285}.other{fill:#adb5bd}.back{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e6e6}.own{fill:#3bc9db}.other{fill:#5c636a}.back{fill:#0d1117}}"
)


class _Panel(NamedTuple):
    """Diagram of one table.

    Attributes:
        table: the title of the table in the page.
        title: the title of the diagram.
        servers: the label of each server, by its name in the table.
    """

    table: str
    title: str
    servers: dict[str, str]


_PANELS = (
    _Panel(
        "pingpong 64",
        "Lines answered per second, 64 connections",
        {
            "svcd echo (uv)": "svcd",
            "C epoll": "C, epoll",
            "Go net": "Go",
            "xinetd": "xinetd",
            "openbsd-inetd": "openbsd-inetd",
            "plain Twisted": "Twisted",
        },
    ),
    _Panel(
        "connect",
        "Connections per second",
        {
            "svcd echo (uv), no log": "svcd, no log",
            "svcd echo (uv)": "svcd",
            "C epoll": "C, epoll",
            "Go net": "Go",
            "asyncio": "asyncio",
            "xinetd": "xinetd",
        },
    ),
    _Panel(
        "program",
        "Programs (/bin/cat) started per second",
        {
            "svcd": "svcd",
            "svcd, user=": "svcd, user=",
            "tcpserver": "tcpserver",
            "systemd-socket-activate": "systemd",
            "xinetd": "xinetd",
            "openbsd-inetd": "openbsd-inetd",
        },
    ),
    _Panel(
        "tls pingpong 64",
        "Lines answered per second over TLS",
        {
            "svcd echo (uv)": "svcd",
            "Go crypto/tls": "Go",
            "hitch": "hitch",
            "plain Twisted, TLS": "Twisted",
            "uvloop, its own TLS": "uvloop",
            "stunnel": "stunnel",
        },
    ),
)


def medians(page: str, title: str) -> dict[str, float]:
    """Return the medians of the table below a heading, by server.

    Raises:
        ValueError: the page has no such heading.
    """
    section = page.split(f"### {title} (", 1)
    if len(section) == 1:
        raise ValueError(f"there is no table {title!r}")
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \|", section[1].split("\n### ", 1)[0], re.MULTILINE)
    return {name: float(number.replace(",", "")) for name, number in rows}


def _panel(panel: _Panel, values: dict[str, float], x: int, y: int) -> str:
    most = max(values[name] for name in panel.servers)
    parts = [f'<text x="{x + _LABEL}" y="{y + 18}" class="t">{html.escape(panel.title)}</text>']
    for number, (name, label) in enumerate(panel.servers.items()):
        top = y + _TITLE + number * _ROW
        width = values[name] / most * (_PANEL - _LABEL - _VALUE - _MARGIN)
        kind = "own" if name.startswith("svcd") else "other"
        parts += [
            f'<text x="{x + _LABEL - 8}" y="{top + 11}" class="n">{html.escape(label)}</text>',
            f'<rect x="{x + _LABEL}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="2" class="{kind}"/>',
            f'<text x="{x + _LABEL + width + 6:.1f}" y="{top + 11}">{values[name]:,.0f}</text>',
        ]
    return "".join(parts)


def draw_overview(page: str) -> str:
    """Return the picture as SVG: four diagrams of the tables in a page.

    Raises:
        ValueError: a table is missing.
        KeyError: a server is missing.
    """
    height = _TITLE + max(len(panel.servers) for panel in _PANELS) * _ROW + _MARGIN
    panels = [
        _panel(panel, medians(page, panel.table), number % 2 * (_WIDTH // 2), _MARGIN + number // 2 * height)
        for number, panel in enumerate(_PANELS)
    ]
    total = _MARGIN + (len(_PANELS) + 1) // 2 * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {total}" width="{_WIDTH}" height="{total}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" class="back"/>{"".join(panels)}</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw_overview(PAGE.read_text("utf-8")), "utf-8")
