"""The launcher of a service: receives connections, starts a handler for each with its credentials, reports its exit."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import socket
import sys
import time
from signal import SIGKILL
from typing import TYPE_CHECKING, Protocol

from svcd.process.cgi_programs import CgiRunner
from svcd.process.connection_closes import CloseReports
from svcd.process.connection_copies import ConnectionCopies
from svcd.process.credentials import apply_credentials, apply_limits, signal_at_parent_end
from svcd.process.messages import (
    FD_STRUCT,
    MAX_FDS,
    MAX_PACKET,
    MAX_REASON,
    Changed,
    CheckModule,
    Connection,
    Ended,
    Failed,
    Idle,
    MessageWriter,
    Ready,
    Signal,
    Started,
    Starting,
    pack,
    parse,
    unpack_fds,
)
from svcd.process.module_files import ModuleFiles
from svcd.process.programs import ProgramRunner
from svcd.process.python_handlers import ForkRunner, ThreadRunner, import_handler
from svcd.process.signals import ChildWatch, reap_children
from svcd.process.stderr import OutputLimit, StderrSplitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.process.messages import Message
    from svcd.process.spec import LaunchSpec

__all__ = ["Launcher", "serve"]

#: Time that the rest of a process group may run after a signal has ended its leader, in seconds.
_KILL_DELAY = 2.0
#: Arguments and result of recvmsg(2), as plain numbers: the operators of IntFlag take longer than the system call.
_RIGHTS_SPACE = socket.CMSG_SPACE(MAX_FDS * FD_STRUCT.size)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_TRUNCATED = int(socket.MSG_CTRUNC)
#: Number of messages read before exited handlers are reaped.
_BATCH = 32


class _HandlerRunner(Protocol):
    def idle_since(self) -> float:
        """Return when the last handler that is not a process ended, by time.monotonic(); infinity while one runs."""

    def start(self, connection_id: int, environment: bytes, fds: tuple[int, ...], stderr: int, /) -> int:
        """Start a handler and return its pid; the descriptors are those of the Connection message, borrowed."""


def _import(spec: LaunchSpec) -> Callable[..., object]:
    """Import the handler of a service; the process is killed if its parent, the zygote, ends meanwhile.

    An import may never end, and the launcher does not notice the end of its socket before that.

    Raises:
        ImportError: the module can't be imported, or lacks the handler.
    """
    parent = os.getppid()
    signal_at_parent_end(SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    try:
        return import_handler(spec.handler, spec.path)
    finally:
        signal_at_parent_end(0)


def serve(spec: LaunchSpec, control: socket.socket) -> int:
    """Run the launcher of a service until the daemon closes its socket.

    Returns:
        The exit status: 0, or 78 (sysexits(3) EX_CONFIG) if it could not start; the reason was sent to the daemon.
    """
    try:
        apply_credentials(spec.identity)
        if spec.handler:
            # The module gets the same environment as a program.
            os.environ.clear()
            os.environ.update(spec.environment)
            if isinstance(sys.stdout, io.TextIOWrapper):
                # Standard output goes to the log, line by line.
                sys.stdout.reconfigure(line_buffering=True)
        handler = _import(spec) if spec.handler else None
    except (OSError, ImportError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        control.send(pack(Ready(os.fsencode(text)[:MAX_REASON] or b"no reason was given")))
        return os.EX_CONFIG
    modules = ModuleFiles(spec.handler, spec.own_path) if spec.handler else None
    launcher = Launcher(spec, control, modules)
    if handler is None:
        launcher.run(CgiRunner(spec) if spec.cgi else ProgramRunner(spec))
    elif spec.threads:
        apply_limits(spec.identity.handler_limits)
        threads = ThreadRunner(handler, launcher.writer, time.monotonic, counts=spec.hold)
        launcher.run(threads)
        threads.wait()
    else:
        launcher.run(ForkRunner(handler, spec, launcher.close_in_child, launcher.close_reports))
    return os.EX_OK


class Launcher:
    """Starts and reaps the handlers of a service.

    Args:
        spec: the service.
        control: the socket to the daemon.
        modules: the files of a Python handler's modules.

    Attributes:
        writer: sends messages to the daemon.
        close_reports: receives reports of Python handlers in processes that close their connections; None if not
            needed.
    """

    def __init__(self, spec: LaunchSpec, control: socket.socket, modules: ModuleFiles | None = None) -> None:
        self._control = control
        limit = OutputLimit(spec.stderr_lines, spec.stderr_bytes, time.monotonic) if spec.stderr_lines else None
        self.writer = MessageWriter(control, limit, time.monotonic)
        self._send, self._queue = self.writer.send, self.writer.queue
        self._modules = modules
        self._idle_seconds = spec.idle
        self._idle_at: float | None = None
        self._idle_reported = False
        self._threads = spec.threads
        self._announces = not (spec.threads or spec.cgi)
        # The output of a Python handler always goes to the log: its client has the socket.
        self._log_stderr = spec.log_stderr or bool(spec.handler)
        self._hold = spec.hold
        self._watch = ChildWatch()
        self._poll = select.poll()
        self._connection_ids: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._copies = ConnectionCopies(time.monotonic)
        self.close_reports = CloseReports() if spec.hold and spec.handler and not spec.threads else None
        if self.close_reports is not None:
            self._poll.register(self.close_reports, select.POLLIN)
        self._pipes: dict[int, tuple[int, StderrSplitter]] = {}
        self._pipe_fds: dict[int, int] = {}
        self._terminated: set[int] = set()
        self._leftover_groups: dict[int, float] = {}
        self._daemon_connected = True

    def close_in_child(self) -> None:
        """Close the launcher's descriptors in a handler's process, but nothing that the handler's module has opened."""
        self._control.close()
        self._watch.close()
        self._copies.close()
        for fd in self._pipes:
            os.close(fd)

    def run(self, runner: _HandlerRunner) -> None:
        """Serve until the daemon is gone, and then as long as there is handler output or a leftover process group.

        Handlers may outlive the launcher.
        """
        if self._threads:
            self._capture_own_output()
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(self._watch, select.POLLIN)
        self._send(Ready())
        control, watch = self._control.fileno(), self._watch.fileno()
        while self._daemon_connected or self._leftover_groups or (self._pipes and not self._threads):
            ready = [fd for fd, _ in self._poll.poll(self._timeout(runner))]
            for fd in ready:
                if fd in self._pipes:
                    self._read_pipe(fd)
            if watch in ready:
                self._watch.clear()
                self._reap()
            if control in ready:
                self._read_orders(runner)
            if self._leftover_groups:
                self._kill_leftover_groups()
            self._check_copies()
            if self.writer.due is not None:
                self.writer.send_dropped()
            self.writer.flush()
        if self._threads:
            self._discard_own_output()

    def _capture_own_output(self) -> None:
        """Redirect standard output and error, which threads share, to the log; such lines have no connection."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        self._add_pipe(reading, 0)

    def _discard_own_output(self) -> None:
        """Redirect standard output and error to /dev/null: without a daemon threads must not block on them."""
        devnull = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        for reading in self._pipes:
            os.close(reading)

    def _add_pipe(self, reading: int, connection_id: int) -> None:
        os.set_blocking(reading, False)
        self._pipes[reading] = connection_id, StderrSplitter()
        self._pipe_fds[connection_id] = reading
        self._poll.register(reading, select.POLLIN)

    def _check_copies(self) -> None:
        if self.close_reports is not None:
            for connection_id, closed in self.close_reports.read():
                self._copies.handler_left(connection_id, closed=closed)
        self._copies.check()

    def _read_orders(self, runner: _HandlerRunner) -> None:
        for _ in range(_BATCH):
            try:
                packet, rights, flags, _ = self._control.recvmsg(MAX_PACKET, _RIGHTS_SPACE, _RECEIVE_FLAGS)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                self._daemon_connected = False
                self._poll.unregister(self._control)
                return
            self._idle_reported = False
            fds = unpack_fds(rights) if rights else ()
            if flags & _TRUNCATED:
                # The kernel drops descriptors beyond this process's limit.
                while fds:
                    os.close(fds[0])
                    fds = fds[1:]
            self._handle_order(runner, parse(packet), fds)

    def _handle_order(self, runner: _HandlerRunner, order: Message, fds: tuple[int, ...]) -> None:
        if isinstance(order, Connection):
            if fds:
                self._start(runner, order, fds)
            else:
                self._send(Failed(order.connection_id, errno.EMFILE))
        elif isinstance(order, Signal) and isinstance(runner, ThreadRunner):
            if order.signal == SIGKILL:
                runner.abandon(order.connection_id)
            else:
                runner.shutdown(order.connection_id)
        elif isinstance(order, Signal):
            self._signal(order)
        elif isinstance(order, CheckModule) and self._modules is not None:
            # The daemon has read its services file again, and the time zone as well.
            time.tzset()
            changed = self._modules.changed()
            if changed:
                self._send(Changed(changed.encode()[:MAX_REASON]))

    def _start(self, runner: _HandlerRunner, order: Connection, fds: tuple[int, ...]) -> None:
        if self._announces:
            # If this launcher is killed in between, the next launcher must not start a second handler.
            self._queue(Starting(order.connection_id))
            self.writer.flush()
        stderr, tracker = fds[0], 0
        try:
            if self._log_stderr and not self._threads:
                reading, stderr = os.pipe2(os.O_CLOEXEC)
                self._add_pipe(reading, order.connection_id)
            pid = runner.start(order.connection_id, order.environment, fds, stderr)
        except OSError as error:
            self._send(Failed(order.connection_id, error.errno or errno.EIO))
        else:
            if not self._threads:
                self._connection_ids[pid] = order.connection_id
                self._pids[order.connection_id] = pid
                tracker = pid if self._hold else 0
                self._queue(Started(order.connection_id, pid, isinstance(runner, CgiRunner) and runner.nph))
        finally:
            if stderr != fds[0]:
                os.close(stderr)
            if tracker:
                self._copies.keep(order.connection_id, tracker, fds[0], reported=self.close_reports is not None)
                fds = fds[1:]
            for fd in fds:
                os.close(fd)

    def _signal(self, order: Signal) -> None:
        """Send a signal to the process group of a handler; the pid in the message is not used, only own children."""
        pid = self._pids.get(order.connection_id)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == pid:
                os.killpg(pid, order.signal)
            else:
                # Just forked, and not yet the leader of its own group.
                os.kill(pid, order.signal)
        if order.signal == SIGKILL:
            # No process of the group survives.
            self._terminated.discard(order.connection_id)
        else:
            self._terminated.add(order.connection_id)

    def _timeout(self, runner: _HandlerRunner) -> float | None:
        """Return how long to wait for an event, in milliseconds; None for no limit."""
        self._check_idle(runner)
        if self._idle_at is None and self.writer.due is None and self._copies.due is None and not self._leftover_groups:
            return None
        deadlines = [*self._leftover_groups.values()]
        deadlines += [each for each in (self._idle_at, self.writer.due, self._copies.due) if each is not None]
        return max(0.0, min(deadlines) - time.monotonic()) * 1000

    def _check_idle(self, runner: _HandlerRunner) -> None:
        """Report Idle to the daemon, once, after `launcher_idle` seconds without a handler."""
        busy = self._connection_ids or self._leftover_groups or (self._pipes and not self._threads)
        if busy or not self._idle_seconds or self._idle_reported:
            self._idle_at = None
            return
        now = time.monotonic()
        if self._idle_at is None:
            self._idle_at = now + self._idle_seconds
        elif now >= self._idle_at:
            # The end of another thread does not wake this one, so its time is read once the deadline may have passed.
            self._idle_at = min(runner.idle_since(), now) + self._idle_seconds
            if now >= self._idle_at:
                self._idle_at, self._idle_reported = None, True
                self._send(Idle())

    def _kill_leftover_groups(self) -> None:
        now = time.monotonic()
        for group, deadline in list(self._leftover_groups.items()):
            if deadline <= now:
                del self._leftover_groups[group]
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, SIGKILL)

    def _read_pipe(self, fd: int) -> bool:
        """Read output of a handler; return whether there may be more."""
        connection_id, splitter = self._pipes[fd]
        try:
            data = os.read(fd, 65_536)
        except BlockingIOError:
            return False
        for text in splitter.feed(data) if data else splitter.end():
            self.writer.send_output(connection_id, text)
        if not data:
            self._poll.unregister(fd)
            del self._pipes[fd], self._pipe_fds[connection_id]
            os.close(fd)
        return bool(data)

    def _drain_pipe(self, connection_id: int) -> None:
        """Read the last output of an exited handler; processes that it has started may write more later."""
        reading = self._pipe_fds.get(connection_id, -1)
        # A pipe holds 64 KB (pipe(7)); endless output must not delay other handlers.
        for _ in range(16):
            if reading < 0 or not self._read_pipe(reading):
                return

    def _reap(self) -> None:
        if self._threads:
            # The children are those of handlers in threads, which reap them.
            return
        for pid, status, user, system in reap_children():
            connection_id = self._connection_ids.pop(pid, 0)
            if not connection_id:
                continue
            del self._pids[connection_id]
            if connection_id in self._terminated:
                self._terminated.discard(connection_id)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, 0)
                    self._leftover_groups[pid] = time.monotonic() + _KILL_DELAY
            self._drain_pipe(connection_id)
            self._queue(Ended(connection_id, status, user, system, *self._copies.close_copy(connection_id)))
