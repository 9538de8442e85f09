"""The standard input and output of a client, beside a reactor.

The input is read by a thread, and only when somebody wants it: so files work, which epoll(7) does not watch, and no
descriptor is made non-blocking that other programs have, too. The output is written at once: while its reader is slow
nothing is read from the server either, and nothing piles up.
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

#: The most that is read at once, in bytes. A terminal gives a line.
PIECE = 65_536


class StandardStreams:
    """What a client reads from and writes to.

    Args:
        reactor: where the client runs.
        source: a descriptor to read from.
        sink: a descriptor to write to.

    Attributes:
        interactive: whether somebody sits there: both are terminals.
    """

    def __init__(self, reactor: IReactorFromThreads, source: int = 0, sink: int = 1) -> None:
        self._reactor = reactor
        self._source = source
        self._sink = sink
        self._wanted: SimpleQueue[Deferred[bytes]] = SimpleQueue()
        self._thread: Thread | None = None
        self.interactive = os.isatty(source) and os.isatty(sink)

    def read(self) -> Deferred[bytes]:
        """The next bytes, at most PIECE; none at the end, behind which nobody reads.

        Fails with OSError if it can't be read.
        """
        if self._thread is None:
            # A daemon thread: the program ends without waiting for somebody to type.
            self._thread = Thread(target=self._serve, name="input", daemon=True)
            self._thread.start()
        # Without a canceller: whoever does not want it any more is not told.
        wanted: Deferred[bytes] = Deferred()
        self._wanted.put(wanted)
        return wanted

    def _serve(self) -> None:
        found = b"unknown"
        while found:
            wanted = self._wanted.get()
            try:
                found = self._read()
            except OSError as error:
                self._reactor.callFromThread(wanted.errback, error)
                return
            self._reactor.callFromThread(wanted.callback, found)

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._source, PIECE)
            except BlockingIOError:
                # Somebody else has made it so.
                select.select([self._source], [], [])

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: nobody reads it.
            OSError: it can't be written.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._sink, left) :]
            except BlockingIOError:
                select.select([], [self._sink], [])

    def prompt(self, text: bytes) -> None:
        """Write what is for somebody who sits there alone."""
        if self.interactive:
            self.write(text)
