"""The status service: routes, page, JSON, metrics, and protection from foreign web pages."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html.parser
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from svcd.metrics.counters import LiveTraffic
from svcd.metrics.registry import SAMPLES, MetricsRegistry
from svcd.metrics.snapshot import ServiceInfo, ServiceState
from svcd.protocols.status import formatting as fmt
from svcd.protocols.status.cache import LIFETIME_FACTOR, MAX_AGE, RenderCache
from svcd.protocols.status.data import status_data
from svcd.protocols.status.page import page
from svcd.protocols.status.resource import StatusFactory, StatusResource
from svcd.wire.http_request import HttpError, HttpRequest
from tests.doubles import StreamDouble, add_counters

if TYPE_CHECKING:
    from svcd.protocols.http.response import Response

REMOTE = IPv4Address("TCP", "192.0.2.1", 40_000)
LOCAL = IPv4Address("TCP", "127.0.0.1", 40_000)


class _Port:
    """Open datagram port."""

    def traffic(self) -> LiveTraffic:
        """Return the traffic of the port."""
        return LiveTraffic(30, 60, 3)


def _registry(clock: Clock | None = None) -> MetricsRegistry:
    """Return a registry with values of every kind."""
    clock = clock or Clock()
    registry = MetricsRegistry(wall_clock=lambda: 1000.0, clock=clock.seconds)
    registry.state = "ready"
    registry.watch(clock.callLater)
    echo = add_counters(
        registry, ServiceInfo("echo/tcp", "echo", addresses=("127.0.0.1:7", "[::1]:7"), max_connections=100)
    )
    echo.accepted += 5
    echo.end("done", 0.25, 10, 20, "192.0.2.1:1")
    echo.end("lost", 99.0, 0, 2, "192.0.2.1:2")
    echo.refuse("rate", 7)
    echo.failures += 1
    add_counters(registry, ServiceInfo("time/udp", "time", stream=False)).add_source(_Port())
    registry.counters("time/udp").refuse("port")
    git = add_counters(
        registry, ServiceInfo("git/tcp", "/usr/bin/git", spawned=True, description="the code", expires=2e9)
    )
    for version in ("TLSv1.2", "TLSv1.3", "TLSv1.3"):
        git.handshake_done(version)
    git.handshake_failed("closed")
    git.accepted += 3
    git.process_started(0.002)
    git.process_started(0.002)
    git.process_exited("0")
    git.end("done", 3.0, -1, -1, "")
    git.process_started(0.002)
    git.process_exited("9")
    git.failed_exits += 1
    git.end("done", 3.0, -1, -1, "")
    git.restarts += 1
    clock.pump([0.25] * 8)
    return registry


def _request(target: str = "/", **fields: str) -> HttpRequest:
    named = {name.lower().replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    return HttpRequest("GET", target.encode(), named, "1.1", True)


def _respond(registry: MetricsRegistry, target: str, **fields: str) -> Response:
    return StatusResource(registry, Clock().seconds).respond(_request(target, **fields), REMOTE)


def test_metrics_in_both_formats() -> None:
    """Each metric has the label of its service and its exact value, in both formats."""
    readers: Any = (read_text, read_openmetrics)
    answers = [
        _respond(_registry(), "/metrics"),
        _respond(_registry(), "/metrics", accept="application/openmetrics-text"),
    ]
    plain, strict = (
        {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in read(answer.content.decode())
            for sample in family.samples
        }
        for read, answer in zip(readers, answers, strict=True)
    )
    for found in (plain, strict):
        for changing in ("process_cpu_seconds_total",):
            found.pop((changing,))
    assert plain == strict
    expected = {
        ("svcd_ready",): 1,
        ("svcd_connections_accepted_total", "echo/tcp"): 5,
        ("svcd_connections_active", "echo/tcp"): 3,
        ("svcd_connections_limit", "echo/tcp"): 100,
        ("svcd_connections_failed_total", "echo/tcp"): 1,
        ("svcd_connections_ended_total", "done", "echo/tcp"): 1,
        ("svcd_connections_ended_total", "echo/tcp", "lost"): 1,
        ("svcd_refused_total", "echo/tcp", "rate"): 7,
        ("svcd_refused_total", "port", "time/udp"): 1,
        ("svcd_received_bytes_total", "echo/tcp"): 10,
        ("svcd_sent_bytes_total", "echo/tcp"): 22,
        ("svcd_sent_bytes_total", "time/udp"): 60,
        ("svcd_datagrams_received_total", "time/udp"): 3,
        ("svcd_connection_duration_seconds_bucket", "0.5", "echo/tcp"): 1,
        ("svcd_connection_duration_seconds_count", "echo/tcp"): 2,
        ("svcd_connection_duration_seconds_sum", "echo/tcp"): 99.25,
        ("svcd_spawn_latency_seconds_count", "git/tcp"): 3,
        ("svcd_spawn_latency_seconds_bucket", "0.0025", "git/tcp"): 3,
        ("svcd_connections_failed_total", "git/tcp"): 1,
        ("svcd_children_active", "git/tcp"): 1,
        ("svcd_children_exited_total", "0", "git/tcp"): 1,
        ("svcd_launcher_restarts_total", "git/tcp"): 1,
        ("svcd_tls_certificate_expiry_seconds", "git/tcp"): 2e9,
        ("svcd_tls_handshakes_total", "TLSv1.3", "git/tcp"): 2,
        ("svcd_tls_handshakes_failed_total", "closed", "git/tcp"): 1,
        ("svcd_reactor_lag_seconds_count",): 8,
        ("svcd_reloads_total", "ok"): 0,
    }
    assert expected.items() <= plain.items()
    assert not any(name.startswith("svcd_connection") and "time/udp" in rest for name, *rest in plain)
    assert not any(
        name.startswith(("svcd_spawn", "svcd_children", "svcd_tls_cert")) and "echo/tcp" in rest
        for name, *rest in plain
    )


def test_metrics_are_compressed() -> None:
    """Metrics are compressed if the client accepts gzip, with Content-Encoding, Content-Length and Vary."""
    plain = _respond(_registry(), "/metrics")
    packed = _respond(_registry(), "/metrics", accept_encoding="gzip")
    assert len(gzip.decompress(packed.content).splitlines()) == len(plain.content.splitlines())
    assert packed.fields["Content-Encoding"] == "gzip"
    assert packed.fields["Content-Length"] == str(len(packed.content))
    assert packed.fields["Vary"] == "Accept, Accept-Encoding"
    assert "Content-Encoding" not in plain.fields
    assert plain.fields["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(("state", "status"), [("starting", 503), ("ready", 200), ("stopping", 503)])
def test_readiness_is_that_of_the_daemon(state: str, status: int) -> None:
    """/readyz has the state of the daemon; /healthz is always ok."""
    registry = MetricsRegistry()
    registry.state = state
    assert (_respond(registry, "/readyz").status, _respond(registry, "/readyz").content) == (
        status,
        f"{state}\n".encode(),
    )
    assert (_respond(registry, "/healthz").status, _respond(registry, "/healthz").content) == (200, b"ok\n")


@pytest.mark.parametrize("target", ["/x", "/metrics/", "/metrics/x", "/.x", "/favicon.ico"])
def test_other_targets_are_404(target: str) -> None:
    """Any other target is 404."""
    with pytest.raises(HttpError) as raised:
        _respond(MetricsRegistry(), target)
    assert raised.value.status is HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("host", ["", "localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]",
                                  "mybox", "a.localhost.", "LOCALHOST"])  # fmt: skip
def test_host_names_of_this_machine(host: str) -> None:
    """A client on the loopback interface may use addresses, names without a dot and names below localhost as Host."""
    for peer in (LOCAL, IPv6Address("TCP", "::1", 1), IPv6Address("TCP", "::ffff:127.0.0.1", 1)):
        assert StatusResource(MetricsRegistry()).respond(_request("/healthz", host=host), peer).status is HTTPStatus.OK


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "a.localhost.x.org"])
def test_other_host_names_on_the_loopback_interface(host: str) -> None:
    """Any other Host is refused there, which prevents DNS rebinding; from other machines any Host is accepted."""
    for peer in (LOCAL, IPv6Address("TCP", "::1", 1)):
        with pytest.raises(HttpError) as raised:
            StatusResource(MetricsRegistry()).respond(_request("/healthz", host=host), peer)
        assert raised.value.status is HTTPStatus.MISDIRECTED_REQUEST
        with pytest.raises(HttpError) as raised:
            StatusResource(MetricsRegistry()).respond(_request(f"http://{host}/healthz", host="localhost"), peer)
        assert raised.value.status is HTTPStatus.MISDIRECTED_REQUEST
    for other in (REMOTE, UNIXAddress(None), IPv6Address("TCP", "fe80::1%eth0", 1)):
        assert StatusResource(MetricsRegistry()).respond(_request("/healthz", host=host), other).status is HTTPStatus.OK


class _Reader(html.parser.HTMLParser):
    """HTML parser that records elements, text, and inline scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element without content."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Check that elements are closed in order."""
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        """Record text, or the content of a script or style element."""
        if self.open and self.open[-1] in ("script", "style"):
            self.inline[self.open[-1]] = self.inline.get(self.open[-1], "") + data
        else:
            self.text += data


HOSTILE = "<script>alert(1)</script>\"'&$state"


def _hostile() -> MetricsRegistry:
    registry = MetricsRegistry(clock=Clock().seconds)
    counters = add_counters(registry, ServiceInfo(f"{HOSTILE}/tcp", HOSTILE, addresses=(HOSTILE,), description=HOSTILE))
    counters.end(HOSTILE, 1.0, 0, 0, HOSTILE)
    counters.refuse(HOSTILE)
    return registry


def test_values_are_escaped() -> None:
    """Names, descriptions, addresses, reasons and clients are escaped."""
    found = _Reader(page(status_data(_hostile())).decode())
    assert not found.open
    assert [tag for tag, _ in found.elements if tag == "script"] == ["script"]
    # Name, description, address, what runs, recent service, client and reason, and the tables of reasons.
    assert found.text.count(HOSTILE) == 9
    assert [each["data-id"] for tag, each in found.elements if "data-id" in each] == [f"{HOSTILE}/tcp"]


def test_the_content_security_policy() -> None:
    """The Content-Security-Policy allows only the inline script and style, by hash; no element has either."""
    answer = _respond(_registry(), "/")
    found = _Reader(answer.content.decode())
    policy = dict(part.split(" ", 1) for part in answer.fields["Content-Security-Policy"].split("; "))
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(found.inline[kind].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert not any(name.startswith("on") or name == "style" for _, each in found.elements for name in each)
    references = [each.get("href") or each.get("src") for _, each in found.elements]
    assert {each for each in references if each} == {"icon.svg", "metrics", "status.json", "healthz", "readyz"}
    assert "url(" not in found.inline["style"]
    assert _respond(_registry(), "/icon.svg").fields["Content-Type"] == "image/svg+xml"


def test_the_page_without_a_script() -> None:
    """Without a script the page has a row for each service, with its values, addresses and a described chart."""
    found = _Reader(page(status_data(_registry())).decode())
    rows = [each["data-id"] for tag, each in found.elements if tag == "tr" and "data-id" in each]
    assert rows == ["echo/tcp", "time/udp", "git/tcp"]
    charts = [each for tag, each in found.elements if tag == "svg" and each.get("role") == "img"]
    assert len(charts) == 4
    assert all(each["aria-label"] for each in charts)
    assert "127.0.0.1:7, [::1]:7" in found.text
    assert "the code" in found.text
    assert found.text.count("certificate expires") == found.text.count("certificate expires 2033-05-18") == 1
    assert "TLS, 1.3: 2, 1.2: 1, failed: 1" in found.text
    headings = [each.get("scope") for tag, each in found.elements if tag == "th"]
    assert set(headings) == {"col", "row"}
    assert [each.get("lang") for tag, each in found.elements if tag == "html"] == ["en"]
    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in found.elements


def test_the_page_of_an_idle_daemon() -> None:
    """The page of a daemon without services and samples is valid."""
    found = _Reader(page(status_data(MetricsRegistry())).decode())
    assert "none yet" in found.text
    assert "none" in found.text.replace("none yet", "")


def test_json() -> None:
    """status.json has the totals, services, reasons and recent connections, without the quotes of the log."""
    status = json.loads(_respond(_registry(), "/status.json").content)
    assert status["totals"]["accepted"] == 11
    assert (status["totals"]["open"], status["totals"]["refused"], status["totals"]["failed"]) == (4, 8, 1)
    assert (status["totals"]["failed_exits"], status["services"][2]["exits"]) == (1, {"0": 1, "9": 1})
    assert status["refused"] == {"rate": 7, "port": 1}
    assert status["ended"] == {"done": 3, "lost": 1}
    echo = status["services"][0]
    assert (echo["id"], echo["open"], echo["limit"], echo["in"], echo["out"]) == ("echo/tcp", 3, 100, 10, 22)
    assert (echo["tls"], echo["handshakes"], status["services"][2]["handshakes_failed"]) == ("", {}, {"closed": 1})
    assert [each["reason"] for each in status["recent"]] == ["done", "done", "lost", "done"]
    assert json.loads(_respond(_hostile(), "/status.json").content)["recent"][0]["peer"] == HOSTILE


def test_states_and_certificates_are_shown() -> None:
    """The state of each service, and whether its certificate expires within tls_warn or has expired."""
    registry = MetricsRegistry(wall_clock=lambda: 1000.0, clock=Clock().seconds)
    registry.describe(
        [
            ServiceInfo("on/tcp", "echo", expires=3000.0, warn_from=2000.0),
            ServiceInfo("paused/tcp", "echo", expires=3000.0, warn_from=1000.0, state=ServiceState.PAUSED),
            ServiceInfo("broken/tcp", "echo", expires=1000.0, problem="why", state=ServiceState.BROKEN),
            ServiceInfo("disabled/tcp", "echo", state=ServiceState.DISABLED),
            ServiceInfo("lost/tcp", "/bin/cat", spawned=True),
        ]
    )
    registry.counters("lost/tcp").unavailable = "its launcher ends at once"
    registry.counters("disabled/tcp").unavailable = "stale"
    status = status_data(registry)
    assert [(each["state"], each["certificate"]) for each in status["services"]] == [
        ("on", "valid"), ("paused", "expiring"), ("broken", "expired"), ("disabled", ""), ("broken", "")
    ]  # fmt: skip
    assert status["totals"]["broken"] == 2
    assert [each["problem"] for each in status["services"][2:]] == ["why", "", "its launcher ends at once"]
    found = _Reader(page(status).decode())
    rows = [each for tag, each in found.elements if tag == "tr" and "data-id" in each]
    assert [(each["data-state"], each["data-certificate"]) for each in rows] == [
        ("on", "valid"), ("paused", "expiring"), ("broken", "expired"), ("disabled", ""), ("broken", "")
    ]  # fmt: skip
    assert "certificate expired 1970-01-01" in found.text
    scraped = _respond(registry, "/metrics").content.decode()
    assert 'svcd_service_up{service="paused/tcp"} 1' in scraped
    assert 'svcd_service_up{service="lost/tcp"} 0' in scraped
    assert "disabled/tcp" not in scraped
    registry.counters("disabled/tcp").accepted += 1
    scraped = _respond(registry, "/metrics").content.decode()
    assert 'svcd_connections_active{service="disabled/tcp"} 1' in scraped
    assert 'svcd_service_up{service="disabled/tcp"}' not in scraped


def test_samples_of_different_length_are_added_from_the_newest() -> None:
    """Samples of different length are added from the newest; a service that was added later has fewer."""
    clock = Clock()
    registry = MetricsRegistry(clock=clock.seconds)
    first = add_counters(registry, ServiceInfo("a/tcp", "echo"))
    registry.watch(clock.callLater)
    for number in range(3):
        if number == 1:
            second = add_counters(registry, ServiceInfo("b/tcp", "echo"))
        first.accepted += 1
        if number:
            second.accepted += 10
        clock.pump([0.25] * 8)
    status: Any = status_data(registry)
    assert [each["arrivals"] for each in status["services"]] == [[1, 1, 1], [10, 10]]
    assert status["totals"]["arrivals"] == [1, 11, 11]


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (fmt.count, 0, "0"), (fmt.count, 99_999, "99,999"), (fmt.count, 100_000, "100 k"),
        (fmt.count, 1_239_999, "1.23 M"), (fmt.count, 999_999_999_999, "999 G"), (fmt.count, 5e15, "5000 T"),
        (fmt.size, -1, "–"), (fmt.size, 0, "0 B"), (fmt.size, 999, "999 B"), (fmt.size, 1000, "1.00 kB"),  # noqa: RUF001
        (fmt.size, 45_678, "45.6 kB"), (fmt.size, 5 * 10**18, "5000 PB"),
        (fmt.rate, 0, "0"), (fmt.rate, 0.38, "0.3"), (fmt.rate, 12.9, "12"),
        (fmt.duration, 0, "0.00 ms"), (fmt.duration, 0.00042, "0.42 ms"), (fmt.duration, 0.0999, "99.9 ms"),
        (fmt.duration, 0.5, "500 ms"), (fmt.duration, 3.49, "3.4 s"), (fmt.duration, 303.9, "5 min 3 s"),
        (fmt.duration, 7500, "2 h 5 min"), (fmt.duration, 273_600, "3 d 4 h"),
        (fmt.ago, 0.9, "0 s"), (fmt.ago, 61, "1 min 1 s"),
    ],
)  # fmt: skip
def test_formatting_of_numbers(write: Any, value: float, expected: str) -> None:
    """Numbers have three digits and a unit, and are never rounded up."""
    assert write(value) == expected


def test_charts_are_paths() -> None:
    """Charts are steps from left to right; refusals are visible bars; zeros are not drawn."""
    assert fmt.steps([0, 4], 4, 2) == ("M0 98V98H2V2H4", "M0 98V98H2V2H4V100H0Z")
    assert fmt.steps([1], 1, SAMPLES)[0].startswith(f"M{2 * SAMPLES - 2} 2")
    assert fmt.steps([0, 0], 1, 2) == ("", "")
    assert fmt.steps([], 1, 2) == ("", "")
    assert fmt.bars([0, 1, 100], 100, 3) == "M2 100V92h2V100ZM4 100V2h2V100Z"


class _Renderer:
    """Function that returns numbered responses and advances the clock by its cost."""

    def __init__(self, clock: Clock, cost: float) -> None:
        self.made = 0
        self._clock = clock
        self._cost = cost

    def __call__(self) -> bytes:
        """Return the next response."""
        self.made += 1
        self._clock.advance(self._cost)
        return b"%d" % self.made


@pytest.mark.parametrize(("cost", "kept"), [(0.0, 0.0), (0.004, LIFETIME_FACTOR * 0.004), (0.5, MAX_AGE)])
def test_a_response_is_cached(cost: float, kept: float) -> None:
    """A response is cached for a multiple of its cost, and for at most one second."""
    clock = Clock()
    renderer = _Renderer(clock, cost)
    rendering = RenderCache(renderer, clock.seconds)
    first = rendering.answer(compressed=False)
    assert first == b"1"
    if kept:
        clock.advance(kept - cost - 0.001)
        assert rendering.answer(compressed=False) is first
        clock.advance(0.002)
    assert rendering.answer(compressed=False) == b"2"


def test_a_response_is_compressed_once() -> None:
    """All clients receive the same compressed bytes; a new response is compressed again."""
    clock = Clock()
    rendering = RenderCache(_Renderer(clock, 0.01), clock.seconds)
    packed = rendering.answer(compressed=True)
    assert gzip.decompress(packed) == b"1"
    assert rendering.answer(compressed=True) is packed
    assert rendering.answer(compressed=False) == b"1"
    clock.advance(MAX_AGE)
    assert gzip.decompress(rendering.answer(compressed=True)) == b"2"


def test_samples_are_taken_while_the_factory_listens() -> None:
    """The registry takes samples only while a status service listens."""
    clock = Clock()
    registry = MetricsRegistry(clock=clock.seconds)
    factory: Any = StatusFactory(registry, clock)
    assert not clock.getDelayedCalls()
    factory.doStart()
    factory.doStart()
    factory.doStop()
    assert clock.getDelayedCalls()
    factory.doStop()
    clock.advance(1)
    assert not clock.getDelayedCalls()


def test_http_methods() -> None:
    """GET and HEAD are answered on one connection; other methods are not allowed."""
    protocol: Any = StatusFactory(MetricsRegistry(), Clock()).buildProtocol(LOCAL)
    transport = StreamDouble(protocol, peer=LOCAL)
    protocol.makeConnection(transport)
    for method in ("GET", "HEAD", "POST"):
        protocol.dataReceived(f"{method} /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    statuses = re.findall(rb"HTTP/1.1 (\d+)", transport.sent)
    assert statuses == [b"200", b"200", b"405"]
    assert transport.sent.count(b"ok\n") == 1
