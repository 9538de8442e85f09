"""Stream services whose connections are handled by processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.service_websocket import ServiceWebSocket
from svcd.connections.spawned import SpawnedTracker
from svcd.supervisor.launch_rights import launcher_maker
from svcd.supervisor.launch_spec import launch_spec
from svcd.supervisor.listener import no_op
from svcd.supervisor.running_service import Prepared, ServiceContext
from svcd.supervisor.tracked_service import TrackedService, standing_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred

    from svcd.config.service import Service
    from svcd.process.zygote_client import ZygoteClient
    from svcd.sockets.listening import ListeningSocket
    from svcd.supervisor.listener import ServingPort
    from svcd.tls.service_tls import ServiceTls

__all__ = ["SpawnedService"]


class SpawnedService(TrackedService[SpawnedTracker]):
    """A stream service whose connections are handled by processes of their own."""

    _tls: ServiceTls

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:
        assert zygote_client is not None  # noqa: S101 - this service is spawned
        super().__init__(context, service, zygote_client)
        self._spec = launch_spec(service, context.account)
        launcher_client = launcher_maker(context, service, self._spec, zygote_client)
        service_admission = ServiceAdmission(context.connections, service)
        self._tls = self._make_tls(service, service_admission)
        self._websocket = ServiceWebSocket(context.reactor, service_admission)
        self._websocket.prepare(service)()
        self._use_tracker(
            SpawnedTracker(service, context.connections, service_admission, launcher_client, self._tls, self._websocket)
        )
        self.tracker.budget.evict_by(self._tls.evict)

    def port(self, opened: ListeningSocket, service: Service) -> ServingPort:
        """Return the port of a socket: it passes each connection to a process, or with wait=yes the socket itself."""
        if service.options.wait:
            # Imported late: few services have wait=yes.
            from svcd.connections.wait_port import WaitPort

            return WaitPort(self._context.reactor, opened.socket, self.tracker, self._context.socket_freed)
        return self._descriptor_port(opened, self.tracker.take, self.tracker.may_accept)

    def attach(self, port: ServingPort) -> Callable[[], None]:
        """Pause a port while the launch queue or the service is full; return a function that ends this."""
        leave = super().attach(port)
        leave_room = self.tracker.when_room(port.resume)

        def leave_both() -> None:
            leave()
            leave_room()

        return leave_both

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        spec = launch_spec(service, self._context.account)
        secure, speak = self._tls.prepare(service), self._websocket.prepare(service)
        if spec == self._spec:

            def keep() -> None:
                secure()
                speak()
                self._follow_hosts(self._retune_admission)

            return Prepared(keep, no_op)
        assert zygote_client is not None  # noqa: S101 - this service is spawned
        launcher_client = launcher_maker(self._context, service, spec, zygote_client)(self.tracker)

        def commit() -> None:
            secure()
            speak()
            self._spec = spec
            self.tracker.use_launcher_client(launcher_client)
            self.started()

        return Prepared(commit, launcher_client.stop)

    def can_become(self, service: Service) -> bool:
        """Return whether the ports can stay: wait= and proxy_protocol= are as before."""
        return super().can_become(service) and service.options.wait == self.service.options.wait

    def restart(self) -> Deferred[dict[str, object]]:
        """Restart the service's launcher.

        Returns:
            The Deferred of LauncherReports.restart().
        """
        return self.tracker.restart()

    def check_modules(self) -> None:
        """Log it if the module of a Python handler has changed on disk since its import."""
        self.tracker.launcher_client.check_module()

    def started(self) -> None:
        """Reserve the descriptors of the launcher, and allow it to start."""
        self._hold_descriptors(standing_descriptors(self.service))
        self._follow_hosts(self._retune_admission)
        self.tracker.start_early()

    def discard(self) -> None:
        """Release the resources of a service that will not run, its launcher client included."""
        super().discard()
        self.finished()

    def _retune_admission(self) -> None:
        self.tracker.service_admission.admission.retune(self._context.connections.rules(self.service))

    def finished(self) -> None:
        """Release the reserved descriptors, and stop the launcher."""
        self._hold_descriptors(0)
        self.tracker.launcher_client.stop()
