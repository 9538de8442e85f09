"""The data of /status.json and of the page: a snapshot, the last minutes and the last connections, as JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svcd.metrics.registry import SAMPLE_SECONDS, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from svcd.metrics.snapshot import ConnectionRecord, MetricsSource, ServiceSnapshot

__all__ = ["status_data"]

#: The number of last samples that the current rate is computed from.
_RATE_SAMPLES = 3


def status_data(metrics: MetricsSource) -> dict[str, Any]:
    """Return the content of /status.json.

    Times are in seconds, sizes in bytes, rates in connections or datagrams a second.
    """
    snapshot = metrics.snapshot()
    series = metrics.series()
    daemon = snapshot.daemon
    services = [_service(each, series.get(each.about.id, ()), daemon.now) for each in snapshot.services]
    return {
        "version": daemon.version,
        "state": daemon.state,
        "started": daemon.started,
        "uptime": daemon.uptime,
        "descriptors": daemon.descriptors,
        "descriptors_limit": daemon.descriptors_limit,
        "lag": daemon.lag_last,
        "lag_mean": daemon.lag.total / (daemon.lag.count or 1),
        "cpu": daemon.cpu_seconds,
        "reloads": {"ok": daemon.reloads_done, "failed": daemon.reloads_failed},
        "config": daemon.config_seconds,
        "sample_seconds": SAMPLE_SECONDS,
        "samples": SAMPLES,
        "totals": _totals(services),
        "refused": _sums(services, "refused_by"),
        "ended": _sums(services, "ended_by"),
        "services": services,
        "recent": [_recent(ago, each) for ago, each in metrics.recent()],
    }


def _service(snapshot: ServiceSnapshot, series: Sequence[tuple[int, int]], now: float) -> dict[str, Any]:
    about = snapshot.about
    last = series[-_RATE_SAMPLES:]
    return {
        "id": about.id,
        "runs": about.runs,
        "stream": about.stream,
        "addresses": about.addresses,
        "description": about.description,
        "state": str(snapshot.state),
        "problem": snapshot.problem,
        "rate": sum(arrived for arrived, _ in last) / (SAMPLE_SECONDS * (len(last) or 1)),
        "open": snapshot.active,
        "limit": about.max_connections,
        "certificate": _certificate_state(snapshot, now),
        "certificate_expires": about.expires,
        "tls": _tls(snapshot),
        "handshakes": snapshot.handshakes,
        "handshakes_failed": snapshot.handshakes_failed,
        "accepted": snapshot.accepted + snapshot.datagrams,
        "refused": sum(snapshot.refused.values()),
        "refused_by": snapshot.refused,
        "failed": snapshot.failures,
        "failed_exits": snapshot.failed_exits,
        "exits": snapshot.exits,
        "ended_by": snapshot.ended,
        "in": snapshot.bytes_in,
        "out": snapshot.bytes_out,
        "children": snapshot.children,
        "restarts": snapshot.restarts,
        "arrivals": [arrived for arrived, _ in series],
        "refusals": [refused for _, refused in series],
    }


def _certificate_state(snapshot: ServiceSnapshot, now: float) -> str:
    """Return valid, expiring (within tls_warn) or expired; empty for a service without TLS."""
    expires, warn_from = snapshot.about.expires, snapshot.about.warn_from
    if expires is None:
        return ""
    if expires <= now:
        return "expired"
    return "expiring" if warn_from is not None and warn_from <= now else "valid"


def _tls(snapshot: ServiceSnapshot) -> str:
    """Return the number of handshakes for each version of TLS, as text; empty for a service without TLS."""
    if snapshot.about.expires is None:
        return ""
    counts = [*sorted(snapshot.handshakes.items(), reverse=True), ("failed", sum(snapshot.handshakes_failed.values()))]
    return "TLS" + "".join(f", {name.removeprefix('TLSv')}: {count}" for name, count in counts if count)


def _totals(services: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("rate", "open", "accepted", "refused", "failed", "failed_exits", "in", "out")
    totals = {"services": len(services), "broken": sum(each["state"] == "broken" for each in services)}
    totals |= {name: sum(each[name] for each in services) for name in names}
    return totals | {name: _added([each[name] for each in services]) for name in ("arrivals", "refusals")}


def _added(series: Sequence[Sequence[int]]) -> list[int]:
    """Return the sums of samples of the same time; the last sample of each series is the newest."""
    longest = max(map(len, series), default=0)
    return [sum(each[index] for each in series if -index <= len(each)) for index in range(-longest, 0)]


def _sums(services: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for service in services:
        for reason, count in service[name].items():
            sums[reason] = sums.get(reason, 0) + count
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def _recent(ago: float, recent: ConnectionRecord) -> dict[str, Any]:
    return {
        "service": recent.service,
        "peer": recent.peer,
        "ago": ago,
        "seconds": recent.seconds,
        "in": recent.bytes_in,
        "out": recent.bytes_out,
        "reason": recent.reason,
    }
