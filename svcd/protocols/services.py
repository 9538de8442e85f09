"""Services: the list of the daemon's services, in the format of xinetd's built-in (xinetd.conf(5))."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.metrics.snapshot import ServiceState
from svcd.protocols.base import OneShotFactory, OneShotProtocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from svcd.metrics.snapshot import MetricsSource, ServiceInfo

__all__ = ["ServicesFactory", "ServicesProtocol"]


def _ports(service: ServiceInfo) -> list[str]:
    """Return the ports of a service, or the paths of its UNIX sockets, without duplicates."""
    names = (path if path.startswith(("/", "@")) else path.rpartition(":")[2] for path in service.addresses)
    return list(dict.fromkeys(names))


def _listing(metrics: MetricsSource) -> bytes:
    """Return a line `NAME PROTOCOL PORT` for each port of each service that is served, as in xinetd."""
    lines = [
        f"{name or '-'} {protocol} {port}\n"
        for each in metrics.snapshot().services
        if each.state in (ServiceState.ON, ServiceState.PAUSED)
        for name, _, protocol in [each.about.id.rpartition("/")]
        for port in _ports(each.about)
    ]
    return "".join(lines).encode()


class ServicesProtocol(OneShotProtocol):
    """A protocol that sends the list of services and closes the connection."""


class ServicesFactory(OneShotFactory):
    """A factory of ServicesProtocols.

    Args:
        metrics: the source of the list.
        clock: the reactor.
    """

    protocol = ServicesProtocol

    def __init__(self, metrics: MetricsSource, clock: IReactorTime) -> None:
        super().__init__(lambda: _listing(metrics), clock)
