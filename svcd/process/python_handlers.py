"""Runners of Python handlers, in a forked child of the interpreter that has imported the module, or in a thread."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from svcd.net.stream_sockets import UNKNOWN, final_byte_counts
from svcd.process.connection_closes import HandlerSocket
from svcd.process.credentials import apply_limits
from svcd.process.imports import import_object
from svcd.process.messages import Ended, Started
from svcd.process.programs import connection_variables
from svcd.process.signals import default_signals
from svcd.process.stderr import BLOCK, MAX_BLOCK

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from svcd.process.connection_closes import CloseReports
    from svcd.process.messages import MessageWriter
    from svcd.process.spec import LaunchSpec

__all__ = ["ForkRunner", "ThreadRunner", "import_handler"]


class _Server:
    """The server attribute of socketserver handlers, with the attributes that apply here.

    Attributes:
        server_address: the local address of the connection.
        environment: the environment variables that a program would get for the connection.
    """

    def __init__(self, server_address: object, environment: dict[str, str]) -> None:
        self.server_address = server_address
        self.environment = environment


def import_handler(name: str, path: Sequence[str] = ()) -> Callable[..., object]:
    """Import a handler.

    Args:
        name: `package.module:name`, where the name may contain dots.
        path: the new sys.path; empty keeps it.

    Raises:
        ImportError: there is no such handler; the text has the reason.
    """
    if path:
        sys.path[:] = path
    found = import_object(name)
    if not callable(found):
        raise ImportError(f"{name} is neither a request handler nor a function: it can't be called")  # noqa: TRY004 - one exception type for all
    return found  # type: ignore[no-any-return]


def _call_handler(function: Callable[..., object], sock: socket.socket, values: dict[str, str]) -> None:
    """Call a handler with the arguments for its type, and close the connection as socketserver does."""
    kind = getattr(sys.modules.get("socketserver"), "BaseRequestHandler", None)
    server, address = _addresses(sock, values)
    try:
        if kind is not None and isinstance(function, type) and issubclass(function, kind):
            function(sock, address, _Server(server, values))
        else:
            function(sock, address)
    finally:
        # With close() alone the connection would stay open while another process has a copy of it.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()


def _addresses(sock: socket.socket, values: dict[str, str]) -> tuple[object, object]:
    """Return the local and remote address as accept() returns them, from the PROXY header if there is one."""
    if "REMOTE_ADDR" not in values:
        return sock.getsockname(), ""
    if sock.family != socket.AF_UNIX and "PROXY_ADDR" not in values:
        with contextlib.suppress(OSError):
            return sock.getsockname(), sock.getpeername()
    local, remote = ((values[f"{end}IP"], int(values[f"{end}PORT"])) for end in ("TCPLOCAL", "TCPREMOTE"))
    return tuple((*end, 0, 0) if ":" in end[0] else end for end in (local, remote))  # type: ignore[return-value]


def _exit_result(exit_error: SystemExit) -> tuple[int, bytes]:
    """Return the exit status of sys.exit(), and its text for standard error."""
    if exit_error.code is None or isinstance(exit_error.code, int):
        return exit_error.code or 0, b""
    return 1, str(exit_error.code).encode(errors="replace")


def _decode(environment: bytes) -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value) for name, value in connection_variables(environment).items()}


class ForkRunner:
    """Runs a handler in a child of this process for each connection.

    Args:
        function: the handler.
        spec: the launch spec of the service.
        close_in_child: closes the descriptors of the parent; called in each child.
        close_reports: receives the reports of children that close their connections; None if not needed.
    """

    def __init__(
        self,
        function: Callable[..., object],
        spec: LaunchSpec,
        close_in_child: Callable[[], None],
        close_reports: CloseReports | None = None,
    ) -> None:
        self._function = function
        self._close_reports = close_reports
        self._limits = spec.identity.handler_limits
        self._close_in_child = close_in_child

    def idle_since(self) -> float:
        """Return 0: all handlers are processes."""
        return 0.0

    def start(self, connection_id: int, environment: bytes, fds: tuple[int, ...], stderr: int) -> int:
        """Fork a child; arguments and result as in ProgramRunner.start().

        Raises:
            OSError: the process could not be forked.
        """
        # Before the fork: a child copies each page of memory that it writes to.
        values = _decode(environment)
        pid = os.fork()
        if not pid:
            self._run(connection_id, values, fds[0], stderr)
        return pid

    def _run(self, connection_id: int, values: dict[str, str], fd: int, stderr: int) -> NoReturn:
        code = 1
        try:
            os.setsid()
            default_signals()
            self._close_in_child()
            os.dup2(stderr, 1)
            os.dup2(stderr, 2)
            os.close(stderr)
            apply_limits(self._limits)
            # Not update(), whose checks of the argument cost more.
            for name, value in values.items():
                os.environ[name] = value
            _call_handler(self._function, self._socket(connection_id, fd), values)
            code = 0
        except SystemExit as exit_error:
            code, text = _exit_result(exit_error)
            if text:
                os.write(2, BLOCK + text + BLOCK)
        except BaseException:  # noqa: BLE001 - any exception, also by SIGINT, ends the process of this connection only
            os.write(2, BLOCK + traceback.format_exc().encode(errors="replace") + BLOCK)
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    def _socket(self, connection_id: int, fd: int) -> socket.socket:
        if self._close_reports is None:
            return socket.socket(fileno=fd)
        sock = HandlerSocket(fileno=fd)
        sock.on_close = self._close_reports.reporter(connection_id)
        return sock


class ThreadRunner:
    """Runs a handler in a thread of this process for each connection.

    Args:
        function: the handler.
        writer: sends messages to the daemon; any thread may call it.
        clock: returns seconds, monotonic.
        counts: whether to count the bytes of connections.
    """

    def __init__(
        self,
        function: Callable[..., object],
        writer: MessageWriter,
        clock: Callable[[], float],
        *,
        counts: bool = False,
    ) -> None:
        self._counts: dict[int, tuple[int, int]] | None = {} if counts else None
        self._function = function
        self._writer = writer
        self._send = writer.send
        self._clock = clock
        # Connections whose end is about to be reported.
        self._ending: set[int] = set()
        self._last_end = 0.0
        self._open: dict[int, tuple[socket.socket, threading.Thread]] = {}

    def idle_since(self) -> float:
        """Return the time at which the last handler ended; infinity while a handler runs that was not abandoned."""
        return math.inf if self._open or self._ending else self._last_end

    def start(self, connection_id: int, environment: bytes, fds: tuple[int, ...], _stderr: int) -> int:
        """Start a thread.

        Raises:
            OSError: the thread could not be started.
        """
        # Imported late: with threading loaded, Python does extra work in each forked child.
        import threading

        # A copy: the caller closes its own descriptor.
        sock = self._socket(connection_id, os.dup(fds[0]))
        thread = threading.Thread(
            target=self._run, args=(connection_id, _decode(environment), sock), name=f"connection {connection_id}"
        )
        self._open[connection_id] = sock, thread
        try:
            thread.start()
        except RuntimeError as error:
            del self._open[connection_id]
            sock.close()
            raise OSError(errno.EAGAIN, str(error)) from error
        return os.getpid()

    def _socket(self, connection_id: int, fd: int) -> socket.socket:
        counts = self._counts
        if counts is None:
            return socket.socket(fileno=fd)

        def on_close(sock: socket.socket, closed: bool) -> None:
            counts[connection_id] = final_byte_counts(sock) if closed else UNKNOWN

        sock = HandlerSocket(fileno=fd)
        sock.on_close = on_close
        return sock

    def shutdown(self, connection_id: int) -> None:
        """Shut down a connection while its handler runs."""
        found = self._open.get(connection_id)
        if found is not None:
            with contextlib.suppress(OSError):
                found[0].shutdown(socket.SHUT_RDWR)

    def abandon(self, connection_id: int) -> None:
        """Report a handler as killed, although its thread continues without the connection: threads can't be ended."""
        if self._open.pop(connection_id, None) is not None:
            self._send(Ended(connection_id, signal.SIGKILL))

    def wait(self) -> None:
        """Wait until all handlers have ended except the abandoned ones."""
        for _, thread in list(self._open.values()):
            thread.join()

    def _run(self, connection_id: int, values: dict[str, str], sock: socket.socket) -> None:
        code = 1
        self._send(Started(connection_id, os.getpid()))
        try:
            _call_handler(self._function, sock, values)
            code = 0
        except SystemExit as exit_error:
            code, text = _exit_result(exit_error)
            if text:
                self._writer.send_output(connection_id, text[:MAX_BLOCK])
        except BaseException:  # noqa: BLE001 - only the main thread gets KeyboardInterrupt
            self._writer.send_output(connection_id, traceback.format_exc().encode(errors="replace")[-MAX_BLOCK:])
        finally:
            self._ending.add(connection_id)
            # An abandoned handler has been reported already.
            counts = UNKNOWN if self._counts is None else self._counts.pop(connection_id, UNKNOWN)
            if self._open.pop(connection_id, None) is not None:
                self._send(Ended(connection_id, (code & 0xFF) << 8, 0.0, 0.0, *counts))
            self._last_end = self._clock()
            self._ending.discard(connection_id)
