"""Client for echo (RFC 862) and for any service that answers each line or stream of input."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as PatienceError

from svcd.clients.connect import connect, within
from svcd.clients.inactivity import InactivityTimeout, first_of
from svcd.clients.udp_query import MOST_BYTES, ask_once, open_query
from svcd.errors import ServerError, UnavailableError, WrongAnswerError

if TYPE_CHECKING:
    from svcd.clients.stdio import StandardStreams
    from svcd.clients.stream import Stream
    from svcd.clients.target import Reactor, Target

__all__ = ["check", "check_datagram", "exchange_datagrams", "exchange_lines"]

#: How long to wait for the rest of an answer before the half-close, in seconds.
_HALF_CLOSE_DELAY = 1.0
#: How long to wait for the end of the input after the server has closed the connection, in seconds.
_END_OF_INPUT_DELAY = 0.5
#: The length of a wrong answer in an error text, in bytes.
_SHOWN = 200

_LINES = re.compile(rb"[^\n]*\n|[^\n]+").findall


def _mismatch(sent: bytes, received: bytes) -> WrongAnswerError:
    """Return the exception for an answer that differs from the question."""
    if sent.endswith(b"\n") and received.endswith(b"\n"):
        sent, received = sent[:-1], received[:-1]
    shown, more = received[:_SHOWN], f" and more, {len(received)} bytes in all" if len(received) > _SHOWN else ""
    return WrongAnswerError(f"sent {_text(sent)}, got {_text(shown)}{more}")


def _text(data: bytes) -> str:
    return repr(data.decode("utf-8", "backslashreplace"))


async def check(reactor: Reactor, target: Target, line: bytes) -> bytes:
    """Send a line and return the answer, which must be the same line.

    Raises:
        WrongAnswerError: the answer differs.
        ServerError: the server has closed the connection without an answer.
        UnavailableError: the server can't be reached, or does not answer in time.
    """
    stream = await connect(reactor, target)
    try:
        answer = Deferred.fromCoroutine(_answer(stream, line))
        return await within(reactor, target.timeout, answer, f"{target} has not answered")
    finally:
        stream.close()


async def _answer(stream: Stream, line: bytes) -> bytes:
    await stream.write(line)
    received = b""
    while line.startswith(received) and len(received) < len(line):
        piece = await stream.read()
        if not piece:
            if received:
                raise _mismatch(line, received)
            raise ServerError("the server has closed the connection without an answer")
        received += piece
    if received[: len(line)] != line:
        raise _mismatch(line, received)
    return received


async def check_datagram(reactor: Reactor, target: Target, line: bytes) -> bytes:
    """Check a server over UDP; otherwise as check()."""
    received = await ask_once(reactor, target, line)
    if received != line:
        raise _mismatch(line, received)
    return received


async def exchange_datagrams(reactor: Reactor, target: Target, console: StandardStreams) -> None:
    """Send each line of the input as a datagram, and print its answer before the next line is sent.

    Raises:
        UnavailableError: the server does not answer in time, even after repetitions of the datagram.
    """
    query = await open_query(reactor, target)
    left, ended = b"", False
    try:
        while True:
            console.prompt(b"type: ")
            while not ended and b"\n" not in left and len(left) <= MOST_BYTES:
                data = await console.read()
                left, ended = left + data, not data
            line, end, left = left.partition(b"\n")
            if not line + end:
                # Start a new line for the prompt of the shell.
                console.prompt(b"\n")
                return
            received = await query.ask(line + end)
            console.prompt(b"echo: ")
            console.write(received if received.endswith(b"\n") or not console.interactive else received + b"\n")
    finally:
        query.close()


async def exchange_lines(reactor: Reactor, target: Target, console: StandardStreams) -> None:
    """Send the input and print the answers until the input has ended and all of it is answered.

    Raises:
        ServerError: the server has closed the connection before the end of the input.
        UnavailableError: the server can't be reached, or does not answer in time.
    """
    stream = await connect(reactor, target)
    kind = _TerminalExchange if console.interactive else _StreamExchange
    exchange = kind(reactor, target, console, stream)
    try:
        await first_of(exchange.send_input(), exchange.show_answers(), exchange.inactivity.ends())
    except UnavailableError:
        if not exchange.complete:
            raise
    finally:
        stream.close()


class _Exchange(ABC):
    """Base class of the exchanges: it counts the bytes that were sent and received."""

    def __init__(self, reactor: Reactor, target: Target, console: StandardStreams, stream: Stream) -> None:
        self._clock = reactor
        self.inactivity = InactivityTimeout(reactor, target.timeout, f"{target} has not answered")
        self._console = console
        self._stream = stream
        self._sent_bytes = self._received_bytes = 0
        self._next_received: Deferred[None] | None = None

    async def _send(self, data: bytes) -> None:
        self._sent_bytes += len(data)
        await self._stream.write(data)

    async def show_answers(self) -> None:
        """Print received bytes until the server closes the connection."""
        while data := await self._stream.read():
            self._received_bytes += len(data)
            self._show(data)
            self.inactivity.renew()
            waiting, self._next_received = self._next_received, None
            if waiting is not None:
                waiting.callback(None)
        await self._finish()

    @property
    def complete(self) -> bool:
        """Whether all answers have been received, so that the timeout for inactivity is no error."""
        return False

    def _next_data(self) -> Deferred[None]:
        """Return a Deferred that fires when the next bytes are received."""
        self._next_received = Deferred(self._cancelled)
        return self._next_received

    def _cancelled(self, _: object) -> None:
        self._next_received = None

    @abstractmethod
    def _show(self, data: bytes) -> None:
        """Print received bytes."""

    @abstractmethod
    async def _finish(self) -> None:
        """Handle the end of the server's output.

        Raises:
            ServerError: answers are missing.
        """


class _TerminalExchange(_Exchange):
    """Exchange at a terminal: each line is read and sent, and its answer printed, before the next line."""

    def __init__(self, reactor: Reactor, target: Target, console: StandardStreams, stream: Stream) -> None:
        super().__init__(reactor, target, console, stream)
        self._expected_lines = 0
        self._at_start = True
        self._prompted = False

    async def send_input(self) -> None:
        """Send lines until the end of the input."""
        while True:
            self._prompt()
            line = await self._console.read()
            if not line:
                # Start a new line for the prompt of the shell.
                self._console.write(b"\n")
                return
            self._prompted = False
            self._sent_bytes = self._received_bytes = 0
            self._expected_lines = line.count(b"\n") or 1
            await self._send(line)
            self.inactivity.waiting = True
            # An answer has as many lines as the question, or as many bytes after Ctrl-D within a line.
            while self._expected_lines > 0 and self._received_bytes < self._sent_bytes:
                await self._next_data()
            self.inactivity.waiting = False

    def _prompt(self) -> None:
        self._console.write(b"type: " if self._at_start else b"\ntype: ")
        self._prompted = self._at_start = True

    def _show(self, data: bytes) -> None:
        shown = b"\n" if self._prompted else b""
        for piece in _LINES(data):
            shown += (b"echo: " if self._at_start else b"") + piece
            self._at_start = piece.endswith(b"\n")
        self._console.write(shown)
        self._expected_lines -= data.count(b"\n")
        if self._prompted:
            self._prompt()

    async def _finish(self) -> None:
        self._console.write(b"\n")
        raise ServerError("the server has closed the connection")


class _StreamExchange(_Exchange):
    """Exchange without a terminal: the whole input is sent to the server, all answers are written to the output."""

    _input_ended = False
    _end_of_input: Deferred[None] | None = None

    async def send_input(self) -> None:
        """Send the input; at its end wait for the answers, or half-close the connection."""
        while data := await self._console.read():
            self.inactivity.waiting = True
            await self._send(data)
            self.inactivity.waiting = False
        self._input_ended = self.inactivity.waiting = True
        if self._end_of_input is not None:
            self._end_of_input.callback(None)
            return
        # Some servers send no answer after a half-close, others send theirs only then.
        if not self._stream.half_closes:
            while self._received_bytes < self._sent_bytes:
                await self._next_data()
            return
        with suppress(PatienceError):
            while self._received_bytes < self._sent_bytes:
                await self._next_data().addTimeout(_HALF_CLOSE_DELAY, self._clock)
        self._stream.end()
        await Deferred()

    @property
    def complete(self) -> bool:
        """Whether all input is answered; a server may then wait for the client to close the connection."""
        return self._input_ended and self._received_bytes >= self._sent_bytes

    def _show(self, data: bytes) -> None:
        self._console.write(data)

    async def _finish(self) -> None:
        if not self._input_ended:
            # A server that answers a line and closes may be faster than the end of a short input.
            self._end_of_input = Deferred()
            with suppress(PatienceError):
                await self._end_of_input.addTimeout(_END_OF_INPUT_DELAY, self._clock)
        if not self._input_ended:
            raise ServerError("the server has closed the connection before the end of the input")
