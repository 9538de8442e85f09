"""The stock of sockets that are open already: endpoints of the services file take theirs from it, whoever opened it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from svcd.model import SocketType
from svcd.net.socket_options import has_sized_buffers, is_mptcp, unix_path
from svcd.sockets.activation import base_name, stored_name
from svcd.sockets.listening import adopt_socket, socket_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from svcd.config.endpoints import Endpoint
    from svcd.config.options import ServiceOptions
    from svcd.sockets.activation import InheritedSocket
    from svcd.sockets.listening import ListeningSocket

__all__ = ["SocketPool"]

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
        self.activated = any(each.lent for each in self._rest)
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
            (_stored_for, self._named.get(base_name(stored_name(endpoint)), [])),
            (_stands_at, self._standing.get(service.port if endpoint.version else service.path, [])),
            (_named_for, [each for name in (service.id, service.name) for each in self._named.get(name, ())]),
        )
        for way, candidates in ways:
            for each in candidates:
                if each in self._rest and each.socket is not None and _suits(each, endpoint) and way(each, endpoint):
                    del self._rest[each]
                    if each.lent and endpoint.version and _takes_both(each.socket):
                        self._both[endpoint.service.id] = each
                    return adopt_socket(endpoint, each.socket, "" if each.lent else each.name)
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

    def leftover(self) -> list[InheritedSocket]:
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
    if not found.lent and endpoint.version and not _is_made_alike(sock, service.options):
        return False
    if sock.family == socket.AF_INET6 and sock.getsockname()[0] == _ANY[6]:
        if _takes_both(sock) and found.lent and len(service.net.versions) > 1:
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
    if not endpoint.version or endpoint.service.port or base_name(found.name) != base_name(stored_name(endpoint)):
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
    return found.lent and found.name in (endpoint.service.id, endpoint.service.name)
