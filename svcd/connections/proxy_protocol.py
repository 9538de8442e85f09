"""PROXY protocol: reads the header of a proxy's connection before the connection is admitted.

Access rules apply to the client in the header, so the header is read before anything else. Only the header may be read:
the data after it stays in the kernel for the service. So data is peeked at (MSG_PEEK) first, and read once it is known
to belong to the header. An incomplete header is read at once, or the socket would become readable again immediately.
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

__all__ = ["HEADER_TIMEOUT", "HeaderQueue", "ProxiedConnection", "ProxyProtocolReader"]

#: Limit of the time until the header is complete, in seconds. A proxy sends the header first, without waiting for the
#: server; the specification requires more than 3 seconds, for a lost segment.
HEADER_TIMEOUT = 10.0
# Flags of recv(2), as int: the | of enum members takes longer than the call.
_READ_FLAGS = int(socket.MSG_DONTWAIT)
_PEEK_FLAGS = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class ProxyProtocolReader:
    """Reads the PROXY headers of the connections of one service, and passes them on with their clients' addresses.

    Args:
        tracker: tracks the connections of the service.
        header_queue: bounds the connections that wait for headers.

    Attributes:
        tracker, header_queue: as given.
        header_timeout: limit of the time until a header is complete, in seconds.
    """

    def __init__(self, tracker: ConnectionTracker[Any], header_queue: HeaderQueue) -> None:
        self.tracker = tracker
        self.header_queue = header_queue
        self.retune(tracker.service)

    def retune(self, service: Service) -> None:
        """Apply new options, also to waiting connections."""
        options = service.options
        self._proxies = Acl(AccessRules(only_from=options.proxy_protocol))
        self.header_timeout = min(HEADER_TIMEOUT, options.first_byte_timeout or HEADER_TIMEOUT)
        for each in self._proxied():
            if not self._trusts(each.peer):
                each.refuse("the client is no longer a proxy")

    def _proxied(self) -> list[ProxiedConnection]:
        return [each for each in self.tracker.pending if isinstance(each, ProxiedConnection) and not each.has_header]

    def _trusts(self, sockaddr: Any) -> bool:  # noqa: ANN401 - a socket address
        number = address_number(sockaddr[0] if isinstance(sockaddr, tuple) else "")
        return self._proxies.by_address(number).refusal is None

    def take(self, handler: ConnectionHandler, fd: int, sockaddr: Any, family: int) -> None:  # noqa: ANN401 - a socket address
        """Pass on an accepted connection: of a proxy after its header, any other at once.

        Args:
            handler: handles the connection.
            fd: the descriptor of the connection, blocking. Takes ownership of it.
            sockaddr: the socket address of the peer.
            family: the address family of the socket.
        """
        if self._trusts(sockaddr):
            # Most proxies have sent the header by now.
            ProxiedConnection(self, handler, fd, sockaddr, family).doRead()
        else:
            handler(fd, sockaddr, family)

    def refused(self, text: str, fd: int, sockaddr: Any) -> None:  # noqa: ANN401 - a socket address
        """Report the refusal of a connection without a valid header."""
        service_admission = self.tracker.service_admission
        rule = AccessRule(f"proxy_protocol: {text}", service_admission.admission.rules.locations.get("proxy_protocol"))
        _, peer = self.tracker.client_of(fd, sockaddr)
        service_admission.refusals.report(Refusal(RefusalReason.PROXY, text, rule), peer)

    def close(self) -> None:
        """Close the connections without a complete header: their service has ended."""
        for each in self._proxied():
            each.close()


@implementer(IReadDescriptor)
class ProxiedConnection:
    """Connection that waits for its PROXY header, or for room after that.

    Args:
        header_reader: the reader of its service.
        handler: handles the connection.
        fd: the descriptor of the connection. Takes ownership of it.
        peer: the proxy's socket address.
        family: the address family of the socket.

    Attributes:
        peer: as given.
        started: time of accept in seconds, by the tracker's clock.
    """

    _log = Logger()

    __slots__ = (
        "_call",
        "_connection_id",
        "_family",
        "_handler",
        "_header",
        "_header_reader",
        "_queued",
        "_seen",
        "_socket",
        "_watched",
        "peer",
        "started",
    )  # fmt: skip

    def __init__(
        self,
        header_reader: ProxyProtocolReader,
        handler: ConnectionHandler,
        fd: int,
        peer: Any,  # noqa: ANN401 - a socket address
        family: int,
    ) -> None:
        self._header_reader = header_reader
        self._handler = handler
        self._socket = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
        self._family = family
        self.peer = peer
        self._seen = b""
        self._header: ProxyHeader | None = None
        self._call: IDelayedCall | None = None
        self._watched = self._queued = False
        self._connection_id = 0
        self.started = header_reader.tracker.clock()

    @property
    def connection_id(self) -> int:
        """The id of the connection while it waits, assigned when it is first listed."""
        self._connection_id = self._connection_id or next(self._header_reader.tracker.connection_ids)
        return self._connection_id

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`; without a header its peer is the proxy."""
        tracker = self._header_reader.tracker
        source = None if self._header is None else self._header.source
        _, peer = tracker.client_of(self._socket.fileno(), source or self.peer)
        return tracker.facts(self, peer, state="room" if self.has_header else "proxy-header")

    @property
    def has_header(self) -> bool:
        """Whether the header is complete, and the client waits for room."""
        return self._header is not None

    def doRead(self) -> None:
        """Read the header."""
        try:
            data = self._socket.recv(MOST - len(self._seen), _PEEK_FLAGS)
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            data = b""
        if data:
            self._data_received(data)
        elif self._seen:
            self.refuse("the header ends too early")
        else:
            # Not reported: health checks of proxies connect and close all the time.
            self.close()

    def _data_received(self, data: bytes) -> None:
        seen = self._seen + data
        try:
            found = header(seen)
        except ValueError as error:
            self.refuse(str(error))
            return
        self._socket.recv(len(data) if found is None else found.size - len(self._seen), _READ_FLAGS)
        if found is None:
            self._seen = seen
            self._wait()
            return
        self._header = found
        self._stop_waiting()
        service_admission = self._header_reader.tracker.service_admission
        if service_admission.may_accept():
            self._hand_over()
        else:
            self._queued = True
            self._header_reader.tracker.pending[self] = None
            self._header_reader.tracker.budget.acquire()
            service_admission.enqueue(self._hand_over)

    def _wait(self) -> None:
        if self._call is not None:
            return
        self._watched = True
        header_reader = self._header_reader
        header_reader.header_queue.add(self)
        header_reader.tracker.pending[self] = None
        self._call = header_reader.header_queue.reactor.callLater(header_reader.header_timeout, self._timed_out)
        header_reader.header_queue.reactor.addReader(self)

    def _timed_out(self) -> None:
        self.refuse("the header does not arrive" if not self._seen else "the rest of the header does not arrive")

    def _stop_waiting(self) -> None:
        """Stop waiting: leave the queue that the connection is in."""
        header_reader, call, self._call = self._header_reader, self._call, None
        if call is not None:
            if call.active():
                call.cancel()
            header_reader.header_queue.reactor.removeReader(self)
            header_reader.header_queue.remove(self)
        if self._queued:
            self._queued = False
            header_reader.tracker.service_admission.dequeue(self._hand_over)
            header_reader.tracker.budget.release()

    def _hand_over(self) -> None:
        """Pass the connection to its handler, which admits or refuses it."""
        self._stop_waiting()
        found, sock = self._header, self._socket
        assert found is not None  # noqa: S101 - it is complete by now
        # A proxy that connects to a UNIX socket on its own behalf (LOCAL) is treated as any client.
        proxy_header = None if found.source is None and self._family == socket.AF_UNIX else found
        try:
            if self._watched:
                # uvloop makes watched sockets non-blocking, and programs expect blocking ones. A reactor may still use
                # a descriptor that it has watched.
                sock.setblocking(True)
                fd = os.dup(sock.fileno())
            else:
                fd = sock.detach()
            self._handler(fd, found.source or self.peer, self._family, proxy_header)
        except Exception:  # noqa: BLE001 - an error of one connection ends that connection only
            self._log.failure("a connection could not be served")
        finally:
            sock.close()
        self._untrack()

    def _untrack(self) -> None:
        tracker = self._header_reader.tracker
        tracker.pending.pop(self, None)
        tracker.notify_if_empty()

    def refuse(self, text: str) -> None:
        """Report an invalid or missing header, and close the connection."""
        self._header_reader.refused(text, self._socket.fileno(), self.peer)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._stop_waiting()
        self._socket.close()
        self._untrack()

    def drain(self) -> None:
        """Close the connection: there is no output to send."""
        self.close()

    def abort(self, _cause: str) -> None:
        """Close the connection."""
        self.close()

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the connection has been closed or passed on before the reactor stops."""

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return self._header_reader.tracker.service.id


#: Limit of connections that wait for headers, and the divisor of the daemon's descriptors that limits them further.
_MAX_WAITING = 1024


_SHARE = 4


class HeaderQueue:
    """The connections of the whole daemon that wait for their PROXY headers.

    Their number is limited, so that proxies that send nothing do not use up the descriptors of the services. Over the
    limit the connection that has waited longest is closed: the header of a working proxy is not late.

    Args:
        reactor: watches descriptors and time.
        budget: counts their descriptors.

    Attributes:
        reactor: as given.
        max_waiting: the limit.
    """

    def __init__(self, reactor: FdReactor, budget: DescriptorBudget) -> None:
        self.reactor = reactor
        self.max_waiting = max(1, min(_MAX_WAITING, budget.limit // _SHARE))
        self._budget = budget
        self._waiting: dict[ProxiedConnection, None] = {}

    def add(self, connection: ProxiedConnection) -> None:
        """Add a connection and take one descriptor from the budget."""
        if self._waiting and (len(self._waiting) >= self.max_waiting or self._budget.full):
            next(iter(self._waiting)).refuse("too many connections wait for a header")
        self._waiting[connection] = None
        self._budget.acquire()

    def remove(self, connection: ProxiedConnection) -> None:
        """Remove a connection and return its descriptor to the budget."""
        del self._waiting[connection]
        self._budget.release()
