"""Sockets of endpoints: inherited, held, or newly opened; and the descriptor store that keeps them."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.config.diff import socket_key
from svcd.errors import ListenError
from svcd.host.systemd import ServiceManager
from svcd.log.events import NOT_ACTIVATED, UNUSED_FD, log_event
from svcd.model import SocketType
from svcd.net.socket_options import has_sized_buffers, is_mptcp, unix_path
from svcd.sockets.activation import base_name, fd_name, is_wait_name
from svcd.sockets.listening import ListeningSocket, adopt_socket, open_socket, socket_address, with_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from svcd.config.endpoints import DesiredServices, Endpoint
    from svcd.config.options import ServiceOptions
    from svcd.sockets.activation import InheritedSocket

__all__ = ["FdStore", "SocketPool", "acquire_sockets"]

_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - compared with, not bound to


class SocketPool:
    """Pool of inherited sockets that no endpoint uses yet.

    A socket matches an endpoint if it has the endpoint's address, or if its name in the socket unit is that of the
    service (`echo/tcp`, or `echo`): then the unit determines the address.

    Args:
        inherited: the sockets.

    Attributes:
        activated: whether a socket unit has passed sockets; the lack of other sockets is logged then.
    """

    def __init__(self, inherited: Iterable[InheritedSocket] = ()) -> None:
        sockets = list(inherited)
        # Keys of a dict, since there may be thousands, and they are removed one by one.
        self._unused = {each: None for each in sockets if not each.reason}
        self._unusable = [each for each in sockets if each.reason]
        self._by_name: dict[str, list[InheritedSocket]] = {}
        self._by_address: dict[object, list[InheritedSocket]] = {}
        for each in self._unused:
            self._by_name.setdefault(base_name(each.name), []).append(each)
            self._by_address.setdefault(_port_or_path(each), []).append(each)
        self.activated = any(each.borrowed for each in self._unused)
        # IPv6 sockets that serve IPv4 clients, too, by the id of the service.
        self._dual_stack: dict[str, InheritedSocket] = {}

    def __bool__(self) -> bool:
        """Return whether there is a socket, usable or not."""
        return bool(self._unused or self._unusable)

    def take(self, endpoint: Endpoint) -> ListeningSocket | None:
        """Remove and return the socket of an endpoint, with the options of its service; None if there is none.

        Raises:
            ListenError: the socket can't have the options.
        """
        service = endpoint.service
        criteria: tuple[tuple[Callable[[InheritedSocket, Endpoint], bool], list[InheritedSocket]], ...] = (
            (_stored_for, self._by_name.get(base_name(fd_name(endpoint)), [])),
            (_has_address, self._by_address.get(service.port if endpoint.version else service.path, [])),
            (_named_for, [each for name in (service.id, service.name) for each in self._by_name.get(name, ())]),
        )
        for fits, candidates in criteria:
            for each in candidates:
                if each in self._unused and each.socket is not None and _suits(each, endpoint) and fits(each, endpoint):
                    del self._unused[each]
                    if each.borrowed and endpoint.version and _is_dual_stack(each.socket):
                        self._dual_stack[endpoint.service.id] = each
                    return adopt_socket(endpoint, each.socket, "" if each.borrowed else each.name)
        # By default systemd makes a single socket for IPv4 and IPv6, where svcd has two; both endpoints use it.
        dual_stack = self._dual_stack.get(endpoint.service.id)
        if dual_stack is None or dual_stack.socket is None or endpoint.host not in _ANY.values():
            return None
        return adopt_socket(endpoint, dual_stack.socket.dup())

    def take_control(self, path: str) -> socket.socket | None:
        """Remove and return the old daemon's control socket with a path; None if there is none."""
        for each in self._unused:
            if each.controls and each.socket is not None and each.socket.getsockname() == path and each.has_file(path):
                del self._unused[each]
                return each.socket
        return None

    @property
    def control_path(self) -> str:
        """The path of the old daemon's control socket; empty if there is none."""
        found = [each.socket.getsockname() for each in self._unused if each.controls and each.socket is not None]
        return str(found[0]) if found else ""

    def take_unused(self) -> list[InheritedSocket]:
        """Remove and return the sockets that no endpoint uses, and the unusable ones."""
        for each in self._unused:
            each.reason = "no service of the services file uses it"
        remaining, self._unused, self._unusable = [*self._unusable, *self._unused], {}, []
        return remaining


def _port_or_path(found: InheritedSocket) -> object:
    """Return the port or the path of a socket."""
    name = found.socket.getsockname() if found.socket is not None else ""
    return name[1] if isinstance(name, tuple) else unix_path(name)


def _is_dual_stack(found: socket.socket) -> bool:
    """Return whether a socket is an IPv6 socket that serves IPv4 clients, too."""
    return found.family == socket.AF_INET6 and not found.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _suits(found: InheritedSocket, endpoint: Endpoint) -> bool:
    """Return whether a socket has the type, the family and the IP versions of an endpoint.

    A socket that programs share fits a wait=yes service only.
    """
    sock, service = found.socket, endpoint.service
    stream = service.net.shape is SocketType.STREAM
    if sock is None or sock.type != (socket.SOCK_STREAM if stream else socket.SOCK_DGRAM):
        return False
    if found.waits and not service.options.wait:
        return False
    family = {0: socket.AF_UNIX, 4: socket.AF_INET, 6: socket.AF_INET6}[endpoint.version]
    if not found.borrowed and endpoint.version and not _can_have_options(sock, service.options):
        return False
    if sock.family == socket.AF_INET6 and sock.getsockname()[0] == _ANY[6]:
        if _is_dual_stack(sock) and found.borrowed and len(service.net.versions) > 1:
            return endpoint.host in _ANY.values()
        return family == sock.family and _is_dual_stack(sock) is not service.options.v6only
    return family == sock.family


def _can_have_options(sock: socket.socket, options: ServiceOptions) -> bool:
    """Return whether a socket that svcd opened can have the options of a service; a unit's socket keeps its options."""
    if sock.type == socket.SOCK_STREAM and is_mptcp(sock) is not options.mptcp:
        return False
    sized = has_sized_buffers(sock)
    # The size of a buffer can be changed, but after it was set the kernel does not adapt it any more.
    return sized is None or not ((sized[0] and options.sndbuf is None) or (sized[1] and options.rcvbuf is None))


def _stored_for(found: InheritedSocket, endpoint: Endpoint) -> bool:
    """Return whether a stored socket is that of an endpoint with port 0, which only its name identifies."""
    assert found.socket is not None  # noqa: S101 - the pool has no other items
    if not endpoint.version or endpoint.service.port or base_name(found.name) != base_name(fd_name(endpoint)):
        return False
    return bool(found.socket.getsockname()[0] == socket_address(endpoint)[0])


def _has_address(found: InheritedSocket, endpoint: Endpoint) -> bool:
    assert found.socket is not None  # noqa: S101 - the pool has no others
    name = found.socket.getsockname()
    if not endpoint.version:
        path = endpoint.service.path
        return unix_path(name) == path and found.has_file(path)
    address = socket_address(endpoint)
    if _is_dual_stack(found.socket) and endpoint.version == 4:
        return bool(name[1] == address[1])
    # Host, port, and the interface of a link-local address; the flow label of IPv6 does not matter.
    return bool(name[:2] == address[:2] and name[3:] == address[3:])


def _named_for(found: InheritedSocket, endpoint: Endpoint) -> bool:
    return found.borrowed and found.name in (endpoint.service.id, endpoint.service.name)


_log = Logger()


class FdStore:
    """Descriptor store of the service manager: the next daemon inherits the sockets in it.

    So clients that connect during a restart of svcd wait in the kernel's queue, and none is refused.

    Args:
        manager: the service manager.

    Attributes:
        shared: whether another daemon has the same sockets open, as during an upgrade; their files are kept then.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self.shared = False
        self._remaining: list[InheritedSocket] = []
        self._held: dict[Hashable, ListeningSocket] = {}

    def hold(self, opened: ListeningSocket) -> None:
        """Hold an inherited socket of a broken service; clients wait in its queue until the service recovers."""
        self._held[socket_key(opened.endpoint)] = opened

    def hold_all(self, socket_pool: SocketPool, desired: DesiredServices) -> None:
        """Hold the sockets of faulty services from a pool, unless another service uses them."""
        used = {socket_key(endpoint) for endpoint in desired.endpoints}
        for endpoint in (endpoint for each in desired.faulty for endpoint in each.endpoints):
            if socket_key(endpoint) in used:
                continue
            # A socket that can't have the options of its service is not held.
            with contextlib.suppress(ListenError):
                opened = socket_pool.take(endpoint)
                if opened is not None:
                    self.hold(opened)

    def take_held(self, endpoint: Endpoint) -> ListeningSocket | None:
        """Return the socket that is held for an endpoint, with the options of its service; None if there is none.

        Raises:
            ListenError: the socket can't have the options.
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
        """Close the held sockets, except those of some endpoints."""
        kept = {socket_key(endpoint) for endpoint in endpoints}
        for key in self._held.keys() - kept:
            self.close_on_exit(self._held.pop(key))

    def store(self, opened: ListeningSocket) -> None:
        """Put a socket into the store, unless it is borrowed; its socket unit keeps it then."""
        if not self._manager.present or opened.borrowed:
            return
        name = fd_name(opened.endpoint)
        if opened.stored and is_wait_name(opened.stored) != is_wait_name(name):
            # The name contains the value of wait=, which has changed.
            self._manager.remove_fd(opened.stored)
            opened.stored = ""
        if not opened.stored and self._manager.store_fd(name, opened.socket):
            opened.stored = name

    def close(self, opened: ListeningSocket) -> None:
        """Close a socket, and remove it from the store."""
        if opened.stored:
            self._manager.remove_fd(opened.stored)
        opened.close()

    def close_on_exit(self, opened: ListeningSocket) -> None:
        """Close the daemon's descriptor of a socket when the daemon stops; a stored socket stays open with its file."""
        opened.close(for_good=not (self.shared or (opened.stored and self._manager.present)))

    def close_unused(self, socket_pool: SocketPool) -> list[socket.socket]:
        """Close the unused sockets of a pool, so that their addresses can be bound with other options.

        Returns:
            The sockets that stay open for now, since another daemon has them, too.
        """
        self._remaining += socket_pool.take_unused()
        if self.shared:
            # A program that shares a socket continues to use it, so its address stays in use.
            return [each.socket for each in self._remaining if each.socket is not None and not each.waits]
        self._close_remaining()
        return []

    def stop_sharing(self) -> None:
        """Close the unused sockets: no other daemon has them open any more."""
        self.shared = False
        self._close_remaining()

    def _close_remaining(self) -> None:
        removed = False
        remaining, self._remaining = self._remaining, []
        for each in remaining:
            log_event(_log, UNUSED_FD, name=each.name, address=each.address, reason=each.reason)
            if not each.borrowed:
                self._manager.remove_fd(each.name)
                removed = True
            with contextlib.suppress(OSError):
                each.close()
        if removed:
            self._manager.barrier()


def acquire_sockets(
    endpoints: Iterable[Endpoint],
    socket_pool: SocketPool | None = None,
    store: FdStore | None = None,
    leaving: Sequence[socket.socket] = (),
    *,
    name_owners: bool = False,
) -> tuple[list[ListeningSocket], list[ListenError]]:
    """Return the sockets of endpoints: inherited, or newly opened.

    Args:
        endpoints: the endpoints of the services.
        socket_pool: the inherited sockets; it is empty afterwards.
        store: the store; unused sockets are removed from it.
        leaving: bound sockets of this process that will be closed, and must not conflict with new sockets.
        name_owners: whether errors name the process that uses an address; the search takes a while.

    Returns:
        The sockets, and an error for each endpoint without a socket.
    """
    socket_pool = socket_pool or SocketPool()
    store = store or FdStore(ServiceManager())
    taken: list[tuple[Endpoint, ListeningSocket | None]] = []
    errors: list[ListenError] = []
    activated = socket_pool.activated
    for endpoint in endpoints:
        try:
            taken.append((endpoint, socket_pool.take(endpoint)))
        except ListenError as error:
            errors.append(error)
    leaving = [*leaving, *store.close_unused(socket_pool)]
    opened: list[ListeningSocket] = []
    for endpoint, found in taken:
        try:
            opened.append(found or open_socket(endpoint, leaving))
        except ListenError as error:
            errors.append(with_owner(error, endpoint) if name_owners else error)
            continue
        if activated and not found:
            log_event(_log, NOT_ACTIVATED, service=endpoint.service.id, address=opened[-1].address)
    return opened, errors
