"""Connections that proxies pass on: none is taken in before the header of the PROXY protocol has said whose it is.

What is asked of a connection is asked of the real client, so this stands in front of everything else. Nothing but the
header may be read: what comes behind it stays in the kernel for the service. So the data is only looked at first, and
taken when it is known that it belongs to the header; what is the beginning of one does as a whole, and is not found
again at once.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from svcd.access.acl import Acl
from svcd.access.rules import AccessRule, AccessRules, Refusal, RefusalReason
from svcd.addresses import address_number
from svcd.wire.proxy_header import MOST, header

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.config.service import Service
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.connections.tracker import ConnectionTracker
    from svcd.interfaces import ConnectionHandler, FdReactor
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["PATIENCE", "HeaderQueue", "ProxiedConnection", "ProxyProtocolReader"]

#: How long a proxy may take for its header, in seconds. It sends that first, and unasked; the specification wants
#: more than 3, for a segment that was lost.
PATIENCE = 10.0
# As numbers: to put them together each time takes longer than the call. recv(2)
_TAKE = int(socket.MSG_DONTWAIT)
_LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class ProxyProtocolReader:
    """Stands before one service, and lets the connections of its proxies in under their clients' names.

    Args:
        tracker: has the service's connections.
        header_queue: where they wait.

    Attributes:
        tracker, header_queue: as given.
        patience: how long a header may take, in seconds.
    """

    def __init__(self, tracker: ConnectionTracker[Any], header_queue: HeaderQueue) -> None:
        self.tracker = tracker
        self.header_queue = header_queue
        self.retune(tracker.service)

    def retune(self, service: Service) -> None:
        """Let other options hold, also for those who wait."""
        options = service.options
        self._proxies = Acl(AccessRules(only_from=options.proxy_protocol))
        self.patience = min(PATIENCE, options.first_byte_timeout or PATIENCE)
        for each in self._proxied():
            if not self._trusts(each.peer):
                each.refuse("it is no proxy any more")

    def _proxied(self) -> list[ProxiedConnection]:
        return [each for each in self.tracker.pending if isinstance(each, ProxiedConnection) and not each.announced]

    def _trusts(self, name: Any) -> bool:  # noqa: ANN401 - a socket address
        number = address_number(name[0] if isinstance(name, tuple) else "")
        return self._proxies.by_address(number).refusal is None

    def take(self, serve: ConnectionHandler, descriptor: int, name: Any, family: int) -> None:  # noqa: ANN401 - a socket address
        """Let a connection in: a proxy's with its header, any other one at once.

        Args:
            serve: where to.
            descriptor: of the connection, accepted just now; blocking.
            name: who is at the other end.
            family: of the socket.
        """
        if self._trusts(name):
            # Most have sent their headers by now.
            ProxiedConnection(self, serve, descriptor, name, family).doRead()
        else:
            serve(descriptor, name, family)

    def refused(self, text: str, descriptor: int, name: Any) -> None:  # noqa: ANN401 - a socket address
        """Count and tell that a connection had no good header."""
        service_admission = self.tracker.service_admission
        rule = AccessRule(f"proxy_protocol: {text}", service_admission.admission.rules.locations.get("proxy_protocol"))
        _, peer = self.tracker.client_of(descriptor, name)
        service_admission.refusals.report(Refusal(RefusalReason.PROXY, text, rule), peer)

    def close(self) -> None:
        """Close the connections whose headers have not come: their service is no more."""
        for each in self._proxied():
            each.close()


@implementer(IReadDescriptor)
class ProxiedConnection:
    """A connection whose proxy has not said yet whose it is, or whose client waits for room since then.

    Args:
        header_reader: lets it in.
        serve: where to.
        descriptor: its own.
        peer: the proxy.
        family: of the socket.

    Attributes:
        peer: as given.
        started: by the clock of the service's keeper, in seconds.
    """

    _log = Logger()

    __slots__ = (
        "_call",
        "_family",
        "_header",
        "_header_reader",
        "_number",
        "_queued",
        "_seen",
        "_serve",
        "_socket",
        "_watched",
        "peer",
        "started",
    )  # fmt: skip

    def __init__(
        self,
        header_reader: ProxyProtocolReader,
        serve: ConnectionHandler,
        descriptor: int,
        peer: Any,  # noqa: ANN401 - a socket address
        family: int,
    ) -> None:
        self._header_reader = header_reader
        self._serve = serve
        self._socket = socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor)
        self._family = family
        self.peer = peer
        self._seen = b""
        self._header: ProxyHeader | None = None
        self._call: IDelayedCall | None = None
        self._watched = self._queued = False
        self._number = 0
        self.started = header_reader.tracker.clock()

    @property
    def number(self) -> int:
        """The connection's number, which it has from when it is listed first."""
        self._number = self._number or next(self._header_reader.tracker.connection_ids)
        return self._number

    def info(self) -> dict[str, object]:
        """What is known of the connection: its peer is the proxy until the header has come."""
        tracker = self._header_reader.tracker
        source = None if self._header is None else self._header.source
        _, peer = tracker.client_of(self._socket.fileno(), source or self.peer)
        return tracker.facts(self, peer, state="room" if self.announced else "proxy-header")

    @property
    def announced(self) -> bool:
        """Whether the proxy has said all, and the client waits for room."""
        return self._header is not None

    def doRead(self) -> None:
        """The proxy may have said something."""
        try:
            data = self._socket.recv(MOST - len(self._seen), _LOOK)
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            data = b""
        if data:
            self._hear(data)
        elif self._seen:
            self.refuse("it ends too early")
        else:
            # That is how proxies see whether anybody listens, all the time.
            self.close()

    def _hear(self, data: bytes) -> None:
        seen = self._seen + data
        try:
            found = header(seen)
        except ValueError as error:
            self.refuse(str(error))
            return
        self._socket.recv(len(data) if found is None else found.size - len(self._seen), _TAKE)
        if found is None:
            self._seen = seen
            self._wait()
            return
        self._header = found
        self._rest()
        service_admission = self._header_reader.tracker.service_admission
        if service_admission.may_accept():
            self._go_on()
        else:
            self._queued = True
            self._header_reader.tracker.pending[self] = None
            self._header_reader.tracker.budget.acquire()
            service_admission.enqueue(self._go_on)

    def _wait(self) -> None:
        if self._call is not None:
            return
        self._watched = True
        header_reader = self._header_reader
        header_reader.header_queue.enter(self)
        header_reader.tracker.pending[self] = None
        self._call = header_reader.header_queue.reactor.callLater(header_reader.patience, self._late)
        header_reader.header_queue.reactor.addReader(self)

    def _late(self) -> None:
        self.refuse("it does not come" if not self._seen else "the rest of it does not come")

    def _rest(self) -> None:
        """It waits for nothing any more, and has its descriptor for itself."""
        header_reader, call, self._call = self._header_reader, self._call, None
        if call is not None:
            if call.active():
                call.cancel()
            header_reader.header_queue.reactor.removeReader(self)
            header_reader.header_queue.leave(self)
        if self._queued:
            self._queued = False
            header_reader.tracker.service_admission.dequeue(self._go_on)
            header_reader.tracker.budget.release()

    def _go_on(self) -> None:
        """There is room, as far as that is known here: whether the client may come in is asked now."""
        self._rest()
        found, sock = self._header, self._socket
        assert found is not None  # noqa: S101 - it is what lets it in
        # A proxy at a UNIX socket that speaks for itself is a client as any other there.
        relay = None if found.source is None and self._family == socket.AF_UNIX else found
        try:
            if self._watched:
                # uvloop makes what it watches non-blocking, and a program is not to find it so. A reactor may still
                # have to do with a descriptor that it has watched.
                sock.setblocking(True)
                descriptor = os.dup(sock.fileno())
            else:
                descriptor = sock.detach()
            self._serve(descriptor, found.source or self.peer, self._family, relay)
        except Exception:  # noqa: BLE001 - one connection's mistake is that connection's end
            self._log.failure("a connection could not be served")
        finally:
            sock.close()
        self._leave()

    def _leave(self) -> None:
        tracker = self._header_reader.tracker
        tracker.pending.pop(self, None)
        tracker.notify_if_empty()

    def refuse(self, text: str) -> None:
        """Close it for what is wrong with its header."""
        self._header_reader.refused(text, self._socket.fileno(), self.peer)
        self.close()

    def close(self) -> None:
        """Close it."""
        self._rest()
        self._socket.close()
        self._leave()

    def drain(self) -> None:
        """Nothing is owed to it."""
        self.close()

    def abort(self, _cause: str) -> None:
        """End it."""
        self.close()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, after us; or it is somebody else's by now."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return self._header_reader.tracker.service.id


#: How many connections may wait, and the share of the daemon's descriptors.
_MOST = 1024


_SHARE = 4


class HeaderQueue:
    """All connections that wait for their headers.

    They are bounded, so that proxies that say nothing take no room from the services. Where there are too many the one
    that has waited longest has to go: the header of a proxy in order is not late.

    Args:
        reactor: watches descriptors and time.
        budget: counts them, since each has a descriptor.

    Attributes:
        reactor: as given.
        most: how many there may be.
    """

    def __init__(self, reactor: FdReactor, budget: DescriptorBudget) -> None:
        self.reactor = reactor
        self.most = max(1, min(_MOST, budget.limit // _SHARE))
        self._budget = budget
        self._waiting: dict[ProxiedConnection, None] = {}

    def enter(self, who: ProxiedConnection) -> None:
        """One more."""
        if self._waiting and (len(self._waiting) >= self.most or self._budget.full):
            next(iter(self._waiting)).refuse("too many connections wait for theirs")
        self._waiting[who] = None
        self._budget.acquire()

    def leave(self, who: ProxiedConnection) -> None:
        """One less."""
        del self._waiting[who]
        self._budget.release()
