"""Listeners: listening sockets and their ports, and a close that accepts the waiting clients first."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

from svcd.connections.wait_port import WaitPort
from svcd.log.events import CLOSE, LISTEN, log_event
from svcd.model import SocketType
from svcd.sockets.datagram_port import DatagramPort

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from svcd.config.endpoints import Endpoint
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.sockets.acquire import FdStore
    from svcd.sockets.listening import ListeningSocket

__all__ = ["Listener", "ServingPort", "hidden", "no_op", "number_of_port"]

#: Maximum number of accept rounds before a socket is closed: enough for every connection in its backlog.
_ROUNDS = 1000


class ServingPort(Protocol):
    """The port of a listening socket."""

    def startListening(self) -> object:
        """Begin to accept connections or receive datagrams."""

    def stopListening(self) -> object:
        """Stop accepting or receiving; the socket stays open."""

    def pause(self) -> None:
        """Stop accepting until resume(); clients wait in the kernel's queue."""

    def resume(self) -> None:
        """Accept again after pause()."""

    def doRead(self) -> object:
        """Accept the clients in the kernel's queue."""


class Listener:
    """A listening socket and its current port, which the descriptor budget pauses.

    Args:
        opened: the listening socket.
        budget: pauses stream ports when descriptors run out.
        store: keeps the socket open while the daemon is restarted.
    """

    _log = Logger()

    def __init__(self, opened: ListeningSocket, budget: DescriptorBudget, store: FdStore) -> None:
        self.opened = opened
        self._store = store
        self._budget = budget
        budget.hold(1)
        self._detach: Callable[[], None] = no_op
        self._attach: Callable[[ServingPort], Callable[[], None]] | None = None
        self.port: ServingPort | None = None
        self.paused = False

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the socket."""
        return self.opened.endpoint

    @property
    def inode(self) -> int:
        """The inode number of the socket, the same in every process."""
        return os.fstat(self.opened.socket.fileno()).st_ino

    def serve(self, port: ServingPort, attach: Callable[[ServingPort], Callable[[], None]]) -> None:
        """Attach the socket to a port, which accepts the clients in the kernel's queue from then on.

        Args:
            port: the port.
            attach: lets the service pause and resume the port; returns a function that ends this.
        """
        self.suspend()
        if isinstance(port, DatagramPort) and isinstance(self.port, DatagramPort):
            port.continue_counts(self.port)
        if isinstance(port, WaitPort) and isinstance(self.port, WaitPort) and port is not self.port:
            port.follow(self.port)
        self.port, self._attach = port, attach
        if self.paused:
            return
        stream = self.endpoint.service.net.shape is SocketType.STREAM
        share = self._budget.share(self.endpoint.service.id)
        leave_budget = share.listen(port.pause, port.resume) if stream else no_op
        leave_service = attach(port)

        def detach() -> None:
            leave_budget()
            leave_service()

        self._detach = detach

    def start(self) -> None:
        """Begin to serve; write a `listen` line."""
        assert self.port is not None  # noqa: S101 - serve() comes first
        if not self.paused:
            self.port.startListening()
        service = self.endpoint.service
        values = {"origin": self.opened.origin} if self.opened.origin else {}
        log_event(
            self._log, LISTEN, service=service.id, address=self.opened.address, runs=service.handler_text, **values
        )
        self._store.store(self.opened)

    def pause(self, *, paused: bool) -> None:
        """Pause: leave clients in the kernel's queue; or accept them again."""
        if paused == self.paused:
            return
        self.paused = paused
        if paused:
            self.suspend()
        else:
            self.resume()

    def suspend(self) -> None:
        """Stop the port; the socket stays open."""
        self._detach()
        self._detach = no_op
        if self.port is not None:
            self.port.stopListening()

    def resume(self) -> None:
        """Start the port again after suspend()."""
        if self.port is not None and self._attach is not None and not self.paused:
            self.serve(self.port, self._attach)
            self.port.startListening()

    def retune(self, endpoint: Endpoint) -> None:
        """Use the socket for another endpoint of the same address, or for the same one with other options."""
        self.opened.retune(endpoint)

    def accept_all(self) -> None:
        """Accept the clients in the kernel's queue: closing the socket would reset their connections."""
        service = self.endpoint.service
        if self.port is None or service.net.shape is not SocketType.STREAM or service.options.wait:
            # With wait=yes the service's process accepts.
            return
        waiting = select.poll()
        waiting.register(self.opened.socket, select.POLLIN)
        share = self._budget.share(self.endpoint.service.id)
        for _ in range(_ROUNDS):
            if not share.available or not waiting.poll(0):
                return
            with contextlib.suppress(OSError):
                self.port.doRead()

    def close(self, *, for_good: bool = True) -> None:
        """Close the socket; write a `close` line, with the traffic of a datagram socket.

        Args:
            for_good: whether the socket is not used again; otherwise the store may keep it for the next daemon.
        """
        self.suspend()
        self._budget.hold(-1)
        if for_good and isinstance(self.port, WaitPort):
            self.port.dismiss()
        values: dict[str, object] = {"service": self.endpoint.service.id, "address": self.opened.address}
        if isinstance(self.port, DatagramPort):
            values |= {"datagrams": self.port.datagrams, "ignored": self.port.ignored}
            values |= {"in": self.port.bytes_in, "out": self.port.bytes_out}
        if for_good:
            self._store.close(self.opened)
        else:
            self._store.close_on_exit(self.opened)
        log_event(self._log, CLOSE, **values)


def no_op() -> None:
    """Do nothing."""


def hidden(listeners: Mapping[Hashable, Listener]) -> set[Hashable]:
    """Return the keys of the UNIX listeners whose socket file is gone or replaced: clients can't connect to them."""
    return {key for key, listener in listeners.items() if listener.opened.file_lost}


def number_of_port(opened: ListeningSocket) -> int:
    """Return the port number of a datagram service's socket; 0 for any other socket."""
    if opened.endpoint.version and opened.socket.type == socket.SOCK_DGRAM:
        return int(opened.socket.getsockname()[1])
    return 0
