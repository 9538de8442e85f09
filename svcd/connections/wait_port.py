"""Port of a service with wait=yes: when a client comes a process gets the socket itself, until it ends.

For datagram services there is no other way, and a stream server that accepts by itself works too. A process that ends
at once and leaves the question where it was would be started for it again and again: the port rests, longer each time.

The sender of the first datagram is judged for each process; those that it reads later are its own affair, as in xinetd.
The client of a stream server that accepts by itself is not seen at all.

A process that has the socket, or had it, shares its file status flags (fcntl(2), O_NONBLOCK) and may change them at any
time. So the daemon neither relies on them nor changes them while a process has the socket: it polls, receives with
MSG_DONTWAIT (recv(2)), and leaves accept(2) to a process of its own.
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

#: A process that lives so long, in seconds, has done something, whatever waits after it.
_GOOD_LIFE = 1.0
#: So many processes in a row may leave something waiting after a shorter life.
_PATIENCE = 10
#: Then the port rests, in seconds: at first, and at most.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


@implementer(IListeningPort)
class WaitPort(BasePort):
    """Port that gives its socket to a process whenever it can be read.

    Args:
        reactor: watches the socket, and time.
        sock: a listening or a datagram socket.
        tracker: has the processes.
        freed: called when a process has ended whose socket this port has no more.
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
        self._session: SpawnedConnection | None = None
        self._holder: HolderProcess | None = None
        self._before: WaitPort | None = None
        self._acceptor = AcceptHelper(reactor, sock, self._accepted)
        self._refusal: Refusal | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._hasty = 0
        self._rest: IDelayedCall | None = None
        self._freed = freed
        self._next: WaitPort | None = None

    @property
    def busy(self) -> bool:
        """Whether a process has the socket."""
        return self._session is not None or self._holder is not None or self._waits_for_other

    @property
    def _waits_for_other(self) -> bool:
        return self._before is not None and self._before.busy

    @property
    def process(self) -> int:
        """The pid of the process that has the socket; 0 if there is none, or not yet."""
        if self._session is not None:
            return self._session.pid
        if self._holder is not None:
            return self._holder.pid
        return 0 if self._before is None else self._before.process

    def hold(self, pid: int) -> None:
        """Leave the socket to a process of the daemon before this one, until it ends."""
        self.pause()
        with contextlib.suppress(ProcessLookupError):
            self._holder = HolderProcess(self._reactor, pid, self.release)

    def follow(self, before: WaitPort) -> None:
        """Take the socket over from the port of another service, whose process is ended first."""
        if before.busy:
            self._before, before._next = before, self
            before.dismiss()

    def dismiss(self) -> None:
        """End the process that has the socket: SIGTERM, and SIGKILL after the service's shutdown_timeout."""
        seconds = self._tracker.service.options.shutdown_timeout
        if self._session is not None:
            self._session.abort("shutdown", seconds)
        elif self._holder is not None:
            self._holder.end(seconds)

    def withdraw(self) -> None:
        """Give up a process that has no launcher to be started by; the client stays in the kernel's queue."""
        session = self._session
        if (
            session is not None
            and not session.pid
            and not (session.launcher_client is not None and session.launcher_client.ready)
        ):
            session.abort("shutdown")

    def resume(self) -> None:
        """Go on, unless a process has the socket, or too many had."""
        if not self.busy and self._rest is None and not self._acceptor.waiting and self._tracker.may_accept():
            super().resume()

    def doRead(self) -> None:
        """Start a process for the client that has come."""
        if self.busy or self._acceptor.waiting or not self._tracker.may_accept():
            self.pause()
            return
        host, peer, environment = self._asker()
        slot = self._tracker.service_admission.admit(host, self._tracker.clock())
        # A name is not waited for: anybody can make a datagram whose sender is somebody with a slow name server.
        found = (
            (slot.check_host_name(None) or slot) if isinstance(slot, ConnectionSlot) and slot.needs_host_name else slot
        )
        if not isinstance(found, ConnectionSlot):
            self._refuse(found, peer)
            return
        try:
            descriptor = os.dup(self.socket.fileno())
        except OSError:
            # There are no more; an exception would end this port for good.
            found.release()
            self._tracker.budget.rest()
            return
        # Programs for inetd expect a socket that blocks; it is one for all who have it.
        self.socket.setblocking(True)
        self.pause()
        self._session = self._tracker.take_socket(descriptor, peer, environment, self._back, found)

    def _refuse(self, refusal: Refusal, peer: str) -> None:
        """Take away what waits, and only that."""
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
            # There can't be another process now: the client waits in the kernel's queue.
            self._pause_for(_FIRST_PAUSE)

    def _accepted(self, descriptor: int) -> None:
        """Turn away the client that the acceptor has accepted."""
        refusal, self._refusal = self._refusal, None
        if descriptor >= 0:
            assert refusal is not None  # noqa: S101 - it is accepted to be refused
            self._tracker.service_admission.refusals.reject(descriptor, refusal, "-")
        self.resume()

    def _asker(self) -> tuple[str, str, bytes]:
        """Who sent the first datagram: the address, the same as people write it, and as variables.

        Of a listening socket nobody knows.
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
        return name[0], self._tracker.peer_text(name[0], name[1]), environment.replace(b"PROTO=TCP", b"PROTO=UDP", 1)

    def _back(self) -> None:
        """Watch the socket again: the process has ended, or there was none."""
        session, self._session = self._session, None
        lived = 0.0 if session is None else self._tracker.clock() - session.started
        left = self.connected and lived < _GOOD_LIFE and bool(self._poll.poll(0))
        self._hasty = self._hasty + 1 if left else 0
        if self._hasty >= _PATIENCE:
            self._pause_for(min(_FIRST_PAUSE * 2 ** (self._hasty - _PATIENCE), _LONGEST_PAUSE))
        self.release()

    def release(self) -> None:
        """Go on: the process that had the socket has ended, or that of the port before."""
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
        self._rest = self._reactor.callLater(seconds, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; a process that has the socket keeps it until it ends."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self._acceptor.close()
        return super().stopListening()
