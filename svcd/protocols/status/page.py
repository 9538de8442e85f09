"""The status page: complete without JavaScript, updated live with it.

The template, the style and the script are files beside this module. They are read when it is imported, because a
daemon that has changed its root directory could not read them later.
"""

from __future__ import annotations

import base64
import hashlib
import html
import pkgutil
from string import Template
from typing import TYPE_CHECKING, Any

from svcd.protocols.status import formatting

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ICON", "POLICY", "page"]


def _part(name: str) -> str:
    data = pkgutil.get_data(__package__ or "", name)
    assert data is not None  # noqa: S101 - every installation has the file
    return data.decode()


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


_STYLE, _SCRIPT = _part("page.css"), _part("page.js")
_PAGE = Template(_part("page.html"))
ICON = _part("icon.svg").encode()

#: The Content-Security-Policy of the page (https://www.w3.org/TR/CSP3/): its own script and style, requests and images
#: from its own origin.
POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash(_SCRIPT)}",
        f"style-src {_hash(_STYLE)}",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

#: The columns of a service's row: the key in the data, the title, and the format. Failed counts connections that could
#: not be served, Failed exits those whose process ended by itself with another exit status than 0, or by a signal.
_CELLS = (
    ("rate", "Per second", formatting.rate),
    ("open", "Open", formatting.count),
    ("accepted", "Accepted", formatting.count),
    ("refused", "Refused", formatting.count),
    ("failed", "Failed", formatting.count),
    ("failed_exits", "Failed exits", formatting.count),
    ("in", "Received", formatting.size),
    ("out", "Sent", formatting.size),
)


#: The keys of counts that are marked if they are not 0.
_BAD = ("refused", "failed", "failed_exits")
#: The texts before the day on which a certificate expires, by its state.
_CERTIFICATES = {"valid": "certificate expires", "expiring": "certificate expires", "expired": "certificate expired"}


def page(status: Mapping[str, Any]) -> bytes:
    """Render the page from the data of /status.json. Every text is escaped."""
    totals, samples, seconds = status["totals"], status["samples"], status["sample_seconds"]
    plain = {
        "state": status["state"],
        "version": status["version"],
        "uptime": formatting.duration(status["uptime"]),
        **{name: write(totals[name]) for name, _, write in _CELLS if name not in ("in", "out")},
        "count": formatting.count(totals["services"]),
        "broken": formatting.count(totals["broken"]),
        "received": formatting.size(totals["in"]),
        "sent": formatting.size(totals["out"]),
        "peak": formatting.rate(max(totals["arrivals"], default=0) / seconds),
        "descriptors": formatting.count(status["descriptors"]),
        "descriptors_limit": formatting.count(status["descriptors_limit"]),
        "lag": formatting.duration(status["lag"]),
        "lag_mean": formatting.duration(status["lag_mean"]),
        "cpu": formatting.duration(status["cpu"]),
        "reloads": formatting.count(status["reloads"]["ok"]),
        "reloads_failed": formatting.count(status["reloads"]["failed"]),
        "config": formatting.duration(status["config"]),
    }
    made = {
        "style": _STYLE,
        "script": _SCRIPT,
        "chart": _chart(totals, samples, seconds),
        "services": "\n".join(_service(each, samples, seconds) for each in status["services"]),
        "recent": "\n".join(map(_recent, status["recent"])) or _nothing("none yet"),
        "refused_by": _reasons(status["refused"]) or _nothing("none"),
        "ended_by": _reasons(status["ended"]) or _nothing("none yet"),
    }
    return _PAGE.substitute({name: html.escape(text) for name, text in plain.items()} | made).encode()


def _chart(drawn: Mapping[str, Any], samples: int, seconds: float) -> str:
    """Return the chart of arrivals and refusals in the last minutes, as inline SVG."""
    arrivals, refusals = drawn["arrivals"], drawn["refusals"]
    most = max([1, *arrivals, *refusals])
    line, area = formatting.steps(arrivals, most, samples)
    now, peak = formatting.rate(drawn["rate"]), formatting.rate(max(arrivals, default=0) / seconds)
    return (
        f'<svg class="chart" viewBox="0 0 {2 * samples} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{now} per second now, at most {peak} in the last 3 minutes">'
        f'<path class="came-area" d="{area}"/><path class="came-line" d="{line}"/>'
        f'<path class="refused-bars" d="{formatting.bars(refusals, most, samples)}"/></svg>'
    )


def _service(service: Mapping[str, Any], samples: int, seconds: float) -> str:
    escape = html.escape
    name, _, net = service["id"].rpartition("/")
    cells = "".join(
        f'<td data-name="{title}" data-k="{key}" data-f="{write.__name__}"'
        f"{_class(('bad ' if key in _BAD else '') + ('' if service[key] else 'zero'))}>"
        f"{write(service[key])}</td>"
        for key, title, write in _CELLS
    )
    state = f'<span class="state" data-k="state">{escape(service["state"])}</span>'
    about = "".join(
        f'<small data-k="{key}"{_class("" if key in ("description", "addresses") else key)}>{escape(text)}</small>'
        for key, text in (
            ("description", service["description"]),
            ("addresses", ", ".join(service["addresses"])),
            ("certificate_text", _certificate_text(service)),
            ("problem", service["problem"]),
        )
    )
    return (
        f'<tr data-id="{escape(service["id"])}" data-state="{escape(service["state"])}"'
        f' data-certificate="{escape(service["certificate"])}">'
        f'<th scope="row"><b>{escape(name)}</b>/{escape(net)} {state}{about}</th>'
        f'<td class="runs"><span data-k="runs">{escape(service["runs"])}</span>'
        f'<small data-k="tls">{escape(service["tls"])}</small></td>'
        f'<td class="drawn">{_chart(service, samples, seconds)}</td>{cells}</tr>'
    )


def _certificate_text(service: Mapping[str, Any]) -> str:
    """Return when the certificate of a service expires, as text; empty without TLS."""
    expires = service["certificate_expires"]
    return "" if expires is None else f"{_CERTIFICATES[service['certificate']]} {formatting.day(expires)}"


def _recent(recent: Mapping[str, Any]) -> str:
    sizes = "".join(
        f"<td{_class('' if recent[key] else 'zero')}>{formatting.size(recent[key])}</td>" for key in ("in", "out")
    )
    return (
        f"<tr><td>{formatting.ago(recent['ago'])}</td><td>{html.escape(recent['service'])}</td>"
        f"<td>{html.escape(recent['peer'] or '–')}</td><td>{formatting.duration(recent['seconds'])}</td>{sizes}"  # noqa: RUF001
        f"<td{_class('' if recent['reason'] == 'done' else 'odd')}>{html.escape(recent['reason'])}</td></tr>"
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return "\n".join(
        f'<tr><th scope="row">{html.escape(reason)}</th><td>{formatting.count(count)}</td></tr>'
        for reason, count in counts.items()
    )


def _nothing(text: str) -> str:
    return f'<tr class="none"><td colspan="7">{text}</td></tr>'


def _class(names: str) -> str:
    return f' class="{names.strip()}"' if names.strip() else ""
