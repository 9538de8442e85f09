"""The class of a running service, by what serves it: a factory, a process, another service (tcpmux) or datagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.model import SocketType

if TYPE_CHECKING:
    from svcd.config.service import Service
    from svcd.process.zygote_client import ZygoteClient
    from svcd.supervisor.running_service import RunningService, ServiceContext

__all__ = ["create_service", "service_type"]


def service_type(service: Service) -> type[RunningService]:
    """Return the class that serves a service.

    Each class is imported when the first service needs it: an echo service needs no code of processes, tcpmux or UDP.
    """
    if service.spawned:
        from svcd.supervisor.spawned_service import SpawnedService

        return SpawnedService
    if service.builtin.multiplexer:
        from svcd.supervisor.tcpmux_service import TcpmuxService

        return TcpmuxService
    if service.net.shape is SocketType.DATAGRAM:
        from svcd.supervisor.datagram_service import DatagramService

        return DatagramService
    if service.launches:
        from svcd.supervisor.cgi_service import CgiService

        return CgiService
    from svcd.supervisor.stream_service import StreamService

    return StreamService


def create_service(context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> RunningService:
    """Create the running service of a configured one.

    Args:
        context: the objects that all services share.
        service: the service.
        zygote_client: takes in the launcher of a spawned service; None if no service of the change is spawned.

    Raises:
        ConfigError: the factory of the service can't be created.
        KeyError: passwd(5) or group(5) no longer has a user or group of the options.
        OSError: a file that the service needs can't be read.
    """
    return service_type(service)(context, service, zygote_client)
