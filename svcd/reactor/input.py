"""The reading side of a stream connection: who takes input, and when."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from svcd.reactor.output import OutputMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.reactor.native import NativeReactor

__all__ = ["InputMixin"]


class InputMixin(OutputMixin):
    """What a Twisted transport and an asyncio protocol do about input.

    uvloop calls what `data_received` gave when the protocol was set, and asks no more. So input goes from libuv to the
    Twisted protocol without a Python call between.
    """

    __slots__ = ("_got_eof", "_held", "_reading")

    def __init__(self, reactor: NativeReactor) -> None:
        super().__init__(reactor)
        self._reading = True
        self._got_eof = False
        # Input that came while the application wanted none, before uvloop could be told.
        self._held: list[bytes] | None = None

    @property
    def protocol(self) -> Any:  # noqa: ANN401 - an IProtocol
        """Who takes input; another one may be set at any time."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: Any) -> None:  # noqa: ANN401 - an IProtocol
        self._protocol = protocol
        if self.connected:
            self._uv.set_protocol(self)  # type: ignore[arg-type]

    @property
    def data_received(self) -> Callable[[bytes], None]:
        """Who takes input; uvloop asks once, when the protocol is set."""
        if self._held is not None:
            return self._hold
        received: Callable[[bytes], None] = self._protocol.dataReceived
        if getattr(received, "__self__", None) is self._protocol:
            return self._deliver
        return received

    def _deliver(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._reading = False
        if self.connected:
            self._uv.pause_reading()

    stopReading = pauseProducing

    def resumeProducing(self) -> None:
        """Read again."""
        if self.connected and not (self.disconnecting or self._got_eof):
            self._reading = True
            if self._held is None:
                self._uv.resume_reading()
            else:
                self._soon(self._settle)

    startReading = resumeProducing

    @property
    def reading(self) -> bool:
        """Whether input is wanted."""
        return self._reading and not (self.disconnecting or self._got_eof)

    def _hold(self, data: bytes) -> None:
        assert self._held is not None  # noqa: S101 - uvloop was given this method with the list
        self._held.append(data)

    def _settle(self) -> None:
        """Stop reading that should not have begun, or hand over what it brought."""
        if not self.connected or self._held is None:
            return
        if not self._reading:
            self._uv.pause_reading()
            return
        while self._held:
            data = self._held.pop(0)
            self._call(partial(self._deliver, data))
            if not (self.reading and self.connected):
                # Paused again, so the rest waits on; or ended, so nobody wants it.
                return
        self._held = None
        self._uv.set_protocol(self)  # type: ignore[arg-type]
        self._uv.resume_reading()

    def _begin_reading(self) -> None:
        """After connectionMade(): uvloop starts to read in any case, and may have to be stopped again."""
        if not self._reading:
            self._held = []
            self._soon(self._settle)
        # A protocol may have put its own, faster way in place.
        self._uv.set_protocol(self)  # type: ignore[arg-type]
