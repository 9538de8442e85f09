"""The standard input and output of a client that runs on a reactor.

A thread reads the input, only on demand: so files work, which epoll(7) does not watch, and descriptors that other
programs share stay blocking. Output is written by blocking writes: while its reader is slow, nothing is read from the
server, so no data accumulates.
"""

from __future__ import annotations

import os
import select
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads

__all__ = ["PIECE", "StandardStreams"]

#: The size of a read, in bytes. A terminal returns a line.
PIECE = 65_536


class StandardStreams:
    """The input and the output of a client.

    Args:
        reactor: the reactor of the client.
        source: the descriptor of the input.
        sink: the descriptor of the output.

    Attributes:
        interactive: whether input and output are terminals.
    """

    def __init__(self, reactor: IReactorFromThreads, source: int = 0, sink: int = 1) -> None:
        self._reactor = reactor
        self._source = source
        self._sink = sink
        self._reads: SimpleQueue[Deferred[bytes]] = SimpleQueue()
        self._thread: Thread | None = None
        self.interactive = os.isatty(source) and os.isatty(sink)

    def read(self) -> Deferred[bytes]:
        """Return a Deferred with the next bytes, at most PIECE; empty at the end, after which it must not be called.

        It fails with OSError if the input can't be read.
        """
        if self._thread is None:
            # A daemon thread, so that the exit of the program does not wait for input.
            self._thread = Thread(target=self._read_on_demand, name="input", daemon=True)
            self._thread.start()
        # Without a canceller: a Deferred drops the result that follows a cancellation.
        read: Deferred[bytes] = Deferred()
        self._reads.put(read)
        return read

    def _read_on_demand(self) -> None:
        found = b"unknown"
        while found:
            read = self._reads.get()
            try:
                found = self._read()
            except OSError as error:
                self._reactor.callFromThread(read.errback, error)
                return
            self._reactor.callFromThread(read.callback, found)

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._source, PIECE)
            except BlockingIOError:
                # Another program has made the descriptor non-blocking.
                select.select([self._source], [], [])

    def write(self, data: bytes) -> None:
        """Write all bytes; block while the reader is slow.

        Raises:
            BrokenPipeError: the output has no reader.
            OSError: the output can't be written.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._sink, left) :]
            except BlockingIOError:
                select.select([], [self._sink], [])

    def prompt(self, text: bytes) -> None:
        """Write a prompt if input and output are terminals."""
        if self.interactive:
            self.write(text)
