"""Listening sockets: opened with their options, or refused with the cause and the remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svcd.errors import ListenError, ListenErrors
from svcd.model import Shape, address_text
from svcd.transport.machine import group_id, user_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svcd.config.check import Endpoint
    from svcd.config.options import Options
    from svcd.config.service import Service

__all__ = ["OpenSocket", "credentials", "open_local", "open_socket"]

_REMEDIES = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; change bind=",
    errno.ENOENT: "its directory does not exist; create it",
    errno.ENOTDIR: "a part of the path is no directory; change the path",
    errno.EROFS: "choose a path that can be written",
    errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE=)",
}
_FIRST_UNPRIVILEGED = 1024
# Of linux/tcp.h, which the socket module lacks (tcp(7); Linux 3.12).
_TCP_NOTSENT_LOWAT = 25
#: How much the kernel keeps for a client beyond what is on its way, in bytes. By itself it takes up to 4 MB from who
#: produces without end (net.ipv4.tcp_wmem): a thousand chargens whose clients read nothing kept others waiting for
#: half a second while that was filled, and for 40 ms with this; a fast client gets as many bytes a second.
_MOST_UNSENT = 131_072


@dataclass(slots=True)
class OpenSocket:
    """A bound socket, and a listening one for streams, with the endpoint it serves.

    Attributes:
        endpoint: what it serves.
        socket: it, non-blocking.
        address: where it stands, as people write it.
        file: device and inode of a UNIX socket's file.
    """

    endpoint: Endpoint
    socket: socket.socket
    address: str
    file: tuple[int, int] | None = None

    def permit(self, endpoint: Endpoint) -> None:
        """Give a UNIX socket's file the owner and permissions of another endpoint with the same path.

        Raises:
            ListenError: the system refuses.
        """
        path, service = endpoint.service.path, endpoint.service
        if not path or _permissions(service) == _permissions(self.endpoint.service):
            return
        try:
            _chown(service)
            os.chmod(path, service.options.mode)  # noqa: PTH101 - one system call
        except (OSError, KeyError) as error:
            raise _explained(endpoint, error) from error

    def retune(self, endpoint: Endpoint) -> None:
        """Serve another endpoint of the same address, or the same with other options."""
        self.endpoint = endpoint
        options = endpoint.service.options
        if endpoint.service.net.shape is Shape.STREAM:
            self.socket.listen(options.backlog)
            if endpoint.version:
                _tune(self.socket, options)

    def close(self) -> None:
        """Close it, and remove the file of a UNIX socket, as far as we may."""
        path = self.endpoint.service.path
        with contextlib.suppress(OSError):
            # Somebody else's by now, if it is another file.
            if path and _file_of(path) == self.file:
                os.unlink(path)  # noqa: PTH108 - one system call
        self.socket.close()


def open_socket(endpoint: Endpoint, leaving: Sequence[OpenSocket] = ()) -> OpenSocket:
    """Open the socket of an endpoint; a stream socket listens from now on.

    Args:
        endpoint: which.
        leaving: sockets of ours that will be closed, and must not stand in the way.

    Raises:
        ListenError: it can't be had.
    """
    service = endpoint.service
    stream = service.net.shape is Shape.STREAM
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    family = {0: socket.AF_UNIX, 4: socket.AF_INET, 6: socket.AF_INET6}[endpoint.version]
    try:
        opened = socket.socket(family, kind)
        try:
            opened.setblocking(False)
            if endpoint.version:
                _bind_inet(opened, endpoint, stream=stream, leaving=leaving)
            else:
                _bind_local(opened, endpoint)
            if stream:
                opened.listen(service.options.backlog)
        except BaseException:
            opened.close()
            raise
    except (OSError, KeyError) as error:
        raise _explained(endpoint, error) from error
    address = endpoint.address
    if endpoint.version:
        host, port = opened.getsockname()[:2]
        address = address_text(host, port)
    return OpenSocket(endpoint, opened, address, None if endpoint.version else _file_of(endpoint.address))


def credentials(sock: Any) -> tuple[int, int, int]:  # noqa: ANN401 - a socket, or as much of one
    """The process at the other end of a UNIX socket, its user and its group (SO_PEERCRED, unix(7)).

    Raises:
        OSError: it is no connected UNIX socket.
    """
    pid, user, group = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return pid, user, group


def open_local(path: str, mode: int) -> socket.socket:
    """Open a listening UNIX socket of the daemon's own, which serves no endpoint.

    Raises:
        ListenErrors: it can't be had.
    """
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.setblocking(False)
        _remove_stale(path, opened.type)
        before = os.umask(0o777 & ~mode)
        try:
            opened.bind(path)
        finally:
            os.umask(before)
        opened.listen()
    except OSError as error:
        opened.close()
        remedy = _REMEDIES.get(error.errno or 0, "choose another path")
        raise ListenErrors([ListenError("control", path, error.strerror or str(error), remedy)]) from error
    return opened


def _file_of(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _tune(opened: socket.socket, options: Options) -> None:
    """Set what accepted sockets inherit from the listening one on Linux."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, options.keepalive)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)


def _bind_inet(opened: socket.socket, endpoint: Endpoint, *, stream: bool, leaving: Sequence[OpenSocket]) -> None:
    options = endpoint.service.options
    if stream:
        # Only for streams: two datagram sockets that both ask for it would share the port unasked.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(opened, options)
        opened.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _MOST_UNSENT)
    if options.reuse_port:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if endpoint.version == 6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.v6only)
    # getaddrinfo turns a literal with %scope into its address; nothing is looked up.
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(endpoint.host, endpoint.service.port, opened.family, opened.type, 0, flags)
    in_the_way = [each.socket for each in leaving if _same_port(each.endpoint, endpoint)]
    with _sharing([*in_the_way, opened]) if in_the_way else contextlib.nullcontext():
        opened.bind(found[0][4])
        if stream:
            opened.listen(options.backlog)


def _same_port(one: Endpoint, other: Endpoint) -> bool:
    """Whether they may get in each other's way."""
    first, second = one.service, other.service
    return first.net.shape is second.net.shape and first.port == second.port != 0


@contextlib.contextmanager
def _sharing(sockets: Sequence[socket.socket]) -> Iterator[None]:
    """Let sockets of ours have the same port for a moment (SO_REUSEPORT, socket(7)): none is missing meanwhile."""
    before = [each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for each in sockets]
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        yield
    finally:
        for each, value in zip(sockets, before, strict=True):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


def _bind_local(opened: socket.socket, endpoint: Endpoint) -> None:
    service = endpoint.service
    path = service.path
    _remove_stale(path, opened.type)
    # The file is never seen with wider permissions: bind(2) makes it under the umask.
    before = os.umask(0o777 & ~service.options.mode)
    try:
        opened.bind(path)
    finally:
        os.umask(before)
    try:
        _chown(service)
    except (OSError, KeyError):
        os.unlink(path)  # noqa: PTH108 - one system call
        raise


def _permissions(service: Service) -> tuple[int, str, str]:
    return service.options.mode, service.options.owner.user, service.file_group


def _chown(service: Service) -> None:
    user, group = service.options.owner.user, service.file_group
    if user or group:
        os.chown(service.path, user_id(user) if user else -1, group_id(group) if group else -1)


def _remove_stale(path: str, kind: int) -> None:
    """Remove what a daemon that is gone left behind: a socket at which nobody listens."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket stands there")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108 - one system call
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _explained(endpoint: Endpoint, error: OSError | KeyError) -> ListenError:
    service = endpoint.service
    if isinstance(error, KeyError):
        return ListenError(service.id, endpoint.address, str(error.args[0]), "name another in the services file")
    cause = error.strerror or str(error)
    code = error.errno or 0
    if code in (errno.EACCES, errno.EPERM) and endpoint.version and service.port < _FIRST_UNPRIVILEGED:
        remedy = (
            f"ports below {_FIRST_UNPRIVILEGED} need root or CAP_NET_BIND_SERVICE; to try it without, "
            "add --port-offset 10000"
        )
    elif code in (errno.EACCES, errno.EPERM):
        remedy = "let the user that runs svcd write there, or change the socket's owner"
    elif code == errno.EEXIST:
        remedy = "move it away, or choose another path"
    elif code == errno.EADDRINUSE and not endpoint.version:
        remedy = "another server listens at this path; stop it, or choose another path"
    else:
        remedy = _REMEDIES.get(code, "change the line in the services file")
    return ListenError(service.id, endpoint.address, cause, remedy)
