"""The tcpmux service (RFC 1078), which passes its connections on to other services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.tcpmux import TcpmuxTracker
from svcd.supervisor.tracked_service import TrackedService

if TYPE_CHECKING:
    from svcd.config.service import Service
    from svcd.process.zygote_client import ZygoteClient
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.listener import ServingPort
    from svcd.supervisor.running_service import ServiceContext

__all__ = ["TcpmuxService"]


class TcpmuxService(TrackedService[TcpmuxTracker]):
    """The tcpmux service: its clients name a service, which takes over the connection."""

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:
        super().__init__(context, service, zygote_client)
        service_admission = ServiceAdmission(context.connections, service)
        self._use_tracker(TcpmuxTracker(service, context.connections, service_admission, context.tcpmux_services))

    def close(self) -> None:
        """Keep the offered services for the connected clients; the listeners are about to be closed."""
        super().close()
        self.tracker.close()

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:  # noqa: ARG002 - as all
        """Return the port of a socket; it passes descriptors of connections to the tracker."""
        return self._descriptor_port(opened, self.tracker.take, self.tracker.may_accept)
