"""Counters of a service, updated on the path of every connection.

ServiceCounters is slotted and simple: counting a connection, from its accept to its end, takes well under a
microsecond. The traffic of open connections and ports is not counted here: a snapshot reads it from each TrafficSource.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from svcd.metrics.snapshot import DURATIONS, SPAWNS, HistogramSnapshot, ServiceSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.metrics.snapshot import ServiceInfo

__all__ = ["ConnectionFields", "Histogram", "LiveTraffic", "ServiceCounters", "TrafficSource"]


#: The fields of a ConnectionRecord as a plain tuple: creating the NamedTuple takes longer than all of the counting.
ConnectionFields: TypeAlias = tuple[str, str, float, float, int, int, str]


class Histogram:
    """A histogram of values.

    Args:
        bounds: the upper bounds of the buckets, inclusive, ascending.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count a value. A negative value, after a clock was set back, counts as zero."""
        if value < 0:  # a call of max() takes longer than the rest
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> HistogramSnapshot:
        """Return the current state."""
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total)


class LiveTraffic(NamedTuple):
    """Traffic of open connections or ports.

    Attributes:
        bytes_in, bytes_out: bytes from and to clients.
        datagrams: datagrams received.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    datagrams: int = 0


class TrafficSource(Protocol):
    """Object with open connections or sockets: a service's factory or tracker, or a datagram port."""

    def traffic(self) -> LiveTraffic:
        """Return the traffic of the open connections or sockets."""
        ...


class ServiceCounters:
    """Counts of a service. They only grow, except `children`.

    Args:
        about: the description of the service; it may be replaced.
        on_end: takes the ConnectionFields of ended connections, for the list of recent connections.
        clock: returns seconds, monotonic.

    Attributes:
        accepted: admitted connections.
        failures: connections that could not be served, as a `fail` line explains, or that an exception has ended.
        failed_exits: connections whose process ended by itself with another exit status than 0 or by a signal.
        ended, refused: connections by reason; unanswered datagrams count as refused.
        bytes_in, bytes_out: the bytes from and to the clients of ended connections.
        datagrams: datagrams received by ports that are closed.
        children: running processes.
        exits: ended processes, by exit status or signal.
        restarts: launchers started in place of a lost launcher.
        unavailable: why the service's launcher can't serve; empty if it can.
        handshakes, handshakes_failed: TLS handshakes, by TLS version and by reason of the failure.
        durations, spawns: histograms of the duration of connections, and of the time until their process started.
        watched: whether a display needs the counts; if not, counts that require system calls are not kept.
    """

    __slots__ = ("_clock", "_on_end", "_sources", "about", "accepted", "bytes_in", "bytes_out", "children", "datagrams",
                 "durations", "ended", "exits", "failed_exits", "failures", "handshakes", "handshakes_failed",
                 "refused", "restarts", "spawns", "unavailable", "watched")  # fmt: skip

    def __init__(
        self, about: ServiceInfo, on_end: Callable[[ConnectionFields], None], clock: Callable[[], float]
    ) -> None:
        self.about = about
        self._on_end = on_end
        self._clock = clock
        self._sources: list[TrafficSource] = []
        self.accepted = self.failures = self.failed_exits = self.bytes_in = self.bytes_out = self.datagrams = 0
        self.children = self.restarts = 0
        self.unavailable = ""
        self.watched = True
        self.ended: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.exits: dict[str, int] = {}
        self.handshakes: dict[str, int] = {}
        self.handshakes_failed: dict[str, int] = {}
        self.durations = Histogram(DURATIONS)
        self.spawns = Histogram(SPAWNS)

    def refuse(self, reason: str, count: int = 1) -> None:
        """Count refused clients."""
        self.refused[reason] = self.refused.get(reason, 0) + count

    def end(self, reason: str, seconds: float, bytes_in: int, bytes_out: int, peer: str) -> None:
        """Count the end of a connection; the bytes are -1 if they were not counted."""
        self.end_uncounted(reason, seconds)
        if bytes_in > 0:
            self.bytes_in += bytes_in
        if bytes_out > 0:
            self.bytes_out += bytes_out
        if self.about.listed:
            self._on_end((self.about.id, peer, self._clock(), seconds, bytes_in, bytes_out, reason))

    def end_uncounted(self, reason: str, seconds: float) -> None:
        """Count the end of a connection for which only the reason and the duration are kept."""
        self.ended[reason] = self.ended.get(reason, 0) + 1
        self.durations.observe(seconds)

    def handshake_done(self, version: str) -> None:
        """Count a completed TLS handshake."""
        self.handshakes[version] = self.handshakes.get(version, 0) + 1

    def handshake_failed(self, why: str) -> None:
        """Count a failed TLS handshake."""
        self.handshakes_failed[why] = self.handshakes_failed.get(why, 0) + 1

    def process_started(self, seconds: float) -> None:
        """Count a started process, with the seconds since the connection was accepted."""
        self.children += 1
        self.spawns.observe(seconds)

    def process_exited(self, code: str) -> None:
        """Count an ended process; `code` is its exit status or signal, or empty if that is not known."""
        self.children -= 1
        if code:
            self.exits[code] = self.exits.get(code, 0) + 1

    def add_source(self, source: TrafficSource) -> None:
        """Include the traffic of a source in snapshots."""
        self._sources.append(source)

    def remove_source(self, source: TrafficSource) -> None:
        """Remove a source and add its traffic to the counts; do nothing if it was not added."""
        if source not in self._sources:
            return
        self._sources.remove(source)
        traffic = source.traffic()
        self.bytes_in += traffic.bytes_in
        self.bytes_out += traffic.bytes_out
        self.datagrams += traffic.datagrams

    def arrivals(self) -> tuple[int, int]:
        """Return the numbers of connections or datagrams that arrived and that were refused; cheap, for charts."""
        # For datagrams only: reading the traffic of thousands of open connections would be expensive.
        ports = () if self.about.stream else self._sources
        arrived = self.accepted + self.datagrams + sum(port.traffic().datagrams for port in ports)
        return arrived, sum(self.refused.values())

    def snapshot(self) -> ServiceSnapshot:
        """Return the current counts."""
        traffics = [source.traffic() for source in self._sources]
        return ServiceSnapshot(
            about=self.about,
            accepted=self.accepted,
            failures=self.failures,
            failed_exits=self.failed_exits,
            ended=dict(self.ended),
            refused=dict(self.refused),
            bytes_in=self.bytes_in + sum(traffic.bytes_in for traffic in traffics),
            bytes_out=self.bytes_out + sum(traffic.bytes_out for traffic in traffics),
            datagrams=self.datagrams + sum(traffic.datagrams for traffic in traffics),
            durations=self.durations.snapshot(),
            spawns=self.spawns.snapshot(),
            children=self.children,
            exits=dict(self.exits),
            handshakes=dict(self.handshakes),
            handshakes_failed=dict(self.handshakes_failed),
            restarts=self.restarts,
            unavailable=self.unavailable,
        )
