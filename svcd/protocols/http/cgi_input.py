"""The standard input of a CGI program: the body of a request, written to a pipe as the program reads it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IWriteDescriptor
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from svcd.interfaces import DescriptorCounter, DuplexReactor
    from svcd.wire.request_body import RequestBody

__all__ = ["CgiInput"]


@implementer(IWriteDescriptor)
class CgiInput:
    """The standard input of a program, from the start of the program until its end or that of the body.

    Args:
        body: the body.
        fd: the write end of the pipe, non-blocking. Takes ownership of it.
        reactor: watches the pipe.
        descriptors: counts the pipe, which the caller has counted.

    Attributes:
        active: the time of the last write, by the reactor's clock.
    """

    def __init__(self, body: RequestBody, fd: int, reactor: DuplexReactor, descriptors: DescriptorCounter) -> None:
        self._body = body
        self._fd = fd
        self._reactor = reactor
        self._descriptors = descriptors
        self._data = b""
        self._is_whole = self._is_over = self._is_watched = False
        self.active = reactor.seconds()

    @property
    def waits_for_client(self) -> bool:
        """Whether the program may be waiting for more of the body, which has not arrived."""
        return self._fd >= 0 and not self._data

    def start(self) -> None:
        """Start the delivery of the body."""
        self._body.start(self._add, self._end)

    def close(self) -> None:
        """Close the pipe, and drop the rest of the body."""
        if self._fd < 0:
            return
        self._watch(False)
        os.close(self._fd)
        self._fd = -1
        self._data = b""
        self._descriptors.release()
        if not self._is_over:
            self._body.resume()

    def _add(self, data: bytes) -> None:
        if self._fd >= 0:
            self._data += data
            self.doWrite()

    def _end(self, whole: bool) -> None:
        self._is_over = True
        if whole:
            self._is_whole = True
            self.doWrite()

    def doWrite(self) -> None:
        """Write what the program takes."""
        if self._fd < 0:
            return
        try:
            if self._data:
                self._data = self._data[os.write(self._fd, self._data) :]
                self.active = self._reactor.seconds()
        except BlockingIOError:
            pass
        except OSError:
            # No process reads it any more (EPIPE).
            self.close()
            return
        if self._data:
            self._watch(True)
        elif self._is_whole:
            self.close()
        else:
            self._watch(False)

    def _watch(self, wanted: bool) -> None:
        """Watch the pipe, and let the client wait meanwhile."""
        if wanted == self._is_watched:
            return
        self._is_watched = wanted
        if wanted:
            self._reactor.addWriter(self)
            self._body.pause()
        else:
            self._reactor.removeWriter(self)
            self._body.resume()

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 after the close."""
        return self._fd

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing at the stop of the reactor."""

    def logPrefix(self) -> str:
        """Return the prefix of log messages."""
        return "cgi"
