"""The writing side of a stream connection: producers, half-close, and closing once everything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from asyncio import Transport
    from collections.abc import Callable, Iterable

    from svcd.reactor.native import NativeReactor

__all__ = ["OutputMixin", "dropped"]


def dropped(data: bytes) -> None:
    """What writing is once there is nobody to read it."""


class OutputMixin:
    """What a Twisted transport and an asyncio protocol do about output.

    uvloop sends at once what the kernel takes and keeps the rest. It says pause_writing() when it keeps more than its
    upper limit, 64 KiB, and resume_writing() when almost nothing is left. With both limits at 0 it says so whenever
    something is left and when nothing is, which is what a pull producer and a half-close have to know.

    Attributes:
        write: sends bytes; uvloop's own method wherever nothing has to be done besides.
        producer: the registered producer, or None.
        streamingProducer: whether it is a push producer.
        connected: whether the connection is open.
        disconnecting: whether it ends as soon as everything is sent.
        disconnected: whether it is gone.
    """

    __slots__ = ("_asked", "_ending", "_full", "_out", "_protocol", "_said_eof", "_uv", "connected", "disconnected",
                 "disconnecting", "producer", "reactor", "streamingProducer", "write")  # fmt: skip

    _uv: Transport
    _protocol: Any
    _out: Callable[[bytes], None]
    write: Callable[[bytes], None]

    def __init__(self, reactor: NativeReactor) -> None:
        self.reactor = reactor
        self.connected = self.disconnected = self.disconnecting = False
        self.producer: Any = None
        self.streamingProducer = False
        # Whether uvloop keeps more than it wants to, whether a pull producer is about to be asked for more,
        # whether our side is to be closed after what is produced, and whether it is.
        self._full = self._asked = self._ending = self._said_eof = False

    def _direct(self) -> Callable[[bytes], None]:
        """What sends bytes with nothing in between."""
        return self._uv.write

    def _send_by(self, out: Callable[[bytes], None]) -> None:
        self._out = self.write = out

    def _fail(self, reason: Failure) -> None:
        """A callback of the application raised: log it, and drop the connection."""
        raise NotImplementedError

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send several pieces in one go.

        Raises:
            TypeError: some are no bytes.
        """
        pieces = list(iovec)
        if not all(isinstance(piece, bytes) for piece in pieces):
            raise TypeError("Data must be bytes")
        self.write(b"".join(pieces))

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - IPushProducer, IPullProducer
        """Let something produce what is written, as fast as the client takes it.

        Args:
            producer: paused and resumed, or, not streaming, asked for more each time everything is sent.
            streaming: whether it is an IPushProducer.

        Raises:
            RuntimeError: there is one already.
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
            self._send_by(self._write_and_ask)
            producer.resumeProducing()
        elif self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """There is no more to come from the producer; a close that was asked for meanwhile follows."""
        pulled = self.producer is not None and not self.streamingProducer
        self.producer = None
        if not self.connected:
            return
        if pulled:
            self._uv.set_write_buffer_limits()
            if not self._said_eof:
                self._send_by(self._direct())
        if self.disconnecting:
            self._uv.close()
        elif self._ending:
            self._say_eof()

    def stopConsuming(self) -> None:
        """What is produced is wanted no more."""
        self.unregisterProducer()
        self.loseConnection()

    def loseConnection(self, _reason: object = None) -> None:
        """Close when everything is written, and, with a producer, when that is unregistered."""
        raise NotImplementedError

    def loseWriteConnection(self) -> None:
        """Close our side after what was written; the client may go on sending."""
        if self.connected and not (self.disconnecting or self._ending):
            self._ending = True
            if self.producer is None or (self.streamingProducer and not self._full):
                self._say_eof()

    @property
    def writing(self) -> bool:
        """Whether output waits."""
        return self.connected and bool(self._uv.get_write_buffer_size())

    def pause_writing(self) -> None:
        """Uvloop: the kernel does not take it as fast as it comes."""
        self._full = True
        if self.producer is not None and self.streamingProducer:
            self._call(self.producer.pauseProducing)

    def resume_writing(self) -> None:
        """Uvloop: there is room again."""
        self._full = False
        if self._said_eof:
            self._soon(self._eof_is_said)
        elif self.producer is not None:
            self._call(self.producer.resumeProducing)

    def _write_and_ask(self, data: bytes) -> None:
        self._direct()(data)
        if not (self._full or self._asked):
            self._asked = True
            self._soon(self._ask)

    def _ask(self) -> None:
        self._asked = False
        if self.producer is not None and not (self.streamingProducer or self._full or self.disconnected):
            self._call(self.producer.resumeProducing)

    def _say_eof(self) -> None:
        if self._said_eof:
            return
        self._said_eof = True
        self._uv.write_eof()
        self._send_by(dropped)
        if self._uv.get_write_buffer_size():
            self._uv.set_write_buffer_limits(0)
        else:
            self._soon(self._eof_is_said)

    def _eof_is_said(self) -> None:
        if self.connected and IHalfCloseableProtocol.providedBy(self._protocol):
            self._call(self._protocol.writeConnectionLost)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except KeyboardInterrupt:
            # Ctrl-C ends the program, as on Twisted's own reactors.
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one connection
            self._fail(Failure())

    def _soon(self, callback: Callable[[], None]) -> None:
        self.reactor.loop.call_soon(callback)
