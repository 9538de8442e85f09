"""What others are told of the services that run: people who look, and tcpmux."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.figures import About
from svcd.model import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from svcd.supervisor.listeners import Listener
    from svcd.supervisor.running import Running
    from svcd.transport.proxied import Serve

__all__ = ["described", "muxed"]


def described(all_running: Iterable[Running], listeners: Iterable[Listener]) -> list[About]:
    """What people are told of services; of two with one name the later counts."""
    addresses: dict[str, list[str]] = {}
    for listener in listeners:
        addresses.setdefault(listener.endpoint.service.id, []).append(listener.opened.address)
    by_name = {running.service.id: running for running in all_running}
    return [_about(running, addresses.get(name, ())) for name, running in by_name.items()]


def _about(running: Running, addresses: Sequence[str]) -> About:
    service, tls = running.service, running.tls
    stream = service.net.shape is Shape.STREAM
    return About(
        id=service.id,
        runs=service.handler_text,
        stream=stream,
        spawned=service.spawned,
        # Who does not want connections in the log does not want them on a page.
        listed=bool(service.logged),
        addresses=tuple(addresses),
        description=service.options.description,
        most=service.options.instances if stream else None,
        expires=tls.held[0].expires if tls is not None else None,
    )


def muxed(listeners: Iterable[Listener]) -> dict[str, Serve]:
    """What tcpmux offers, by name in small letters."""
    offered: dict[str, Serve] = {}
    for listener in listeners:
        service = listener.endpoint.service
        if service.options.mux and listener.port is not None and hasattr(listener.port, "adopt"):
            offered.setdefault(service.name.lower(), listener.port.adopt)
    return offered
