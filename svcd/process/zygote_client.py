"""The daemon's client of the zygote: starts it, requests launchers, receives exits of children."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import sys
from collections import deque
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

import svcd
from svcd.log.events import ZYGOTE, ZYGOTE_LOST, log_event
from svcd.process.backoff import Backoff
from svcd.process.launch_options import excess, inherited_limits, launcher_options
from svcd.process.launcher_client import LauncherClient
from svcd.process.messages import (
    FD_STRUCT,
    MAX_PACKET,
    ChildExited,
    Kill,
    LauncherStarted,
    Signal,
    StartLauncher,
    pack,
    parse,
)
from svcd.process.packets import PacketQueue
from svcd.process.pidfd import PidfdChild
from svcd.process.spec import LaunchSpec, dump
from svcd.process.zygote import TABLE_FD

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor
    from svcd.process.launcher_client import LauncherEvents

__all__ = ["ZygoteClient"]

#: Code for a bare interpreter: sys.path has the standard library and svcd, no entry of an environment or directory.
_CODE = "import sys; sys.path.append({root!r}); from svcd.process.zygote import main; main()"


class _ZygoteLauncherSource:
    """Starts the launchers of a row of the zygote's table."""

    def __init__(self, zygote_client: ZygoteClient, row: int, spec: LaunchSpec) -> None:
        self._zygote_client = zygote_client
        self._row = row
        self._spec = spec

    def launch(self, launcher_client: LauncherClient) -> None:
        self._zygote_client.request_launcher(self._row, launcher_client)

    def signal(self, signal: Signal) -> None:
        self._zygote_client.send(signal, signal.connection_id)

    def kill(self, pid: int) -> None:
        self._zygote_client.send(Kill(pid), f"kill {pid}")

    def make_replacement(self, events: LauncherEvents) -> LauncherClient:
        return self._zygote_client.new_launcher_client(self._row, events, self._spec)


@implementer(IReadDescriptor)
class ZygoteClient:
    """The daemon's client of a zygote, which starts a launcher for each spawned service.

    Args:
        reactor: watches descriptors and time.
    """

    _log = Logger()

    def __init__(self, reactor: FdReactor) -> None:
        self._reactor = reactor
        self._specs: list[LaunchSpec] = []
        self._launcher_clients: list[LauncherClient] = []
        self._requested: deque[tuple[int, LauncherClient]] = deque()
        self._socket: socket.socket | None = None
        self._root = False
        self._limits: dict[int, tuple[int, int]] = {}
        self._packets = PacketQueue(reactor)
        self._pid = 0
        self._since = 0.0
        self._backoff = Backoff()
        self._reason = ""
        self._stopping: Deferred[None] | None = None
        self._restart_call: IDelayedCall | None = None

    def launcher_client(self, spec: LaunchSpec, events: LauncherEvents) -> LauncherClient:
        """Add a service before the zygote starts; return the client of its launcher."""
        self._specs.append(spec)
        return self.new_launcher_client(len(self._specs) - 1, events, spec)

    def new_launcher_client(self, row: int, events: LauncherEvents, spec: LaunchSpec) -> LauncherClient:
        """Return another client of a service that was added.

        Args:
            row: the row of the service in the table.
            events: receives events about its connections.
            spec: its launch spec, as in the table except for launcher options.
        """
        self._launcher_clients = [
            launcher_client for launcher_client in self._launcher_clients if not launcher_client.stopped
        ]
        launcher_client = LauncherClient(self._reactor, spec, _ZygoteLauncherSource(self, row, spec), events)
        self._launcher_clients.append(launcher_client)
        return launcher_client

    @property
    def has_root(self) -> bool:
        """Whether the zygote runs as root: it was started before the daemon gave up root."""
        return self._root and self._socket is not None

    def spec_in_table(self, name: str) -> LaunchSpec | None:
        """Return the LaunchSpec of a service in the zygote's table; None if there is none."""
        return next((each for each in self._specs if each.name == name), None)

    def excess(self, spec: LaunchSpec) -> list[str]:
        """Return the options by which a service would have other or more rights than in the zygote's table."""
        row = self.spec_in_table(spec.name)
        return [""] if row is None else excess(row, spec, self._limits)

    def row_startable_as_root(self, spec: LaunchSpec) -> int | None:
        """Return the row of a service that this zygote can start as root, with these rights; None if there is none.

        The zygote can give the rights in its table or fewer.
        """
        row = self.spec_in_table(spec.name)
        return None if row is None or not self.has_root or self.excess(spec) else self._specs.index(row)

    @property
    def services(self) -> frozenset[str]:
        """The ids of the services whose launchers this zygote starts."""
        return frozenset(spec.name for spec in self._specs)

    @property
    def idle(self) -> bool:
        """Whether all launcher clients have stopped."""
        return all(launcher_client.stopped for launcher_client in self._launcher_clients)

    def start(self) -> None:
        """Start the zygote, with the rights that the daemon has now; without services do nothing.

        Raises:
            OSError: the process could not be started.
        """
        if not self._specs:
            return
        daemon_end, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        table = os.memfd_create("svcd-services")
        try:
            os.write(table, dump(tuple(self._specs)))
            root = str(Path(svcd.__file__).parent.parent)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _CODE.format(root=root)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, zygote_end.fileno(), 0),
                    # dup2(2) to the same number would not clear close-on-exec.
                    (os.POSIX_SPAWN_DUP2, table, TABLE_FD + 1),
                    (os.POSIX_SPAWN_DUP2, TABLE_FD + 1, TABLE_FD),
                    (os.POSIX_SPAWN_CLOSE, TABLE_FD + 1),
                ],
            )
        except BaseException:
            daemon_end.close()
            raise
        finally:
            zygote_end.close()
            os.close(table)
        daemon_end.setblocking(False)
        self._root, self._limits = os.geteuid() == 0, inherited_limits()
        self.connected(daemon_end, pid)
        PidfdChild(self._reactor, pid, self._zygote_exited)
        log_event(self._log, ZYGOTE, pid=pid, state="started")

    def connected(self, sock: socket.socket, pid: int) -> None:
        """Use the socket of a newly started zygote."""
        self._socket = sock
        self._pid, self._since, self._reason = pid, self._reactor.seconds(), ""
        self._reactor.addReader(self)
        self._requested = deque(
            (row, launcher_client) for row, launcher_client in self._requested if not launcher_client.stopped
        )
        for row, launcher_client in self._requested:
            # Send again the requests that the previous zygote did not answer.
            self._packets.put(launcher_client, self._order(row, launcher_client))
        self._packets.open(sock)

    def request_launcher(self, row: int, launcher_client: LauncherClient) -> None:
        """Request a launcher; without a zygote the request is sent to the next one."""
        self._requested.append((row, launcher_client))
        if self._socket is not None:
            self._packets.put(launcher_client, self._order(row, launcher_client))

    def _order(self, row: int, launcher_client: LauncherClient) -> bytes:
        options = launcher_options(launcher_client.spec)
        return pack(
            StartLauncher(row) if options == launcher_options(self._specs[row]) else StartLauncher(row, options)
        )

    def send(self, message: Signal | Kill, key: int | str) -> None:
        """Send an order that applies only to the present zygote."""
        if self._socket is not None:
            self._packets.put(key, pack(message))

    def doRead(self) -> None:
        """Read and handle a report of the zygote."""
        assert self._socket is not None  # noqa: S101 - the socket is watched only while it is open
        try:
            packet, rights, _, _ = self._socket.recvmsg(
                MAX_PACKET + 1, socket.CMSG_SPACE(FD_STRUCT.size), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionResetError:
            # The zygote exited with orders unread; what it sent before follows this error (unix(7)).
            return
        fds = array.array("i")
        for _, _, data in rights:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        sockets = [socket.socket(fileno=fd) for fd in fds]
        if not packet:
            self._close_socket()
            return
        try:
            self._handle_report(packet, sockets)
        except ValueError as error:
            for each in sockets:
                each.close()
            self._reason = f"protocol error: {error}"
            self._close_socket()
            # Only root can kill a zygote that runs as root; without its socket it exits by itself.
            with contextlib.suppress(PermissionError):
                os.kill(self._pid, SIGKILL)

    def _handle_report(self, packet: bytes, sockets: list[socket.socket]) -> None:
        """Handle a report.

        Raises:
            ValueError: the report is not allowed now.
        """
        report = parse(packet)
        if isinstance(report, ChildExited):
            if sockets or report.pid <= 0 or not 0 <= report.status <= 0xFFFF:
                raise ValueError("Gone with impossible numbers")
            for launcher_client in list(self._launcher_clients):
                launcher_client.orphan_exited(report.pid, report.status)
            return
        if not isinstance(report, LauncherStarted):
            raise ValueError(f"{type(report).__name__}, which no zygote reports")  # noqa: TRY004 - as any other invalid report
        if not self._requested or self._requested[0][0] != report.row:
            raise ValueError(f"Launched for another service than the next one ({report.row})")
        if len(sockets) != (report.errno == 0) or (report.pid > 0) != (report.errno == 0):
            raise ValueError("Launched without a socket, or with an errno and one")
        if sockets and (sockets[0].family, sockets[0].type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise ValueError("Launched with another kind of socket")
        _, launcher_client = self._requested.popleft()
        if sockets:
            launcher_client.attach(sockets[0], report.pid)
        else:
            launcher_client.launcher_lost(os.strerror(report.errno))

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None
            self._packets.close()

    def _zygote_exited(self, status: int) -> None:
        """Handle the exit of the zygote, expected after stop(); else restart it after a pause. Launchers continue."""
        self._close_socket()
        if self._stopping is not None:
            self._stopping.callback(None)
            return
        code = os.waitstatus_to_exitcode(status)
        reason = self._reason or (f"signal {-code}" if code < 0 else f"exit {code}")
        log_event(self._log, ZYGOTE_LOST, state="lost", reason=reason)
        for launcher_client in self._launcher_clients:
            launcher_client.zygote_lost()
        self._schedule_restart()

    def _schedule_restart(self) -> None:
        self._restart_call = self._reactor.callLater(
            self._backoff.pause(self._reactor.seconds() - self._since), self._restart
        )

    def _restart(self) -> None:
        self._restart_call = None
        try:
            self.start()
        except OSError as error:
            log_event(self._log, ZYGOTE_LOST, state="lost", reason=error.strerror)
            self._since = self._reactor.seconds()
            self._schedule_restart()

    def stop(self) -> Deferred[None]:
        """Stop the launchers, then the zygote; the Deferred fires when it has exited. Running handlers continue."""
        for launcher_client in self._launcher_clients:
            launcher_client.stop()
        if self._restart_call is not None:
            self._restart_call.cancel()
            self._restart_call = None
        if self._socket is None:
            return succeed(None)
        self._stopping = self._stopping or Deferred()
        # A stopped zygote (SIGSTOP) must be resumed to exit; this fails if only root may do it.
        with contextlib.suppress(OSError):
            os.kill(self._pid, SIGCONT)
        self._close_socket()
        return self._stopping

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing at the stop of the reactor."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "zygote"
