"""Output of stream connections: producers, half-close, and close after all data is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Callable, Iterable

    from svcd.reactor.file_output import FileOutput
    from svcd.reactor.native import NativeReactor

__all__ = ["OutputMixin", "discard"]


def discard(data: bytes) -> None:
    """Drop output; this is the `write` of a connection that has ended."""


class OutputMixin:
    """Mixin for the output of a stream transport.

    uvloop sends as much as the kernel takes at once, and buffers the rest. It calls pause_writing() when it buffers
    more than its high-water mark, 64 KiB, and resume_writing() when the buffer is almost empty. With both marks at 0 it
    calls them when data is buffered and when the buffer is empty, as a pull producer and a half-close require.

    Args:
        reactor: the reactor whose loop runs the connection.

    Attributes:
        write: sends bytes; it is uvloop's own method if no other action is required.
        producer: the registered producer; None without a producer.
        streamingProducer: whether it is a push producer.
        connected: whether the connection is open.
        disconnecting: whether it will be closed after all data is sent.
        disconnected: whether it has ended.
        file_output: the part of a file that is being sent; None if there is none.
    """

    __slots__ = ("_ending", "_eof_sent", "_fd", "_full", "_out", "_protocol", "_pull_scheduled", "_uv", "connected",
                 "disconnected", "disconnecting", "file_output", "producer", "reactor", "streamingProducer",
                 "write")  # fmt: skip

    _uv: Transport
    _fd: int
    _protocol: Any
    _out: Callable[[bytes], None]
    write: Callable[[bytes], None]

    def __init__(self, reactor: NativeReactor) -> None:
        self.reactor = reactor
        self.connected = self.disconnected = self.disconnecting = False
        self.producer: Any = None
        self.streamingProducer = False
        # Whether uvloop buffers more than its high-water mark; whether a call of a pull producer is scheduled.
        self._full = self._pull_scheduled = False
        # Whether the write side has to be shut down after the producer has ended; whether it was shut down.
        self._ending = self._eof_sent = False
        self.file_output: FileOutput | None = None

    def _direct(self) -> Callable[[bytes], None]:
        """Return the function that sends bytes without other actions."""
        return self._uv.write

    def _send_by(self, out: Callable[[bytes], None]) -> None:
        self._out = self.write = out

    def _fail(self, reason: Failure) -> None:
        """Log an exception in a callback of the application, and close the connection."""
        raise NotImplementedError

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send several pieces with a single call.

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
            producer: a push producer is paused and resumed; a pull producer is resumed each time all data is sent.
            streaming: whether it is a push producer (IPushProducer).

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
        """Unregister the producer; complete a pending loseConnection() or loseWriteConnection()."""
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
        """Close the connection when all data is written and no producer is registered."""
        raise NotImplementedError

    def loseWriteConnection(self) -> None:
        """Shut down the write side when all data is written; the client may continue to send."""
        if self.connected and not (self.disconnecting or self._ending):
            self._ending = True
            if self.producer is None or (self.streamingProducer and not self._full):
                self._send_eof()

    @property
    def writing(self) -> bool:
        """Whether there is unsent output."""
        return self.connected and (self.file_output is not None or bool(self._uv.get_write_buffer_size()))

    def pause_writing(self) -> None:
        """Pause a push producer; uvloop calls this when its buffer exceeds the high-water mark."""
        self._full = True
        if self.producer is not None and self.streamingProducer:
            self._call(self.producer.pauseProducing)

    def resume_writing(self) -> None:
        """Resume the producer; uvloop calls this when its buffer is below the low-water mark."""
        self._full = False
        if self.file_output is not None:
            self.file_output.run()
        elif self._eof_sent:
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
            # Ctrl-C ends the program, as with Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - any other exception ends only this connection
            self._fail(Failure())

    def _call_soon(self, callback: Callable[[], None]) -> None:
        self.reactor.loop.call_soon(callback)
