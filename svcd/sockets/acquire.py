"""Where the sockets of endpoints come from: out of the stock, else newly opened; and where they go."""

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
    """Sockets that wait to be asked for.

    One is an endpoint's if it stands where the endpoint is to stand, or if its socket unit has named it by the service
    (`echo/tcp`, or `echo`): then the unit says where it stands.

    Args:
        inherited: what there is.
    """

    def __init__(self, inherited: Iterable[InheritedSocket] = ()) -> None:
        all_of_them = list(inherited)
        # As keys: there may be thousands, and each is taken out by itself.
        self._rest = {each: None for each in all_of_them if not each.reason}
        self._useless = [each for each in all_of_them if each.reason]
        self._named: dict[str, list[InheritedSocket]] = {}
        self._standing: dict[object, list[InheritedSocket]] = {}
        for each in self._rest:
            self._named.setdefault(base_name(each.name), []).append(each)
            self._standing.setdefault(_place(each), []).append(each)
        #: Whether a socket unit gave some: what is missing then is worth a word.
        self.activated = any(each.borrowed for each in self._rest)
        self._both: dict[str, InheritedSocket] = {}

    def __bool__(self) -> bool:
        """Whether there is anything, of use or not."""
        return bool(self._rest or self._useless)

    def take(self, endpoint: Endpoint) -> ListeningSocket | None:
        """The socket of an endpoint, with the options of its service; None if it is not in stock.

        Raises:
            ListenError: it is there, but can't have its options.
        """
        service = endpoint.service
        ways: tuple[tuple[Callable[[InheritedSocket, Endpoint], bool], list[InheritedSocket]], ...] = (
            (_stored_for, self._named.get(base_name(fd_name(endpoint)), [])),
            (_stands_at, self._standing.get(service.port if endpoint.version else service.path, [])),
            (_named_for, [each for name in (service.id, service.name) for each in self._named.get(name, ())]),
        )
        for way, candidates in ways:
            for each in candidates:
                if each in self._rest and each.socket is not None and _suits(each, endpoint) and way(each, endpoint):
                    del self._rest[each]
                    if each.borrowed and endpoint.version and _takes_both(each.socket):
                        self._both[endpoint.service.id] = each
                    return adopt_socket(endpoint, each.socket, "" if each.borrowed else each.name)
        # By default systemd makes one socket for IPv4 and IPv6 where svcd has two: it has it twice.
        both = self._both.get(endpoint.service.id)
        if both is None or both.socket is None or endpoint.host not in _ANY.values():
            return None
        return adopt_socket(endpoint, both.socket.dup())

    def take_control(self, path: str) -> socket.socket | None:
        """The control socket at a path, if the daemon before us had it."""
        for each in self._rest:
            if each.controls and each.socket is not None and each.socket.getsockname() == path and each.has_file(path):
                del self._rest[each]
                return each.socket
        return None

    @property
    def control_path(self) -> str:
        """Where the control socket of the daemon before us stands; empty if there is none."""
        found = [each.socket.getsockname() for each in self._rest if each.controls and each.socket is not None]
        return str(found[0]) if found else ""

    def take_unused(self) -> list[InheritedSocket]:
        """What nobody asked for, and what is of no use; no longer in stock."""
        for each in self._rest:
            each.reason = "no line of the services file asks for it"
        left, self._rest, self._useless = [*self._useless, *self._rest], {}, []
        return left


def _place(found: InheritedSocket) -> object:
    """The port or the path of a socket."""
    name = found.socket.getsockname() if found.socket is not None else ""
    return name[1] if isinstance(name, tuple) else unix_path(name)


def _takes_both(found: socket.socket) -> bool:
    """Whether it is an IPv6 socket that takes IPv4 clients as well."""
    return found.family == socket.AF_INET6 and not found.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _suits(found: InheritedSocket, endpoint: Endpoint) -> bool:
    """Whether a socket has the type and the family of an endpoint, and takes the clients that it should.

    One that programs share is for a service that lets programs have it.
    """
    sock, service = found.socket, endpoint.service
    stream = service.net.shape is SocketType.STREAM
    if sock is None or sock.type != (socket.SOCK_STREAM if stream else socket.SOCK_DGRAM):
        return False
    if found.waits and not service.options.wait:
        return False
    family = {0: socket.AF_UNIX, 4: socket.AF_INET, 6: socket.AF_INET6}[endpoint.version]
    if not found.borrowed and endpoint.version and not _is_made_alike(sock, service.options):
        return False
    if sock.family == socket.AF_INET6 and sock.getsockname()[0] == _ANY[6]:
        if _takes_both(sock) and found.borrowed and len(service.net.versions) > 1:
            return endpoint.host in _ANY.values()
        return family == sock.family and _takes_both(sock) is not service.options.v6only
    return family == sock.family


def _is_made_alike(sock: socket.socket, options: ServiceOptions) -> bool:
    """Whether a socket of ours can have the options of a service; of another one its unit says these."""
    if sock.type == socket.SOCK_STREAM and is_mptcp(sock) is not options.mptcp:
        return False
    sized = has_sized_buffers(sock)
    # A buffer can be given another size, but no longer fits itself.
    return sized is None or not ((sized[0] and options.sndbuf is None) or (sized[1] and options.rcvbuf is None))


def _stored_for(found: InheritedSocket, endpoint: Endpoint) -> bool:
    """Port 0 stands where the kernel put it, so that it can be known by its name alone."""
    assert found.socket is not None  # noqa: S101 - nothing else is in stock
    if not endpoint.version or endpoint.service.port or base_name(found.name) != base_name(fd_name(endpoint)):
        return False
    return bool(found.socket.getsockname()[0] == socket_address(endpoint)[0])


def _stands_at(found: InheritedSocket, endpoint: Endpoint) -> bool:
    assert found.socket is not None  # noqa: S101 - nothing else is in stock
    name = found.socket.getsockname()
    if not endpoint.version:
        path = endpoint.service.path
        return unix_path(name) == path and found.has_file(path)
    wanted = socket_address(endpoint)
    if _takes_both(found.socket) and endpoint.version == 4:
        return bool(name[1] == wanted[1])
    # Host, port, and of a link-local address the interface; the flow label of IPv6 says nothing here.
    return bool(name[:2] == wanted[:2] and name[3:] == wanted[3:])


def _named_for(found: InheritedSocket, endpoint: Endpoint) -> bool:
    return found.borrowed and found.name in (endpoint.service.id, endpoint.service.name)


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
            self.close_on_exit(self._held.pop(key))

    def store(self, opened: ListeningSocket) -> None:
        """Have a socket kept; but one that a socket unit lent is that unit's to keep."""
        if not self._manager.present or opened.borrowed:
            return
        name = fd_name(opened.endpoint)
        if opened.stored and is_wait_name(opened.stored) != is_wait_name(name):
            # What the name says of programs that share it holds no more.
            self._manager.remove_fd(opened.stored)
            opened.stored = ""
        if not opened.stored and self._manager.store_fd(name, opened.socket):
            opened.stored = name

    def close(self, opened: ListeningSocket) -> None:
        """Close a socket for good."""
        if opened.stored:
            self._manager.remove_fd(opened.stored)
        opened.close()

    def close_on_exit(self, opened: ListeningSocket) -> None:
        """Close our side of a socket, as the daemon ends; what is kept stays open, and where clients find it."""
        opened.close(for_good=not (self.shared or (opened.stored and self._manager.present)))

    def close_unused(self, socket_pool: SocketPool) -> list[socket.socket]:
        """Close what is left of a stock; nobody has it open then: its addresses may be asked for in another way.

        Returns:
            What stays open for now, since another daemon has it, too.
        """
        self._left += socket_pool.take_unused()
        if self.shared:
            # A program that shares one goes on with it: its address is in use until then.
            return [each.socket for each in self._left if each.socket is not None and not each.waits]
        self._close_left()
        return []

    def stop_sharing(self) -> None:
        """The sockets are ours alone from now on."""
        self.shared = False
        self._close_left()

    def _close_left(self) -> None:
        removed = False
        left, self._left = self._left, []
        for each in left:
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
    leaving = [*leaving, *store.close_unused(socket_pool)]
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
