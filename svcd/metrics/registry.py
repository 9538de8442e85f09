"""Registry of the counters of all services, the last ended connections, and the samples of charts.

It depends on no service, port or reactor: services get ServiceCounters, displays get snapshots.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from svcd import __version__
from svcd.metrics.counters import Histogram, ServiceCounters
from svcd.metrics.snapshot import LAGS, ConnectionRecord, DaemonSnapshot, ServiceInfo, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from svcd.metrics.counters import ConnectionFields
    from svcd.metrics.snapshot import CallLater, Series

__all__ = ["RECENT", "SAMPLES", "SAMPLE_SECONDS", "MetricsRegistry"]

#: The number of ended connections, of all services, that are kept.
RECENT = 50
#: The number of samples of a chart, and the seconds between two samples.
SAMPLES = 90
SAMPLE_SECONDS = 2.0
#: The number of measurements of the reactor's lag in the interval of a sample.
_LAG_CHECKS = 8


class MetricsRegistry:
    """Registry of all counts since the start.

    Args:
        wall_clock: returns seconds since 1970.
        clock: returns seconds, monotonic.

    Attributes:
        state: starting, ready or stopping.
        reloads_done, reloads_failed: the numbers of successful and failed reloads.
        config_seconds: the duration of the last reading, check and application of the services file.
        descriptors: returns the numbers of descriptors that connections use, and that they may use.
    """

    def __init__(
        self, wall_clock: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall_clock = wall_clock
        self._clock = clock
        self._started = wall_clock()
        self._started_monotonic = clock()
        self._counters: dict[str, ServiceCounters] = {}
        # The counters of described services. A service that never ran may have counters without a description.
        self._shown: list[ServiceCounters] = []
        self._series: dict[str, deque[tuple[int, int]]] = {}
        self._lag = Histogram(LAGS)
        self._lag_last = 0.0
        self._watchers = 0
        self._call_later: CallLater | None = None
        self.state = "starting"
        self._recent: deque[ConnectionFields] = deque(maxlen=RECENT)
        self.reloads_done = self.reloads_failed = 0
        self.config_seconds = 0.0
        self.descriptors: Callable[[], tuple[int, int]] = lambda: (0, 0)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_monotonic

    def counters(self, service: str) -> ServiceCounters:
        """Return the counters of a service, by its id; they are kept across reloads."""
        counters = self._counters.get(service)
        if counters is None:
            counters = self._counters[service] = ServiceCounters(
                ServiceInfo(service, ""), self._recent.append, self._clock
            )
            counters.watched = bool(self._watchers)
        return counters

    def describe(self, services: Sequence[ServiceInfo]) -> None:
        """Set the descriptions of the services to show, in this order; remove the counters of all other services."""
        counters_by_id = {about.id: self.counters(about.id) for about in services}
        for about in services:
            counters_by_id[about.id].about = about
        self._counters = counters_by_id
        self._shown = list(counters_by_id.values())
        for service in self._series.keys() - counters_by_id.keys():
            del self._series[service]
        if self._watchers:
            # A chart of a new service starts at zero.
            self._sample([counters for counters in self._shown if counters.about.id not in self._series])

    def snapshot(self) -> Snapshot:
        """Return the current counts."""
        descriptors, limit = self.descriptors()
        times = os.times()
        daemon = DaemonSnapshot(
            version=__version__,
            state=self.state,
            started=self._started,
            uptime=self.uptime,
            now=self._wall_clock(),
            reloads_done=self.reloads_done,
            reloads_failed=self.reloads_failed,
            config_seconds=self.config_seconds,
            descriptors=descriptors,
            descriptors_limit=limit,
            lag=self._lag.snapshot(),
            lag_last=self._lag_last,
            cpu_seconds=times.user + times.system,
        )
        return Snapshot(daemon, tuple(counters.snapshot() for counters in self._shown))

    def recent(self) -> Sequence[tuple[float, ConnectionRecord]]:
        """Return the last ended connections, newest first, each with the seconds since its end."""
        now = self._clock()
        return [(now - recent.at, recent) for recent in map(ConnectionRecord._make, reversed(self._recent))]

    def series(self) -> Series:
        """Return the numbers of arrivals and refusals in each of the last intervals, by service, oldest first."""
        found = {}
        for service, samples in self._series.items():
            found[service] = [
                (arrived - before, refused - refused_before)
                for (before, refused_before), (arrived, refused) in itertools.pairwise(samples)
            ]
        return found

    def watch(self, call_later: CallLater) -> None:
        """Start sampling for charts and measuring the reactor's lag. Each call requires an unwatch().

        Args:
            call_later: the reactor's callLater.
        """
        self._watchers += 1
        if self._watchers == 1:
            self._call_later = call_later
            self._update_watched()
            self._sample(self._shown)
            self._measure_lag(call_later, 1)

    def unwatch(self) -> None:
        """End a watch(). The last call drops the samples, since they would have a gap."""
        self._watchers -= 1
        if not self._watchers:
            self._call_later = None
            self._series.clear()
            self._update_watched()

    def _update_watched(self) -> None:
        for counters in self._counters.values():
            counters.watched = bool(self._watchers)

    def _measure_lag(self, call_later: CallLater, count: int) -> None:
        """Measure the lag of a delayed call, and take a sample at the end of each interval."""
        step = SAMPLE_SECONDS / _LAG_CHECKS
        due = self._clock() + step

        def called() -> None:
            if self._call_later is not call_later:
                return
            self._lag_last = max(self._clock() - due, 0.0)
            self._lag.observe(self._lag_last)
            if count == _LAG_CHECKS:
                self._sample(self._shown)
            self._measure_lag(call_later, count % _LAG_CHECKS + 1)

        call_later(step, called)

    def _sample(self, services: Sequence[ServiceCounters]) -> None:
        for counters in services:
            service = counters.about.id
            samples = self._series.get(service)
            if samples is None:
                samples = self._series[service] = deque(maxlen=SAMPLES + 1)
            samples.append(counters.arrivals())
