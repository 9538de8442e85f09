"""The daemon: the top service of twistd, which reports failures to start and handles signals."""

from __future__ import annotations

import atexit
import gc
import os
import signal
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from svcd.daemon.later_imports import SECONDS, end_imports, import_rest
from svcd.daemon.stop_deadline import StopDeadline
from svcd.errors import ConfigError, ListenErrors, StartFailure
from svcd.log.events import PROBLEM
from svcd.net.threads import call_in_daemon_thread
from svcd.process.credentials import hide_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    from twisted.internet.defer import Deferred

    from svcd.daemon.twistd import Twistd
    from svcd.log.setup import LogSetup
    from svcd.supervisor.reload import Reloader
    from svcd.supervisor.supervisor import Supervisor
    from svcd.upgrade.channel import OldDaemon

__all__ = ["Daemon", "not_started"]

#: The threshold of new objects for a garbage collection; connections leave few reference cycles.
_GC_OBJECTS = 20_000
#: Time limits of a stop in seconds: in addition to the longest shutdown_timeout, and after a second request to stop.
_STOP_SECONDS = 2.0
_SECOND_STOP_SECONDS = 1.0


class Daemon(MultiService):
    """Top service. It reports each failure to start in a line, with an exit status, and stops gracefully on signals."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,  # noqa: ANN401 - several interfaces
        supervisor: Supervisor,
        reloader: Reloader,
        log_output: LogSetup,
        twistd: Twistd,
        old_daemon: OldDaemon | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._supervisor = supervisor
        #: Called once, when the services are served.
        self.serving: Callable[[], object] | None = None
        self._reloader = reloader
        self._log_output = log_output
        self._twistd = twistd
        self._old_daemon = old_daemon
        self._stopping = False
        self._deadline = StopDeadline(self._report_forced_end)
        # Set by the signal handler, so that a second signal counts even if the reactor never runs the first one's call.
        self._stop_requested = False
        supervisor.setServiceParent(self)  # type: ignore[no-untyped-call]

    def setServiceParent(self, parent: Any) -> None:  # noqa: ANN401 - an application, or a collection
        """Set the parent; give the application the log observer, which twistd takes from it."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if isinstance(parent, Componentized):
            observer = self._log_output.observer()
            if observer is not None:
                parent.setComponent(ILogObserver, observer)

    def privilegedStartService(self) -> None:
        """Open the sockets.

        Raises:
            StartFailure: sockets can't be opened, or services can't be served; each reason was reported.
        """
        if self._old_daemon is not None:
            self._old_daemon.send_pid()
            self._supervisor.store.shared = True
        try:
            super().privilegedStartService()  # type: ignore[no-untyped-call]
        except (ConfigError, ListenErrors) as errors:
            failure = not_started(errors)
        except OSError as error:
            failure = StartFailure(os.EX_OSERR, f"can't start: {error}")
        else:
            return
        self._log_output.report_start_failure(failure)
        raise failure

    def startService(self) -> None:
        """Start to serve when the reactor runs."""
        # Handlers may run as the daemon's own user. setuid(2) resets this attribute, so it is set after that.
        hide_memory()
        self._log_output.start_buffering(self._reactor.callLater, self._reactor.callFromThread)
        self._twistd.hold_status_pipe()
        # The reactor sets its own signal handlers when it starts. A signal may be sent as soon as the daemon reports
        # that it is ready, so the daemon's handlers must be set before.
        self._reactor.callWhenRunning(self._running)

    def stopService(self) -> Deferred[object]:
        """Stop everything, and write the rest of the log.

        Returns:
            A Deferred that fires when the process may end.
        """
        stopped: Deferred[object] = super().stopService()  # type: ignore[no-untyped-call]
        return stopped.addBoth(self._finish_log)

    def _finish_log(self, result: object) -> object:
        self._log_output.finish()
        return result

    def _running(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        if self._old_daemon is None:
            self._serve()
        else:
            self._old_daemon.send_ready(self._reactor, self._faults(), self._take_over, self._old_daemon_lost)

    def _take_over(self, held: Mapping[int, int]) -> None:
        """Start to serve after the old daemon has stopped accepting.

        Args:
            held: the pids of processes that hold sockets, by inode; their sockets are served after their exit.
        """
        assert self._old_daemon is not None  # noqa: S101 - it has called this
        self._supervisor.store.stop_sharing()
        unserved = self._supervisor.hold(held)
        self._serve()
        self._twistd.take_over()
        self._old_daemon.send_serving(unserved)

    def _faults(self) -> list[str]:
        return [str(error) for each in self._supervisor.broken for error in each.errors]

    def _old_daemon_lost(self) -> None:
        """Take over although the old daemon was lost: the sockets are here."""
        self._log.warn("the old daemon has ended before the new daemon was ready; the new daemon takes over")
        self._take_over({})

    def _serve(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        # Present objects are permanent; scanning them in each collection would cost connections some percent of speed.
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS)
        # The plugin has disabled it for the start.
        gc.enable()
        atexit.register(end_imports)
        self._reactor.callLater(SECONDS, call_in_daemon_thread, self._reactor, import_rest)
        self._twistd.release_status_pipe()
        if self.serving is not None:
            self.serving()

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGHUP:
            self._limit_stop()
        self._reactor.callFromThread(self._reloader.on_signal if number == signal.SIGHUP else self._stop)

    def _limit_stop(self) -> None:
        """Set the time limit of a stop, which does not depend on the reactor and its threads."""
        seconds = _SECOND_STOP_SECONDS if self._stop_requested else self._supervisor.shutdown_seconds + _STOP_SECONDS
        self._stop_requested = True
        self._deadline.start(seconds)

    def _report_forced_end(self, running: str) -> None:
        """Log why the process exits before its stop is complete. Called in a thread that the process does not join."""
        # twistd may have removed its observer already, so this bypasses twisted.logger.
        text = f"the stop takes too long, so the process ends; still running: {running}"
        self._log_output.log_writer.record_here(PROBLEM, {"text": text})
        self._twistd.remove_pid_file()

    def _stop(self) -> None:
        if not self._stop_requested:
            self._limit_stop()
        if self._stopping:
            self._supervisor.abort_connections()
        else:
            self._stopping = True
            self._reactor.stop()

    def stop(self, drain: bool) -> None:
        """Stop as after a signal; with drain, stop listening now and stop after the last connection has ended."""
        if not drain:
            # After the answer to the command that requested it.
            self._reactor.callLater(0, self._stop)
            return
        self._supervisor.stop_listening()
        self._supervisor.when_empty(lambda: None if self._stopping else self._stop())


def not_started(errors: ConfigError | ListenErrors) -> StartFailure:
    """Return the exception to raise if the daemon does not start, with a line for each mistake."""
    lines = str(errors).splitlines()
    return StartFailure(errors.exit_code, lines[0], lines)
