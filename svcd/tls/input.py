"""The reading side of TLS: what OpenSSL is given, what the inner protocol gets of it, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from twisted.logger import Logger
from twisted.python.failure import Failure

from svcd.protocols.base import LINGER_BYTES
from svcd.tls.records import SLICE, TlsOutput

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TlsInput"]


class TlsInput(TlsOutput):
    """What a transport does about input, from the transport below, through OpenSSL.

    Attributes:
        inner: the protocol inside; None before the handshake is over.
        heard: whether anything came for it.
        raised: whether it made a mistake that the transport does not know of.
    """

    __slots__ = ("_deaf", "_halted", "_hears", "_ignored", "_kept", "_rest", "_saw_end", "heard", "inner", "raised")

    _log = Logger()

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        super().__init__(soon)
        self.inner: Any = None
        self.heard = self.raised = False
        # Whether the inner protocol wants input, whether there is none any more, and whether the transport was stopped.
        self._hears, self._deaf, self._halted = True, False, False
        # Input that nobody wanted yet: whether OpenSSL may have some, what it was not given, and whether the transport
        # said meanwhile that it was all.
        self._kept = self._saw_end = False
        self._rest: list[memoryview] = []
        self._ignored = 0

    def dataReceived(self, data: bytes) -> None:
        """Something came from the client."""
        if self._deaf:
            # After its end, or ours.
            self._ignored += len(data)
            if self._ignored > LINGER_BYTES:
                self.transport.pauseProducing()
        elif self._inside or not self._hears or len(data) > SLICE:
            self._rest.append(memoryview(data))
            if self._hears and not self._inside:
                self._work_off()
        else:
            self._inside = True
            try:
                self._take(data)
            finally:
                self._inside = False
            self._flush()

    def _take(self, data: bytes | memoryview) -> None:
        self._connection.feed(data)
        if self.inner is not None or self._shake():
            self._pull()

    def _pull(self) -> None:
        """Hand the inner protocol what OpenSSL has, as far as it wants it."""
        receive = self._connection.receive
        self._kept = True
        while self._hears:
            try:
                data = receive()
            except SSL.Error as error:
                self._broken(error)
                return
            if not data:
                self._kept = False
                if data is not None:
                    self._heard_all()
                return
            self.heard = True
            self.inner.dataReceived(data)

    def _work_off(self) -> None:
        """The same for what was kept, and for more than a slice."""
        self._inside = True
        try:
            while self._hears:
                if self._kept:
                    self._pull()
                elif self._rest:
                    view = self._rest[0]
                    if len(view) > SLICE:
                        self._rest[0] = view[SLICE:]
                        view = view[:SLICE]
                    else:
                        del self._rest[0]
                    self._take(view)
                elif self._saw_end:
                    self._heard_all()
                else:
                    break
        finally:
            self._inside = False
        self._flush()

    def _go_on(self) -> None:
        self._again = False
        if self._connection is None:
            return
        try:
            if self._hears and (self._kept or self._rest or self._saw_end):
                self._work_off()
            else:
                self._flush()
            if self._halted and (self._hears or self._deaf):
                self._halted = False
                self.transport.resumeProducing()
        except KeyboardInterrupt:
            # Ctrl-C is meant for the daemon, not for one service.
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, it ends one connection
            self._log.failure("a protocol raised", Failure())
            self.raised = True
            self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._halted = True
        if not self._deaf:
            self._hears = False
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._hears = not self._deaf
        if not (self._kept or self._rest or self._saw_end):
            self._halted = False
            self.transport.resumeProducing()
        elif not self._again:
            self._again = True
            self._soon(self._go_on)

    def stopProducing(self) -> None:
        """End, as a producer."""
        self.loseConnection()

    def _hear_no_more(self) -> None:
        self._deaf = True
        self._hears = self._kept = self._saw_end = False
        self._rest.clear()

    # What the connection does.

    def _shake(self) -> bool:
        """Go on with the handshake; whether there is an inner protocol now."""
        raise NotImplementedError

    def _heard_all(self) -> None:
        """The client has no more to say."""
        raise NotImplementedError
