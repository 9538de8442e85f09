"""Output of a TLS connection: records, producers, closure alerts, and closing after everything is sent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL

from svcd.tls.openssl import MAX_READ, MAX_RECORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from svcd.tls.openssl import ServerConnection

__all__ = ["SLICE", "TlsOutput"]

#: Maximum number of bytes that OpenSSL buffers of input and of output: its buffers never shrink.
SLICE = 32_768
#: Smaller writes, in bytes, wait for the next iteration of the reactor, to share a record.
_SMALL_WRITE = 4096
#: While input is processed, output goes to the transport at the end, or when it has this size, in bytes: pausing and
#: resuming in between costs a fifth of the throughput.
_MAX_READY = 262_144
#: Maximum number of bytes that OpenSSL may send on its own after the handshake: a client that does not read could
#: request key updates without end, each answered with about 27 bytes.
_MAX_UNSOLICITED = 65_536


class TlsOutput:
    """Output half of a TLS connection, the base class of TlsProtocol.

    Attributes:
        transport: the transport below.
        disconnecting: whether the connection closes as soon as everything is sent.
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
    )

    # Both are None before the connection is made, and _connection after it is lost.
    _connection: ServerConnection | Any
    transport: Any

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._connection = self.transport = None
        self._producer: Any = None
        # Whether output is closed, and whether it closes once the producer is done.
        self._streaming = self._output_closed = self._closing_output = self.disconnecting = False
        # Whether a flush of output will follow: after the input being processed, or by a scheduled call.
        self._receiving = self._scheduled = False
        # Waiting small writes; bytes encrypted since records were last collected; bytes that OpenSSL sent on its own.
        self._small_writes: list[bytes] = []
        self._small_writes_size = self._encrypted_bytes = self._unsolicited_bytes = 0
        # Records ready for the transport.
        self._ready: list[bytes] = []
        self._ready_size = 0

    def write(self, data: bytes) -> None:
        """Send data; small writes are joined until the next iteration of the reactor.

        Raises:
            TypeError: data is not a bytes-like object.
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
        """Send several pieces as one write.

        Raises:
            TypeError: a piece is not a bytes-like object.
        """
        self.write(b"".join(iovec))

    def _flush(self) -> None:
        """Encrypt waiting small writes and pass all records to the transport."""
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
        """Encrypt data slice by slice and collect the records after each: OpenSSL buffers one slice at most."""
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
        """Take records from OpenSSL, and write them to the transport unless input is being processed."""
        if self._output_closed:
            return
        encrypted, self._encrypted_bytes = self._encrypted_bytes, 0
        read_records = self._connection.read_records
        while data := read_records():
            self._ready.append(data)
            self._ready_size += len(data)
            if not encrypted:
                self._unsolicited_bytes += len(data)
            if len(data) < MAX_READ:
                break
        if self._unsolicited_bytes > _MAX_UNSOLICITED:
            self._too_many_key_updates()
        elif not self._receiving or self._ready_size >= _MAX_READY:
            self._write_ready()

    def _write_ready(self) -> None:
        """Write the collected records to the transport."""
        ready, self._ready = self._ready, []
        self._ready_size = 0
        for data in ready:
            self.transport.write(data)

    def _send_close_notify(self) -> None:
        """Send waiting data and the closure alert (RFC 8446, 6.1); output is closed then."""
        if not self._output_closed:
            self._send_small_writes()
        if self._output_closed:
            # The connection may be closed now: OpenSSL may have failed to encrypt the small writes.
            return
        # OpenSSL refuses during a handshake and after an error.
        with suppress(SSL.Error):
            self._connection.shutdown()
        self._collect_records()
        self._write_ready()
        self._output_closed = True

    # Producers, and closing.

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: ANN401 - IPushProducer, IPullProducer
        """Register a producer, which is paused while the client does not read.

        Raises:
            RuntimeError: a producer is already registered.
        """
        if self._producer is not None:
            raise RuntimeError(f"{producer} can't be registered: {self._producer} still is")
        if self._connection is None:
            producer.stopProducing()
            return
        self._producer, self._streaming = producer, streaming
        self.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Unregister the producer; then close, if that was requested meanwhile."""
        if self._producer is None:
            return
        self._producer = None
        self.transport.unregisterProducer()
        if self.disconnecting:
            self._finish()
        elif self._closing_output and not self._output_closed:
            self._close_output()

    def stopConsuming(self) -> None:
        """Unregister the producer and close the connection, as IConsumer requires."""
        self.unregisterProducer()
        self.loseConnection()

    def loseConnection(self, _reason: object = None) -> None:
        """Close after all data is written, with a producer after it is unregistered."""
        if not (self.disconnecting or self._connection is None):
            self.disconnecting = True
            if self._producer is None:
                self._finish()

    def loseWriteConnection(self) -> None:
        """Close output after all data is written; the client may continue to send."""
        if not (self._closing_output or self.disconnecting or self._connection is None):
            self._closing_output = True
            if self._producer is None or self._streaming:
                self._close_output()

    def abortConnection(self) -> None:
        """Close at once; unsent output and pending input are discarded."""
        self._stop_input()
        self._output_closed = True
        self.transport.abortConnection()

    def _close_output(self) -> None:
        self._send_close_notify()
        self.transport.loseWriteConnection()

    def _finish(self) -> None:
        """Close after sending waiting data and the closure alert."""
        self._send_close_notify()
        self._stop_input()
        self.transport.loseConnection()

    def _stop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            self.transport.unregisterProducer()
            producer.stopProducing()

    # Implemented by TlsProtocol.

    def _run_scheduled(self) -> None:
        """Flush small writes and continue with pending input."""
        raise NotImplementedError

    def _stop_input(self) -> None:
        """Discard pending and future input."""
        raise NotImplementedError

    def _openssl_failed(self, error: SSL.Error) -> None:
        """Close the connection after an error of OpenSSL."""
        raise NotImplementedError

    def _too_many_key_updates(self) -> None:
        """Abort the connection: its client makes OpenSSL send too many records of its own."""
        raise NotImplementedError
