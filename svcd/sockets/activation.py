"""Inherited sockets (sd_listen_fds(3)): from socket activation, the descriptor store, or a parent process.

They are the descriptors from 3 on, with LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES in the environment. Sockets that a
svcd daemon opened have names of a special form (`fd_name`). Any other name is from FileDescriptorName= of a socket
unit: the socket is borrowed, and belongs to its unit.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from svcd.addresses import address_text
from svcd.errors import ActivationError
from svcd.net.socket_options import unix_path
from svcd.net.unix_socket import file_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from svcd.config.endpoints import Endpoint

__all__ = [
    "LISTEN_VARIABLES",
    "InheritedSocket",
    "base_name",
    "control_fd_name",
    "fd_name",
    "handover_name",
    "is_wait_name",
    "listen_fds",
]  # fmt: skip

#: The environment variables of the protocol; they are for the started process, not for its children.
LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
#: sd_listen_fds(3), SD_LISTEN_FDS_START.
_FIRST = 3
#: The prefix of names of sockets that svcd opened.
_MARK = "svcd/"
#: The suffix of names of sockets that programs of a wait=yes service share. quote() escapes a plus sign before it.
_SHARED = "+wait"
#: The last part of the control socket's name; no endpoint has such a name.
_CONTROL = "control"
#: sd_pid_notify_with_fds(3): a name has at most 255 ASCII characters, no control character and no colon.
_MAX_NAME_LENGTH = 255


@dataclass(eq=False, slots=True)
class InheritedSocket:
    """Descriptor that the daemon was started with.

    Attributes:
        name: the name in LISTEN_FDNAMES.
        socket: the socket; None for a descriptor that is no socket, which is closed already.
        reason: why the socket is unusable; empty if it is usable.
    """

    name: str
    socket: socket.socket | None
    reason: str = ""

    @property
    def borrowed(self) -> bool:
        """Whether the socket, and the file of a UNIX socket, belong to a socket unit."""
        return not self.name.startswith(_MARK)

    @property
    def waits(self) -> bool:
        """Whether it belonged to a wait=yes service; a program may have it open and change its file status flags."""
        return not self.borrowed and is_wait_name(self.name)

    @property
    def address(self) -> str:
        """The address of the socket as text; `-` if it has none."""
        if self.socket is None:
            return "-"
        name = self.socket.getsockname()
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            return address_text(*name[:2])
        if self.socket.family == socket.AF_UNIX and name:
            return unix_path(name)
        return "-"

    def close(self) -> None:
        """Close the socket, and remove the file of a UNIX socket that is not borrowed."""
        if self.socket is None:
            return
        if not self.borrowed and self.socket.family == socket.AF_UNIX:
            path = unix_path(self.socket.getsockname())
            if path.startswith("/") and self.name.split("/")[1] == _identity(path):
                os.unlink(path)  # noqa: PTH108 - one system call
        self.socket.close()

    @property
    def controls(self) -> bool:
        """Whether this is a control socket."""
        return not self.borrowed and self.name.endswith(f"/{_CONTROL}")

    def has_file(self, path: str) -> bool:
        """Return whether a UNIX socket can be reached by a path; for a borrowed socket, whether the path exists."""
        if path.startswith("@"):
            # An abstract name exists as long as its socket.
            return True
        here = _identity(path)
        return here != "-" if self.borrowed else here == self.name.split("/")[1]


def _identity(path: str) -> str:
    if path.startswith("@"):
        return "-"
    try:
        return _identity_of(file_of(path))
    except OSError:
        return "-"


def _identity_of(file: tuple[int, int]) -> str:
    return f"{file[0]:x}.{file[1]:x}"


def fd_name(endpoint: Endpoint, file: tuple[int, int] | None = None) -> str:
    """Return the name of an endpoint's socket for the descriptor store.

    It contains the device and inode of a UNIX socket's file, since another file may replace it, and the id of the
    service, since port 0 does not identify it.

    Args:
        endpoint: the endpoint of the socket.
        file: the device and inode of a UNIX socket's file; None for those of the file at its path.
    """
    identity = _identity_of(file) if file is not None else "-" if endpoint.version else _identity(endpoint.service.path)
    return _svcd_name(identity, f"{endpoint.service.id}@{endpoint.address}") + _ending(endpoint)


def handover_name(endpoint: Endpoint, file: tuple[int, int] | None) -> str:
    """Return the name of an endpoint's socket for the new daemon of an upgrade.

    A socket that its address identifies has a short name: the names of thousands of sockets must fit into a variable.
    """
    if endpoint.version and endpoint.service.port:
        return f"{_MARK}-/{_ending(endpoint)}"
    return fd_name(endpoint, file)


def base_name(name: str) -> str:
    """Return a name without the suffix for sockets that programs share."""
    return name.removesuffix(_SHARED)


def is_wait_name(name: str) -> bool:
    """Return whether a name is that of a socket that programs of a wait=yes service share."""
    return name.endswith(_SHARED)


def _ending(endpoint: Endpoint) -> str:
    return _SHARED if endpoint.service.options.wait else ""


def control_fd_name(file: tuple[int, int]) -> str:
    """Return the name of the control socket for the new daemon of an upgrade."""
    return _svcd_name(_identity_of(file), _CONTROL)


def _svcd_name(identity: str, key: str) -> str:
    name = f"{_MARK}{identity}/{quote(key)}"
    if len(name) > _MAX_NAME_LENGTH - len(_SHARED):
        name = f"{_MARK}{identity}/{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"
    return name


def listen_fds(environment: Mapping[str, str], pid: int, names: Sequence[str] | None = None) -> list[InheritedSocket]:
    """Return the sockets that the process was started with.

    Args:
        environment: the environment of the process.
        pid: the pid of the process; descriptors for another process are ignored.
        names: the names of the descriptors, if they were not passed in the environment.

    Raises:
        ActivationError: descriptors are missing, or are connections.
    """
    count = environment.get("LISTEN_FDS", "")
    if not count or environment.get("LISTEN_PID") != str(pid):
        return []
    if not count.isdecimal():
        raise ActivationError(f"LISTEN_FDS={count} is not a number of descriptors")
    variable = environment.get("LISTEN_FDNAMES", "")
    listed = list(names) if names is not None else variable.split(":") if variable else []
    # sd_listen_fds_with_names(3) gives this name to descriptors without a name.
    listed += ["unknown"] * (int(count) - len(listed))
    return [_inherited(_FIRST + number, name) for number, name in enumerate(listed[: int(count)])]


def _inherited(fd: int, name: str) -> InheritedSocket:
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise ActivationError(f"LISTEN_FDS counts descriptor {fd}, but: {error.strerror}") from None
    if not stat.S_ISSOCK(status.st_mode):
        os.close(fd)
        return InheritedSocket(name, None, "it is not a socket")
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    found = InheritedSocket(name, sock)
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        found.reason = "no service has sockets of this family"
    elif sock.type == socket.SOCK_STREAM:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            _reject_connection(found)
            found.reason = "it does not listen"
    elif sock.type != socket.SOCK_DGRAM:
        found.reason = "no service has sockets of this type"
    return found


def _reject_connection(found: InheritedSocket) -> None:
    assert found.socket is not None  # noqa: S101 - the caller has passed a socket
    try:
        found.socket.getpeername()
    except OSError:
        return
    raise ActivationError(
        f"descriptor {found.name!r} is a connection: its socket unit has Accept=yes, which starts a program for "
        "each connection; svcd accepts connections itself, so remove Accept= from the socket unit"
    )
