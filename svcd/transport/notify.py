"""Telling the service manager how we are (sd_notify(3)): a datagram to the socket that it named.

The protocol is small and stable, and its manual page shows it written out, so there is no library between.
"""

from __future__ import annotations

import contextlib
import socket

__all__ = ["notify"]


def notify(address: str | None, *states: str) -> None:
    """Send states like `READY=1`; without an address, or when nobody listens there, do nothing.

    Args:
        address: the value of NOTIFY_SOCKET: a path, or a name in the abstract name space behind an @.
        states: assignments.
    """
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.sendto("\n".join(states).encode(), address)
