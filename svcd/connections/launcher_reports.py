"""LauncherReports: the part of a launcher's events that concerns its service, not one of its processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.config.process_options import OUTPUT_RATE
from svcd.errors import CommandError
from svcd.log.events import DROPPED, HANDLER_OUTPUT, MODULE_CHANGED, log_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.metrics.counters import ServiceCounters
    from svcd.process.launcher_client import LauncherClient

__all__ = ["LauncherReports"]


class LauncherReports:
    """Mixin of receivers of LauncherEvents.

    Attributes:
        service: the service.
        counters: its counters.
        launcher_client: the client of the launcher for new processes.
    """

    _log = Logger()
    service: Service
    counters: ServiceCounters
    launcher_client: LauncherClient

    def use_launcher_client(self, launcher_client: LauncherClient) -> None:
        """Use another launcher for new connections; the old launcher exits after its last handler."""
        before, self.launcher_client = self.launcher_client, launcher_client
        before.replace_by(launcher_client)

    def restart(self) -> Deferred[dict[str, object]]:
        """Start another launcher and use it once it is ready; the old launcher exits after its last handler.

        Returns:
            A Deferred with the id of the service and the pids of both launchers, 0 for none. It fails with a
            CommandError if the new launcher can't start, or if a reload has replaced the launcher meanwhile; then the
            service continues as before.
        """
        before, launcher_client = self.launcher_client, self.launcher_client.make_replacement()
        old = before.pid

        def ready(pid: int) -> dict[str, object]:
            if self.launcher_client is not before:
                launcher_client.stop()
                raise CommandError("a reload has replaced the launcher")
            self.use_launcher_client(launcher_client)
            return {"service": self.service.id, "pid": pid, "before": old}

        def failed(failure: Failure) -> Failure:
            launcher_client.stop()
            return failure

        return launcher_client.when_ready().addCallbacks(ready, failed)

    def log_output(self, text: bytes, known: Mapping[str, object]) -> None:
        """Log a line that a process wrote to its standard error, with what is known of the process."""
        line = text.decode(errors="backslashreplace")
        log_event(self._log, HANDLER_OUTPUT, service=self.service.id, text=line, **known)

    def dropped(self, lines: int, size: int) -> None:
        """Log that processes wrote more lines than stderr_rate allows; size is in bytes."""
        rule = "stderr_rate=" + OUTPUT_RATE.write(self.service.options.stderr_rate)
        log_event(self._log, DROPPED, service=self.service.id, lines=lines, bytes=size, rule=rule)

    def module_changed(self, module: str) -> None:
        """Log that a module that the launcher has imported has changed on disk."""
        text = f"module {module} changed on disk; restart its launcher with svcctl restart {self.service.id}"
        log_event(self._log, MODULE_CHANGED, service=self.service.id, text=text)

    def threads_stuck(self) -> None:
        """Replace a launcher with many threads that outlive their connections; they end with it."""
        # The reason of a failed restart is already logged.
        self.restart().addErrback(lambda failure: failure.trap(CommandError))

    def launcher_restarted(self) -> None:
        """Count a launcher that was started in place of a lost one."""
        self.counters.restarts += 1

    def unavailable(self, problem: str) -> None:
        """Record the reason why the launcher can't serve; an empty text if it can."""
        self.counters.unavailable = problem
