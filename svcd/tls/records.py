"""The writing side of TLS: what goes into one record, producers, closure alerts, and closing once all is sent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

from svcd.tls.openssl import RECORD, TAKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from svcd.tls.openssl import ServerConnection

__all__ = ["SLICE", "TlsOutput"]

#: What OpenSSL is given at once, and what it has for the transport at once, in bytes: its buffers never shrink.
SLICE = 32_768
#: A smaller write waits for others to share a record with, until the reactor's next turn.
_SMALL = 4096
#: While input is worked off the transport gets output behind it, or when it is so much, in bytes: to be told now and
#: then that the kernel takes no more, and to go on, costs a fifth of the speed.
_MOST_READY = 262_144
#: What OpenSSL may have to say by itself after the handshake, in bytes: answers to key updates, each of 27 bytes or so,
#: which a client that does not read could ask for without end.
_MOST_OWN = 65_536


class TlsOutput:
    """What a transport does about output, through OpenSSL, to the transport below.

    Attributes:
        transport: the one below.
        disconnecting: whether the connection ends as soon as everything is sent.
    """

    __slots__ = ("_again", "_connection", "_encrypted", "_ending", "_inside", "_mute", "_own", "_pieces",
                 "_pieces_size", "_producer", "_ready", "_ready_size", "_soon", "_streaming", "disconnecting",
                 "transport")  # fmt: skip

    # None before and after.
    _connection: ServerConnection | Any
    transport: Any

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._connection = self.transport = None
        self._producer: Any = None
        # Whether there is nothing more to say, and whether our side is to be closed once the producer is done.
        self._streaming = self._mute = self._ending = self.disconnecting = False
        # Whether output is sent soon in any case: since input is being worked off, or since the reactor was asked.
        self._inside = self._again = False
        # Small writes that wait, what OpenSSL was given since the transport had something, and what it said by itself.
        self._pieces: list[bytes] = []
        self._pieces_size = self._encrypted = self._own = 0
        # What is ready for the transport.
        self._ready: list[bytes] = []
        self._ready_size = 0

    def write(self, data: bytes) -> None:
        """Send, now or, if it is little, with what follows in this turn of the reactor.

        Raises:
            TypeError: it is no bytes.
        """
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        if self._mute or (self.disconnecting and self._producer is None):
            return
        if len(data) >= _SMALL:
            self._send_pieces()
            self._send(data)
            if not self._inside:
                self._push()
            return
        self._pieces.append(data)
        self._pieces_size += len(data)
        if self._pieces_size >= RECORD:
            self._send_pieces()
        if not (self._inside or self._again):
            self._again = True
            self._soon(self._go_on)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send several pieces in one go.

        Raises:
            TypeError: some are no bytes.
        """
        self.write(b"".join(iovec))

    def _flush(self) -> None:
        """Let the transport have everything."""
        if not self._mute:
            self._send_pieces()
            self._push()

    def _send_pieces(self) -> None:
        pieces = self._pieces
        if pieces:
            self._pieces = []
            self._pieces_size = 0
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if data:
                self._send(data)

    def _send(self, data: bytes) -> None:
        """Encrypt; OpenSSL keeps a slice of it at most."""
        try:
            sent = self._connection.seal(data)
            self._encrypted += sent
            while sent < len(data) and not self._mute:
                if self._encrypted >= SLICE:
                    self._push()
                count = self._connection.seal(memoryview(data)[sent:])
                sent += count
                self._encrypted += count
        except SSL.Error as error:
            self._broken(error)
        if self._encrypted >= SLICE:
            self._push()

    def _push(self) -> None:
        """Take what OpenSSL has, for the transport."""
        if self._mute:
            return
        asked, self._encrypted = self._encrypted, 0
        emit = self._connection.emit
        while data := emit():
            self._ready.append(data)
            self._ready_size += len(data)
            if not asked:
                self._own += len(data)
            if len(data) < TAKEN:
                break
        if self._own > _MOST_OWN:
            self._flooded()
        elif not self._inside or self._ready_size >= _MOST_READY:
            self._hand_over()

    def _hand_over(self) -> None:
        ready, self._ready = self._ready, []
        self._ready_size = 0
        for data in ready:
            self.transport.write(data)

    def _say_end(self) -> None:
        """Say the closure alert behind everything (RFC 8446, 6.1)."""
        if not self._mute:
            self._send_pieces()
        if self._mute:
            # Perhaps only now, since OpenSSL has failed.
            return
        # In the middle of a handshake, and after an error, there is no such thing.
        with suppress(SSL.Error):
            self._connection.shutdown()
        self._push()
        self._hand_over()
        self._mute = True

    # Who waits for whom at the end.

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - IPushProducer, IPullProducer
        """Let something produce what is written, as fast as the client takes it.

        Raises:
            RuntimeError: there is one already.
        """
        if self._producer is not None:
            raise RuntimeError(f"{producer} can't be registered: {self._producer} still is")
        if self._connection is None:
            producer.stopProducing()
            return
        self._producer, self._streaming = producer, streaming
        self.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """There is no more to come from the producer; a close that was asked for meanwhile follows."""
        if self._producer is None:
            return
        self._producer = None
        self.transport.unregisterProducer()
        if self.disconnecting:
            self._finish()
        elif self._ending and not self._mute:
            self._close_our_side()

    def stopConsuming(self) -> None:
        """What is produced is wanted no more."""
        self.unregisterProducer()
        self.loseConnection()

    def loseConnection(self, _reason: object = None) -> None:
        """Close when everything is written, and, with a producer, when that is unregistered."""
        if not (self.disconnecting or self._connection is None):
            self.disconnecting = True
            if self._producer is None:
                self._finish()

    def loseWriteConnection(self) -> None:
        """Close our side after what was written; the client may go on sending."""
        if not (self._ending or self.disconnecting or self._connection is None):
            self._ending = True
            if self._producer is None or self._streaming:
                self._close_our_side()

    def abortConnection(self) -> None:
        """Close at once; nothing more is sent, nor heard of what has come already."""
        self._hear_no_more()
        self._mute = True
        self.transport.abortConnection()

    def _close_our_side(self) -> None:
        self._say_end()
        self.transport.loseWriteConnection()

    def _finish(self) -> None:
        """Close, with all said."""
        self._say_end()
        self._hear_no_more()
        self.transport.loseConnection()

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            self.transport.unregisterProducer()
            producer.stopProducing()

    # What the reading side does.

    def _go_on(self) -> None:
        """It is time to send what waits."""
        raise NotImplementedError

    def _hear_no_more(self) -> None:
        """Nobody wants input."""
        raise NotImplementedError

    def _broken(self, error: SSL.Error) -> None:
        """OpenSSL can't go on."""
        raise NotImplementedError

    def _flooded(self) -> None:
        """The client lets OpenSSL answer too much."""
        raise NotImplementedError
