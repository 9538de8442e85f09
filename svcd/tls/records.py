"""The writing side of TLS: what goes into one record, producers, closure alerts, and closing once all is sent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

from svcd.tls.openssl import MAX_READ, MAX_RECORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from svcd.tls.openssl import ServerConnection

__all__ = ["SLICE", "TlsOutput"]

#: What OpenSSL is given at once, and what it has for the transport at once, in bytes: its buffers never shrink.
SLICE = 32_768
#: A smaller write waits for others to share a record with, until the reactor's next turn.
_SMALL_WRITE = 4096
#: While input is worked off the transport gets output behind it, or when it is so much, in bytes: to be told now and
#: then that the kernel takes no more, and to go on, costs a fifth of the speed.
_MAX_READY = 262_144
#: What OpenSSL may have to say by itself after the handshake, in bytes: answers to key updates, each of 27 bytes or so,
#: which a client that does not read could ask for without end.
_MAX_UNSOLICITED = 65_536


class TlsOutput:
    """What a transport does about output, through OpenSSL, to the transport below.

    Attributes:
        transport: the one below.
        disconnecting: whether the connection ends as soon as everything is sent.
    """

    __slots__ = (
        "_call_soon",
        "_closing_output",
        "_connection",
        "_encrypted_bytes",
        "_output_closed",
        "_producer",
        "_ready",
        "_ready_size",
        "_receiving",
        "_scheduled",
        "_small_writes",
        "_small_writes_size",
        "_streaming",
        "_unsolicited_bytes",
        "disconnecting",
        "transport",
    )  # fmt: skip

    # None before and after.
    _connection: ServerConnection | Any
    transport: Any

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._connection = self.transport = None
        self._producer: Any = None
        # Whether there is nothing more to say, and whether our side is to be closed once the producer is done.
        self._streaming = self._output_closed = self._closing_output = self.disconnecting = False
        # Whether output is sent soon in any case: since input is being worked off, or since the reactor was asked.
        self._receiving = self._scheduled = False
        # Small writes that wait, what OpenSSL was given since the transport had something, and what it said by itself.
        self._small_writes: list[bytes] = []
        self._small_writes_size = self._encrypted_bytes = self._unsolicited_bytes = 0
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
        if self._output_closed or (self.disconnecting and self._producer is None):
            return
        if len(data) >= _SMALL_WRITE:
            self._send_small_writes()
            self._send(data)
            if not self._receiving:
                self._collect_records()
            return
        self._small_writes.append(data)
        self._small_writes_size += len(data)
        if self._small_writes_size >= MAX_RECORD:
            self._send_small_writes()
        if not (self._receiving or self._scheduled):
            self._scheduled = True
            self._call_soon(self._run_scheduled)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send several pieces in one go.

        Raises:
            TypeError: some are no bytes.
        """
        self.write(b"".join(iovec))

    def _flush(self) -> None:
        """Let the transport have everything."""
        if not self._output_closed:
            self._send_small_writes()
            self._collect_records()

    def _send_small_writes(self) -> None:
        pieces = self._small_writes
        if pieces:
            self._small_writes = []
            self._small_writes_size = 0
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if data:
                self._send(data)

    def _send(self, data: bytes) -> None:
        """Encrypt; OpenSSL keeps a slice of it at most."""
        try:
            sent = self._connection.encrypt(data)
            self._encrypted_bytes += sent
            while sent < len(data) and not self._output_closed:
                if self._encrypted_bytes >= SLICE:
                    self._collect_records()
                count = self._connection.encrypt(memoryview(data)[sent:])
                sent += count
                self._encrypted_bytes += count
        except SSL.Error as error:
            self._openssl_failed(error)
        if self._encrypted_bytes >= SLICE:
            self._collect_records()

    def _collect_records(self) -> None:
        """Take what OpenSSL has, for the transport."""
        if self._output_closed:
            return
        asked, self._encrypted_bytes = self._encrypted_bytes, 0
        emit = self._connection.read_records
        while data := emit():
            self._ready.append(data)
            self._ready_size += len(data)
            if not asked:
                self._unsolicited_bytes += len(data)
            if len(data) < MAX_READ:
                break
        if self._unsolicited_bytes > _MAX_UNSOLICITED:
            self._too_many_key_updates()
        elif not self._receiving or self._ready_size >= _MAX_READY:
            self._write_ready()

    def _write_ready(self) -> None:
        ready, self._ready = self._ready, []
        self._ready_size = 0
        for data in ready:
            self.transport.write(data)

    def _send_close_notify(self) -> None:
        """Say the closure alert behind everything (RFC 8446, 6.1)."""
        if not self._output_closed:
            self._send_small_writes()
        if self._output_closed:
            # Perhaps only now, since OpenSSL has failed.
            return
        # In the middle of a handshake, and after an error, there is no such thing.
        with suppress(SSL.Error):
            self._connection.shutdown()
        self._collect_records()
        self._write_ready()
        self._output_closed = True

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
        elif self._closing_output and not self._output_closed:
            self._close_output()

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
        if not (self._closing_output or self.disconnecting or self._connection is None):
            self._closing_output = True
            if self._producer is None or self._streaming:
                self._close_output()

    def abortConnection(self) -> None:
        """Close at once; nothing more is sent, nor heard of what has come already."""
        self._stop_input()
        self._output_closed = True
        self.transport.abortConnection()

    def _close_output(self) -> None:
        self._send_close_notify()
        self.transport.loseWriteConnection()

    def _finish(self) -> None:
        """Close, with all said."""
        self._send_close_notify()
        self._stop_input()
        self.transport.loseConnection()

    def _stop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            self.transport.unregisterProducer()
            producer.stopProducing()

    # What the reading side does.

    def _run_scheduled(self) -> None:
        """It is time to send what waits."""
        raise NotImplementedError

    def _stop_input(self) -> None:
        """Nobody wants input."""
        raise NotImplementedError

    def _openssl_failed(self, error: SSL.Error) -> None:
        """OpenSSL can't go on."""
        raise NotImplementedError

    def _too_many_key_updates(self) -> None:
        """The client lets OpenSSL answer too much."""
        raise NotImplementedError
