"""Sockets that we were started with (sd_listen_fds(3)): by socket activation, from the descriptor store, from a parent.

All of them come the same way: as descriptors from 3 on, with LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES in the
environment. Their names tell them apart. Those that svcd gave away itself have names of its own making (`fd_name`);
any other name is an administrator's, from FileDescriptorName= of a socket unit, and that socket stays its unit's.
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

#: What says so; it is for the process that was started, and for none of its children.
LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
#: sd_listen_fds(3), SD_LISTEN_FDS_START.
_FIRST = 3
#: How names that are ours begin.
_MARK = "svcd/"
#: How names of sockets end that programs of a wait=yes service share; quote() leaves no plus sign in what is before.
_SHARED = "+wait"
#: How the control socket's name ends; no endpoint has such a name.
_CONTROL = "control"
#: sd_pid_notify_with_fds(3): a name has at most 255 ASCII characters, no control character and no colon.
_LONGEST_NAME = 255


@dataclass(eq=False, slots=True)
class InheritedSocket:
    """A descriptor that we were started with.

    Attributes:
        name: as LISTEN_FDNAMES has it.
        socket: it; None for what is no socket and is closed already.
        reason: why it is of no use, if that is known.
    """

    name: str
    socket: socket.socket | None
    reason: str = ""

    @property
    def borrowed(self) -> bool:
        """Whether its giver keeps it, and what belongs to it."""
        return not self.name.startswith(_MARK)

    @property
    def waits(self) -> bool:
        """Whether it was a wait=yes service's: a program may have it, and may change its file status flags."""
        return not self.borrowed and is_wait_name(self.name)

    @property
    def address(self) -> str:
        """Where it stands, as people write it; `-` where that can't be said."""
        if self.socket is None:
            return "-"
        name = self.socket.getsockname()
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            return address_text(*name[:2])
        if self.socket.family == socket.AF_UNIX and name:
            return unix_path(name)
        return "-"

    def close(self) -> None:
        """Close it, and remove the file of a UNIX socket that is ours."""
        if self.socket is None:
            return
        if not self.borrowed and self.socket.family == socket.AF_UNIX:
            path = unix_path(self.socket.getsockname())
            if path.startswith("/") and self.name.split("/")[1] == _identity(path):
                os.unlink(path)  # noqa: PTH108 - one system call
        self.socket.close()

    @property
    def controls(self) -> bool:
        """Whether it is a control socket."""
        return not self.borrowed and self.name.endswith(f"/{_CONTROL}")

    def has_file(self, path: str) -> bool:
        """Whether a UNIX socket is the one that clients find at a path; of a lent one the giver sees to that."""
        if path.startswith("@"):
            # It is there as long as a process has it.
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
    """Under which name the socket of an endpoint is given away.

    It says which file a UNIX socket has, since the socket alone does not tell whether its path is still its own, and
    which line it is for, since port 0 does not say that.

    Args:
        endpoint: it.
        file: of a UNIX socket, if that is known; else the one that stands at its path.
    """
    identity = _identity_of(file) if file is not None else "-" if endpoint.version else _identity(endpoint.service.path)
    return _given_name(identity, f"{endpoint.service.id}@{endpoint.address}") + _ending(endpoint)


def handover_name(endpoint: Endpoint, file: tuple[int, int] | None) -> str:
    """Return the name under which the daemon after this one gets the socket of an endpoint.

    What is known by its address needs no other name: the names of thousands must fit into one variable.
    """
    if endpoint.version and endpoint.service.port:
        return f"{_MARK}-/{_ending(endpoint)}"
    return fd_name(endpoint, file)


def base_name(name: str) -> str:
    """Return a name without what it says of programs that share the socket."""
    return name.removesuffix(_SHARED)


def is_wait_name(name: str) -> bool:
    """Return whether a name says that programs of a wait=yes service share the socket."""
    return name.endswith(_SHARED)


def _ending(endpoint: Endpoint) -> str:
    return _SHARED if endpoint.service.options.wait else ""


def control_fd_name(file: tuple[int, int]) -> str:
    """Under which name the control socket is given away."""
    return _given_name(_identity_of(file), _CONTROL)


def _given_name(identity: str, key: str) -> str:
    name = f"{_MARK}{identity}/{quote(key)}"
    if len(name) > _LONGEST_NAME - len(_SHARED):
        name = f"{_MARK}{identity}/{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"
    return name


def listen_fds(environment: Mapping[str, str], pid: int, names: Sequence[str] | None = None) -> list[InheritedSocket]:
    """What we were started with.

    Args:
        environment: with which the process was started.
        pid: of the process: descriptors that were meant for another one are left alone.
        names: of the descriptors, where they came another way than in the environment.

    Raises:
        ActivationError: they are nothing that a super-server can be started with.
    """
    count = environment.get("LISTEN_FDS", "")
    if not count or environment.get("LISTEN_PID") != str(pid):
        return []
    if not count.isdecimal():
        raise ActivationError(f"LISTEN_FDS={count} is no number of descriptors")
    variable = environment.get("LISTEN_FDNAMES", "")
    listed = list(names) if names is not None else variable.split(":") if variable else []
    # As sd_listen_fds_with_names(3) calls those without a name.
    listed += ["unknown"] * (int(count) - len(listed))
    return [_received(_FIRST + number, name) for number, name in enumerate(listed[: int(count)])]


def _received(descriptor: int, name: str) -> InheritedSocket:
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        raise ActivationError(f"LISTEN_FDS counts descriptor {descriptor}, but: {error.strerror}") from None
    if not stat.S_ISSOCK(status.st_mode):
        os.close(descriptor)
        return InheritedSocket(name, None, "it is no socket")
    received = socket.socket(fileno=descriptor)
    received.set_inheritable(False)
    found = InheritedSocket(name, received)
    if received.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        found.reason = "no service has sockets of this family"
    elif received.type == socket.SOCK_STREAM:
        if not received.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            _no_connection(found)
            found.reason = "it does not listen"
    elif received.type != socket.SOCK_DGRAM:
        found.reason = "no service has sockets of this type"
    return found


def _no_connection(found: InheritedSocket) -> None:
    assert found.socket is not None  # noqa: S101 - it is what was looked at
    try:
        found.socket.getpeername()
    except OSError:
        return
    raise ActivationError(
        f"descriptor {found.name!r} is a connection: its socket unit has Accept=yes, which starts a program for "
        "each of them; svcd accepts by itself, so remove Accept= from the socket unit"
    )
