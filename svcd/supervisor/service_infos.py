"""Descriptions of running services for the status page, and the services that tcpmux offers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from svcd.connections.access_rules import instances_of
from svcd.metrics.snapshot import ServiceInfo, ServiceState
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svcd.config.service import Service
    from svcd.interfaces import ConnectionHandler
    from svcd.supervisor.broken_services import BrokenService
    from svcd.supervisor.listener import Listener
    from svcd.supervisor.running_service import RunningService
    from svcd.tls.certificates import ServerTls

__all__ = ["service_infos", "tcpmux_services"]


def service_infos(
    all_running: Iterable[RunningService],
    listeners: Iterable[Listener],
    broken: Iterable[BrokenService],
    disabled: Iterable[Service],
) -> list[ServiceInfo]:
    """Return the descriptions of services.

    Args:
        all_running: the running services; of two with the same id the later one is described.
        listeners: the listeners of all services.
        broken: the broken services; those that do not run come after the running ones.
        disabled: the disabled services; those without connections come last.
    """
    addresses: dict[str, list[str]] = {}
    paused = set()
    for listener in listeners:
        addresses.setdefault(listener.endpoint.service.id, []).append(listener.opened.address)
        if listener.paused:
            paused.add(listener.endpoint.service.id)
    by_name = {running.service.id: _about(running.service, running.tls) for running in all_running}
    for each in broken:
        about = by_name.get(each.service.id) or _about(each.service, None)
        addresses.setdefault(each.service.id, [endpoint.address for endpoint in each.endpoints])
        by_name[each.service.id] = replace(about, problem=each.reason, state=ServiceState.BROKEN)
    for service in disabled:
        about = by_name.get(service.id) or _about(service, None)
        by_name[service.id] = replace(about, state=ServiceState.DISABLED)
    for name in paused:
        if by_name[name].state is ServiceState.ON:
            by_name[name] = replace(by_name[name], state=ServiceState.PAUSED)
    return [replace(about, addresses=tuple(addresses.get(name, ()))) for name, about in by_name.items()]


def _about(service: Service, tls: ServerTls | None) -> ServiceInfo:
    stream = service.net.shape is SocketType.STREAM
    return ServiceInfo(
        id=service.id,
        runs=service.handler_text,
        stream=stream,
        spawned=service.launches,
        # Connections that are not logged are not listed on the status page either.
        listed=bool(service.logged),
        description=service.options.description,
        max_connections=instances_of(service) if stream else None,
        expires=tls.certificates[0].expires if tls is not None else None,
        warn_from=tls.certificates[0].warn_from if tls is not None else None,
    )


def tcpmux_services(listeners: Iterable[Listener]) -> dict[str, ConnectionHandler]:
    """Return the handlers of the services that tcpmux offers, by name in lower case."""
    offered: dict[str, ConnectionHandler] = {}
    for listener in listeners:
        service = listener.endpoint.service
        if service.options.mux and listener.port is not None and hasattr(listener.port, "adopt"):
            offered.setdefault(service.name.lower(), listener.port.adopt)
    return offered
