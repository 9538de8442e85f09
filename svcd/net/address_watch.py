"""Notifications about changes of the machine's IP addresses, from the kernel (rtnetlink(7))."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Protocol

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

__all__ = ["AddressWatcher"]

#: Groups of messages about links and addresses (linux/rtnetlink.h).
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
#: The delay of the callback, in seconds, since a change may cause several messages, such as the end of duplicate
#: address detection (RFC 4862, section 5.4).
_SETTLE_SECONDS = 0.1
#: Messages are discarded: after the callback, the addresses are read again.
_BUFFER = 65_536
_MAX_READS = 64


class _Reactor(Protocol):
    def addReader(self, reader: IReadDescriptor) -> object: ...

    def removeReader(self, reader: IReadDescriptor) -> object: ...

    def callLater(self, delay: float, call: Callable[[], None], /) -> IDelayedCall: ...


@implementer(IReadDescriptor)
class AddressWatcher:
    """Watcher that calls a function after addresses or links have changed, once for several changes in a short time.

    Args:
        reactor: watches the socket, and schedules the callback.
        changed: the callback.
    """

    def __init__(self, reactor: _Reactor, changed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._changed = changed
        self._socket: socket.socket | None = None
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Start watching; do nothing if there is no netlink, as in some sandboxes."""
        try:
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        except OSError:
            return
        try:
            opened.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError:
            opened.close()
            return
        self._socket = opened
        self._reactor.addReader(self)

    def doRead(self) -> None:
        """Discard the waiting messages, and schedule the callback."""
        if self._socket is None:
            return
        # ENOBUFS means that messages were lost, so there was a change, too.
        with contextlib.suppress(OSError):
            for _ in range(_MAX_READS):
                self._socket.recv(_BUFFER)
        if self._timer is None:
            self._timer = self._reactor.callLater(_SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._changed()

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Close the socket: the reactor stops."""
        self.stop()

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 if there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix for log messages of the reactor."""
        return "netlink"
