"""WebSocket between a transport and a protocol that does not speak it: handshake, messages, Pings and the close.

As TlsProtocol, it is the protocol of the transport below and the transport of the inner protocol, which is built after
the handshake. The inner protocol gets the messages of the client as bytes, and what it writes becomes messages.

The server closes with a Close frame, waits for that of the client, and closes the connection (RFC 6455, section 7.1).
A Close frame of the client is answered at once; the inner protocol then loses its transport. An end of the input
without a Close frame is treated in the same way.
"""

from __future__ import annotations

import struct
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from zope.interface import implementer

from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.protocols.websocket.output_gate import OutputGate
from svcd.wire.websocket_frames import CloseCode, FrameReader, Opcode, WebSocketError
from svcd.wire.websocket_handshake import HandshakeError, HandshakeReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from svcd.protocols.websocket.settings import WebSocketSettings
    from svcd.wire.http_request import HttpRequest
    from svcd.wire.websocket_frames import Frame
    from svcd.wire.websocket_handshake import Agreement

__all__ = ["WebSocketProtocol"]

#: The largest number of bytes of messages that are joined before they are passed on.
_JOINED = 65_536
#: The status that stands for a Close frame without a status (section 7.1.5).
_NO_STATUS = 1005


class _State(Enum):
    HANDSHAKE = 1
    OPEN = 2
    #: The server has sent a Close frame, or refused the handshake, and waits for the client to close.
    CLOSING = 3
    #: Both have closed; the connection ends when all output is sent.
    CLOSED = 4


#: A global variable, which is found sooner than a member of an enumeration.
_OPEN = _State.OPEN
#: The states in which frames are read.
_READING = (_State.OPEN, _State.CLOSING)


@implementer(IProtocol, IHalfCloseableProtocol)
class WebSocketProtocol:
    """Server side of WebSocket on one connection.

    Attributes that it lacks are those of the transport below.

    Args:
        settings: the options of the service.
        build: builds the inner protocol after the handshake; None closes the connection.
        keeps_open: whether a close of the inner protocol waits for set_close().

    Attributes:
        inner: the inner protocol; None before the handshake is done.
        agreement: what the handshake has agreed on; None before.
        failure_text: why the client was not served; empty if there is no such reason.
    """

    def __init__(self, settings: WebSocketSettings, build: Callable[[], Any], *, keeps_open: bool = False) -> None:
        self._settings = settings
        self.transport: Any = None
        self._build_inner = build
        self.inner: Any = None
        self.agreement: Agreement | None = None
        self.failure_text = ""
        self._state = _State.HANDSHAKE
        self._handshake = HandshakeReader()
        self._reader = FrameReader(settings.most)
        self._mode = settings.mode(settings.most)
        # The status and the reason of the Close frame; None to wait for them.
        self._outcome: tuple[int, str] | None = None if keeps_open else (CloseCode.NORMAL, "")
        self._output_ended = self._input_ended = self._output_is_full = False
        self._wants_input = True
        self._delivering = self._scheduled = False
        self._producer: Any = None
        # The payload of a Ping that is answered once there is room for output.
        self._ping: bytes | None = None
        self._timer: IDelayedCall | None = None
        # Whether the client has sent anything since the last check; the byte counts before a Ping without an answer.
        self._received = False
        self._counts_before_ping: tuple[int, int] | None = None
        self._discarded_bytes = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute of a transport
        if name.startswith("__") or name == "startTLS":
            raise AttributeError(name)
        return getattr(self.transport, name)

    # Called by the transport below.

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - what the reactor has
        """Wait for the handshake."""
        self.transport = transport
        seconds = self._settings.handshake_seconds
        if seconds is not None:
            self._timer = self._settings.clock.callLater(seconds, self._handshake_timed_out)

    def connectionMade(self) -> None:
        """Do nothing: makeConnection() is complete in itself."""

    def dataReceived(self, data: bytes) -> None:
        """Handle bytes from the client."""
        if self._state is _OPEN:
            self._received = True
            self._counts_before_ping = None
            if self._wants_input and not self._delivering:
                # Most reads of most connections are one message.
                try:
                    frame = self._reader.whole_message(data)
                    if frame is not None:
                        self.inner.dataReceived(self._mode.to_program(frame))
                        return
                except WebSocketError as error:
                    self._fail(error)
                    return
        elif self._state is _State.HANDSHAKE:
            self._read_head(data)
            return
        elif self.agreement is None or self._state is _State.CLOSED:
            self._count_discarded(len(data))
            return
        self._reader.feed(data)
        if self._wants_input and not self._delivering:
            self._deliver()

    def readConnectionLost(self) -> None:
        """Handle the end of the client's input."""
        self._input_ended = True
        busy = self._state is _State.OPEN and (self._scheduled or not self._wants_input)
        if not (busy and self._reader.has_input):
            self._end()

    def writeConnectionLost(self) -> None:
        """Do nothing: the write side is shut down only after a refused handshake."""

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection."""
        self._state = _State.CLOSED
        self._stop_timer()
        self._producer = None
        inner = self.inner
        try:
            if inner is not None:
                inner.connectionLost(reason)
        finally:
            # Breaks reference cycles. The failure of the inner protocol is asked for after the end.
            self.failure_text = self.failure_text or getattr(inner, "failure_text", "")
            self.inner = None
            self._build_inner = _no_inner

    # The handshake.

    def _read_head(self, data: bytes) -> None:
        try:
            found = self._handshake.feed(data)
            if found is not None:
                self.start(*found)
        except HandshakeError as error:
            self._refuse(error)

    def start(self, request: HttpRequest, rest: bytes) -> None:
        """Answer the handshake, and connect the inner protocol.

        Args:
            request: the request.
            rest: the bytes after it.

        Raises:
            HandshakeError: the handshake is refused.
        """
        settings = self._settings
        agreement = settings.negotiation.accept(request)
        self._stop_timer()
        self.agreement = agreement
        if agreement.deflate is not None:
            self._reader = FrameReader(settings.most, agreement.deflate)
        self.transport.write(agreement.response)
        self._state = _State.OPEN
        self.transport.registerProducer(OutputGate(self.output_full), True)
        if settings.ping_seconds is not None:
            self._timer = settings.clock.callLater(settings.ping_seconds, self._check_ping)
        if settings.banner:
            self.write(settings.banner)
        inner = self._build_inner()
        if inner is None:
            self.close(CloseCode.INTERNAL_ERROR, "the service declines the connection")
            return
        self.inner = inner
        inner.makeConnection(self)
        if rest:
            self.dataReceived(rest)

    def _refuse(self, error: HandshakeError) -> None:
        self.failure_text = f"WebSocket handshake: {error.status.value}, {error}"
        self.transport.write(error.response)
        self._stop_timer()
        self._state = _State.CLOSING
        # Closing with unread input could reset the connection before the response arrives (RFC 1122, 4.2.2.13).
        self.transport.loseWriteConnection()
        self._wait_for_close()

    def _handshake_timed_out(self) -> None:
        self._timer = None
        if self._handshake.begun:
            self._refuse(HandshakeError(HTTPStatus.REQUEST_TIMEOUT, "the request has not arrived in time"))
        else:
            self.failure_text = "WebSocket handshake: no request has arrived in time"
            self._end()

    # Input.

    def _deliver(self) -> None:
        """Pass on the messages of the client until the inner protocol pauses."""
        self._delivering = True
        failure: WebSocketError | None = None
        joined = b""
        try:
            while self._wants_input and self._state in _READING:
                try:
                    frame = self._reader.receive()
                    data = b"" if frame is None else self._data_of(frame)
                except WebSocketError as error:
                    frame, failure, data = None, error, b""
                joined = joined + data if joined else data
                is_message = frame is not None and frame.opcode < Opcode.CLOSE
                if joined and not (is_message and len(joined) < _JOINED):
                    joined, data = b"", joined
                    self.inner.dataReceived(data)
                if frame is None:
                    break
                if not is_message:
                    self._control(frame)
        finally:
            self._delivering = False
        if failure is not None:
            self._fail(failure)
        elif self._input_ended and self._state in _READING and self._wants_input:
            # What is left is a part of a frame.
            self._end()

    def _data_of(self, frame: Frame) -> bytes:
        """Return the bytes of a piece of a message for the inner protocol; empty for control frames."""
        if frame.opcode >= Opcode.CLOSE:
            return b""
        if self._state is _State.OPEN:
            return self._mode.to_program(frame)
        self._count_discarded(len(frame.payload))
        return b""

    def _control(self, frame: Frame) -> None:
        """Handle a control frame."""
        if frame.opcode == Opcode.PING:
            if self._output_is_full:
                # Only the last Ping needs an answer (section 5.5.3).
                self._ping = frame.payload
            elif self._state is _State.OPEN:
                self.transport.write(self._reader.control(Opcode.PONG, frame.payload))
        elif frame.opcode == Opcode.CLOSE:
            if self._state is _State.OPEN:
                (code,) = struct.unpack_from("!H", frame.payload)
                self.transport.write(self._reader.close(None if code == _NO_STATUS else code))
            self._end()

    def _fail(self, error: WebSocketError) -> None:
        """Close the connection: the client has broken the protocol or a limit. What follows can't be read."""
        if self._state is _State.OPEN:
            self.failure_text = f"WebSocket: {error.code}, {error}"
            self.close(error.code, str(error))
        if self._state is _State.CLOSING:
            # The time limit goes on; what the client sends is discarded.
            self._state = _State.CLOSED

    def _count_discarded(self, size: int) -> None:
        self._discarded_bytes += size
        if self._discarded_bytes > LINGER_BYTES:
            # The client still has time to read the remaining output.
            self.transport.pauseProducing()

    def pauseProducing(self) -> None:
        """Pause input of the inner protocol."""
        if self._state is _State.OPEN:
            self._wants_input = False
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume input of the inner protocol; pending input follows in the next iteration of the reactor."""
        if self._wants_input:
            return
        self._wants_input = True
        if not self._reader.has_input:
            if self._input_ended:
                self._end()
            else:
                self.transport.resumeProducing()
        elif not self._scheduled:
            self._scheduled = True
            self._settings.clock.callLater(0, self._deliver_pending)

    def stopProducing(self) -> None:
        """Close the connection, as IPushProducer requires."""
        self.loseConnection()

    def _deliver_pending(self) -> None:
        self._scheduled = False
        if not self._wants_input or self._state is _State.CLOSED:
            return
        self._deliver()
        if self._wants_input:
            self.transport.resumeProducing()

    # Output.

    def write(self, data: bytes) -> None:
        """Send output of the inner protocol as messages."""
        if self._state is not _OPEN:
            return
        opcode, message, mode = self._mode.opcode, self._reader.message, self._mode
        try:
            frames = [message(opcode, payload) for payload in mode.from_program(data)]
        except WebSocketError as error:
            self.failure_text = f"WebSocket: {error.code}, {error}"
            self.close(error.code, str(error))
            return
        if frames:
            self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def writeSequence(self, pieces: list[bytes]) -> None:
        """Send several pieces."""
        self.write(b"".join(pieces))

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - an IPushProducer
        """Register the producer of the inner protocol, which is paused while too much output is buffered."""
        del streaming
        self._producer = producer
        if self._output_is_full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Unregister the producer of the inner protocol."""
        self._producer = None

    def output_full(self, full: bool) -> None:
        """Handle that the transport has too much output, or takes output again.

        Args:
            full: whether it has too much.
        """
        self._output_is_full = full
        ping, self._ping = self._ping, None if not full else self._ping
        if not full and ping is not None and self._state is _State.OPEN:
            self.transport.write(self._reader.control(Opcode.PONG, ping))
        if self._producer is not None:
            if full:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()

    # The close.

    def set_close(self, code: int, reason: str) -> None:
        """Set the status and the reason of the Close frame; close if the output of the inner protocol has ended."""
        self._outcome = code, reason
        if self._output_ended:
            self.close(code, reason)

    def loseWriteConnection(self) -> None:
        """End the output of the inner protocol, and close once the status is known."""
        if self._state is not _State.OPEN:
            return
        rest = self._mode.rest()
        if rest:
            self.transport.write(self._reader.message(self._mode.opcode, rest))
        self._output_ended = True
        if self._outcome is not None:
            self.close(*self._outcome)

    def loseConnection(self) -> None:
        """End the output of the inner protocol, and close."""
        if self._outcome is None:
            self._outcome = CloseCode.NORMAL, ""
        failure = getattr(self.inner, "failure_text", "")
        if failure:
            self._outcome = CloseCode.INTERNAL_ERROR, "the server can't be reached"
        self.loseWriteConnection()

    def abortConnection(self) -> None:
        """Close because the inner protocol can't go on."""
        self.close(CloseCode.INTERNAL_ERROR, "the connection was reset")

    def close(self, code: int, reason: str, *, linger: bool = True) -> None:
        """Send a Close frame, and wait for that of the client for a limited time.

        Args:
            code: the status.
            reason: the reason.
            linger: whether to wait for the client.
        """
        if self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        self._stop_timer()
        self.transport.write(self._reader.close(code, reason))
        if not linger or self._input_ended:
            self._end()
            return
        # The Close frame of the client is behind its messages, which are discarded.
        self.resumeProducing()
        self._wait_for_close()

    def drain(self) -> None:
        """Close because the service stops."""
        if self._state is _State.HANDSHAKE:
            self._refuse(HandshakeError(HTTPStatus.SERVICE_UNAVAILABLE, "the service stops"))
        else:
            self.close(CloseCode.GOING_AWAY, "the service stops")

    def _wait_for_close(self) -> None:
        self._stop_timer()
        self._timer = self._settings.clock.callLater(LINGER_SECONDS, self._close_timed_out)

    def _close_timed_out(self) -> None:
        self._timer = None
        if getattr(self.transport, "writing", False):
            # A slow client gets all output; the time limit begins after that.
            self._wait_for_close()
        else:
            self._end()

    def _end(self) -> None:
        """Close the connection as soon as all output is sent."""
        self._state = _State.CLOSED
        self._stop_timer()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    # Pings, and information about the connection.

    def _check_ping(self) -> None:
        seconds = self._settings.ping_seconds
        assert seconds is not None  # noqa: S101 - the timer was started with it
        self._timer = self._settings.clock.callLater(seconds, self._check_ping)
        received, self._received = self._received, False
        if received or self._output_is_full or not self._wants_input or self._counts_before_ping is not None:
            return
        self._counts_before_ping = getattr(self.transport, "traffic", None)
        self.transport.write(self._reader.control(Opcode.PING))

    @property
    def traffic(self) -> tuple[int, int] | None:
        """The bytes received from the client, and those acknowledged by its system; None if they are unknown.

        While a Ping has no answer they do not change: a Ping is no activity of the client (idle_timeout).
        """
        found: tuple[int, int] | None = self._counts_before_ping or getattr(self.transport, "traffic", None)
        return found

    def info(self, *, subject: bool) -> dict[str, object]:
        """Return fields of the connection for svcctl; subject is of TLS."""
        del subject
        return {}

    def logPrefix(self) -> str:
        """Return the log prefix: the name of the inner protocol's class."""
        return type(self.inner or self).__name__


def _no_inner() -> None:
    """Return no protocol."""
