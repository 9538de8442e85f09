"""Starting programs, with posix_spawn(3) where possible, which does not copy the memory of this process."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from svcd.process.credentials import apply_limits

if TYPE_CHECKING:
    from typing import TypeAlias

    from svcd.process.spec import LaunchSpec

    #: The path of a program, and its arguments, including the first.
    Command: TypeAlias = tuple[str | bytes, tuple[str | bytes, ...]]
    #: The descriptors of the standard input, output and error of a program.
    Streams: TypeAlias = tuple[int, int, int]

__all__ = ["ProgramRunner", "ProgramStarter", "connection_variables"]

#: Prefixes and names of the variables that a connection may set, some with WebSocket only; none of these makes a
#: program load or run code, except HTTP_PROXY (httpoxy, CVE-2016-5385).
_CONNECTION_PREFIXES = (b"TCP", b"REMOTE_", b"UNIXREMOTE", b"PROXY_", b"SSL_", b"HTTP_", b"REQUEST_", b"SERVER_")
_CONNECTION_NAMES = frozenset({
    b"GATEWAY_INTERFACE", b"HTTPS", b"PATH_INFO", b"PROTO", b"QUERY_STRING", b"SCRIPT_NAME", b"WEBSOCKET_PROTOCOL",
})  # fmt: skip
_PROXY = b"HTTP_PROXY"


def connection_variables(data: bytes) -> dict[bytes, bytes]:
    """Return the variables of a Connection message that a connection may set."""
    values = {}
    for item in data.split(b"\0"):
        name, equals, value = item.partition(b"=")
        if equals and (name in _CONNECTION_NAMES or (name.startswith(_CONNECTION_PREFIXES) and name != _PROXY)):
            values[name] = value
    return values


class ProgramStarter:
    """Starts the programs of a service.

    Args:
        spec: the launch spec of the service.

    Attributes:
        environment: the variables that all connections share.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self.environment = {os.fsencode(name): os.fsencode(value) for name, value in spec.environment.items()}
        self._listen_fds = spec.listen_fds
        # A lower soft limit of open files can be set before a start and reset after it, which saves a fork.
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        _, hard = self._open_files
        soft = [each for each in spec.identity.handler_limits if each[::2] == (resource.RLIMIT_NOFILE, hard)]
        self._soft_open_files = soft[0].soft if soft else None
        self._all_limits = spec.identity.handler_limits
        self._needs_fork = self._listen_fds or self._all_limits != tuple(soft)

    def start(self, command: Command, values: dict[bytes, bytes], streams: Streams) -> int:
        """Start a program.

        Args:
            command: the path of the program, and its arguments.
            values: its environment.
            streams: its standard input, output and error: descriptors above 3, or 0 for the input of this process.

        Returns:
            The pid of the process, which leads a session of its own.

        Raises:
            OSError: the process could not be started.
        """
        if self._needs_fork:
            return self._fork(command, values, streams)
        path, argv = command
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams) if fd]
        if self._soft_open_files is None:
            return os.posix_spawn(path, argv, values, file_actions=actions, setsid=True)
        soft, hard = self._open_files
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._soft_open_files, hard))
        try:
            return os.posix_spawn(path, argv, values, file_actions=actions, setsid=True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def _fork(self, command: Command, values: dict[bytes, bytes], streams: Streams) -> int:
        """Start the program by fork(2) and execve(2), to set limits and LISTEN_PID in the child."""
        failed, fail = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
            if not pid:
                self._execute(command, values, streams, fail)
        finally:
            os.close(fail)
            # Empty after a successful execve(2), which closes the pipe; otherwise the errno.
            answer = os.read(failed, 16)
            os.close(failed)
        if answer:
            os.waitpid(pid, 0)
            raise OSError(int(answer), os.strerror(int(answer)))
        return pid

    def _execute(self, command: Command, values: dict[bytes, bytes], streams: Streams, fail: int) -> None:
        try:
            os.setsid()
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            if self._listen_fds:
                fail = os.dup(fail)
                os.dup2(streams[0], 3)
                values[b"LISTEN_PID"] = b"%d" % os.getpid()
            apply_limits(self._all_limits)
            os.execve(*command, values)  # noqa: S606 - no shell is the point
        except OSError as error:
            os.write(fail, b"%d" % (error.errno or 0))
        finally:
            os._exit(127)


class ProgramRunner:
    """Starts the program of a service for each connection.

    Args:
        spec: the launch spec of the service.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self._starter = ProgramStarter(spec)
        self._command = spec.program, spec.argv

    def idle_since(self) -> float:
        """Return 0: all handlers are processes."""
        return 0.0

    def start(self, _connection_id: int, environment: bytes, fds: tuple[int, ...], stderr: int) -> int:
        """Start the program for a connection.

        Args:
            _connection_id: not used for a program.
            environment: the variables of the connection.
            fds: the socket, which becomes standard input and output.
            stderr: the descriptor that becomes standard error.

        Returns:
            The pid of the process.

        Raises:
            OSError: the process could not be started.
        """
        values = {**self._starter.environment, **connection_variables(environment)}
        return self._starter.start(self._command, values, (fds[0], fds[0], stderr))
