"""Port of a service with wait=yes: when a client connects or sends, a process gets the socket until it exits.

Datagram services need this, and stream servers that accept by themselves can use it. A process that exits at once and
leaves the datagram unread would be started for it repeatedly, so the port is paused then, longer each time.

Access rules apply to the sender of the first datagram for each process, and not to the senders of later datagrams, as
in xinetd. They don't apply to the clients of a stream server, which the daemon does not accept.

A process that has or had the socket shares its file status flags (fcntl(2), O_NONBLOCK) and may change them at any
time. So the daemon neither relies on them nor changes them while a process has the socket: it polls, receives with
MSG_DONTWAIT (recv(2)), and leaves accept(2) to a separate process.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from svcd.access.admission import ConnectionSlot
from svcd.process.environment import tcp_environment
from svcd.sockets.accept_helper import AcceptHelper
from svcd.sockets.holder_process import HolderProcess
from svcd.sockets.ports import BasePort

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.rules import Refusal
    from svcd.connections.spawned import SpawnedTracker
    from svcd.connections.spawned_connection import SpawnedConnection
    from svcd.interfaces import FdReactor

__all__ = ["WaitPort"]

#: Run time after which a process counts as successful even if it leaves data unread, in seconds.
_MIN_RUN_SECONDS = 1.0
#: The number of successive processes that may exit earlier and leave data unread.
_MAX_FAILED_RUNS = 10
#: The first and the longest pause of the port after that, in seconds.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


@implementer(IListeningPort)
class WaitPort(BasePort):
    """Port that hands its socket to a process whenever it is readable.

    Args:
        reactor: watches the socket and time.
        sock: a listening or a datagram socket.
        tracker: tracks the processes.
        freed: called when a process has exited whose socket this port no longer serves.
    """

    def __init__(
        self,
        reactor: FdReactor,
        sock: socket.socket,
        tracker: SpawnedTracker,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(reactor, sock)
        self._reactor = reactor
        self._tracker = tracker
        self._connection: SpawnedConnection | None = None
        self._holder: HolderProcess | None = None
        self._before: WaitPort | None = None
        self._acceptor = AcceptHelper(reactor, sock, self._accepted)
        self._refusal: Refusal | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._failed_runs = 0
        self._pause_timer: IDelayedCall | None = None
        self._freed = freed
        self._next: WaitPort | None = None

    @property
    def busy(self) -> bool:
        """Whether a process has the socket."""
        return self._connection is not None or self._holder is not None or self._waits_for_other

    @property
    def _waits_for_other(self) -> bool:
        return self._before is not None and self._before.busy

    @property
    def process(self) -> int:
        """The pid of the process that has the socket; 0 if there is none, or not yet."""
        if self._connection is not None:
            return self._connection.pid
        if self._holder is not None:
            return self._holder.pid
        return 0 if self._before is None else self._before.process

    def hold(self, pid: int) -> None:
        """Pause until the process of the old daemon that has the socket exits."""
        self.pause()
        with contextlib.suppress(ProcessLookupError):
            self._holder = HolderProcess(self._reactor, pid, self.release)

    def follow(self, before: WaitPort) -> None:
        """Take over the socket from the port of another service after its process exits."""
        if before.busy:
            self._before, before._next = before, self
            before.dismiss()

    def dismiss(self) -> None:
        """End the process that has the socket: SIGTERM, and SIGKILL after the service's shutdown_timeout."""
        seconds = self._tracker.service.options.shutdown_timeout
        if self._connection is not None:
            self._connection.abort("shutdown", seconds)
        elif self._holder is not None:
            self._holder.end(seconds)

    def withdraw(self) -> None:
        """Cancel a process that waits for a launcher; its client stays in the queue of the kernel."""
        connection = self._connection
        if (
            connection is not None
            and not connection.pid
            and not (connection.launcher_client is not None and connection.launcher_client.ready)
        ):
            connection.abort("shutdown")

    def resume(self) -> None:
        """Resume, unless a process has the socket or the port is paused after failed runs."""
        if not self.busy and self._pause_timer is None and not self._acceptor.waiting and self._tracker.may_accept():
            super().resume()

    def doRead(self) -> None:
        """Start a process, or refuse the client."""
        if self.busy or self._acceptor.waiting or not self._tracker.may_accept():
            self.pause()
            return
        host, peer, environment = self._first_sender()
        slot = self._tracker.service_admission.admit(host, self._tracker.clock())
        # Host names are not looked up: a forged sender address may belong to a slow name server.
        found = (
            (slot.check_host_name(None) or slot) if isinstance(slot, ConnectionSlot) and slot.needs_host_name else slot
        )
        if not isinstance(found, ConnectionSlot):
            self._refuse(found, peer)
            return
        try:
            fd = os.dup(self.socket.fileno())
        except OSError:
            # No descriptor is left; an exception would remove this port from the reactor.
            found.release()
            self._tracker.budget.pause()
            return
        # Programs for inetd expect a blocking socket; the flag is shared by all its descriptors.
        self.socket.setblocking(True)
        self.pause()
        self._connection = self._tracker.take_socket(fd, peer, environment, self._process_ended, found)

    def _refuse(self, refusal: Refusal, peer: str) -> None:
        """Discard the refused datagram, or accept and close the refused connection."""
        if self.socket.type == socket.SOCK_DGRAM:
            self._tracker.service_admission.refusals.report(refusal, peer)
            with contextlib.suppress(OSError):
                self.socket.recv(1, socket.MSG_DONTWAIT)
            return
        self.pause()
        self._refusal = refusal
        try:
            self._acceptor.accept()
        except OSError:
            # No process can be started now: the client waits in the queue of the kernel.
            self._pause_for(_FIRST_PAUSE)

    def _accepted(self, fd: int) -> None:
        """Refuse the client that the accept helper has accepted; fd is -1 if there is none."""
        refusal, self._refusal = self._refusal, None
        if fd >= 0:
            assert refusal is not None  # noqa: S101 - a client is accepted only to be refused
            self._tracker.service_admission.refusals.reject(fd, refusal, "-")
        self.resume()

    def _first_sender(self) -> tuple[str, str, bytes]:
        """Return the sender of the first datagram: its address, the address as text, and environment variables.

        The client of a listening socket is unknown.
        """
        family, kind = self.socket.family, self.socket.type
        if family == socket.AF_UNIX:
            return "", "-", b"PROTO=UNIX"
        if kind == socket.SOCK_STREAM:
            return "", "-", b"PROTO=TCP"
        try:
            _, name = self.socket.recvfrom(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return "", "-", b"PROTO=UDP"
        local = self.socket.getsockname()
        environment = tcp_environment(local[0], local[1], name[0], name[1], 1)
        return name[0], self._tracker.format_peer(name[0], name[1]), environment.replace(b"PROTO=TCP", b"PROTO=UDP", 1)

    def _process_ended(self) -> None:
        """Watch the socket again: the process has exited, or could not be started."""
        connection, self._connection = self._connection, None
        run_seconds = 0.0 if connection is None else self._tracker.clock() - connection.started
        left = self.connected and run_seconds < _MIN_RUN_SECONDS and bool(self._poll.poll(0))
        self._failed_runs = self._failed_runs + 1 if left else 0
        if self._failed_runs >= _MAX_FAILED_RUNS:
            self._pause_for(min(_FIRST_PAUSE * 2 ** (self._failed_runs - _MAX_FAILED_RUNS), _LONGEST_PAUSE))
        self.release()

    def release(self) -> None:
        """Resume: the process of the old daemon or of the other service has exited."""
        self._holder = self._before = None
        if self.connected:
            self.resume()
            return
        follower, self._next = self._next, None
        if follower is not None:
            follower.release()
        self._freed()

    def _pause_for(self, seconds: float) -> None:
        self.pause()
        self._pause_timer = self._reactor.callLater(seconds, self._pause_over)

    def _pause_over(self) -> None:
        self._pause_timer = None
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; a process keeps the socket until it exits."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        self._acceptor.close()
        return super().stopListening()
