"""The ledger: all tallies of the daemon, the last connections, and the last minutes as samples for charts.

It knows no service, no port and no reactor: who counts gets a Tally, who shows asks for a snapshot.
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

#: How many connections that have ended are remembered, of all services.
RECENT = 50
#: A chart's samples: how many, and how many seconds lie between two.
SAMPLES = 90
SAMPLE_SECONDS = 2.0
#: How often the reactor's punctuality is looked at, a whole number of times for each sample.
_LAG_CHECKS = 8


class MetricsRegistry:
    """Everything that was counted since the start.

    Args:
        wall_clock: seconds since 1970.
        clock: seconds, monotonic.

    Attributes:
        state: starting, ready or stopping.
        reloads_done, reloads_failed: how often the services file was read again.
        config_seconds: how long it took the last time to read, check and apply it.
        descriptors: asked for how many descriptors connections use, and how many they may.
    """

    def __init__(
        self, wall_clock: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall_clock = wall_clock
        self._clock = clock
        self._started = wall_clock()
        self._started_monotonic = clock()
        self._counters: dict[str, ServiceCounters] = {}
        # Those that were described. One that was made for a service that never ran is not shown.
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
        """The tally of a service, by its id; one that is known goes on."""
        counters = self._counters.get(service)
        if counters is None:
            counters = self._counters[service] = ServiceCounters(
                ServiceInfo(service, ""), self._recent.append, self._clock
            )
            counters.watched = bool(self._watchers)
        return counters

    def describe(self, services: Sequence[ServiceInfo]) -> None:
        """Say which services there are, and what they are: these are shown, in this order, and others forgotten."""
        tallies = {about.id: self.counters(about.id) for about in services}
        for about in services:
            tallies[about.id].about = about
        self._counters = tallies
        self._shown = list(tallies.values())
        for service in self._series.keys() - tallies.keys():
            del self._series[service]
        if self._watchers:
            # A chart begins with what comes from now on.
            self._sample([counters for counters in self._shown if counters.about.id not in self._series])

    def snapshot(self) -> Snapshot:
        """Everything, as it is now."""
        descriptors, most = self.descriptors()
        times = os.times()
        daemon = DaemonSnapshot(
            version=__version__,
            state=self.state,
            started=self._started,
            uptime=self.uptime,
            reloads_done=self.reloads_done,
            reloads_failed=self.reloads_failed,
            config_seconds=self.config_seconds,
            descriptors=descriptors,
            descriptors_limit=most,
            lag=self._lag.snapshot(),
            lag_last=self._lag_last,
            cpu_seconds=times.user + times.system,
        )
        return Snapshot(daemon, tuple(counters.snapshot() for counters in self._shown))

    def recent(self) -> Sequence[tuple[float, ConnectionRecord]]:
        """The connections that have ended, the newest first, each with how many seconds ago."""
        now = self._clock()
        return [(now - recent.at, recent) for recent in map(ConnectionRecord._make, reversed(self._recent))]

    def series(self) -> Series:
        """Of each service, how many came and how many were refused in each of the last SAMPLE_SECONDS, oldest first."""
        found = {}
        for service, samples in self._series.items():
            found[service] = [
                (arrived - before, refused - refused_before)
                for (before, refused_before), (arrived, refused) in itertools.pairwise(samples)
            ]
        return found

    def watch(self, alarm: CallLater) -> None:
        """Somebody shows charts and the reactor's punctuality, which are kept for that alone: begin, if none did."""
        self._watchers += 1
        if self._watchers == 1:
            self._call_later = alarm
            self._update_watched()
            self._sample(self._shown)
            self._measure_lag(alarm, 1)

    def unwatch(self) -> None:
        """One less does; the last lets the samples go, since they would have a gap."""
        self._watchers -= 1
        if not self._watchers:
            self._call_later = None
            self._series.clear()
            self._update_watched()

    def _update_watched(self) -> None:
        for counters in self._counters.values():
            counters.watched = bool(self._watchers)

    def _measure_lag(self, alarm: CallLater, count: int) -> None:
        """See how late one is called, and take a sample when it is time."""
        step = SAMPLE_SECONDS / _LAG_CHECKS
        due = self._clock() + step

        def called() -> None:
            if self._call_later is not alarm:
                return
            self._lag_last = max(self._clock() - due, 0.0)
            self._lag.observe(self._lag_last)
            if count == _LAG_CHECKS:
                self._sample(self._shown)
            self._measure_lag(alarm, count % _LAG_CHECKS + 1)

        alarm(step, called)

    def _sample(self, tallies: Sequence[ServiceCounters]) -> None:
        for counters in tallies:
            service = counters.about.id
            samples = self._series.get(service)
            if samples is None:
                samples = self._series[service] = deque(maxlen=SAMPLES + 1)
            samples.append(counters.arrivals())
