"""Responses of an HTTP connection: their heads, their bodies, and the descriptors of files that are sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.logger import Logger

from svcd.protocols.base import LingeringProtocol
from svcd.protocols.http.outgoing_body import OutgoingBody, chunk
from svcd.protocols.http.response import error_response

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from svcd.protocols.http.connections import Group
    from svcd.protocols.http.context import HttpContext
    from svcd.protocols.http.response import Body, Response
    from svcd.wire.http_request import HttpRequest
    from svcd.wire.request_body import RequestBody

__all__ = ["ResponseSender"]

#: The largest content that is joined to its head, in bytes: below it a copy is cheaper than a second write.
_COPIED = 65_536


class ResponseSender(LingeringProtocol):
    """The part of an HTTP connection that sends responses."""

    group: Group | None = None
    _log = Logger()
    _context: HttpContext
    _peer: IAddress

    def _begin_sending(self) -> None:
        """Initialize the state."""
        # The request whose response is not complete; with an access log, the time when it was complete itself.
        self._began = 0.0
        self._request: HttpRequest | None = None
        # The body of this or of the last request, unless all of it has arrived and was delivered or dropped.
        self._incoming: RequestBody | None = None
        # The body of the response that is being sent.
        self._outgoing: OutgoingBody | None = None
        # Whether a request was answered since the connection was put into its group.
        self._answered = False
        self._sent = 0
        self._keep_alive = True
        # Whether a descriptor is reserved for a file: from the start until the first response, so that the first
        # response does not fail for lack of a descriptor.
        self._has_descriptor = False
        if self._context.descriptors is not None:
            self._has_descriptor = True
            self._context.descriptors.acquire()

    def _pump(self) -> None:
        """Process until input or output blocks."""
        raise NotImplementedError

    def _leave_group(self) -> None:
        """Leave the group of connections that may be evicted."""
        raise NotImplementedError

    def _abort(self) -> None:
        """Reset the connection, unless the kernel has all data."""
        raise NotImplementedError

    def _send(self, response: Response) -> None:
        """Send a response, or its head if it has a body."""
        self._answered = True
        if self._has_descriptor and response.body is None:
            self._release_descriptor()
        request, body = self._request, response.body
        if self._incoming is not None and self._incoming.expects_continue and not self._incoming.started:
            # It is not known whether the client will send the body (RFC 9110, section 10.1.1).
            self._keep_alive = False
        if body is not None:
            self._send_with_body(response, body)
            return
        if request is not None and request.method == "HEAD":
            size = 0
            data = self._context.head(response, keep_alive=self._keep_alive)
        else:
            size = len(response.content)
            second, data = response.kept if self._keep_alive else response.closed
            if second != int(self._context.now()):
                data = self._encoded(response)
        self.transport.write(data)
        if self._context.access_log is None:
            self._request = None
        else:
            self._complete(response.status.value, size)

    def _encoded(self, response: Response) -> bytes:
        if len(response.content) <= _COPIED:
            return self._context.encoded(response, keep_alive=self._keep_alive)
        self.transport.write(self._context.head(response, keep_alive=self._keep_alive))
        return response.content

    def _send_with_body(self, response: Response, body: Body) -> None:
        """Send the head of a response and its content; the body follows."""
        if not self._count(body):
            body.close()
            self._send(error_response(HTTPStatus.SERVICE_UNAVAILABLE))
            return
        self._release_descriptor()
        request = self._request
        content = response.content
        length = response.length
        chunked = length is None and not response.raw and request is not None and request.version != "1.0"
        if response.raw or (length is None and not chunked):
            self._keep_alive = False
        framing = (("Transfer-Encoding", "chunked"),) if chunked else ()
        opening = self._context.head(response, *framing, keep_alive=self._keep_alive)
        if request is not None and request.method == "HEAD" and not response.raw:
            self.transport.write(opening)
            body.close()
            self._complete(response.status.value, 0)
            return
        missing = None if length is None else int(length) - len(content)
        self._outgoing = outgoing = OutgoingBody(body, missing, chunked=chunked)
        outgoing.status, outgoing.sent = response.status.value, len(content)
        self.transport.write(opening + (chunk(content) if chunked and content else content))

    def _send_piece(self, outgoing: OutgoingBody) -> None:
        # TCP transports without TLS on the uv reactor have it.
        send_file = getattr(self.transport, "send_file", None)
        if send_file is not None and outgoing.send_part(send_file, self._not_whole):
            return
        try:
            data = outgoing.read(self._pump)
        except OSError as error:
            self._not_whole(error)
            return
        if data:
            self._sent += len(data)
            self.transport.write(data)
        if outgoing.done:
            self._close_outgoing()

    def _not_whole(self, error: OSError) -> None:
        """Abort the connection, since the rest of a body can't be sent."""
        self._log.warn("a response could not be sent whole: {error}", error=error)
        self._close_outgoing()
        self._abort()

    def _close_outgoing(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.close()
            self._complete(outgoing.status, outgoing.sent)

    def _complete(self, status: int, size: int) -> None:
        """Handle the end of a response, with the number of bytes of its content that were sent."""
        request, self._request = self._request, None
        access_log = self._context.access_log
        if access_log is not None:
            seconds = self._context.clock.seconds() - self._began if request is not None else 0.0
            access_log.write(request, self._peer, (status, size, seconds))

    def _count(self, body: Body) -> bool:
        """Count the descriptor of a body, unless it is counted; return False if the budget is exhausted."""
        descriptors = self._context.descriptors
        if descriptors is None or not body.uncounted:
            return True
        if not self._has_descriptor:
            # try_acquire() may evict a connection; it must not be this one.
            self._leave_group()
            if not descriptors.try_acquire():
                return False
        self._has_descriptor = False
        body.count(descriptors)
        return True

    def _release_descriptor(self) -> None:
        if self._has_descriptor and self._context.descriptors is not None:
            self._has_descriptor = False
            self._context.descriptors.release()
