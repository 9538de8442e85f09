"""Snapshots of counters: immutable values, for displays and scrapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


__all__ = [
    "DURATIONS",
    "LAGS",
    "SPAWNS",
    "CallLater",
    "ConnectionRecord",
    "DaemonSnapshot",
    "HistogramSnapshot",
    "MetricsSource",
    "Series",
    "ServiceInfo",
    "ServiceSnapshot",
    "ServiceState",
    "Snapshot",
]  # fmt: skip

#: The upper bounds of the histograms, in seconds: duration of connections, time until the process of a connection is
#: started, lag of the reactor's delayed calls.
DURATIONS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0)
SPAWNS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """Snapshot of a histogram.

    Attributes:
        bounds: the upper bounds of the buckets, in seconds; the last bucket has no bound.
        counts: the number of values in each bucket, not cumulative; one more than there are bounds.
        total: the sum of all values, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)


class ConnectionRecord(NamedTuple):
    """Record of an ended connection.

    Attributes:
        service: the id of the service.
        peer: the client's address as text; empty if the log omits it.
        at: the time of the end, by the registry's clock.
        seconds: the duration.
        bytes_in, bytes_out: the bytes from and to the client; -1 if not counted.
        reason: the reason of the end.
    """

    service: str
    peer: str
    at: float
    seconds: float
    bytes_in: int
    bytes_out: int
    reason: str


class ServiceState(StrEnum):
    """State of a service in `svcctl status` and on the status page.

    Attributes:
        ON: it is served as the services file defines.
        PAUSED: it listens, but accepts no connections (`svcctl pause`).
        DISABLED: it does not listen (`svcctl disable`, disable=yes).
        BROKEN: it can't be served as the services file defines.
    """

    ON = "on"
    PAUSED = "paused"
    DISABLED = "disabled"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """Description of a service for displays.

    Attributes:
        id: the id of the service, such as `echo/tcp`.
        runs: the handler of the service.
        stream: whether it has connections; datagrams otherwise.
        spawned: whether each connection has a process.
        listed: whether the list of recent connections includes its connections; not if the log omits them, too.
        addresses: the listening addresses.
        description: the description in the services file; may be empty.
        max_connections: the limit on connections; None for no limit.
        expires: the time at which the first of its certificates expires, in seconds since 1970; None without TLS.
        problem: why it can't be served as the services file defines; empty if it can.
        warn_from: the time from which warnings of the expiry are due (tls_warn), in seconds since 1970; None without
            TLS.
        state: the state, without regard to a lost launcher.
    """

    id: str
    runs: str
    stream: bool = True
    spawned: bool = False
    listed: bool = True
    addresses: tuple[str, ...] = ()
    description: str = ""
    max_connections: int | None = None
    expires: float | None = None
    problem: str = ""
    warn_from: float | None = None
    state: ServiceState = ServiceState.ON


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """Snapshot of the counts of a service; see ServiceCounters."""

    about: ServiceInfo
    accepted: int = 0
    failures: int = 0
    failed_exits: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    datagrams: int = 0
    durations: HistogramSnapshot = HistogramSnapshot(DURATIONS, (0,) * (len(DURATIONS) + 1), 0.0)
    spawns: HistogramSnapshot = HistogramSnapshot(SPAWNS, (0,) * (len(SPAWNS) + 1), 0.0)
    children: int = 0
    exits: Mapping[str, int] = field(default_factory=dict)
    handshakes: Mapping[str, int] = field(default_factory=dict)
    handshakes_failed: Mapping[str, int] = field(default_factory=dict)
    restarts: int = 0
    #: Why the launcher can't serve; empty if it can.
    unavailable: str = ""

    @property
    def problem(self) -> str:
        """Why the service is not served as the services file defines; empty if it is."""
        return "" if self.about.state is ServiceState.DISABLED else self.about.problem or self.unavailable

    @property
    def state(self) -> ServiceState:
        """The state; a lost launcher makes it BROKEN."""
        return ServiceState.BROKEN if self.problem else self.about.state

    @property
    def active(self) -> int:
        """The number of open connections."""
        return self.accepted - sum(self.ended.values())


@dataclass(frozen=True, slots=True)
class DaemonSnapshot:
    """Snapshot of the state of the daemon.

    Attributes:
        version: the version of svcd.
        state: starting, ready or stopping.
        started: the time of the start, in seconds since 1970.
        uptime: the seconds since the start, by a clock that the time of day does not change.
        now: the time of day, in seconds since 1970.
        reloads_done, reloads_failed: the numbers of successful and failed reloads.
        config_seconds: the duration of the last reading, check and application of the services file.
        descriptors, descriptors_limit: the numbers of descriptors that connections use, and that they may use.
        lag: the histogram of the lag of the reactor's delayed calls.
        lag_last: the last lag, in seconds.
        cpu_seconds: the processor time of the daemon's process.
    """

    version: str
    state: str
    started: float
    uptime: float
    now: float = 0.0
    reloads_done: int = 0
    reloads_failed: int = 0
    config_seconds: float = 0.0
    descriptors: int = 0
    descriptors_limit: int = 0
    lag: HistogramSnapshot = HistogramSnapshot(LAGS, (0,) * (len(LAGS) + 1), 0.0)
    lag_last: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Snapshots of the daemon and of its services, in the order of the services file."""

    daemon: DaemonSnapshot
    services: tuple[ServiceSnapshot, ...] = ()


class CallLater(Protocol):
    """Type of a reactor's callLater."""

    def __call__(self, delay: float, callable: Callable[..., object], /) -> object:  # noqa: A002
        """Call a function after a delay in seconds."""
        ...


#: The numbers of arrivals and refusals in each interval, by service.
Series: TypeAlias = "Mapping[str, Sequence[tuple[int, int]]]"


class MetricsSource(Protocol):
    """Source of the daemon's counts, for displays."""

    @property
    def state(self) -> str:
        """Starting, ready or stopping."""
        ...

    def snapshot(self) -> Snapshot:
        """Return the current counts."""
        ...

    def recent(self) -> Sequence[tuple[float, ConnectionRecord]]:
        """Return the last ended connections, newest first, each with the seconds since its end."""
        ...

    def series(self) -> Series:
        """Return the samples of the last minutes, for charts."""
        ...

    def watch(self, call_later: CallLater) -> None:
        """Start sampling; each call requires an unwatch()."""
        ...

    def unwatch(self) -> None:
        """End a watch(); the last one drops the samples."""
        ...
