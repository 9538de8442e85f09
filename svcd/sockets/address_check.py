"""Check of the addresses of services: whether they are absent or in use.

A socket is bound briefly, and does not listen. For low ports, which an ordinary user can't bind, /proc shows whether
they are in use.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING

from svcd.addresses import address_text
from svcd.model import SocketType
from svcd.net.port_owner import bound_sockets, owner_of
from svcd.net.socket_options import unix_address
from svcd.sockets.listening import IP_FREEBIND, REMEDIES, in_use, socket_address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from svcd.config.endpoints import Endpoint
    from svcd.model import ConfigProblem
    from svcd.net.port_owner import BoundSocket, Process

__all__ = ["address_faults"]

_SCOPE = re.compile(r"%[^]]*(?=]:)")


def address_faults(
    endpoints: Iterable[Endpoint], served: Collection[str], owners: Mapping[str, Process], doubt: str = ""
) -> Iterator[ConfigProblem]:
    """Yield a fault for each address that the machine does not have, or that another program uses.

    Args:
        endpoints: the endpoints of the services.
        served: the addresses that the running daemon listens on, which are no faults.
        owners: the processes that have sockets open, by inode; empty unless they were searched with root privileges.
        doubt: why the addresses of the running daemon are unknown; empty if they are known. With a reason, an address
            in use is a warning.
    """
    for endpoint in endpoints:
        service = endpoint.service
        code = _bind(endpoint)
        if code == errno.EADDRNOTAVAIL:
            yield service.fault("bind", f"can't listen on {endpoint.address}: {REMEDIES[code]}")
            continue
        taken = _taken(endpoint, code)
        if taken is None or _is_served(endpoint, taken, served):
            continue
        owner = next((owners[each.inode] for each in taken if each.inode in owners), None) or owner_of(taken)
        text = str(in_use(endpoint, os.strerror(errno.EADDRINUSE), owner)).removeprefix(f"{service.id}: ")
        if doubt and owner is None:
            yield service.warning("", f"{text}; {doubt}")
        else:
            yield service.fault("", text)


def _is_served(endpoint: Endpoint, taken: Iterable[BoundSocket], served: Collection[str]) -> bool:
    """Return whether the running daemon listens on all conflicting sockets, or on the address if /proc shows none."""
    # The kernel's tables have link-local addresses without their interface.
    known = {_SCOPE.sub("", each) for each in served}
    texts = [address_text(each.host, each.port) if each.host else endpoint.address for each in taken]
    return {_SCOPE.sub("", each) for each in texts or [endpoint.address]} <= known


def _taken(endpoint: Endpoint, code: int) -> list[BoundSocket] | None:
    """Return the known sockets that conflict with an address; None if there is no conflict."""
    service = endpoint.service
    stream = service.net.shape is SocketType.STREAM
    if code not in (errno.EADDRINUSE, errno.EACCES):
        return None
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    found = bound_sockets(kind, endpoint.host, service.port, "" if endpoint.version else service.path)
    if code == errno.EADDRINUSE:
        return found
    # An IPv6 wildcard may exclude IPv4, and sockets with SO_REUSEPORT can share a port.
    found = [each for each in found if (":" in each.host) == (":" in endpoint.host)]
    return found if found and not service.options.reuse_port else None


def _bind(endpoint: Endpoint) -> int:
    """Try to bind a socket to an address; return the errno, 0 for success. UNIX sockets with a file are not bound."""
    service = endpoint.service
    options, stream = service.options, service.net.shape is SocketType.STREAM
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    if not endpoint.version and not service.abstract:
        # bind(2) would create the file, so an existing file is looked up in /proc.
        return errno.EADDRINUSE if bound_sockets(kind, "", 0, service.path) and os.path.exists(service.path) else 0  # noqa: PTH110 - Path.exists raises
    family = {0: socket.AF_UNIX, 4: socket.AF_INET, 6: socket.AF_INET6}[endpoint.version]
    try:
        with socket.socket(family, kind) as probe:
            if not endpoint.version:
                probe.bind(unix_address(service.path))
                return 0
            if stream:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.freebind:
                probe.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            if endpoint.version == 6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.v6only)
            if options.reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            host, port, *rest = socket_address(endpoint)
            # A datagram socket that shares the port would receive datagrams of the service.
            probe.bind((host, 0 if options.reuse_port and not stream else port, *rest))
    except OSError as error:
        return error.errno or 0
    return 0
