"""A running CGI program: its standard output becomes a response.

The daemon reads from the program only what the client takes.
"""

from __future__ import annotations

import errno
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from svcd.protocols.http.cgi_input import CgiInput
from svcd.protocols.http.response import Response
from svcd.wire.cgi_response import CgiError, CgiHead, CgiHeadReader
from svcd.wire.http_request import HttpError
from svcd.wire.response_head import StatusLine

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from svcd.interfaces import DescriptorCounter, DuplexReactor
    from svcd.process.messages import Started
    from svcd.wire.http_request import HttpRequest
    from svcd.wire.request_body import RequestBody

__all__ = ["CgiScript", "ScriptLauncher", "ScriptResult"]

#: The size of a read, in bytes; output up to this size that is there at once is sent with its length.
_PIECE = 65_536
#: The beginning of the output of a program that writes a whole response (RFC 3875, section 5).
_NPH_START = b"HTTP/1."

#: The statuses of errors at the start of a program; others are 500.
_STATUSES = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG), HTTPStatus.NOT_FOUND),
    **dict.fromkeys((errno.EACCES, errno.EISDIR), HTTPStatus.FORBIDDEN),
    **dict.fromkeys(
        (0, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS), HTTPStatus.SERVICE_UNAVAILABLE
    ),
}
#: A response, or the head of a local redirect, which the handler follows.
ScriptResult: TypeAlias = "Response | CgiHead"


class ScriptLauncher(Protocol):
    """Starts the programs of one service, and ends them."""

    @property
    def reactor(self) -> DuplexReactor:
        """The reactor, which watches pipes and time."""
        ...

    @property
    def descriptors(self) -> DescriptorCounter:
        """The budget in which the pipes of programs are counted."""
        ...

    def failed(self, peer: IAddress, reason: str, /) -> None:
        """Log and count a request that a program has not served."""
        ...

    def start(self, script: CgiScript, environment: bytes, /, *fds: int) -> int:
        """Start a program; return the number for end().

        Args:
            script: its started(), start_failed() and ended() are called.
            environment: the variables of the request, separated by NULs.
            fds: the pipe of its output, and that of its input if it has one. Takes ownership of them.
        """
        ...

    def end(self, number: int, /) -> None:
        """End the process group of a program: SIGTERM, and later SIGKILL; do nothing if the program has ended."""
        ...


@implementer(IReadDescriptor)
class CgiScript:
    """A CGI program that serves one request.

    It is the body of its response: the server reads from it what the client takes (svcd.protocols.http.response.Body).

    Args:
        request: the request.
        launcher: starts the program.
        failed: called with the reason of a failure of the program, for the log.
        on_exit: called when the program has ended, or can't be started.
        watch_soon: calls watch_head() soon.

    Attributes:
        response: the Deferred of the response, or of the head of a local redirect. It fails with an HttpError. If it is
            cancelled, the program is ended.
        wake: called when more output may be read, after read() has returned None.
    """

    uncounted = False

    def __init__(
        self,
        request: HttpRequest,
        launcher: ScriptLauncher,
        failed: Callable[[str], None],
        on_exit: Callable[[CgiScript], None],
        watch_soon: Callable[[CgiScript], None],
    ) -> None:
        self.response: Deferred[ScriptResult] = Deferred(self._cancel)
        self.wake: Callable[[], None] = _no_op
        self._request = request
        self._launcher = launcher
        self._reactor = launcher.reactor
        self._failed = failed
        self._on_exit = on_exit
        self._watch_soon = watch_soon
        self._number = 0
        # The pipe of the output; -1 after the close.
        self._fd = -1
        self._input: CgiInput | None = None
        self._reading = self._exited = self._ended = self._nph = False
        # The parser of the head, until the head is complete.
        self._reader: CgiHeadReader | None = CgiHeadReader()
        self._output = b""
        # The number of bytes that the program has announced and not written yet.
        self._missing: int | None = None
        self._error = ""
        self._active = launcher.reactor.seconds()

    def start(self, environment: bytes) -> None:
        """Start the program.

        Raises:
            OSError: there are no pipes for it; EMFILE if the budget of descriptors is used up.
        """
        body, descriptors = self._request.body, self._launcher.descriptors
        if not descriptors.try_acquire():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            self._fd, *fds = os.pipe2(os.O_CLOEXEC)
        except OSError:
            descriptors.release()
            raise
        os.set_blocking(self._fd, False)
        if body is not None:
            try:
                fds.append(self._open_input(body))
            except OSError:
                os.close(fds[0])
                raise
        self._number = self._launcher.start(self, environment, *fds)

    def _open_input(self, body: RequestBody) -> int:
        """Create the standard input; return the end of the program."""
        self._launcher.descriptors.acquire()
        try:
            fd, own = os.pipe2(os.O_CLOEXEC)
        except OSError:
            self._launcher.descriptors.release()
            raise
        os.set_blocking(own, False)
        self._input = CgiInput(body, own, self._reactor, self._launcher.descriptors)
        return fd

    # Events of the process

    def started(self, report: Started) -> None:
        """Handle the start of the process."""
        self._nph = report.nph
        if self._fd < 0:
            self._launcher.end(self._number)
            return
        self._watch_soon(self)
        if self._input is not None:
            self._input.start()

    def start_failed(self, number: int) -> None:
        """Handle that the program can't be started; `number` is an errno, or 0 if there is no launcher."""
        status = _STATUSES.get(number, HTTPStatus.INTERNAL_SERVER_ERROR)
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            self._failed(f"can't start it: {os.strerror(number)}")
        self._exit()
        self._fail(status)

    def ended(self, status: int | None) -> None:
        """Handle the end of the process; processes that it has started may have its output, but are not waited for.

        Args:
            status: the exit status as of wait(2); None if it is not known.
        """
        self._exit()
        if self._input is not None:
            self._input.close()
        if self._reader is not None and self._fd >= 0:
            while self._reader is not None and self._read_head():
                pass
            if self._reader is not None:
                self._malformed(CgiError(f"{self._reader.end()} ({_exit_text(status)})"))
        elif self._reading:
            self.doRead()

    def _exit(self) -> None:
        self._exited = True
        self._on_exit(self)

    # Time limit

    def check(self, now: float, limit: float) -> None:
        """End a program that has neither written nor read for a time in seconds, while it could have."""
        body = self._input
        if body is not None:
            self._active = max(self._active, body.active)
        sends = self._fd >= 0 and self._reader is None and not self._reading
        if sends or (body is not None and body.waits_for_client):
            self._active = now
        elif now - self._active >= limit and not self._ended:
            self._failed(f"it was ended after {limit:g} s without output")
            if self._reader is not None:
                self._fail(HTTPStatus.GATEWAY_TIMEOUT)
            elif self._fd >= 0:
                self._error = f"no output for {limit:g} s"
                self._wake()
            self._end()

    # Output

    def watch_head(self) -> None:
        """Read the head of the response when it is there, unless it was read, or the program has ended."""
        if self._reader is not None:
            self._watch()

    def _watch(self) -> None:
        if not self._reading and self._fd >= 0:
            self._reading = True
            self._active = self._reactor.seconds()
            self._reactor.addReader(self)

    def _unwatch(self) -> None:
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    def doRead(self) -> None:
        """Read the head, or let the server read more of the content."""
        if self._reader is not None:
            self._read_head()
        else:
            self._wake()

    def _wake(self) -> None:
        self._unwatch()
        self.wake()

    def _receive(self) -> bytes | None:
        """Return output; empty at its end, None if there is none yet."""
        try:
            return os.read(self._fd, _PIECE)
        except BlockingIOError:
            # Its own output is complete; processes that it has started may write more.
            return b"" if self._exited else None

    def _read_head(self) -> bool:
        """Read a piece of the head; return whether there may be more."""
        data = self._receive()
        if not data or self._reader is None:
            if data is not None:
                # The exit status will tell more.
                self._unwatch()
            return False
        self._active = self._reactor.seconds()
        if self._nph:
            self._read_start(data)
            return True
        try:
            head = self._reader.feed(data)
            if head is not None:
                self._respond(head, self._reader.rest)
        except CgiError as error:
            self._malformed(error)
        return True

    def _read_start(self, data: bytes) -> None:
        """Read the start of an NPH program's output, which is sent unchanged."""
        self._output += data
        if not self._output.startswith(_NPH_START[: len(self._output)]):
            self._malformed(CgiError("its output is no HTTP response"))
        elif len(self._output) >= len(_NPH_START):
            self._send(Response(HTTPStatus.OK, body=self, raw=True))

    def _malformed(self, error: CgiError) -> None:
        self._failed(str(error))
        self._fail(HTTPStatus.BAD_GATEWAY)
        self._end()

    def _fail(self, status: HTTPStatus) -> None:
        self._reader = None
        self._close_pipes()
        if not self.response.called:
            self.response.errback(HttpError(status))

    def _respond(self, head: CgiHead, content: bytes) -> None:
        if head.local_target:
            self._reader = None
            self._close_pipes()
            self.response.callback(head)
            return
        status = StatusLine.of(head.status, head.reason)
        if self._request.method == "HEAD" or not head.has_content:
            self._send(Response(status, more_fields=head.fields))
            self._close_pipes()
            return
        content, missing = self._read_more(content, head.content_length)
        if missing:
            self._output, self._missing = content, head.content_length
            self._send(Response(status, body=self, more_fields=head.fields))
            return
        length = {"Content-Length": str(len(content))} if head.content_length is None else {}
        self._send(Response(status, length, content, more_fields=head.fields))
        self._close_pipes()

    def _read_more(self, content: bytes, length: int | None) -> tuple[bytes, bool]:
        """Read the content that is there at once.

        Args:
            content: the content that was read.
            length: the length of the whole content, if it is known.

        Returns:
            The content, and whether more follows.

        Raises:
            CgiError: the content is shorter than its length.
        """
        while len(content) < (_PIECE if length is None else min(length, _PIECE)):
            piece = self._receive()
            if piece is None:
                return content, True
            if not piece and length is not None:
                raise CgiError(f"it wrote {len(content)} bytes with a Content-Length of {length}")
            if not piece:
                return content, False
            content += piece
        return (content, True) if length is None or len(content) < length else (content[:length], False)

    def _send(self, response: Response) -> None:
        self._reader = None
        self._unwatch()
        self.response.callback(response)

    # Body

    def count(self, budget: DescriptorCounter) -> None:
        """Do nothing: the pipe is counted."""

    def read(self) -> bytes | None:
        """Return the next piece; see svcd.protocols.http.response.Body."""
        if self._error:
            raise OSError(self._error)
        piece: bytes | None
        if self._output:
            piece, self._output = self._output, b""
        elif self._missing == 0:
            return b""
        else:
            piece = self._receive()
        if piece is None:
            self._watch()
            return None
        self._active = self._reactor.seconds()
        if self._missing is not None:
            if not piece:
                raise OSError(f"the program wrote {self._missing} bytes less than its Content-Length")
            piece = piece[: self._missing]
            self._missing -= len(piece)
        if not piece:
            self._close_pipes()
        return piece

    def close(self) -> None:
        """Stop sending: the response is complete, or the client is gone, which ends the program."""
        complete = self._fd < 0 or self._missing == 0
        self._close_pipes()
        if not complete:
            self._end()

    # End

    def _cancel(self, _response: Deferred[ScriptResult]) -> None:
        """End the program: the client is gone before the response has begun."""
        self._reader = None
        self._close_pipes()
        self._end()

    def _end(self) -> None:
        if not (self._ended or self._exited):
            self._launcher.end(self._number)
        self._ended = True

    def _close_pipes(self) -> None:
        """Close the pipes; the program gets SIGPIPE or EPIPE if it writes more."""
        if self._fd >= 0:
            self._unwatch()
            os.close(self._fd)
            self._fd = -1
            self._launcher.descriptors.release()
        if self._input is not None:
            self._input.close()

    # What the reactor asks of a descriptor

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 after the close."""
        return self._fd

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing at the stop of the reactor."""

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "cgi"


def _no_op() -> None:
    """Do nothing."""


def _exit_text(status: int | None) -> str:
    """Return how a process has ended, as text."""
    if status is None:
        return "its exit status is not known"
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"
