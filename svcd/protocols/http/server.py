"""Connections of the HTTP server (RFC 9110, 9112): requests are processed in order, one at a time.

A Handler makes the responses: it gets the request and the address of the peer, and returns a Response, or a Deferred
that fires with a Response. The connection does pipelining, back-pressure, keep-alive and closing.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

from svcd.protocols.http.access_log import CLIENT_GONE
from svcd.protocols.http.connections import EVICTED
from svcd.protocols.http.context import ContextFactory
from svcd.protocols.http.response import Response, Upgrade, error_response, respond_with
from svcd.protocols.http.sending import ResponseSender
from svcd.wire.http_request import HttpError, RequestReader

if TYPE_CHECKING:
    from svcd.wire.http_request import HttpRequest
    from svcd.wire.request_body import RequestBody

__all__ = ["HttpFactory", "HttpProtocol"]


#: The interim response that lets a client send the body of its request (RFC 9110, section 15.2.1).
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpProtocol(ResponseSender):
    """An HTTP connection.

    The connection reads only when all input is answered and the client takes the responses, and within the body of a
    request when its handler takes it. So it holds at most the head of a request, a piece of a response, and the data
    of a read.
    """

    factory: HttpFactory
    tick = -1
    was_active = False

    def connectionMade(self) -> None:
        """Initialize the state, and wait for the first request."""
        self._context = context = self.factory.context
        self.clock = context.clock
        self._begin_sending()
        self._reader = RequestReader(context.limits, context.known_heads)
        self._known_request = context.known_heads.get
        # Over TLS, input is not delivered by the poll itself.
        repeats = not getattr(self.transport, "TLS", False)
        self._respond_again = getattr(context.handler, "respond_again", None) if repeats else None
        self._unread = b""
        # The number of requests that may follow; negative without a limit.
        self._left = context.max_requests
        # Requests that were parsed, and are not answered yet.
        self._requests: list[HttpRequest] = []
        self._paused = self._reading_paused = self._client_done = self._draining = self._pumping = self._lost = False
        # The response that a handler has not made yet.
        self._awaited: Deferred[Any] | None = None
        # The protocol that has taken over the connection, and the reason for which this one has ended it.
        self._upgraded: Any = None
        # Whether the connection waits for a request and has nothing else to do.
        self._idle = False
        self._end_reason = ""
        self._peer = self.transport.getPeer()
        self.transport.registerProducer(self, True)
        self._connections = context.connections
        self._connections.move(self, self._connections.reading)

    def dataReceived(self, data: bytes) -> None:
        """Parse and answer more input; drop it while lingering."""
        if self._idle:
            self._idle = False
            request = self._known_request(data)
            if request is not None and request.keep_alive:
                # The same as _pump() does, which has nothing else to do.
                self._answer(request, None if self._respond_again is None else self._respond_again(request))
                if self._request is None and self._keep_alive and not self._paused:
                    if self.tick == self._connections.tick:
                        self.was_active = True
                    else:
                        self._connections.renew(self, self._connections.idle)
                    self._idle = True
                    return
                data = b""
        if self.lingering:
            self.drop(data)
        elif self._upgraded is not None:
            self._upgraded.dataReceived(data)
        else:
            self._unread += data
            self._pump()

    def readConnectionLost(self) -> None:
        """Handle the end of the client's data: answer the remaining requests, then close the connection."""
        self._client_done = True
        self._idle = False
        if self.lingering:
            super().readConnectionLost()
        elif self._upgraded is None:
            self._pump()
        elif IHalfCloseableProtocol.providedBy(self._upgraded):
            self._upgraded.readConnectionLost()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Handle that the write side is closed."""
        if self._upgraded is not None and IHalfCloseableProtocol.providedBy(self._upgraded):
            self._upgraded.writeConnectionLost()
        else:
            super().writeConnectionLost()

    def drain(self) -> None:
        """Close the connection after the current response, or at once if there is none."""
        self._draining = True
        self._idle = False
        if self._upgraded is None:
            self._pump()
        elif hasattr(self._upgraded, "drain"):
            self._upgraded.drain()

    def pauseProducing(self) -> None:
        """Stop sending: the transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Send more."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """Do nothing: connectionLost() follows."""

    def connectionLost(self, reason: Any = None) -> None:  # noqa: ANN401 - a Failure
        """Release the bodies and the descriptor, or tell the protocol after an upgrade."""
        self._lost = self._paused = True
        self._idle = False
        self._connections.move(self, None)
        if self._upgraded is not None:
            self._upgraded.connectionLost(reason)
        self._end_incoming()
        self._cancel()
        self._close_outgoing()
        if self._request is not None:
            self._complete(CLIENT_GONE, 0)
        self._release_descriptor()
        super().connectionLost(reason)

    def _pump(self) -> None:
        """Process until input or output blocks: send pieces, deliver bodies, send responses, parse requests, close."""
        if self._pumping or self.lingering or self._upgraded is not None:
            return
        self._pumping = True
        try:
            while not (self._lost or self.lingering) and self._step():
                pass
        finally:
            self._pumping = False
        if self._upgraded is None:
            self._update_reading()
            if not self._lost:
                self._wait()
                self._idle = self.group is self._connections.idle and not self._paused

    def _step(self) -> bool:
        """Process one thing; return False if input or output blocks."""
        outgoing = self._outgoing
        if outgoing is not None and not (self._paused or outgoing.stalled):
            self._send_piece(outgoing)
            if self.group is self._connections.leaving:
                # Its time begins again.
                self._leave_group()
            return True
        if self._incoming is not None and self._continue_incoming(self._incoming):
            return True
        if self._paused or outgoing is not None or self._awaited is not None or self._incoming is not None:
            return False
        if not self._keep_alive:
            self._end()
        elif self._requests:
            self._answer_next()
            return self._upgraded is None
        elif self._read():
            return True
        elif self._client_done or self._draining:
            self._end()
        return False

    def _wait(self) -> None:
        """Move the connection into the group of the event for which it waits."""
        connections, outgoing = self._connections, self._outgoing
        if self._paused or self.lingering or (outgoing is not None and not outgoing.stalled):
            connections.move(self, connections.writing)
        elif self._incoming is not None and self._incoming.wanted:
            connections.move(self, connections.reading)
        elif self._awaited is not None or outgoing is not None or self._incoming is not None:
            # A client that sends no more may be gone.
            is_leaving = self._client_done and self._context.handler.streams
            connections.move(self, connections.leaving if is_leaving else None)
        elif self._answered:
            self._answered = False
            connections.renew(self, connections.reading if self._reader.begun else connections.idle)
        elif self._reader.begun:
            connections.move(self, connections.reading)

    @property
    def end_reason(self) -> str:
        """The reason for which the connection was ended, such as a timeout; empty for none. The wrapper logs it."""
        return self._end_reason or getattr(self._upgraded, "end_reason", "")

    @property
    def failure_text(self) -> str:
        """The reason why an upgraded connection could not be served; empty for none. The wrapper logs it."""
        return getattr(self._upgraded, "failure_text", "")

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
        self._end_reason = self._end_reason or reason
        if reason == "request" and self._reader.begun:
            self._reject(HTTPStatus.REQUEST_TIMEOUT)
            self._pump()
        elif self.group is self._connections.writing or self.group is self._connections.leaving:
            self._abort()
        else:
            self._close()

    def evict(self) -> None:
        """End the connection at once, to free its descriptor for another connection."""
        self._end_reason = self._end_reason or EVICTED
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
        self._idle = False
        self._connections.move(self, self._connections.writing)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _abort(self) -> None:
        self._paused = True
        self._idle = False
        self._connections.move(self, None)
        if self.lingering and not getattr(self.transport, "writing", False):
            # The kernel has all data, and delivers it after the close.
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def _leave_group(self) -> None:
        self._connections.move(self, None)

    def _end(self) -> None:
        if self._client_done:
            super().readConnectionLost()
            self._paused = True
        elif self._reader.ended and not (self._unread or self._reader.ready or self._incoming is not None):
            # The client has announced the end, so it sends nothing more that could reset the connection.
            self._paused = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        else:
            self.linger()

    # Input

    def _update_reading(self) -> None:
        """Pause reading while there is input that can't be used yet; resume it otherwise.

        It continues while a handler makes its response or the rest of it, so that the end of the connection is noticed.
        """
        if self._incoming is not None:
            wanted = bool(self._unread) or not self._incoming.wanted
        else:
            sends = self._outgoing is not None and not self._outgoing.stalled
            wanted = bool(self._unread or self._requests) or self._paused or sends
        if self.lingering or wanted == self._reading_paused:
            return
        self._reading_paused = wanted
        if wanted:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def _read(self) -> bool:
        """Parse a slice of the input; return whether there was input."""
        reader = self._reader
        if not self._unread and not reader.ready:
            return False
        size = reader.room
        piece, self._unread = self._unread[:size], self._unread[size:]
        try:
            self._requests += reader.feed(piece)
        except HttpError as error:
            self._reject(error.status)
        return True

    def _continue_incoming(self, body: RequestBody) -> bool:
        """Deliver or read a piece of the body of a request; return False if that is not possible now."""
        if body.deliver():
            return True
        if self._request is None and not body.done:
            # The response is complete, or the handler takes no bodies.
            if self._keep_alive:
                body.drop()
            else:
                self._end_incoming()
                return True
        if body.done:
            self._incoming = None
            return True
        if not body.wanted:
            return False
        if self._read():
            return True
        if self._client_done:
            self._reject(None)
            return True
        return False

    def _reject(self, status: HTTPStatus | None) -> None:
        """End the connection because of invalid or incomplete input, with a response unless one was begun.

        Args:
            status: the status of the response; None to send none.
        """
        self._keep_alive = False
        self._unread = b""
        is_answered = self._incoming is not None and self._request is None and not self._requests
        self._requests.clear()
        self._end_incoming()
        self._cancel()
        if self._outgoing is not None:
            self._abort()
        elif status is not None and not is_answered:
            response = error_response(status)
            self._send(Response(status, response.fields) if self._reader.failed_head else response)
        elif self._request is not None:
            self._complete(CLIENT_GONE, 0)

    def _end_incoming(self) -> None:
        body, self._incoming = self._incoming, None
        if body is not None:
            body.end(whole=False)
            body.drop()

    def _body_wanted(self) -> None:
        """Read more of the body of a request; first let a client send it that waits for that."""
        body = self._incoming
        if body is not None and body.started and body.expects_continue and self._outgoing is None:
            body.expects_continue = False
            self.transport.write(_CONTINUE)
        self._pump()

    # Responses

    def _answer_next(self) -> None:
        """Call the handler for the next request, unless a body has to be dropped before."""
        request, body = self._requests[0], self._requests[0].body
        if body is not None and not body.done:
            self._incoming = body
            if not self._context.handler.streams and not body.expects_continue:
                body.drop()
                return
            body.wake = self._body_wanted
        del self._requests[0]
        if not request.keep_alive or ((self._draining or self._reader.ended) and not self._requests):
            self._keep_alive = False
        self._answer(request)

    def _answer(self, request: HttpRequest, known: Response | None = None) -> None:
        """Send the response to a request: the known one, or that of the handler."""
        self._request = request
        if self._context.access_log is not None:
            self._began = self.clock.seconds()
        self._left -= 1
        if not self._left or (self.factory.stopped and not self._requests):
            self._keep_alive = False
        if known is not None:
            self._send(known)
            return
        try:
            reply = respond_with(self._context.handler, request, self._peer, self.transport)
        except Exception:  # noqa: BLE001 - any error of a handler gets a response
            reply = self._refusal(Failure())
        if isinstance(reply, Response):
            self._send(reply)
        elif isinstance(reply, Deferred):
            self._await(reply)
        else:
            self._switch(reply)

    def _await(self, reply: Deferred[Any]) -> None:
        self._awaited = reply

        def done(found: Response | Upgrade) -> None:
            if self._awaited is reply:
                self._awaited = None
                if self._reader.ended and not self._requests:
                    # By a trailer, which has come after the handler was called.
                    self._keep_alive = False
                if isinstance(found, Upgrade):
                    self._switch(found)
                else:
                    self._send(found)
                self._pump()
            elif isinstance(found, Response) and found.body is not None:
                found.body.close()

        def failed(failure: Failure) -> None:
            if self._awaited is reply:
                done(self._refusal(failure))

        reply.addCallbacks(done, failed).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        """Handle an exception in a callback of a handler's Deferred."""
        self._log.failure("an HTTP response could not be sent", failure)
        self._abort()

    def _cancel(self) -> None:
        """Ignore the response that a handler has not made yet."""
        reply, self._awaited = self._awaited, None
        if reply is not None and self._context.handler.streams:
            reply.cancel()

    def _refusal(self, failure: Failure) -> Response:
        """Return the response for an exception in a handler: the status of an HttpError, or 500 and a log line."""
        if isinstance(failure.value, HttpError):
            response = error_response(failure.value.status)
            response.fields.update(failure.value.fields)
            return response
        self._log.failure("the handler of an HTTP request failed", failure)
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _switch(self, upgrade: Upgrade) -> None:
        """Pass the connection on to another protocol."""
        rest = self._reader.take_rest() + self._unread
        self._unread = b""
        self._complete(HTTPStatus.SWITCHING_PROTOCOLS.value, 0)
        self._context.connections.move(self, None)
        self._release_descriptor()
        self.transport.write(self._context.upgrade_head(upgrade))
        self.transport.unregisterProducer()
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resumeProducing()
        self._upgraded = protocol = cast("Any", upgrade.protocol)
        protocol.makeConnection(self.transport)
        if rest and not self._lost:
            protocol.dataReceived(rest)


class HttpFactory(ContextFactory):
    """A factory of HttpProtocols."""

    protocol = HttpProtocol  # type: ignore[assignment]
