"""What all connections of an HTTP service share: settings, limits, and the heads of responses."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from svcd.protocols.base import BuiltinFactory
from svcd.protocols.http.connections import HttpConnections, HttpTimeouts
from svcd.wire.http_request import HttpLimits, KnownHeads
from svcd.wire.response_head import head

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

    from svcd.interfaces import DescriptorCounter
    from svcd.protocols.http.access_log import AccessLog
    from svcd.protocols.http.response import Handler, Response, StreamHandler, Upgrade

__all__ = ["ContextFactory", "HttpContext", "HttpSettings"]

#: Statuses whose responses have no content and no Content-Length (RFC 9110, sections 8.6 and 15).
_WITHOUT_CONTENT = frozenset({HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value})


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Settings of an HTTP service.

    Attributes:
        timeouts: the timeouts of connections.
        limits: the limits on requests.
        requests: the maximum number of requests on a connection; None for no limit.
        access_log: gets a line for each request; None for no log.
    """

    timeouts: HttpTimeouts = field(default_factory=HttpTimeouts)
    limits: HttpLimits = field(default_factory=HttpLimits)
    requests: int | None = None
    access_log: AccessLog | None = None


class HttpContext:
    """What the connections of an HTTP service share.

    Args:
        handler: responds to the requests.
        clock: the reactor.
        settings: the settings of the service.
        now: returns the time for the Date field, in seconds since 1970.
        descriptors: counts the files that are open while they are sent; None for a handler that opens none.

    Attributes:
        handler, clock, now, descriptors: as given.
        connections: the open connections.
        limits: the limits on requests.
        max_requests: the maximum number of requests on a connection; 0 for no limit.
        access_log: gets a line for each request; None for no log.
        known_heads: heads of requests that were parsed before.
    """

    def __init__(
        self,
        handler: Handler | StreamHandler,
        clock: IReactorTime,
        settings: HttpSettings,
        now: Callable[[], float],
        descriptors: DescriptorCounter | None,
    ) -> None:
        self.handler = handler
        self.descriptors = descriptors
        self.clock = clock
        self.connections = HttpConnections(settings.timeouts, clock)
        self.limits = settings.limits
        self.max_requests = settings.requests or 0
        self.access_log = settings.access_log
        self.known_heads = KnownHeads()
        self.now = now
        self._date = (-1, "")

    def encoded(self, response: Response, *, keep_alive: bool) -> bytes:
        """Return the bytes of a response without a body; for the same Response they are made once in a second."""
        second = int(self.now())
        made, data = response.kept if keep_alive else response.closed
        if made == second:
            return data
        framing: tuple[tuple[str, str], ...] = ()
        if response.length is None and response.status.value not in _WITHOUT_CONTENT:
            framing = (("Content-Length", str(len(response.content))),)
        data = self.head(response, *framing, keep_alive=keep_alive) + response.content
        if keep_alive:
            response.kept = second, data
        else:
            response.closed = second, data
        return data

    def head(self, response: Response, *framing: tuple[str, str], keep_alive: bool) -> bytes:
        """Return the head of a response; nothing for one that has it in its content.

        Args:
            response: the response.
            framing: fields in addition to those of the response, Date, Server and Connection.
            keep_alive: whether the connection stays open.
        """
        if response.raw:
            return b""
        fields = [("Date", self.date()), ("Server", "svcd"), *response.all_fields(), *framing]
        return head(response.status, fields, "keep-alive" if keep_alive else "close")

    def upgrade_head(self, upgrade: Upgrade) -> bytes:
        """Return the head of a 101 response."""
        fields = [("Date", self.date()), ("Server", "svcd"), *upgrade.fields.items()]
        return head(HTTPStatus.SWITCHING_PROTOCOLS, fields, "Upgrade")

    def date(self) -> str:
        """Return the Date field (RFC 9110, section 5.6.7), cached for a second."""
        second = int(self.now())
        if second != self._date[0]:
            self._date = (second, email.utils.formatdate(second, usegmt=True))
        return self._date[1]


class ContextFactory(BuiltinFactory):
    """A factory whose protocols share an HttpContext.

    Args:
        handler: responds to the requests.
        clock: the reactor.
        settings: the settings of the service.
        now: returns the time for the Date field, in seconds since 1970.
        descriptors: counts the files that are open while they are sent; None for a handler that opens none.

    Attributes:
        clock: as given.
        context: what the connections share.
        connections: the open connections.
    """

    def __init__(
        self,
        handler: Handler | StreamHandler,
        clock: IReactorTime,
        settings: HttpSettings | None = None,
        now: Callable[[], float] = time.time,
        descriptors: DescriptorCounter | None = None,
    ) -> None:
        self.clock = clock
        self.context = HttpContext(handler, clock, settings or HttpSettings(), now, descriptors)
        self.connections = self.context.connections

    @property
    def evictable(self) -> int:
        """The number of open connections."""
        return self.connections.open

    def evict(self) -> bool:
        """Evict a connection to free its descriptor for another; return whether there was one to evict."""
        return self.connections.evict()
