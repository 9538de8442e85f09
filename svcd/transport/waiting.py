"""The port of a service with wait=yes: when somebody asks, a process gets the socket itself, until it ends.

For datagram services there is no other way, and a stream server that accepts by itself works too. A process that ends
at once and leaves the question where it was would be started for it again and again: the port rests, longer each time.

Who asks is looked at for each process, as the sender of the first datagram; those that it reads later are its own
affair, as in xinetd. Whoever connects to a stream server that accepts by itself is not seen at all.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IListeningPort
from zope.interface import implementer

from svcd.handlers.environment import tcp_environment
from svcd.policy.admission import Ticket
from svcd.transport.port import Port, accepted

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall

    from svcd.interfaces import Watcher
    from svcd.policy.answers import Refusal
    from svcd.transport.session import SpawnedSession
    from svcd.transport.spawned import SpawnKeeper

__all__ = ["WaitPort"]

#: A process that lives so long, in seconds, has done something, whatever waits after it.
_GOOD_LIFE = 1.0
#: So many processes in a row may leave something waiting after a shorter life.
_PATIENCE = 10
#: Then the port rests, in seconds: at first, and at most.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


@implementer(IListeningPort)
class WaitPort(Port):
    """Gives a socket to a process whenever it can be read, and takes it back.

    Args:
        reactor: watches the socket, and time.
        sock: a listening or a datagram socket.
        keeper: has the processes.
    """

    def __init__(self, reactor: Watcher, sock: socket.socket, keeper: SpawnKeeper) -> None:
        super().__init__(reactor, sock)
        self._reactor = reactor
        self._keeper = keeper
        self._session: SpawnedSession | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._hasty = 0
        self._rest: IDelayedCall | None = None
        self._freed: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a process has the socket."""
        return self._session is not None

    def when_free(self, call: Callable[[], None] | None) -> None:
        """Call this, or nothing any more, when the process that has the socket ends."""
        self._freed = call

    def startListening(self) -> None:
        """Begin."""
        self.socket.setblocking(False)
        super().startListening()

    def resume(self) -> None:
        """Go on, unless a process has the socket, or too many had."""
        if self._session is None and self._rest is None and self._keeper.may_accept():
            super().resume()

    def doRead(self) -> None:
        """Somebody asks."""
        if not self._keeper.may_accept():
            self.pause()
            return
        host, peer, environment = self._asker()
        ticket = self._keeper.entrance.admit(host, self._keeper.clock())
        # A name is not waited for: anybody can make a datagram whose sender is somebody with a slow name server.
        found = (ticket.named(None) or ticket) if isinstance(ticket, Ticket) and ticket.awaits_name else ticket
        if not isinstance(found, Ticket):
            self._refuse(found, peer)
            return
        try:
            descriptor = os.dup(self.socket.fileno())
        except OSError:
            # There are no more; an exception would end this port for good.
            found.release()
            self._keeper.budget.rest()
            return
        # Programs for inetd expect a socket that blocks; it is one for all who have it.
        self.socket.setblocking(True)
        self.pause()
        self._session = self._keeper.take_socket(descriptor, peer, environment, self._back, found)

    def _refuse(self, refusal: Refusal, peer: str) -> None:
        """Take away what waits, and only that."""
        entrance = self._keeper.entrance
        if self.socket.type == socket.SOCK_DGRAM:
            entrance.refused(refusal, peer)
            with contextlib.suppress(OSError):
                self.socket.recv(1, socket.MSG_DONTWAIT)
            return
        for descriptor, _ in accepted(self.socket, lambda: self.connected, lambda: None):
            entrance.turn_away(descriptor, refusal, peer)
            return

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
        return name[0], self._keeper.peer_text(name[0], name[1]), environment.replace(b"PROTO=TCP", b"PROTO=UDP", 1)

    def _back(self) -> None:
        """The process has ended."""
        session, self._session = self._session, None
        if self._freed is not None:
            self._freed()
        if not self.connected:
            return
        self.socket.setblocking(False)
        lived = 0.0 if session is None else self._keeper.clock() - session.started
        left = lived < _GOOD_LIFE and bool(self._poll.poll(0))
        self._hasty = self._hasty + 1 if left else 0
        if self._hasty >= _PATIENCE:
            pause = min(_FIRST_PAUSE * 2 ** (self._hasty - _PATIENCE), _LONGEST_PAUSE)
            self._rest = self._reactor.callLater(pause, self._rested)
        self.resume()

    def _rested(self) -> None:
        self._rest = None
        self.resume()

    def stopListening(self) -> Deferred[None]:
        """Stop at once; a process that has the socket keeps it until it ends."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        return super().stopListening()
