"""Counters of services and the registry of metrics."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from svcd.metrics.counters import Histogram, LiveTraffic, ServiceCounters
from svcd.metrics.registry import RECENT, SAMPLE_SECONDS, SAMPLES, MetricsRegistry
from svcd.metrics.snapshot import DURATIONS, ServiceInfo
from tests.doubles import add_counters

STREAM = ServiceInfo("echo/tcp", "echo")
DATAGRAM = ServiceInfo("echo/udp", "echo", stream=False)


class _Source:
    """TrafficSource with the values of the test."""

    def __init__(self, traffic: LiveTraffic) -> None:
        self.now = traffic

    def traffic(self) -> LiveTraffic:
        """Return the values of the test."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that the test advances."""
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> MetricsRegistry:
    """Return the registry of a daemon that was just started."""
    return MetricsRegistry(wall_clock=lambda: 1000.0 + clock.seconds(), clock=clock.seconds)


def test_the_buckets_of_a_histogram() -> None:
    """Bounds are inclusive, as in Prometheus; values above all bounds are in the last bucket."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0, -1.0):
        histogram.observe(value)
    found = histogram.snapshot()
    assert (found.counts, found.total, found.count) == ((3, 2, 1), 104.0, 6)


def test_connections_are_counted(registry: MetricsRegistry) -> None:
    """Connections are counted as accepted, active and ended by reason; bytes and durations are added up."""
    counters = add_counters(registry, STREAM)
    counters.accepted += 3
    counters.end("done", 0.5, 10, 20, "192.0.2.1:1")
    counters.end("lost", 70.0, 1, 2, "192.0.2.1:2")
    [figures] = registry.snapshot().services
    assert (figures.accepted, figures.active, figures.ended) == (3, 1, {"done": 1, "lost": 1})
    assert (figures.bytes_in, figures.bytes_out) == (11, 22)
    assert (figures.durations.count, figures.durations.total, figures.durations.bounds) == (2, 70.5, DURATIONS)


def test_unknown_traffic(registry: MetricsRegistry) -> None:
    """Unknown traffic of a process (-1) is not added to the sums."""
    counters = add_counters(registry, STREAM)
    counters.end("done", 0.5, -1, -1, "")
    assert (counters.bytes_in, counters.bytes_out) == (0, 0)
    [(_, recent)] = registry.recent()
    assert (recent.bytes_in, recent.bytes_out) == (-1, -1)


def test_processes_are_counted(registry: MetricsRegistry) -> None:
    """Ended processes are counted by exit status or signal; one with an unknown status no longer counts as running."""
    counters = add_counters(registry, STREAM)
    for _ in range(4):
        counters.process_started(0.004)
    for code in ("0", "0", "SIGKILL", ""):
        counters.process_exited(code)
    counters.process_started(0.1)
    [figures] = registry.snapshot().services
    assert (figures.children, figures.exits, figures.spawns.count) == (1, {"0": 2, "SIGKILL": 1}, 5)


def test_the_traffic_of_open_connections(registry: MetricsRegistry) -> None:
    """The traffic of open connections and ports is in the sums, and remains there after they are closed."""
    counters = add_counters(registry, DATAGRAM)
    counters.refuse("port", 2)
    sources = [_Source(LiveTraffic(5, 6, 3)), _Source(LiveTraffic(50, 60, 30))]
    for source in sources:
        counters.add_source(source)
    before = counters.snapshot()
    assert (before.bytes_in, before.bytes_out, before.datagrams) == (55, 66, 33)
    assert before.refused == {"port": 2}
    assert counters.arrivals() == (33, 2)
    for source in sources:
        counters.remove_source(source)
        counters.remove_source(source)
        source.now = LiveTraffic()
    assert counters.snapshot() == before
    assert counters.arrivals() == (33, 2)


def test_charts_do_not_iterate_over_connections(registry: MetricsRegistry) -> None:
    """arrivals() does not iterate over open connections: there may be very many, every two seconds."""
    counters = add_counters(registry, STREAM)
    counters.add_source(_Source(LiveTraffic(datagrams=99)))
    counters.accepted += 1
    assert counters.arrivals() == (1, 0)


def test_the_counters_of_a_changed_service(registry: MetricsRegistry) -> None:
    """The counters of a service are kept when it is changed, and are new when it was removed."""
    counters = add_counters(registry, STREAM)
    counters.accepted += 1
    registry.watch(lambda _delay, _call: None)
    changed = ServiceInfo("echo/tcp", "upper", max_connections=5)
    registry.describe([DATAGRAM, changed])
    assert [(each.about, each.accepted) for each in registry.snapshot().services] == [(DATAGRAM, 0), (changed, 1)]
    registry.describe([DATAGRAM])
    assert list(registry.series()) == ["echo/udp"]
    assert registry.counters("echo/tcp").accepted == 0


def test_a_service_that_was_not_described_is_not_shown(registry: MetricsRegistry) -> None:
    """Counters of a service that was not described, as after a failed reload, are not shown."""
    registry.counters("echo/tcp").accepted += 1
    assert registry.snapshot().services == ()


def test_recent_connections(registry: MetricsRegistry, clock: Clock) -> None:
    """At most RECENT connections are kept, the newest first, and none of a service with listed=False."""
    counters, silent = (
        add_counters(registry, STREAM),
        add_counters(registry, ServiceInfo("quiet/tcp", "echo", listed=False)),
    )
    for number in range(RECENT + 5):
        counters.end("done", 1.0, number, 0, "192.0.2.1:1")
        silent.end("done", 1.0, 0, 0, "192.0.2.1:1")
        clock.advance(1)
    found = registry.recent()
    assert [recent.bytes_in for _, recent in found] == list(range(RECENT + 4, 4, -1))
    assert [ago for ago, _ in found[:2]] == [1.0, 2.0]
    assert {recent.service for _, recent in found} == {"echo/tcp"}


def _run(clock: Clock, seconds: float) -> None:
    clock.pump([0.25] * int(seconds * 4))


def test_samples_are_taken_while_a_client_watches(registry: MetricsRegistry, clock: Clock) -> None:
    """While a client watches, there is a sample every SAMPLE_SECONDS, at most SAMPLES; otherwise there is no timer."""
    counters = add_counters(registry, STREAM)
    counters.accepted += 100
    assert registry.series() == {}
    registry.watch(clock.callLater)
    registry.watch(clock.callLater)
    assert registry.series() == {"echo/tcp": []}
    for _ in range(3):
        counters.accepted += 4
        counters.refuse("rate")
        _run(clock, SAMPLE_SECONDS)
    assert registry.series() == {"echo/tcp": [(4, 1)] * 3}
    _run(clock, SAMPLE_SECONDS * (SAMPLES + 5))
    assert registry.series()["echo/tcp"] == [(0, 0)] * SAMPLES
    registry.unwatch()
    assert clock.getDelayedCalls()
    registry.unwatch()
    _run(clock, 1)
    assert not clock.getDelayedCalls()
    assert registry.series() == {}


def test_the_first_sample_of_a_service(registry: MetricsRegistry, clock: Clock) -> None:
    """Connections before the first sample of a service are part of it."""
    registry.watch(clock.callLater)
    counters = add_counters(registry, STREAM)
    counters.accepted += 3
    _run(clock, SAMPLE_SECONDS)
    assert registry.series() == {"echo/tcp": [(3, 0)]}


def test_the_lag_of_the_reactor(registry: MetricsRegistry, clock: Clock) -> None:
    """The lag of delayed calls is measured; a new watch has timers of its own."""
    registry.watch(clock.callLater)
    registry.unwatch()
    registry.watch(clock.callLater)
    clock.advance(0.25 + 0.5)
    lag = registry.snapshot().daemon
    assert (lag.lag.count, lag.lag_last) == (1, 0.5)


def test_the_snapshot_of_the_daemon(registry: MetricsRegistry, clock: Clock) -> None:
    """The snapshot has the state, times, reloads and descriptors that were set."""
    registry.descriptors = lambda: (7, 1000)
    registry.reloads_done, registry.reloads_failed, registry.config_seconds = 2, 1, 0.25
    registry.state = "ready"
    clock.advance(10)
    daemon = registry.snapshot().daemon
    assert (daemon.state, daemon.started, daemon.uptime) == ("ready", 1000.0, 10.0)
    assert (daemon.reloads_done, daemon.reloads_failed, daemon.config_seconds) == (2, 1, 0.25)
    assert (daemon.descriptors, daemon.descriptors_limit) == (7, 1000)


def test_counters_without_a_registry() -> None:
    """ServiceCounters pass ended connections to a function, and need no registry."""
    kept: list[tuple[object, ...]] = []
    counters = ServiceCounters(STREAM, kept.append, lambda: 5.0)
    counters.end("done", 1.0, 2, 3, "p")
    assert kept == [("echo/tcp", "p", 5.0, 1.0, 2, 3, "done")]
