"""HTTP services with CGI programs: a service in the daemon that has a launcher as well."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from svcd.connections.cgi_processes import CgiProcesses
from svcd.supervisor.launch_rights import launcher_maker
from svcd.supervisor.launch_spec import launch_spec
from svcd.supervisor.running_service import Prepared, ServiceContext
from svcd.supervisor.stream_service import StreamService

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from svcd.config.service import Service
    from svcd.process.zygote_client import ZygoteClient
    from svcd.protocols.catalog import ServiceDependencies

__all__ = ["CgiService"]


class CgiService(StreamService):
    """An HTTP service with CGI programs."""

    def __init__(self, context: ServiceContext, service: Service, zygote_client: ZygoteClient | None) -> None:
        assert zygote_client is not None  # noqa: S101 - this service has a launcher
        self._spec = launch_spec(service, context.account)
        make_launcher_client = launcher_maker(context, service, self._spec, zygote_client)
        self._programs = CgiProcesses(service, context.connections, make_launcher_client)
        super().__init__(context, service, zygote_client)
        self.tracker.programs = self._programs.programs
        self._programs.ended = self.tracker.notify_if_empty

    def _dependencies(self, service: Service) -> ServiceDependencies:
        return replace(super()._dependencies(service), programs=self._programs)

    def _prepare_more(self, service: Service, zygote_client: ZygoteClient | None) -> Prepared:
        spec = launch_spec(service, self._context.account)
        others = super()._prepare_more(service, zygote_client)
        launcher_client = None
        if spec != self._spec:
            assert zygote_client is not None  # noqa: S101 - this service has a launcher
            launcher_client = launcher_maker(self._context, service, spec, zygote_client)(self._programs)

        def commit() -> None:
            others.commit()
            self._programs.service = service
            if launcher_client is not None:
                self._spec = spec
                self._programs.use_launcher_client(launcher_client)

        def discard() -> None:
            others.discard()
            if launcher_client is not None:
                launcher_client.stop()

        return Prepared(commit, discard)

    def restart(self) -> Deferred[dict[str, object]]:
        """Restart the service's launcher.

        Returns:
            The Deferred of LauncherReports.restart().
        """
        return self._programs.restart()

    def abort_programs(self) -> None:
        """End the CGI programs of the service."""
        self._programs.abort()

    def discard(self) -> None:
        """Release the resources of a service that will not run, its launcher client included."""
        super().discard()
        self._programs.stop()

    def finished(self) -> None:
        """Release the remaining resources, and stop the launcher."""
        super().finished()
        self._programs.stop()
