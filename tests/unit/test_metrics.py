"""Tallies and the ledger: what is counted is shown, to the unit."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from svcd.metrics.counters import Histogram, LiveTraffic, ServiceCounters
from svcd.metrics.registry import RECENT, SAMPLE_SECONDS, SAMPLES, MetricsRegistry
from svcd.metrics.snapshot import DURATIONS, ServiceInfo
from tests.doubles import counted

STREAM = ServiceInfo("echo/tcp", "echo")
DATAGRAM = ServiceInfo("echo/udp", "echo", stream=False)


class _Source:
    """Somebody who is asked."""

    def __init__(self, flow: LiveTraffic) -> None:
        self.now = flow

    def flow(self) -> LiveTraffic:
        """What the test says."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Time by hand."""
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> MetricsRegistry:
    """A ledger of a daemon that has just been started."""
    return MetricsRegistry(wall=lambda: 1000.0 + clock.seconds(), clock=clock.seconds)


def test_a_value_is_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    """Bounds are inclusive, as Prometheus has them, and what exceeds all is in the last bucket."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0, -1.0):
        histogram.observe(value)
    found = histogram.frozen()
    assert (found.counts, found.total, found.count) == ((3, 2, 1), 104.0, 6)


def test_connections_are_counted_by_what_became_of_them(ledger: MetricsRegistry) -> None:
    """Accepted less ended is open; reasons, bytes and durations add up."""
    tally = counted(ledger, STREAM)
    tally.accepted += 3
    tally.end("done", 0.5, 10, 20, "192.0.2.1:1")
    tally.end("lost", 70.0, 1, 2, "192.0.2.1:2")
    [figures] = ledger.snapshot().services
    assert (figures.accepted, figures.active, figures.ended) == (3, 1, {"done": 1, "lost": 1})
    assert (figures.bytes_in, figures.bytes_out) == (11, 22)
    assert (figures.durations.count, figures.durations.total, figures.durations.bounds) == (2, 70.5, DURATIONS)


def test_bytes_that_nobody_counted_are_none(ledger: MetricsRegistry) -> None:
    """A process whose traffic is unknown takes nothing away from the sums."""
    tally = counted(ledger, STREAM)
    tally.end("done", 0.5, -1, -1, "")
    assert (tally.bytes_in, tally.bytes_out) == (0, 0)
    [(_, recent)] = ledger.last()
    assert (recent.bytes_in, recent.bytes_out) == (-1, -1)


def test_processes_are_counted_while_they_run_and_when_they_end(ledger: MetricsRegistry) -> None:
    """By exit status or signal; one that nobody saw end counts no more all the same."""
    tally = counted(ledger, STREAM)
    for _ in range(4):
        tally.process_started(0.004)
    for code in ("0", "0", "SIGKILL", ""):
        tally.process_exited(code)
    tally.process_started(0.1)
    [figures] = ledger.snapshot().services
    assert (figures.children, figures.exits, figures.spawns.count) == (1, {"0": 2, "SIGKILL": 1}, 5)


def test_who_is_open_is_asked(ledger: MetricsRegistry) -> None:
    """What connections and ports have carried so far is in the sums, and stays there when they are gone."""
    tally = counted(ledger, DATAGRAM)
    tally.refuse("port", 2)
    sources = [_Source(LiveTraffic(5, 6, 3)), _Source(LiveTraffic(50, 60, 30))]
    for source in sources:
        tally.add_source(source)
    before = tally.figures()
    assert (before.bytes_in, before.bytes_out, before.datagrams) == (55, 66, 33)
    assert before.refused == {"port": 2}
    assert tally.arrivals() == (33, 2)
    for source in sources:
        tally.remove_source(source)
        tally.remove_source(source)
        source.now = LiveTraffic()
    assert tally.figures() == before
    assert tally.arrivals() == (33, 2)


def test_charts_do_not_ask_connections(ledger: MetricsRegistry) -> None:
    """There may be a hundred thousand of them, every two seconds."""
    tally = counted(ledger, STREAM)
    tally.add_source(_Source(LiveTraffic(datagrams=99)))
    tally.accepted += 1
    assert tally.arrivals() == (1, 0)


def test_a_service_goes_on_where_it_was(ledger: MetricsRegistry) -> None:
    """A tally is the same when its service is changed, and a new one when it was gone."""
    tally = counted(ledger, STREAM)
    tally.accepted += 1
    ledger.watch(lambda _delay, _call: None)
    changed = ServiceInfo("echo/tcp", "upper", most=5)
    ledger.describe([DATAGRAM, changed])
    assert [(each.about, each.accepted) for each in ledger.snapshot().services] == [(DATAGRAM, 0), (changed, 1)]
    ledger.describe([DATAGRAM])
    assert list(ledger.series()) == ["echo/udp"]
    assert ledger.tally("echo/tcp").accepted == 0


def test_a_service_that_never_ran_is_not_shown(ledger: MetricsRegistry) -> None:
    """A reload may fail after tallies were made."""
    ledger.tally("echo/tcp").accepted += 1
    assert ledger.snapshot().services == ()


def test_the_last_connections_are_remembered(ledger: MetricsRegistry, clock: Clock) -> None:
    """The newest first, so many at most, and none of a service whose log has none."""
    tally, silent = counted(ledger, STREAM), counted(ledger, ServiceInfo("quiet/tcp", "echo", listed=False))
    for number in range(RECENT + 5):
        tally.end("done", 1.0, number, 0, "192.0.2.1:1")
        silent.end("done", 1.0, 0, 0, "192.0.2.1:1")
        clock.advance(1)
    found = ledger.last()
    assert [recent.bytes_in for _, recent in found] == list(range(RECENT + 4, 4, -1))
    assert [ago for ago, _ in found[:2]] == [1.0, 2.0]
    assert {recent.service for _, recent in found} == {"echo/tcp"}


def _run(clock: Clock, seconds: float) -> None:
    clock.pump([0.25] * int(seconds * 4))


def test_the_last_minutes_are_kept_while_somebody_watches(ledger: MetricsRegistry, clock: Clock) -> None:
    """A sample each two seconds, the newest last, so many at most; without a watcher there are no timers."""
    tally = counted(ledger, STREAM)
    tally.accepted += 100
    assert ledger.series() == {}
    ledger.watch(clock.callLater)
    ledger.watch(clock.callLater)
    assert ledger.series() == {"echo/tcp": []}
    for _ in range(3):
        tally.accepted += 4
        tally.refuse("rate")
        _run(clock, SAMPLE_SECONDS)
    assert ledger.series() == {"echo/tcp": [(4, 1)] * 3}
    _run(clock, SAMPLE_SECONDS * (SAMPLES + 5))
    assert ledger.series()["echo/tcp"] == [(0, 0)] * SAMPLES
    ledger.unwatch()
    assert clock.getDelayedCalls()
    ledger.unwatch()
    _run(clock, 1)
    assert not clock.getDelayedCalls()
    assert ledger.series() == {}


def test_a_chart_begins_with_its_service(ledger: MetricsRegistry, clock: Clock) -> None:
    """What comes before the first sample is in it."""
    ledger.watch(clock.callLater)
    tally = counted(ledger, STREAM)
    tally.accepted += 3
    _run(clock, SAMPLE_SECONDS)
    assert ledger.series() == {"echo/tcp": [(3, 0)]}


def test_a_late_reactor_is_seen(ledger: MetricsRegistry, clock: Clock) -> None:
    """How late something due is called is counted; who watches anew does not get the alarms of before."""
    ledger.watch(clock.callLater)
    ledger.unwatch()
    ledger.watch(clock.callLater)
    clock.advance(0.25 + 0.5)
    lag = ledger.snapshot().daemon
    assert (lag.lag.count, lag.lag_last) == (1, 0.5)


def test_the_daemon_is_described(ledger: MetricsRegistry, clock: Clock) -> None:
    """State, times, reloads and descriptors are as they were told."""
    ledger.descriptors = lambda: (7, 1000)
    ledger.reloads_done, ledger.reloads_failed, ledger.config_seconds = 2, 1, 0.25
    ledger.state = "ready"
    clock.advance(10)
    daemon = ledger.snapshot().daemon
    assert (daemon.state, daemon.started, daemon.uptime) == ("ready", 1000.0, 10.0)
    assert (daemon.reloads_done, daemon.reloads_failed, daemon.config_seconds) == (2, 1, 0.25)
    assert (daemon.descriptors, daemon.descriptors_most) == (7, 1000)


def test_a_tally_needs_no_ledger() -> None:
    """Who keeps the recent ones is an argument."""
    kept: list[tuple[object, ...]] = []
    tally = ServiceCounters(STREAM, kept.append, lambda: 5.0)
    tally.end("done", 1.0, 2, 3, "p")
    assert kept == [("echo/tcp", "p", 5.0, 1.0, 2, 3, "done")]
