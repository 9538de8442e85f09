"""The client of echo (RFC 862), and of any service that answers its input: line by line, or as a stream."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as PatienceError

from svcd.clients.connect import connect, within
from svcd.clients.inactivity import InactivityTimeout, first_of
from svcd.clients.udp_query import MOST_BYTES, ask_once, questions
from svcd.errors import ServerError, UnavailableError, WrongAnswerError

if TYPE_CHECKING:
    from svcd.clients.stdio import StandardStreams
    from svcd.clients.stream import Stream
    from svcd.clients.target import Reactor, Target

__all__ = ["check", "check_datagram", "exchange_datagrams", "exchange_lines"]

#: How long to wait for the rest of an answer before the half-close, in seconds.
_GRACE = 1.0
#: The part of a wrong answer that is shown, in bytes.
_SHOWN = 200

_LINES = re.compile(rb"[^\n]*\n|[^\n]+").findall


def _mismatch(sent: bytes, came: bytes) -> WrongAnswerError:
    """Return the error text for an answer that differs from the question."""
    if sent.endswith(b"\n") and came.endswith(b"\n"):
        sent, came = sent[:-1], came[:-1]
    shown, more = came[:_SHOWN], f" and more, {len(came)} bytes in all" if len(came) > _SHOWN else ""
    return WrongAnswerError(f"sent {_text(sent)}, got {_text(shown)}{more}")


def _text(data: bytes) -> str:
    return repr(data.decode("utf-8", "backslashreplace"))


async def check(reactor: Reactor, target: Target, line: bytes) -> bytes:
    """Send a line and return the answer, which has to be the same line.

    Raises:
        WrongAnswerError: the answer differs.
        ServerError: the server has closed the connection before.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    stream = await connect(reactor, target)
    try:
        answer = Deferred.fromCoroutine(_answer(stream, line))
        return await within(reactor, target.timeout, answer, f"{target} has not answered")
    finally:
        stream.close()


async def _answer(stream: Stream, line: bytes) -> bytes:
    await stream.write(line)
    came = b""
    while line.startswith(came) and len(came) < len(line):
        piece = await stream.read()
        if not piece:
            if came:
                raise _mismatch(line, came)
            raise ServerError("the server has closed the connection without an answer")
        came += piece
    if came[: len(line)] != line:
        raise _mismatch(line, came)
    return came


async def check_datagram(reactor: Reactor, target: Target, line: bytes) -> bytes:
    """Check a server as check() does, over UDP."""
    came = await ask_once(reactor, target, line)
    if came != line:
        raise _mismatch(line, came)
    return came


async def exchange_datagrams(reactor: Reactor, target: Target, console: StandardStreams) -> None:
    """Send each line as a datagram and show its answer before the next line is sent.

    Raises:
        UnavailableError: the server answers no repetition of a question in time.
    """
    asked = await questions(reactor, target)
    left, ended = b"", False
    try:
        while True:
            console.prompt(b"type: ")
            while not ended and b"\n" not in left and len(left) <= MOST_BYTES:
                data = await console.read()
                left, ended = left + data, not data
            line, end, left = left.partition(b"\n")
            if not line + end:
                # The prompt of the shell belongs on a new line.
                console.prompt(b"\n")
                return
            came = await asked.ask(line + end)
            console.prompt(b"echo: ")
            console.write(came if came.endswith(b"\n") or not console.interactive else came + b"\n")
    finally:
        asked.close()


async def exchange_lines(reactor: Reactor, target: Target, console: StandardStreams) -> None:
    """Send the input and show the answers until the input has ended and all of it is answered.

    Raises:
        ServerError: the server has closed the connection before the input's end.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    stream = await connect(reactor, target)
    kind = _TerminalExchange if console.interactive else _StreamExchange
    exchange = kind(reactor, target, console, stream)
    try:
        await first_of(exchange.send_input(), exchange.show_answers(), exchange.inactivity.ends())
    except UnavailableError:
        if not exchange.satisfied:
            raise
    finally:
        stream.close()


class _Exchange(ABC):
    """Base of both kinds of exchanges: the bytes that were sent and received."""

    def __init__(self, reactor: Reactor, target: Target, console: StandardStreams, stream: Stream) -> None:
        self._clock = reactor
        self.inactivity = InactivityTimeout(reactor, target.timeout, f"{target} has not answered")
        self._console = console
        self._stream = stream
        self._sent = self._came = 0
        self._received: Deferred[None] | None = None

    async def _send(self, data: bytes) -> None:
        self._sent += len(data)
        await self._stream.write(data)

    async def show_answers(self) -> None:
        """Show received bytes until the server ends the connection."""
        while data := await self._stream.read():
            self._came += len(data)
            self._show(data)
            self.inactivity.renew()
            received, self._received = self._received, None
            if received is not None:
                received.callback(None)
        self._over()

    @property
    def satisfied(self) -> bool:
        """Whether a server that sends nothing more is in order."""
        return False

    def _next(self) -> Deferred[None]:
        """Return a Deferred that fires at the next received bytes."""
        self._received = Deferred(self._forget)
        return self._received

    def _forget(self, _: object) -> None:
        self._received = None

    @abstractmethod
    def _show(self, data: bytes) -> None:
        """Show received bytes."""

    @abstractmethod
    def _over(self) -> None:
        """Handle the end of the server's output; raise ServerError if answers are missing."""


class _TerminalExchange(_Exchange):
    """Exchange at a terminal: a line is read and sent, its answer shown, and so on."""

    def __init__(self, reactor: Reactor, target: Target, console: StandardStreams, stream: Stream) -> None:
        super().__init__(reactor, target, console, stream)
        self._lines_owed = 0
        self._at_start = True
        self._prompted = False

    async def send_input(self) -> None:
        """Send lines until the end of the input."""
        while True:
            self._prompt()
            line = await self._console.read()
            if not line:
                # The prompt of the shell belongs on a new line.
                self._console.write(b"\n")
                return
            self._prompted = False
            self._sent = self._came = 0
            self._lines_owed = line.count(b"\n") or 1
            await self._send(line)
            self.inactivity.waiting = True
            # An answer has as many lines as the question, or as many bytes after Ctrl-D within a line.
            while self._lines_owed > 0 and self._came < self._sent:
                await self._next()
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
        self._lines_owed -= data.count(b"\n")
        if self._prompted:
            self._prompt()

    def _over(self) -> None:
        self._console.write(b"\n")
        raise ServerError("the server has closed the connection")


class _StreamExchange(_Exchange):
    """Exchange without a terminal: the whole input goes to the server, all answers go to the output."""

    _ended = False

    async def send_input(self) -> None:
        """Send the input; at its end wait for the answers, or half-close the connection."""
        while data := await self._console.read():
            self.inactivity.waiting = True
            await self._send(data)
            self.inactivity.waiting = False
        self._ended = self.inactivity.waiting = True
        # Some servers send no answer after a half-close, others send theirs only then.
        if not self._stream.half_closes:
            while self._came < self._sent:
                await self._next()
            return
        with suppress(PatienceError):
            while self._came < self._sent:
                await self._next().addTimeout(_GRACE, self._clock)
        self._stream.end()
        await Deferred()

    @property
    def satisfied(self) -> bool:
        """Whether all input is answered; the server may then leave the close to the client."""
        return self._ended and self._came >= self._sent

    def _show(self, data: bytes) -> None:
        self._console.write(data)

    def _over(self) -> None:
        if not self._ended:
            raise ServerError("the server has closed the connection before the end of the input")
