"""What is counted: a Tally for each service, written on every connection's path, and frozen values made from it.

A Tally is plain and slotted: to count a connection, from its accept to its end, costs well under a microsecond. What
the connections and ports that are open now have carried is not copied here with every byte: they are asked for it
when somebody wants to know (`Source`).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from svcd.metrics.snapshot import DURATIONS, SPAWNS, HistogramSnapshot, ServiceSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.metrics.snapshot import ServiceInfo

__all__ = ["ConnectionFields", "Histogram", "LiveTraffic", "ServiceCounters", "TrafficSource"]


#: The fields of a Recent, which itself costs more to make than all of the counting.
ConnectionFields: TypeAlias = tuple[str, str, float, float, int, int, str]


class Histogram:
    """Counts values by size.

    Args:
        bounds: the upper bounds of the buckets, ascending; a value equal to one belongs below it.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count a value. One below zero, from a clock that was set back, is zero."""
        if value < 0:  # a call of max() costs more than the rest
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> HistogramSnapshot:
        """As it is now."""
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total)


class LiveTraffic(NamedTuple):
    """What is known of those that are open now.

    Attributes:
        bytes_in, bytes_out: what they have carried.
        datagrams: received.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    datagrams: int = 0


class TrafficSource(Protocol):
    """Knows what is open now: a service's connections, or a datagram port."""

    def traffic(self) -> LiveTraffic:
        """What they have carried."""
        ...


class ServiceCounters:
    """The counts of one service. They only grow, but for `children`.

    Args:
        about: what the service is; it may change.
        keep: takes connections that have ended, for the list of recent ones, as a Recent's fields.
        clock: seconds, monotonic.

    Attributes:
        accepted: connections that were let in.
        failures: connections that could not be served, as a `fail` line says, and those whose process ended by itself
            with another exit status than 0 or by a signal.
        ended, refused: connections by reason; datagrams that were not answered are refused, too.
        bytes_in, bytes_out: carried by connections that have ended.
        datagrams: received by ports that are closed.
        children: processes that run now.
        exits: processes that have ended, by exit status or signal.
        restarts: launchers started in place of a lost one.
        unavailable: why the service's launcher can't serve; empty if it can.
        handshakes, handshakes_failed: of TLS, by its version, and by why they did not succeed.
        durations, spawns: how long connections lasted, and how long they waited for their process.
        watched: whether somebody shows the counts: if not, what the kernel would have to be asked is not counted.
    """

    __slots__ = ("_clock", "_on_end", "_sources", "about", "accepted", "bytes_in", "bytes_out", "children", "datagrams",
                 "durations", "ended", "exits", "failures", "handshakes", "handshakes_failed", "refused", "restarts",
                 "spawns", "unavailable", "watched")  # fmt: skip

    def __init__(
        self, about: ServiceInfo, keep: Callable[[ConnectionFields], None], clock: Callable[[], float]
    ) -> None:
        self.about = about
        self._on_end = keep
        self._clock = clock
        self._sources: list[TrafficSource] = []
        self.accepted = self.failures = self.bytes_in = self.bytes_out = self.datagrams = 0
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
        """Somebody was not let in."""
        self.refused[reason] = self.refused.get(reason, 0) + count

    def end(self, reason: str, seconds: float, bytes_in: int, bytes_out: int, peer: str) -> None:
        """A connection has ended; -1 bytes if nobody counted them."""
        self.end_uncounted(reason, seconds)
        if bytes_in > 0:
            self.bytes_in += bytes_in
        if bytes_out > 0:
            self.bytes_out += bytes_out
        if self.about.listed:
            self._on_end((self.about.id, peer, self._clock(), seconds, bytes_in, bytes_out, reason))

    def end_uncounted(self, reason: str, seconds: float) -> None:
        """A connection has ended, of which nobody asks more."""
        self.ended[reason] = self.ended.get(reason, 0) + 1
        self.durations.observe(seconds)

    def handshake_done(self, version: str) -> None:
        """A TLS handshake is done."""
        self.handshakes[version] = self.handshakes.get(version, 0) + 1

    def handshake_failed(self, why: str) -> None:
        """One has failed."""
        self.handshakes_failed[why] = self.handshakes_failed.get(why, 0) + 1

    def process_started(self, seconds: float) -> None:
        """A connection has its process, so long after it was accepted."""
        self.children += 1
        self.spawns.observe(seconds)

    def process_exited(self, code: str) -> None:
        """A process has ended, by an exit status or a signal; empty if nobody saw how."""
        self.children -= 1
        if code:
            self.exits[code] = self.exits.get(code, 0) + 1

    def add_source(self, source: TrafficSource) -> None:
        """Ask somebody from now on, too."""
        self._sources.append(source)

    def remove_source(self, source: TrafficSource) -> None:
        """Ask no longer; what it has carried stays counted. Nothing happens if it was not asked."""
        if source not in self._sources:
            return
        self._sources.remove(source)
        flow = source.traffic()
        self.bytes_in += flow.bytes_in
        self.bytes_out += flow.bytes_out
        self.datagrams += flow.datagrams

    def arrivals(self) -> tuple[int, int]:
        """How many came in, connections or datagrams, and how many of all were refused. Cheap: for charts."""
        # To ask for the bytes of thousands of open connections would not be.
        ports = () if self.about.stream else self._sources
        arrived = self.accepted + self.datagrams + sum(port.traffic().datagrams for port in ports)
        return arrived, sum(self.refused.values())

    def snapshot(self) -> ServiceSnapshot:
        """As they are now."""
        flows = [source.traffic() for source in self._sources]
        return ServiceSnapshot(
            about=self.about,
            accepted=self.accepted,
            failures=self.failures,
            ended=dict(self.ended),
            refused=dict(self.refused),
            bytes_in=self.bytes_in + sum(flow.bytes_in for flow in flows),
            bytes_out=self.bytes_out + sum(flow.bytes_out for flow in flows),
            datagrams=self.datagrams + sum(flow.datagrams for flow in flows),
            durations=self.durations.snapshot(),
            spawns=self.spawns.snapshot(),
            children=self.children,
            exits=dict(self.exits),
            handshakes=dict(self.handshakes),
            handshakes_failed=dict(self.handshakes_failed),
            restarts=self.restarts,
            unavailable=self.unavailable,
        )
