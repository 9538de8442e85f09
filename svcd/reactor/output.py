"""Output of stream connections: producers, half-close, and closing once everything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Callable, Iterable

    from svcd.reactor.native import NativeReactor

__all__ = ["OutputMixin", "discard"]


def discard(data: bytes) -> None:
    """Drop output; the `write` of a connection that has ended."""


class OutputMixin:
    """The part of a stream transport that sends.

    uvloop sends at once what the kernel takes and buffers the rest. It calls pause_writing() when it buffers more than
    its upper limit, 64 KiB, and resume_writing() when almost nothing is left. With both limits at 0 it calls them
    whenever something is left and when nothing is, which a pull producer and a half-close depend on.

    Args:
        reactor: its loop runs the connection.

    Attributes:
        write: sends bytes; uvloop's own method wherever nothing has to be done besides.
        producer: the registered producer, or None.
        streamingProducer: whether it is a push producer.
        connected: whether the connection is open.
        disconnecting: whether it closes as soon as everything is sent.
        disconnected: whether it has ended.
    """

    __slots__ = ("_ending", "_eof_sent", "_full", "_out", "_protocol", "_pull_scheduled", "_uv", "connected",
                 "disconnected", "disconnecting", "producer", "reactor", "streamingProducer", "write")  # fmt: skip

    _uv: Transport
    _protocol: Any
    _out: Callable[[bytes], None]
    write: Callable[[bytes], None]

    def __init__(self, reactor: NativeReactor) -> None:
        self.reactor = reactor
        self.connected = self.disconnected = self.disconnecting = False
        self.producer: Any = None
        self.streamingProducer = False
        # Whether uvloop buffers more than its limit, and whether a pull producer is about to be asked for more.
        self._full = self._pull_scheduled = False
        # Whether the write side is to be shut down once the producer is done, and whether it is.
        self._ending = self._eof_sent = False

    def _direct(self) -> Callable[[bytes], None]:
        """Return the function that sends bytes with nothing in between."""
        return self._uv.write

    def _send_by(self, out: Callable[[bytes], None]) -> None:
        self._out = self.write = out

    def _fail(self, reason: Failure) -> None:
        """Log an error that a callback of the application raised, and drop the connection."""
        raise NotImplementedError

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send several pieces in one go.

        Raises:
            TypeError: a piece is not bytes.
        """
        pieces = list(iovec)
        if not all(isinstance(piece, bytes) for piece in pieces):
            raise TypeError("Data must be bytes")
        self.write(b"".join(pieces))

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - IPushProducer, IPullProducer
        """Register a producer, which writes as fast as the client reads.

        Args:
            producer: paused and resumed, or, not streaming, asked for more each time everything is sent.
            streaming: whether it is an IPushProducer.

        Raises:
            RuntimeError: a producer is registered already.
        """
        if self.producer is not None:
            raise RuntimeError(
                f"Cannot register producer {producer}, because producer {self.producer} was never unregistered."
            )
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streamingProducer = streaming
        if not streaming:
            self._uv.set_write_buffer_limits(0)
            self._send_by(self._write_and_pull)
            producer.resumeProducing()
        elif self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Unregister the producer; do now what loseConnection() or loseWriteConnection() left until then."""
        pulled = self.producer is not None and not self.streamingProducer
        self.producer = None
        if not self.connected:
            return
        if pulled:
            self._uv.set_write_buffer_limits()
            if not self._eof_sent:
                self._send_by(self._direct())
        if self.disconnecting:
            self._uv.close()
        elif self._ending:
            self._send_eof()

    def stopConsuming(self) -> None:
        """Unregister the producer and close the connection."""
        self.unregisterProducer()
        self.loseConnection()

    def loseConnection(self, _reason: object = None) -> None:
        """Close when everything is written and no producer is registered any more."""
        raise NotImplementedError

    def loseWriteConnection(self) -> None:
        """Shut down the write side when everything is written; the client may go on sending."""
        if self.connected and not (self.disconnecting or self._ending):
            self._ending = True
            if self.producer is None or (self.streamingProducer and not self._full):
                self._send_eof()

    @property
    def writing(self) -> bool:
        """Whether output waits to be sent."""
        return self.connected and bool(self._uv.get_write_buffer_size())

    def pause_writing(self) -> None:
        """Pause a push producer; uvloop calls this when its buffer is above the limit."""
        self._full = True
        if self.producer is not None and self.streamingProducer:
            self._call(self.producer.pauseProducing)

    def resume_writing(self) -> None:
        """Resume the producer; uvloop calls this when its buffer is below the limit again."""
        self._full = False
        if self._eof_sent:
            self._call_soon(self._write_side_closed)
        elif self.producer is not None:
            self._call(self.producer.resumeProducing)

    def _write_and_pull(self, data: bytes) -> None:
        self._direct()(data)
        if not (self._full or self._pull_scheduled):
            self._pull_scheduled = True
            self._call_soon(self._pull)

    def _pull(self) -> None:
        self._pull_scheduled = False
        if self.producer is not None and not (self.streamingProducer or self._full or self.disconnected):
            self._call(self.producer.resumeProducing)

    def _send_eof(self) -> None:
        if self._eof_sent:
            return
        self._eof_sent = True
        self._uv.write_eof()
        self._send_by(discard)
        if self._uv.get_write_buffer_size():
            self._uv.set_write_buffer_limits(0)
        else:
            self._call_soon(self._write_side_closed)

    def _write_side_closed(self) -> None:
        if self.connected and IHalfCloseableProtocol.providedBy(self._protocol):
            self._call(self._protocol.writeConnectionLost)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - any error ends this connection alone
            self._fail(Failure())

    def _call_soon(self, callback: Callable[[], None]) -> None:
        self.reactor.loop.call_soon(callback)
