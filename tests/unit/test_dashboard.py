"""The Grafana dashboard and the alert rules of the documentation use metrics and labels that exist."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.reference_pages import with_parts

if TYPE_CHECKING:
    from pathlib import Path

_METRIC = re.compile(r"\b(?:svcd|process)_[a-z_]+")
#: Suffixes of the series of a histogram.
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


@pytest.fixture
def metrics(project_root: Path) -> set[str]:  # noqa: ARG001 - it skips where there is no documentation
    """Return the names of all metrics, as the reference lists them."""
    return set(_METRIC.findall(with_parts("<!-- generated: metrics -->\n")))


def _unknown(text: str, metrics: set[str]) -> set[str]:
    used = {_SUFFIX.sub("", name) for name in _METRIC.findall(text)}
    assert used
    return used - metrics


def test_the_dashboard_shows_metrics_that_exist(project_root: Path, metrics: set[str]) -> None:
    """Each panel and each variable of etc/grafana/svcd.json; no two panels have the same number or place."""
    dashboard = json.loads((project_root / "etc/grafana/svcd.json").read_text("utf-8"))
    panels = dashboard["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert not _unknown("\n".join(queries), metrics)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_the_documented_queries_are_about_metrics_that_exist(project_root: Path, metrics: set[str]) -> None:
    """The alert rules and the expressions of docs/how-to/prometheus.md."""
    assert not _unknown((project_root / "docs/how-to/prometheus.md").read_text("utf-8"), metrics)


def test_a_metric_that_does_not_exist_is_found(metrics: set[str]) -> None:
    """A name that no family has."""
    assert _unknown("rate(svcd_connections_active[1m]) + svcd_conections_active", metrics) == {"svcd_conections_active"}
