"""The reactor: Twisted's asyncio reactor on a uvloop loop, with transports and UDP ports of uvloop.

Twisted has no public interface to add a signal handler to a reactor, to replace its timer, or to make a port of another
class for a descriptor. Only this module uses the required private names of Twisted; tests/unit/test_private_names.py
fails if a version of Twisted lacks one of them.
"""

from __future__ import annotations

import asyncio
import math
import socket
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop
from twisted.internet import error
from twisted.internet._signals import _MultiSignalHandling
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import ReactorBase
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python.failure import Failure

from svcd.net.monotonic import seconds
from svcd.reactor.acceptor import SingleProtocolFactory, SocketPort, TCPPort, UNIXPort, adopt_connection
from svcd.reactor.child_signals import ChildSignals
from svcd.reactor.log_context import use_log_prefix
from svcd.reactor.transport import UvTransport
from svcd.reactor.udp import UDPPort

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from twisted.internet._signals import SignalHandling
    from twisted.internet.interfaces import IListeningPort, IProtocol, IProtocolFactory
    from twisted.internet.protocol import AbstractDatagramProtocol

    from svcd.reactor.proxied import ProxyInfo

__all__ = ["UvReactor", "install"]


class UvReactor(AsyncioSelectorReactor):
    """Twisted reactor on uvloop.

    Attributes:
        loop: the uvloop loop.
        natives: the connections and UDP ports that uvloop serves, as keys; they are not in the reactor's own lists.
    """

    _log = Logger()
    seconds = staticmethod(seconds)

    def __init__(self) -> None:
        self.loop: AbstractEventLoop = uvloop.new_event_loop()
        self.loop.set_exception_handler(self._raised)
        self.natives: dict[Any, None] = {}
        # Timed calls belong to no connection, so they do not run in the context of the callback that scheduled them.
        self._context = copy_context()
        use_log_prefix()
        super().__init__(self.loop)

    def _raised(self, _loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an uncaught exception, and close the connection that caused it."""
        raised = context.get("exception")
        protocol = context.get("protocol")
        if isinstance(raised, KeyboardInterrupt):
            # Ctrl-C ends the program, as with Twisted's own reactors. uvloop ends run_forever() for a KeyboardInterrupt
            # only if a scheduled call raises it.
            self.loop.call_soon(_interrupt, raised)
        elif raised is not None and isinstance(protocol, UvTransport):
            protocol.raised(raised)
        elif raised is not None:
            self._log.failure("{what}", Failure(raised), what=context.get("message"))
        else:
            self._log.error("{what}", what=context.get("message"))

    def _signalsFactory(self) -> SignalHandling:
        return _MultiSignalHandling((ReactorBase._signalsFactory(self), ChildSignals(self.loop)))  # noqa: SLF001

    def _reschedule(self) -> None:
        timeout = self.timeout()
        if timeout is None:
            return
        if self._timerHandle is not None:
            self._timerHandle.cancel()
        now = self.loop.time()
        self._scheduledAt = now + timeout  # type: ignore[assignment]
        # libuv's timers have whole milliseconds, from the start of the current one. A timer that fires early would be
        # set repeatedly until the call is due.
        delay = (math.ceil(timeout * 1000) + 1) / 1000 if timeout > 0 else 0.0
        handle = self.loop.call_at(now + delay, self._onTimer, context=self._context)
        self._timerHandle = handle  # type: ignore[assignment]

    def call_before_poll(self, callback: Callable[[], None]) -> None:
        """Call a function once, in the next iteration of the loop before it polls the descriptors."""
        self.loop.call_soon(callback, context=self._context)

    def iterate(self, delay: float = 0) -> None:
        """Run an iteration of the loop: run the timed calls that are due, and serve descriptors that are ready.

        Args:
            delay: the time to wait for descriptors, in seconds; with 0 the call does not wait.
        """
        self.loop.call_soon(self.runUntilCurrent, context=self._context)
        if delay > 0:
            end = self.loop.call_later(delay, self.loop.stop)
            self.loop.run_forever()
            end.cancel()
        else:
            self._turn()
        # Run the calls that the input has scheduled: with Twisted's other reactors they have run by now.
        self._turn()

    def _turn(self) -> None:
        """Run the scheduled calls, and poll the descriptors once, without waiting."""
        self.loop.stop()
        self.loop.run_forever()

    def run(self, installSignalHandlers: bool = True) -> None:
        """See twisted.internet.interfaces.IReactorCore."""
        self.startRunning(installSignalHandlers=installSignalHandlers)
        while self._started:
            self.loop.run_forever()
        self._justStopped = False

    def crash(self) -> None:
        """See twisted.internet.interfaces.IReactorCore."""
        ReactorBase.crash(self)
        # A loop that is not running would stop at once at its next run.
        if self.loop.is_running():
            self.loop.stop()

    def getReaders(self) -> list[Any]:
        """Return the readers, connections and ports that wait for input."""
        return [*super().getReaders(), *(native for native in self.natives if native.reading)]  # type: ignore[no-untyped-call]

    def getWriters(self) -> list[Any]:
        """Return the writers and connections with unsent output."""
        return [*super().getWriters(), *(native for native in self.natives if native.writing)]  # type: ignore[no-untyped-call]

    def removeAll(self) -> list[Any]:
        """Remove and return all readers, writers and connections when the reactor stops; the caller notifies them."""
        waiting = [native for native in self.natives if native.reading or native.writing]
        for native in waiting:
            del self.natives[native]
        return [*super().removeAll(), *waiting]  # type: ignore[no-untyped-call]

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call a function in the loop's next iteration; callLater() takes ten times as long."""
        self.loop.call_soon(callback)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        """See twisted.internet.interfaces.IReactorTCP.

        Raises:
            CannotListenError: the address can't be bound.
        """
        listening = TCPPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def listenUNIX(
        self,
        address: Any,  # noqa: ANN401 - a path, text or bytes
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int = 0,
    ) -> IListeningPort:
        """See twisted.internet.interfaces.IReactorUNIX.

        Raises:
            CannotListenError: the path can't be bound.
        """
        listening = UNIXPort(address, factory, backlog, mode, self, wantPID)
        listening.startListening()  # type: ignore[no-untyped-call]
        return listening

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory) -> IListeningPort:
        """See twisted.internet.interfaces.IReactorSocket; the caller keeps fileDescriptor.

        Raises:
            UnsupportedAddressFamily: addressFamily is neither AF_INET, AF_INET6 nor AF_UNIX.
        """
        if addressFamily not in self._supportedAddressFamilies:
            raise error.UnsupportedAddressFamily(addressFamily)
        if addressFamily == socket.AF_UNIX:
            adopt: Any = partial(UNIXPort._fromListeningDescriptor, self, fileDescriptor)  # noqa: SLF001
        else:
            adopt = partial(TCPPort._fromListeningDescriptor, self, fileDescriptor, addressFamily)  # noqa: SLF001
        listening = adopt(factory)
        listening.startListening()
        return listening  # type: ignore[no-any-return]

    def adoptStreamSocket(
        self,
        sock: socket.socket,
        factory: IProtocolFactory,
        may_accept: Callable[[], int],
        on_exhausted: Callable[[], None],
    ) -> SocketPort:
        """Return a port for a listening socket; the caller owns the socket and starts the port. See SocketPort."""
        return SocketPort(self, sock, factory, may_accept, on_exhausted)

    def adoptStream(
        self,
        fd: int,
        sockaddr: Any,  # noqa: ANN401 - a socket address
        family: int,
        protocol: IProtocol,
        proxy_header: ProxyInfo | None = None,
    ) -> None:
        """Connect a protocol to a connected socket that no port of the reactor has accepted.

        Takes ownership of fd, also if this raises.

        Args:
            fd: the connected socket.
            sockaddr: the peer's socket address.
            family: the family of the socket; with a PROXY header the family of the peer may differ.
            protocol: the protocol; its makeConnection() is called in a later iteration of the loop.
            proxy_header: the PROXY header of the connection, if it has one.

        Raises:
            OSError: the connection is gone.
        """
        factory: Any = SingleProtocolFactory(protocol)
        adopt_connection(self, fd, sockaddr, family, factory, proxy_header, None, 0)

    def listenUDP(
        self, port: int, protocol: AbstractDatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> IListeningPort:
        """See twisted.internet.interfaces.IReactorUDP.

        Raises:
            CannotListenError: the address can't be bound.
        """
        listening = UDPPort(port, protocol, interface, maxPacketSize, self)
        listening.startListening()  # type: ignore[no-untyped-call]
        return listening

    def adoptDatagramPort(
        self, fileDescriptor: int, addressFamily: int, protocol: AbstractDatagramProtocol, maxPacketSize: int = 8192
    ) -> IListeningPort:
        """See twisted.internet.interfaces.IReactorSocket; the caller keeps fileDescriptor.

        Raises:
            UnsupportedAddressFamily: addressFamily is neither AF_INET nor AF_INET6.
        """
        if addressFamily not in (socket.AF_INET, socket.AF_INET6):
            raise error.UnsupportedAddressFamily(addressFamily)
        adopt: Any = UDPPort._fromListeningDescriptor  # noqa: SLF001
        listening = adopt(self, fileDescriptor, addressFamily, protocol, maxPacketSize)
        listening.startListening()
        return listening  # type: ignore[no-any-return]


def _interrupt(raised: KeyboardInterrupt) -> None:
    raise raised


def install() -> None:
    """Install a UvReactor as the reactor of the process, and its loop as the event loop of this thread.

    Raises:
        ReactorAlreadyInstalledError: a reactor is installed already.
    """
    reactor = UvReactor()
    asyncio.set_event_loop(reactor.loop)
    installReactor(reactor)
