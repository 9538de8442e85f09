"""Connections of the HTTP server (RFC 9110, 9112): requests are processed in order, one at a time.

A Handler makes the responses: it gets the request and the address of the peer, and returns a Response, or a Deferred
that fires with a Response. The connection does pipelining, back-pressure, keep-alive and closing.
"""

from __future__ import annotations

import email.utils
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from svcd.protocols.base import BuiltinFactory, LingeringProtocol
from svcd.protocols.http.connections import EVICTED, HttpConnections, HttpTimeouts
from svcd.protocols.http.response import error_response
from svcd.wire.http_request import SLICE, HttpError, RequestReader, head

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime

    from svcd.interfaces import DescriptorCounter
    from svcd.protocols.http.connections import Group
    from svcd.protocols.http.response import Body, Handler, Response
    from svcd.wire.http_request import HttpRequest

__all__ = ["HttpFactory", "HttpProtocol"]


#: The largest content that is joined to its head, in bytes: below it a copy is cheaper than a second write.
_COPIED = 65_536


class HttpProtocol(LingeringProtocol):
    """An HTTP connection.

    The connection reads only when all input is answered and the client takes the responses. So it holds at most the
    head of a request, a piece of a response, and the data of a read.

    Attributes:
        end_reason: the timeout or eviction that ended the connection, empty if there was none; the connection
            wrapper logs it.
    """

    factory: HttpFactory
    group: Group | None = None
    end_reason = ""
    _log = Logger()

    def connectionMade(self) -> None:
        """Initialize the state, and wait for the first request."""
        self.clock = self.factory.clock
        self._reader = RequestReader()
        self._unread = b""
        self._requests: list[HttpRequest] = []
        self._answering = self._paused = self._reading_paused = False
        self._client_done = self._draining = self._pumping = self._lost = False
        # Whether a request was answered since the connection was put into its group.
        self._answered = False
        # Whether a descriptor is reserved for a file: from the start until the first response, so that the first
        # response does not fail for lack of a descriptor.
        self._has_descriptor = False
        if self.factory.descriptors is not None:
            self._has_descriptor = True
            self.factory.descriptors.acquire()
        self._sent = 0
        self._body: Body | None = None
        self._keep_alive = True
        self._peer = self.transport.getPeer()
        self.transport.registerProducer(self, True)
        self._connections = self.factory.connections
        self._connections.move(self, self._connections.reading)

    def dataReceived(self, data: bytes) -> None:
        """Parse and answer more input; drop it while lingering."""
        if self.lingering:
            self.drop(data)
            return
        self._unread += data
        self._pump()

    def readConnectionLost(self) -> None:
        """Handle the end of the client's data: answer the remaining requests, then close the connection."""
        self._client_done = True
        if self.lingering:
            super().readConnectionLost()
        else:
            self._pump()

    def drain(self) -> None:
        """Close the connection after the current response, or at once if there is none."""
        self._draining = True
        self._pump()

    def pauseProducing(self) -> None:
        """Stop sending: the transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Send more."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """Do nothing: connectionLost() follows."""

    def connectionLost(self, reason: object = None) -> None:
        """Release the body and the descriptor."""
        self._lost = self._paused = True
        self._connections.move(self, None)
        self._close_body()
        self._release_descriptor()
        super().connectionLost(reason)

    def _pump(self) -> None:
        """Process until input or output blocks: send pieces, send responses, parse requests, close."""
        if self._pumping or self.lingering:
            return
        self._pumping = True
        try:
            while not (self._paused or self._answering or self.lingering):
                if self._body is not None:
                    self._send_piece(self._body)
                elif not self._keep_alive:
                    self._end()
                elif self._requests:
                    self._answer(self._requests.pop(0))
                elif not self._read():
                    if self._client_done or self._draining:
                        self._end()
                    break
        finally:
            self._pumping = False
        self._update_reading()
        if not self._lost:
            self._wait()

    def _wait(self) -> None:
        """Move the connection into the group of the event for which it waits."""
        connections = self._connections
        if self._body is not None or self._paused or self.lingering:
            connections.move(self, connections.writing)
        elif self._answering:
            connections.move(self, None)
        elif self._answered:
            self._answered = False
            connections.renew(self, connections.reading if self._reader.begun else connections.idle)
        elif self._reader.begun:
            connections.move(self, connections.reading)

    @property
    def body_bytes(self) -> int:
        """Number of received bytes of the body of an incomplete request."""
        return self._reader.body_bytes

    @property
    def taken(self) -> int:
        """Number of bytes that the client's system has acknowledged, or the number of written bytes if not known."""
        traffic: tuple[int, int] | None = getattr(self.transport, "traffic", None)
        return self._sent if traffic is None else traffic[1]

    def time_out(self, reason: str) -> None:
        """End the connection after a timeout; an incomplete request gets a 408 response (RFC 9110, 15.5.9)."""
        self.end_reason = self.end_reason or reason
        if reason == "request" and self._reader.begun:
            self._keep_alive = False
            self._send(error_response(HTTPStatus.REQUEST_TIMEOUT), with_content=True)
            self._pump()
        elif self.group is self._connections.writing:
            self._abort()
        else:
            self._close()

    def evict(self) -> None:
        """End the connection at once, to free its descriptor for another connection."""
        self.end_reason = self.end_reason or EVICTED
        if self.group is self._connections.idle:
            self._close()
        else:
            self._abort()

    def _close(self) -> None:
        """Close without a response; abort in the rare case that data is buffered."""
        if getattr(self.transport, "writing", False):
            self._abort()
            return
        self._paused = True
        self._connections.move(self, self._connections.writing)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _abort(self) -> None:
        self._paused = True
        self._connections.move(self, None)
        if self.lingering and not getattr(self.transport, "writing", False):
            # The kernel has all data, and delivers it after the close.
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def _update_reading(self) -> None:
        """Pause reading while input is buffered or a response is being sent; resume it otherwise."""
        wanted = bool(self._unread) or self._answering or self._paused or self._body is not None
        if self.lingering or wanted == self._reading_paused:
            return
        self._reading_paused = wanted
        if wanted:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def _read(self) -> bool:
        """Parse a slice of the input; return whether there was input."""
        if not self._unread and not self._reader.failed:
            return False
        piece, self._unread = self._unread[:SLICE], self._unread[SLICE:]
        try:
            self._requests += self._reader.feed(piece)
        except HttpError as error:
            self._keep_alive = False
            self._send(error_response(error.status), with_content=True)
        return True

    def _answer(self, request: HttpRequest) -> None:
        last = self._draining or self.factory.stopped
        if not request.keep_alive or (last and not self._requests):
            self._keep_alive = False
        with_content = request.method != "HEAD"
        if request.method not in ("GET", "HEAD"):
            refusal = error_response(HTTPStatus.METHOD_NOT_ALLOWED)
            refusal.fields["Allow"] = "GET, HEAD"
            self._send(refusal, with_content=True)
            return
        try:
            response = self.factory.handler.respond(request, self._peer)
        except Exception:  # noqa: BLE001 - any error of a handler gets a response
            response = self._refusal(Failure())
        if not isinstance(response, Deferred):
            self._send(response, with_content=with_content)
            return
        self._answering = True

        def done(response: Response) -> None:
            self._answering = False
            if not self._lost:
                self._send(response, with_content=with_content)
                self._pump()
            elif response.body is not None:
                response.body.close()

        def failed(failure: Failure) -> None:
            done(self._refusal(failure))

        response.addCallbacks(done, failed)

    def _refusal(self, failure: Failure) -> Response:
        """Return the response for an exception in a handler: the status of an HttpError, or 500 and a log line."""
        if isinstance(failure.value, HttpError):
            return error_response(failure.value.status)
        self._log.failure("the handler of an HTTP request failed", failure)
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _send(self, response: Response, *, with_content: bool) -> None:
        self._answered = True
        if response.body is not None and not self._count(response.body):
            response.body.close()
            response = error_response(HTTPStatus.SERVICE_UNAVAILABLE)
        self._release_descriptor()
        opening = self.factory.opening(response, keep_alive=self._keep_alive)
        self._body = response.body
        if with_content and len(response.content) > _COPIED:
            self.transport.write(opening)
            self.transport.write(response.content)
        elif with_content:
            self.transport.write(opening + response.content)
        else:
            self._close_body()
            self.transport.write(opening)

    def _count(self, body: Body) -> bool:
        """Count the descriptor of a body, unless it is counted; return False if the budget is exhausted."""
        descriptors = self.factory.descriptors
        if descriptors is None or not body.uncounted:
            return True
        if not self._has_descriptor:
            # try_acquire() may evict a connection; it must not be this one.
            self._connections.move(self, None)
            if not descriptors.try_acquire():
                return False
        self._has_descriptor = False
        body.count(descriptors)
        return True

    def _release_descriptor(self) -> None:
        if self._has_descriptor and self.factory.descriptors is not None:
            self._has_descriptor = False
            self.factory.descriptors.release()

    def _send_piece(self, body: Body) -> None:
        try:
            piece = body.read()
        except OSError as error:
            self._log.warn("a file could not be sent whole: {error}", error=error)
            self._close_body()
            self.transport.abortConnection()
            self._paused = True
            return
        if piece:
            self._sent += len(piece)
            self.transport.write(piece)
        else:
            self._close_body()

    def _close_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def _end(self) -> None:
        if self._client_done:
            super().readConnectionLost()
            self._paused = True
        else:
            self.linger()


class HttpFactory(BuiltinFactory):
    """A factory of HttpProtocols.

    Args:
        handler: responds to the requests.
        clock: the reactor.
        now: returns the time for the Date field, in seconds since 1970.
        timeouts: the timeouts of connections.
        descriptors: counts the files that are open while they are sent; None for a handler that opens none.

    Attributes:
        connections: the open connections.
        descriptors: as given.
    """

    protocol = HttpProtocol  # type: ignore[assignment]

    def __init__(
        self,
        handler: Handler,
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
        timeouts: HttpTimeouts | None = None,
        descriptors: DescriptorCounter | None = None,
    ) -> None:
        self.handler = handler
        self.descriptors = descriptors
        self.clock = clock
        self.connections = HttpConnections(timeouts or HttpTimeouts(), clock)
        self._now = now
        self._date = (-1, "")
        # A cached head: the response, the second and the keep_alive for which it was made, and the head itself.
        self._opening: tuple[Response | None, int, bool, bytes] = (None, -1, True, b"")

    @property
    def evictable(self) -> int:
        """The number of open connections."""
        return self.connections.open

    def evict(self) -> bool:
        """Evict a connection to free its descriptor for another; return whether there was one to evict."""
        return self.connections.evict()

    def opening(self, response: Response, *, keep_alive: bool) -> bytes:
        """Return the head of a response; for the same Response it is cached for a second."""
        date = self.date()
        known, second, kept_alive, opening = self._opening
        if known is response and second == self._date[0] and kept_alive == keep_alive:
            return opening
        fields = {"Date": date, "Server": "svcd", **response.fields}
        opening = head(response.status, fields, keep_alive=keep_alive)
        if response.body is None:
            self._opening = response, self._date[0], keep_alive, opening
        return opening

    def date(self) -> str:
        """Return the Date field (RFC 9110, section 5.6.7), cached for a second."""
        second = int(self._now())
        if second != self._date[0]:
            self._date = (second, email.utils.formatdate(second, usegmt=True))
        return self._date[1]
