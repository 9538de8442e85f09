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
    yield Family(
        "svcd_build",
        MetricType.INFO,
        "Version of svcd.",
        [(labels(version=daemon.version), 1)],
    )
    yield Family("svcd_ready", MetricType.GAUGE, "1 if the daemon serves, 0 while it starts or stops.",
                 [("", int(daemon.state == "ready"))])  # fmt: skip
    yield Family(
        "svcd_uptime_seconds",
        MetricType.GAUGE,
        "Time since the start of the daemon.",
        [("", round(daemon.uptime, 3))],
        "seconds",
    )
    yield Family("process_start_time_seconds", MetricType.GAUGE, "Start time of the daemon, in seconds since 1970.",
                 [("", daemon.started)], "seconds")  # fmt: skip
    yield Family("process_cpu_seconds", MetricType.COUNTER, "Processor time of the daemon itself.",
                 [("", round(daemon.cpu_seconds, 3))], "seconds")  # fmt: skip
    yield Family("svcd_reloads", MetricType.COUNTER, "Reloads of the services file, by result.",
                 [(labels(result="ok"), daemon.reloads_done),
                  (labels(result="failed"), daemon.reloads_failed)])  # fmt: skip
    yield Family("svcd_config_seconds", MetricType.GAUGE,
                 "Time to read, check and apply the services file.",
                 [("", daemon.config_seconds)], "seconds")  # fmt: skip
    yield Family("svcd_descriptors_used", MetricType.GAUGE,
                 "File descriptors used by connections, without listening sockets and files of the daemon.",
                 [("", daemon.descriptors)])  # fmt: skip
    yield Family("svcd_descriptors_limit", MetricType.GAUGE, "Maximum number of descriptors of connections.",
                 [("", daemon.descriptors_limit)])  # fmt: skip
    yield Family("svcd_reactor_lag_seconds", MetricType.HISTOGRAM,
                 "Delay of due calls of the reactor, sampled.",
                 [("", _buckets(daemon.lag))], "seconds")  # fmt: skip


def _services(services: _Labelled) -> Iterator[Family]:
    about = [(f"{label},{labels(runs=service.about.runs)}", 1) for label, service in services]
    yield Family("svcd_service", MetricType.INFO, "Handler of the service.", about)
    yield Family("svcd_service_up", MetricType.GAUGE, "1 if the service is served as configured, 0 if it is broken.",
                 [(label, int(not service.problem)) for label, service in services
                  if service.state is not ServiceState.DISABLED])  # fmt: skip
    yield Family("svcd_tls_certificate_expiry_seconds", MetricType.GAUGE,
                 "Expiry time of the first certificate of a service with TLS, in seconds since 1970.",
                 [(label, service.about.expires) for label, service in services
                  if service.about.expires is not None], "seconds")  # fmt: skip
    yield Family("svcd_refused", MetricType.COUNTER, "Refused connections and unanswered datagrams, by reason.",
                 _by(services, "reason", lambda service: service.refused))  # fmt: skip
    yield Family("svcd_received_bytes", MetricType.COUNTER, "Bytes received from clients, including open connections.",
                 [(label, service.bytes_in) for label, service in services], "bytes")  # fmt: skip
    yield Family("svcd_sent_bytes", MetricType.COUNTER, "Bytes sent to clients, including open connections.",
                 [(label, service.bytes_out) for label, service in services], "bytes")  # fmt: skip


def _connections(services: _Labelled) -> Iterator[Family]:
    yield Family("svcd_connections_accepted", MetricType.COUNTER, "Admitted connections.",
                 [(label, service.accepted) for label, service in services])  # fmt: skip
    yield Family("svcd_connections_active", MetricType.GAUGE, "Connections open now.",
                 [(label, service.active) for label, service in services])  # fmt: skip
    yield Family("svcd_connections_limit", MetricType.GAUGE, "Maximum number of open connections, if limited.",
                 [(label, service.about.max_connections) for label, service in services
                  if service.about.max_connections is not None])  # fmt: skip
    yield Family("svcd_connections_failed", MetricType.COUNTER,
                 "Connections that could not be served, that an exception has ended, or whose process failed.",
                 [(label, service.failures + service.failed_exits) for label, service in services])  # fmt: skip
    yield Family("svcd_connections_ended", MetricType.COUNTER, "Ended connections, by reason.",
                 _by(services, "reason", lambda service: service.ended))  # fmt: skip
    yield Family("svcd_tls_handshakes", MetricType.COUNTER, "Completed TLS handshakes, by version.",
                 _by(services, "version", lambda service: service.handshakes))  # fmt: skip
    yield Family("svcd_tls_handshakes_failed", MetricType.COUNTER, "Failed TLS handshakes, by reason.",
                 _by(services, "reason", lambda service: service.handshakes_failed))  # fmt: skip
    yield Family("svcd_connection_duration_seconds", MetricType.HISTOGRAM, "Duration of connections.",
                 [(label, _buckets(service.durations)) for label, service in services], "seconds")  # fmt: skip


def _children(services: _Labelled) -> Iterator[Family]:
    yield Family("svcd_spawn_latency_seconds", MetricType.HISTOGRAM, "Time from accept to the start of the process.",
                 [(label, _buckets(service.spawns)) for label, service in services], "seconds")  # fmt: skip
    yield Family("svcd_children_active", MetricType.GAUGE, "Running processes.",
                 [(label, service.children) for label, service in services])  # fmt: skip
    yield Family("svcd_children_exited", MetricType.COUNTER, "Ended processes, by exit status or signal.",
                 _by(services, "exit", lambda service: service.exits))  # fmt: skip
    yield Family("svcd_launcher_restarts", MetricType.COUNTER, "Launchers started to replace lost ones.",
                 [(label, service.restarts) for label, service in services])  # fmt: skip
