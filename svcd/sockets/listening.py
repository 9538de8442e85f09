"""Opening of listening sockets with their options, and errors with a cause and a remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from svcd.addresses import address_text
from svcd.errors import ListenError
from svcd.host.accounts import group_id, user_id
from svcd.model import SocketType
from svcd.net.port_owner import socket_owner
from svcd.net.socket_options import IPPROTO_MPTCP, TCP_NOTSENT_LOWAT, unix_address, unix_path
from svcd.net.unix_socket import bind_local, file_of, has_file, remove_file
from svcd.sockets.activation import handover_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svcd.config.endpoints import Endpoint
    from svcd.config.options import ServiceOptions
    from svcd.config.service import Service
    from svcd.net.port_owner import Process

__all__ = [
    "IP_FREEBIND",
    "REMEDIES",
    "ListeningSocket",
    "adopt_socket",
    "in_use",
    "open_socket",
    "socket_address",
    "with_owner",
]

#: Remedies for errors of the system.
REMEDIES = {
    errno.EADDRNOTAVAIL: (
        "this machine has no such address; change bind=, or add freebind=yes if the address is added later"
    ),
    errno.ENOENT: "create its directory",
    errno.ENOTDIR: "a part of the path is not a directory; change the path",
    errno.EROFS: "choose a writable path",
    errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE=)",
}
_FIRST_UNPRIVILEGED = 1024
#: From linux/in.h.
IP_FREEBIND = 15
#: The unsent output that the kernel buffers for a client, in bytes (TCP_NOTSENT_LOWAT). The default is up to 4 MB
#: (net.ipv4.tcp_wmem): a thousand chargen clients that read nothing delayed others for half a second while their
#: buffers were filled, and for 40 ms with this limit. The throughput of a fast client is the same.
_MAX_UNSENT = 131_072


@dataclass(slots=True)
class ListeningSocket:
    """Bound socket of an endpoint; a stream socket listens.

    Attributes:
        endpoint: the endpoint.
        socket: the socket, non-blocking, except for a wait=yes service, whose programs may change that.
        address: the address of the socket as text.
        file: device and inode of a UNIX socket's file; None for a borrowed socket.
        stored: the name of the socket in the service manager's store; empty if it is not in the store.
        origin: the origin of the socket: `store` for the old daemon, `activation` for a socket unit; empty if this
            daemon has opened it.
    """

    endpoint: Endpoint
    socket: socket.socket
    address: str
    file: tuple[int, int] | None = None
    stored: str = ""
    origin: str = ""

    @property
    def borrowed(self) -> bool:
        """Whether the socket and its file belong to a socket unit."""
        return self.origin == "activation"

    @property
    def file_lost(self) -> bool:
        """Whether the file of a UNIX socket was removed or replaced, so that clients can't reach the socket."""
        return self.file is not None and not self.borrowed and not has_file(self.endpoint.service.path, self.file)

    @property
    def handover_name(self) -> str:
        """The name of the socket for the new daemon of an upgrade."""
        return quote(self.endpoint.service.id) if self.borrowed else handover_name(self.endpoint, self.file)

    def set_permissions(self, endpoint: Endpoint) -> None:
        """Set the owner and permissions of a UNIX socket's file to those of another endpoint with the same path.

        Raises:
            ListenError: the system does not allow it.
        """
        path, service = endpoint.service.socket_file, endpoint.service
        if not path or self.borrowed or _permissions(service) == _permissions(self.endpoint.service):
            return
        try:
            _set_permissions(service)
        except (OSError, KeyError) as error:
            raise _listen_error(endpoint, error) from error

    def retune(self, endpoint: Endpoint) -> None:
        """Use the socket for another endpoint with the same address, or with other options."""
        self.endpoint = endpoint
        options = endpoint.service.options
        if endpoint.version:
            _size_buffers(self.socket, options)
            if options.tos or not self.borrowed:
                # A borrowed socket has the option of its socket unit, IPTOS=.
                _set_traffic_class(self.socket, options.tos)
        if endpoint.service.net.shape is SocketType.STREAM:
            # Another call changes the length of the queue (listen(2)); clients in the queue stay in it.
            self.socket.listen(options.backlog)
            if endpoint.version:
                _tune(self.socket, options)

    def reapply(self) -> None:
        """Set the options and permissions again, since another daemon may have changed them."""
        if not self.borrowed and self.endpoint.service.socket_file:
            with contextlib.suppress(OSError, KeyError):
                _set_permissions(self.endpoint.service)
        self.retune(self.endpoint)

    def close(self, *, for_good: bool = True) -> None:
        """Close the socket.

        Args:
            for_good: whether the file of a UNIX socket is removed, if permissions allow it.
        """
        path = self.endpoint.service.socket_file
        if for_good and path:
            remove_file(path, self.file)
        self.socket.close()


def open_socket(endpoint: Endpoint, leaving: Sequence[socket.socket] = ()) -> ListeningSocket:
    """Open the socket of an endpoint; a stream socket starts to listen.

    Args:
        endpoint: the endpoint.
        leaving: bound sockets of this process that will be closed, and must not conflict with the new socket.

    Raises:
        ListenError: the socket can't be opened, or can't have its options.
    """
    service = endpoint.service
    stream = service.net.shape is SocketType.STREAM
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    family = {0: socket.AF_UNIX, 4: socket.AF_INET, 6: socket.AF_INET6}[endpoint.version]
    try:
        opened = socket.socket(family, kind, IPPROTO_MPTCP if service.options.mptcp else 0)
        try:
            opened.setblocking(False)
            if endpoint.version:
                _bind_inet(opened, endpoint, stream=stream, leaving=leaving)
            elif service.abstract:
                opened.bind(unix_address(service.path))
            else:
                _bind_endpoint(opened, service)
            if stream:
                opened.listen(service.options.backlog)
        except BaseException:
            opened.close()
            raise
    except (OSError, KeyError) as error:
        raise _listen_error(endpoint, error) from error
    file = file_of(service.socket_file) if service.socket_file else None
    return ListeningSocket(endpoint, opened, _address(opened), file)


def adopt_socket(endpoint: Endpoint, opened: socket.socket, stored: str = "") -> ListeningSocket:
    """Return an inherited socket for an endpoint, with the options of its service.

    Args:
        endpoint: the endpoint.
        opened: the bound socket.
        stored: the name of the socket in the service manager's store; empty for a borrowed socket.

    Raises:
        ListenError: the socket can't have the options.
    """
    path = endpoint.service.socket_file
    try:
        if not endpoint.service.options.wait:
            # The programs of a wait=yes service share the file status flags, and may be using the socket.
            opened.setblocking(False)
        if stored and path:
            _set_permissions(endpoint.service)
        file = file_of(path) if stored and path else None
        adopted = ListeningSocket(endpoint, opened, _address(opened), file, stored, "store" if stored else "activation")
        adopted.retune(endpoint)
    except (OSError, KeyError) as error:
        opened.close()
        raise _listen_error(endpoint, error) from error
    return adopted


def _address(opened: socket.socket) -> str:
    name = opened.getsockname()
    return unix_path(name) if opened.family == socket.AF_UNIX else address_text(*name[:2])


def socket_address(endpoint: Endpoint) -> tuple[Any, ...]:
    """Return the socket address of an endpoint with a port.

    getaddrinfo(3) converts a literal with %scope; no name is looked up.
    """
    family = socket.AF_INET if endpoint.version == 4 else socket.AF_INET6
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return socket.getaddrinfo(endpoint.host, endpoint.service.port, family, 0, 0, flags)[0][4]


def _tune(opened: socket.socket, options: ServiceOptions) -> None:
    """Set the options that accepted sockets inherit from the listening socket on Linux."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, options.keepalive)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)


def _size_buffers(opened: socket.socket, options: ServiceOptions) -> None:
    """Set the sizes of the kernel's buffers, which accepted sockets inherit; without a size the kernel adapts them."""
    for option, size in ((socket.SO_SNDBUF, options.sndbuf), (socket.SO_RCVBUF, options.rcvbuf)):
        if size is not None:
            opened.setsockopt(socket.SOL_SOCKET, option, size)


def _set_traffic_class(opened: socket.socket, value: int) -> None:
    """Set the DS field of IP packets that are sent; accepted sockets inherit it."""
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, value)
    # IP_TOS is set for an IPv6 socket, too, which may have clients with IPv4-mapped addresses.
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value)


def _bind_inet(opened: socket.socket, endpoint: Endpoint, *, stream: bool, leaving: Sequence[socket.socket]) -> None:
    options = endpoint.service.options
    # The sizes must be set before listen(2): they determine the window scale at the connect (tcp(7)).
    _size_buffers(opened, options)
    _set_traffic_class(opened, options.tos)
    if stream:
        # The option is for streams only: two datagram sockets with it would share the port.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(opened, options)
        with contextlib.suppress(OSError) if options.mptcp else contextlib.nullcontext():
            # Multipath TCP supports the option since Linux 6.10.
            opened.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, _MAX_UNSENT)
    if options.freebind:
        # The option applies to IPv6, too (ip(7)).
        opened.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    if options.reuse_port:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if endpoint.version == 6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.v6only)
    conflicting = [each for each in leaving if _same_port(each, endpoint, opened.type)]
    with _sharing_port([*conflicting, opened]) if conflicting else contextlib.nullcontext():
        opened.bind(socket_address(endpoint))
        if stream:
            opened.listen(options.backlog)


def _same_port(sock: socket.socket, endpoint: Endpoint, kind: int) -> bool:
    """Return whether a socket may conflict with that of an endpoint."""
    return sock.type == kind and sock.family != socket.AF_UNIX and sock.getsockname()[1] == endpoint.service.port


@contextlib.contextmanager
def _sharing_port(sockets: Sequence[socket.socket]) -> Iterator[None]:
    """Make sockets of this process share a port briefly (SO_REUSEPORT, socket(7)), so that none has to be closed."""
    before = [each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for each in sockets]
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for each, value in zip(sockets, before, strict=True):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


def _bind_endpoint(opened: socket.socket, service: Service) -> None:
    bind_local(opened, service.path, service.options.mode)
    try:
        _chown(service)
    except (OSError, KeyError):
        os.unlink(service.path)  # noqa: PTH108 - one system call
        raise


def _permissions(service: Service) -> tuple[int, str, str]:
    return service.options.mode, service.options.owner.user, service.file_group


def _set_permissions(service: Service) -> None:
    """Set the owner and permissions of a UNIX socket's file; no privilege is required if they are correct already."""
    _chown(service)
    if stat.S_IMODE(os.lstat(service.path).st_mode) != service.options.mode:
        os.chmod(service.path, service.options.mode)  # noqa: PTH101 - one system call


def _chown(service: Service) -> None:
    user, group = service.options.owner.user, service.file_group
    status = os.lstat(service.path)
    wanted = user_id(user) if user else status.st_uid, group_id(group) if group else status.st_gid
    if wanted != (status.st_uid, status.st_gid):
        os.chown(service.path, *wanted)


def _listen_error(endpoint: Endpoint, error: OSError | KeyError) -> ListenError:
    service = endpoint.service
    if isinstance(error, KeyError):
        return ListenError(service.id, endpoint.address, str(error.args[0]), "use another one in the services file")
    cause = error.strerror or str(error)
    code = error.errno or 0
    if code == errno.EADDRINUSE:
        return in_use(endpoint, cause)
    if code in (errno.EACCES, errno.EPERM) and endpoint.version and service.port < _FIRST_UNPRIVILEGED:
        remedy = (
            f"ports below {_FIRST_UNPRIVILEGED} need root or CAP_NET_BIND_SERVICE; for a test without "
            "them, add --port-offset 10000"
        )
    elif code in (errno.EACCES, errno.EPERM):
        remedy = "let the user that runs svcd write there, or change the socket's owner"
    elif code == errno.EEXIST:
        remedy = "move it away, or choose another path"
    elif service.options.mptcp and code in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT):
        remedy = "this kernel has no Multipath TCP (CONFIG_MPTCP, net.mptcp.enabled); enable it, or remove mptcp=yes"
    else:
        remedy = REMEDIES.get(code, "change the line in the services file")
    return ListenError(service.id, endpoint.address, cause, remedy, code)


def in_use(endpoint: Endpoint, cause: str, owner: Process | None = None) -> ListenError:
    """Return the error for an address in use, with the process that uses it if that is known."""
    service = endpoint.service
    what = "port" if endpoint.version else "path"
    if owner is None or owner.pid == os.getpid():
        remedy = f"stop the program that listens there, or choose another {what}"
    else:
        cause = f"{cause} by {owner}"
        remedy = f"stop {owner.name}, or choose another {what}"
    return ListenError(service.id, endpoint.address, cause, remedy, errno.EADDRINUSE)


def with_owner(error: ListenError, endpoint: Endpoint) -> ListenError:
    """Return the error of an address in use with the process that uses it, if /proc shows it; other errors unchanged.

    The search reads the descriptors of all processes, which takes 20 ms for some hundred processes.
    """
    if error.number != errno.EADDRINUSE or error.owner_sought:
        return error
    service = endpoint.service
    kind = socket.SOCK_STREAM if service.net.shape is SocketType.STREAM else socket.SOCK_DGRAM
    path = "" if endpoint.version else service.path
    owner = socket_owner(kind, endpoint.host, service.port, path)
    named = in_use(endpoint, os.strerror(error.number), owner)
    named.owner_sought = True
    return named
