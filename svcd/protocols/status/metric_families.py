"""The metric families, filled from a snapshot.

The label `service` is the id of a service; a disabled service has points until its last connection ends. Reasons and
exit codes are labels, too; a point for one exists from its first occurrence. Datagram services have no points in the
families of connections, and services without processes none in the families of children.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from svcd.metrics.snapshot import ServiceState
from svcd.wire.openmetrics import Buckets, Family, MetricType, labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svcd.metrics.snapshot import DaemonSnapshot, HistogramSnapshot, ServiceSnapshot, Snapshot
    from svcd.wire.openmetrics import Point

__all__ = ["families"]

_Labelled: TypeAlias = "Sequence[tuple[str, ServiceSnapshot]]"


def _buckets(distribution: HistogramSnapshot) -> Buckets:
    return Buckets(distribution.bounds, distribution.counts, distribution.total)


def _by(services: _Labelled, name: str, counts: Callable[[ServiceSnapshot], Mapping[str, int]]) -> list[Point]:
    """Return points with one more label."""
    return [
        (f"{label},{labels(**{name: value})}", count)
        for label, service in services
        for value, count in sorted(counts(service).items())
    ]


def families(snapshot: Snapshot) -> Iterator[Family]:
    """Yield all metric families."""
    yield from _daemon(snapshot.daemon)
    labelled = [
        (labels(service=service.about.id), service)
        for service in snapshot.services
        if service.state is not ServiceState.DISABLED or service.active
    ]
    yield from _services(labelled)
    yield from _connections([each for each in labelled if each[1].about.stream])
    datagrams = [(label, service.datagrams) for label, service in labelled if not service.about.stream]
    yield Family("svcd_datagrams_received", MetricType.COUNTER, "Datagrams received.", datagrams)
    yield from _children([each for each in labelled if each[1].about.spawned])


def _daemon(daemon: DaemonSnapshot) -> Iterator[Family]:
    yield Family("svcd_build", MetricType.INFO, "The program that runs.", [(labels(version=daemon.version), 1)])
    yield Family("svcd_ready", MetricType.GAUGE, "Whether the daemon serves: not while it starts or stops.",
                 [("", int(daemon.state == "ready"))])  # fmt: skip
    yield Family(
        "svcd_uptime_seconds", MetricType.GAUGE, "How long it has run.", [("", round(daemon.uptime, 3))], "seconds"
    )
    yield Family("process_start_time_seconds", MetricType.GAUGE, "When it was started, in seconds since 1970.",
                 [("", daemon.started)], "seconds")  # fmt: skip
    yield Family("process_cpu_seconds", MetricType.COUNTER, "Processor time of the daemon itself.",
                 [("", round(daemon.cpu_seconds, 3))], "seconds")  # fmt: skip
    yield Family("svcd_reloads", MetricType.COUNTER, "How often the services file was read again, by what came of it.",
                 [(labels(result="ok"), daemon.reloads_done),
                  (labels(result="failed"), daemon.reloads_failed)])  # fmt: skip
    yield Family("svcd_config_seconds", MetricType.GAUGE,
                 "How long it took to read, check and apply the services file.",
                 [("", daemon.config_seconds)], "seconds")  # fmt: skip
    yield Family("svcd_descriptors_used", MetricType.GAUGE, "File descriptors used by connections.",
                 [("", daemon.descriptors)])  # fmt: skip
    yield Family("svcd_descriptors_limit", MetricType.GAUGE, "How many connections may use; more wait to be accepted.",
                 [("", daemon.descriptors_limit)])  # fmt: skip
    yield Family("svcd_reactor_lag_seconds", MetricType.HISTOGRAM,
                 "How late the reactor called what was due, by samples.",
                 [("", _buckets(daemon.lag))], "seconds")  # fmt: skip


def _services(services: _Labelled) -> Iterator[Family]:
    about = [(f"{label},{labels(runs=service.about.runs)}", 1) for label, service in services]
    yield Family("svcd_service", MetricType.INFO, "What answers.", about)
    yield Family("svcd_service_up", MetricType.GAUGE, "1 if the service is served as the file says, 0 if it is broken.",
                 [(label, int(not service.problem)) for label, service in services
                  if service.state is not ServiceState.DISABLED])  # fmt: skip
    yield Family("svcd_tls_certificate_expiry_seconds", MetricType.GAUGE,
                 "When the first certificate of a service with TLS expires, in seconds since 1970.",
                 [(label, service.about.expires) for label, service in services
                  if service.about.expires is not None], "seconds")  # fmt: skip
    yield Family("svcd_refused", MetricType.COUNTER, "Connections not let in, and datagrams not answered, by reason.",
                 _by(services, "reason", lambda service: service.refused))  # fmt: skip
    yield Family("svcd_received_bytes", MetricType.COUNTER, "Received from clients, by connections still open as well.",
                 [(label, service.bytes_in) for label, service in services], "bytes")  # fmt: skip
    yield Family("svcd_sent_bytes", MetricType.COUNTER, "Sent to clients, by connections still open as well.",
                 [(label, service.bytes_out) for label, service in services], "bytes")  # fmt: skip


def _connections(services: _Labelled) -> Iterator[Family]:
    yield Family("svcd_connections_accepted", MetricType.COUNTER, "Connections let in.",
                 [(label, service.accepted) for label, service in services])  # fmt: skip
    yield Family("svcd_connections_active", MetricType.GAUGE, "Connections open now.",
                 [(label, service.active) for label, service in services])  # fmt: skip
    yield Family("svcd_connections_limit", MetricType.GAUGE, "How many may be open, for services that have a limit.",
                 [(label, service.about.max_connections) for label, service in services
                  if service.about.max_connections is not None])  # fmt: skip
    yield Family("svcd_connections_failed", MetricType.COUNTER,
                 "Connections that could not be served, or whose process failed.",
                 [(label, service.failures + service.failed_exits) for label, service in services])  # fmt: skip
    yield Family("svcd_connections_ended", MetricType.COUNTER, "Connections that are over, by reason.",
                 _by(services, "reason", lambda service: service.ended))  # fmt: skip
    yield Family("svcd_tls_handshakes", MetricType.COUNTER, "TLS handshakes done, by version.",
                 _by(services, "version", lambda service: service.handshakes))  # fmt: skip
    yield Family("svcd_tls_handshakes_failed", MetricType.COUNTER, "TLS handshakes that were not, by reason.",
                 _by(services, "reason", lambda service: service.handshakes_failed))  # fmt: skip
    yield Family("svcd_connection_duration_seconds", MetricType.HISTOGRAM, "How long connections lasted.",
                 [(label, _buckets(service.durations)) for label, service in services], "seconds")  # fmt: skip


def _children(services: _Labelled) -> Iterator[Family]:
    yield Family("svcd_spawn_latency_seconds", MetricType.HISTOGRAM, "From a connection's accept to its process.",
                 [(label, _buckets(service.spawns)) for label, service in services], "seconds")  # fmt: skip
    yield Family("svcd_children_active", MetricType.GAUGE, "Processes that run.",
                 [(label, service.children) for label, service in services])  # fmt: skip
    yield Family("svcd_children_exited", MetricType.COUNTER, "Processes that have ended, by exit status or signal.",
                 _by(services, "exit", lambda service: service.exits))  # fmt: skip
    yield Family("svcd_launcher_restarts", MetricType.COUNTER, "Launchers started in place of a lost one.",
                 [(label, service.restarts) for label, service in services])  # fmt: skip
