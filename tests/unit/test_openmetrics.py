"""Metrics formats, checked by Prometheus's own parsers, and HTTP content negotiation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from svcd.wire.http_negotiation import media_type, takes_gzip
from svcd.wire.openmetrics import Buckets, Family, MetricType, labels, openmetrics, text

FAMILIES = [
    Family("svcd_build", MetricType.INFO, "What runs.", [(labels(version="1.0"), 1)]),
    Family("svcd_things", MetricType.COUNTER, 'A "thing" \\ or\ntwo.',
           [(labels(service="a/tcp"), 3), (labels(service="b"), 4)]),
    Family("svcd_open", MetricType.GAUGE, "Open now.", [("", 7)]),
    Family("svcd_empty", MetricType.COUNTER, "None.", []),
    Family(
        "svcd_wait_seconds", MetricType.HISTOGRAM, "Waits.",
        [(labels(service="a"), Buckets((0.5, 1.0), (1, 2, 3), 9.5)), ("", Buckets((2.5,), (0, 1), 4.0))], "seconds",
    ),
]  # fmt: skip


def _samples(families: object) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families  # type: ignore[attr-defined]
        for sample in family.samples
    }


EXPECTED = {
    ("svcd_build_info", (("version", "1.0"),)): 1,
    ("svcd_things_total", (("service", "a/tcp"),)): 3,
    ("svcd_things_total", (("service", "b"),)): 4,
    ("svcd_open", ()): 7,
    ("svcd_wait_seconds_bucket", (("le", "0.5"), ("service", "a"))): 1,
    ("svcd_wait_seconds_bucket", (("le", "1.0"), ("service", "a"))): 3,
    ("svcd_wait_seconds_bucket", (("le", "+Inf"), ("service", "a"))): 6,
    ("svcd_wait_seconds_sum", (("service", "a"),)): 9.5,
    ("svcd_wait_seconds_count", (("service", "a"),)): 6,
    ("svcd_wait_seconds_bucket", (("le", "2.5"),)): 0,
    ("svcd_wait_seconds_bucket", (("le", "+Inf"),)): 1,
    ("svcd_wait_seconds_sum", ()): 4,
    ("svcd_wait_seconds_count", ()): 1,
}


def test_the_text_format() -> None:
    """Prometheus's parser of the text format finds each sample, with the type and help of its family."""
    found = list(read_text(text(FAMILIES).decode()))
    assert _samples(found) == EXPECTED
    # The parser uses the names that counters and gauges have in its own library.
    types = {family.name: (family.type, family.documentation) for family in found}
    assert types["svcd_things"] == ("counter", 'A "thing" \\ or\ntwo.')
    assert types["svcd_open"] == ("gauge", "Open now.")
    assert types["svcd_wait_seconds"][0] == "histogram"


def test_openmetrics() -> None:
    """Prometheus's strict parser of OpenMetrics finds each sample, with type, unit and help of its family."""
    found = list(read_openmetrics(openmetrics(FAMILIES).decode()))
    assert _samples(found) == EXPECTED
    assert [(each.name, each.type, each.unit, each.documentation) for each in found] == [
        (each.name, each.kind.value, each.unit, each.help) for each in FAMILIES
    ]
    assert openmetrics([]) == b"# EOF\n"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1))
def test_a_label_may_hold_any_text(value: str) -> None:
    """A label value with backslashes, quotes or line ends is unchanged after parsing, in both formats."""
    families = [Family("svcd_things", MetricType.COUNTER, "Things.", [(labels(service=value, other="x"), 1)])]
    for write, read in ((text, read_text), (openmetrics, read_openmetrics)):
        [family] = read(write(families).decode())
        [sample] = family.samples
        assert sample.labels == {"service": value, "other": "x"}


PROMETHEUS_2 = (
    b"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    b"application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    b"application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    b"text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"", "text/plain"),
        (PROMETHEUS_2, "application/openmetrics-text"),
        (PROMETHEUS_3, "application/openmetrics-text"),
        (BROWSER, "text/plain"),
        (b"text/plain", "text/plain"),
        (b"application/openmetrics-text", "application/openmetrics-text"),
        (b"application/openmetrics-text;version=0.0.1", "text/plain"),
        (b"Application/OpenMetrics-Text ; Version = \"1.0.0\"", "application/openmetrics-text"),
        (b"text/plain;q=0.2, application/*;q=0.4", "application/openmetrics-text"),
        (b"application/openmetrics-text;q=0, */*;q=0.1", "text/plain"),
        (b"application/openmetrics-text;q=nan, text/*;q=0.1", "text/plain"),
        (b"application/openmetrics-text;q=7", "text/plain"),
        (b"image/png", "text/plain"),
        (b",;,=;q=;\xff", "text/plain"),
    ],
)  # fmt: skip
def test_media_types_are_negotiated(accept: bytes, expected: str) -> None:
    """The media type is chosen by weight and version; without a match it is text/plain, as Prometheus recommends."""
    assert media_type(accept, ("text/plain", "application/openmetrics-text")) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"", False),
        (b"gzip", True),
        (b"deflate, GZIP;q=1.0", True),
        (b"gzip;q=0, *", False),
        (b"*;q=0.5", True),
        (b"br", False),
        (b"identity;q=1, *;q=0", False),
        (b"x-gzip", True),
        (b"gzip;q=broken", False),
    ],
)
def test_gzip_is_negotiated(field: bytes, expected: bool) -> None:
    """gzip is used only if Accept-Encoding accepts it (RFC 9110, section 12.5.3)."""
    assert takes_gzip(field) is expected


@given(st.binary(max_size=200))
def test_arbitrary_header_values(field: bytes) -> None:
    """Any header value is accepted without an error."""
    assert takes_gzip(field) in (True, False)
    assert media_type(field, ("a/b", "a/c")) in ("a/b", "a/c")
