"""Where the sockets of endpoints come from: out of the stock, else newly opened; and where they go."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.config.diff import socket_key
from svcd.errors import ListenError
from svcd.host.systemd import ServiceManager
from svcd.log.events import NOT_ACTIVATED, UNUSED_FD, log_event
from svcd.sockets.activation import stored_name, waits
from svcd.sockets.listening import ListeningSocket, open_socket, with_owner
from svcd.sockets.socket_pool import SocketPool

if TYPE_CHECKING:
    import socket
    from collections.abc import Hashable, Iterable, Sequence

    from svcd.config.endpoints import DesiredServices, Endpoint
    from svcd.sockets.activation import InheritedSocket

__all__ = ["FdStore", "open_sockets"]

_log = Logger()


class FdStore:
    """The service manager's store of descriptors: what is in it comes back to the daemon that is started next.

    So clients that come while svcd is restarted wait in the kernel's queue, and none is refused.

    Args:
        manager: who has the store.

    Attributes:
        shared: whether another daemon has the same sockets, which goes on or takes over: their files stay.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self.shared = False
        self._left: list[InheritedSocket] = []
        self._held: dict[Hashable, ListeningSocket] = {}

    def hold(self, opened: ListeningSocket) -> None:
        """Keep an inherited socket of a broken service: clients wait in its queue until the service recovers."""
        self._held[socket_key(opened.endpoint)] = opened

    def hold_all(self, socket_pool: SocketPool, desired: DesiredServices) -> None:
        """Take the sockets of faulty services out of a stock, and hold them, unless another service asks for them."""
        wanted = {socket_key(endpoint) for endpoint in desired.endpoints}
        for endpoint in (endpoint for each in desired.faulty for endpoint in each.endpoints):
            if socket_key(endpoint) in wanted:
                continue
            # One that can't have its options is left over, as without its service.
            with contextlib.suppress(ListenError):
                opened = socket_pool.take(endpoint)
                if opened is not None:
                    self.hold(opened)

    def take_held(self, endpoint: Endpoint) -> ListeningSocket | None:
        """Return the socket that is held for an endpoint, with the options of its service; None if there is none.

        Raises:
            ListenError: it can't have its options.
        """
        opened = self._held.pop(socket_key(endpoint), None)
        if opened is not None:
            try:
                opened.retune(endpoint)
            except OSError as error:
                self.hold(opened)
                cause = error.strerror or str(error)
                raise ListenError(endpoint.service.id, endpoint.address, cause, "change the line's options") from error
        return opened

    def release_held(self, endpoints: Iterable[Endpoint] = ()) -> None:
        """Close the sockets that are held, but for those of some endpoints."""
        wanted = {socket_key(endpoint) for endpoint in endpoints}
        for key in self._held.keys() - wanted:
            self.leave(self._held.pop(key))

    def keep(self, opened: ListeningSocket) -> None:
        """Have a socket kept; but one that a socket unit lent is that unit's to keep."""
        if not self._manager.present or opened.borrowed:
            return
        name = stored_name(opened.endpoint)
        if opened.stored and waits(opened.stored) != waits(name):
            # What the name says of programs that share it holds no more.
            self._manager.forget(opened.stored)
            opened.stored = ""
        if not opened.stored and self._manager.store(name, opened.socket):
            opened.stored = name

    def close(self, opened: ListeningSocket) -> None:
        """Close a socket for good."""
        if opened.stored:
            self._manager.forget(opened.stored)
        opened.close()

    def leave(self, opened: ListeningSocket) -> None:
        """Close our side of a socket, as the daemon ends; what is kept stays open, and where clients find it."""
        opened.close(for_good=not (self.shared or (opened.stored and self._manager.present)))

    def clear(self, socket_pool: SocketPool) -> list[socket.socket]:
        """Close what is left of a stock; nobody has it open then: its addresses may be asked for in another way.

        Returns:
            What stays open for now, since another daemon has it, too.
        """
        self._left += socket_pool.leftover()
        if self.shared:
            # A program that shares one goes on with it: its address is in use until then.
            return [each.socket for each in self._left if each.socket is not None and not each.waits]
        self._close_left()
        return []

    def own(self) -> None:
        """The sockets are ours alone from now on."""
        self.shared = False
        self._close_left()

    def _close_left(self) -> None:
        removed = False
        left, self._left = self._left, []
        for each in left:
            log_event(_log, UNUSED_FD, name=each.name, address=each.address, reason=each.reason)
            if not each.lent:
                self._manager.forget(each.name)
                removed = True
            with contextlib.suppress(OSError):
                each.close()
        if removed:
            self._manager.barrier()


def open_sockets(
    endpoints: Iterable[Endpoint],
    socket_pool: SocketPool | None = None,
    store: FdStore | None = None,
    leaving: Sequence[socket.socket] = (),
    *,
    name_owners: bool = False,
) -> tuple[list[ListeningSocket], list[ListenError]]:
    """Open the sockets of endpoints: those in stock, and new ones.

    Args:
        endpoints: of which.
        socket_pool: what is open already; nothing is left in it.
        store: what is left over is removed from it.
        leaving: bound sockets of ours that will be closed, and must not stand in the way.
        name_owners: whether errors name the process that has an address; to find it takes a while.

    Returns:
        The sockets, and an error for each endpoint that has none.
    """
    socket_pool = socket_pool or SocketPool()
    store = store or FdStore(ServiceManager())
    wanted: list[tuple[Endpoint, ListeningSocket | None]] = []
    errors: list[ListenError] = []
    activated = socket_pool.activated
    for endpoint in endpoints:
        try:
            wanted.append((endpoint, socket_pool.take(endpoint)))
        except ListenError as error:
            errors.append(error)
    leaving = [*leaving, *store.clear(socket_pool)]
    opened: list[ListeningSocket] = []
    for endpoint, found in wanted:
        try:
            opened.append(found or open_socket(endpoint, leaving))
        except ListenError as error:
            errors.append(with_owner(error, endpoint) if name_owners else error)
            continue
        if activated and not found:
            log_event(_log, NOT_ACTIVATED, service=endpoint.service.id, address=opened[-1].address)
    return opened, errors
