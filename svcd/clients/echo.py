"""The client of echo (RFC 862), and of whatever else answers what it is told: line by line, or as a stream."""

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

__all__ = ["check", "check_datagram", "talk", "talk_datagrams"]

#: How long to wait for the rest of an answer before the server is told that nothing more comes, in seconds.
_GRACE = 1.0
#: How much of a wrong answer is shown, in bytes.
_SHOWN = 200

_LINES = re.compile(rb"[^\n]*\n|[^\n]+").findall


def _mismatch(sent: bytes, came: bytes) -> WrongAnswerError:
    """What is said of an answer that is not the question."""
    if sent.endswith(b"\n") and came.endswith(b"\n"):
        sent, came = sent[:-1], came[:-1]
    shown, more = came[:_SHOWN], f" and more, {len(came)} bytes in all" if len(came) > _SHOWN else ""
    return WrongAnswerError(f"sent {_text(sent)}, got {_text(shown)}{more}")


def _text(data: bytes) -> str:
    return repr(data.decode("utf-8", "backslashreplace"))


async def check(reactor: Reactor, target: Target, line: bytes) -> bytes:
    """Send a line, and return it as it came back.

    Raises:
        WrongAnswerError: something else came.
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
    """As check, over UDP."""
    came = await ask_once(reactor, target, line)
    if came != line:
        raise _mismatch(line, came)
    return came


async def talk_datagrams(reactor: Reactor, target: Target, console: StandardStreams) -> None:
    """As talk, over UDP: a datagram for each line, and the next when that is answered.

    Raises:
        UnavailableError: the server does not answer in time, however often it is asked.
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
                # The shell's prompt shall not stand behind ours.
                console.prompt(b"\n")
                return
            came = await asked.ask(line + end)
            console.prompt(b"echo: ")
            console.write(came if came.endswith(b"\n") or not console.interactive else came + b"\n")
    finally:
        asked.close()


async def talk(reactor: Reactor, target: Target, console: StandardStreams) -> None:
    """Send what is typed, and show what comes, until the input ends and everything is answered.

    Raises:
        ServerError: the server has closed the connection before the input's end.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    stream = await connect(reactor, target)
    kind = _Dialogue if console.interactive else _Passage
    conversation = kind(reactor, target, console, stream)
    try:
        await first_of(conversation.speak(), conversation.listen(), conversation.patience.ends())
    except UnavailableError:
        if not conversation.satisfied:
            raise
    finally:
        stream.close()


class _Talk(ABC):
    """What both kinds of conversation have: the bytes that went and came."""

    def __init__(self, reactor: Reactor, target: Target, console: StandardStreams, stream: Stream) -> None:
        self._clock = reactor
        self.patience = InactivityTimeout(reactor, target.timeout, f"{target} has not answered")
        self._console = console
        self._stream = stream
        self._sent = self._came = 0
        self._heard: Deferred[None] | None = None

    async def _send(self, data: bytes) -> None:
        self._sent += len(data)
        await self._stream.write(data)

    async def listen(self) -> None:
        """Show what comes, until the server says no more."""
        while data := await self._stream.read():
            self._came += len(data)
            self._show(data)
            self.patience.renew()
            heard, self._heard = self._heard, None
            if heard is not None:
                heard.callback(None)
        self._over()

    @property
    def satisfied(self) -> bool:
        """Whether nothing is wrong when the server does nothing more."""
        return False

    def _next(self) -> Deferred[None]:
        """Fires when something was heard."""
        self._heard = Deferred(self._forget)
        return self._heard

    def _forget(self, _: object) -> None:
        self._heard = None

    @abstractmethod
    def _show(self, data: bytes) -> None:
        """Show what has come."""

    @abstractmethod
    def _over(self) -> None:
        """The server says no more; raises ServerError if it should have."""


class _Dialogue(_Talk):
    """At a terminal: a line is typed and sent, its answer shown, and so on."""

    def __init__(self, reactor: Reactor, target: Target, console: StandardStreams, stream: Stream) -> None:
        super().__init__(reactor, target, console, stream)
        self._lines_owed = 0
        self._at_start = True
        self._prompted = False

    async def speak(self) -> None:
        """Until the end of the input."""
        while True:
            self._prompt()
            line = await self._console.read()
            if not line:
                # The shell's prompt shall not stand behind ours.
                self._console.write(b"\n")
                return
            self._prompted = False
            self._sent = self._came = 0
            self._lines_owed = line.count(b"\n") or 1
            await self._send(line)
            self.patience.waiting = True
            # An answer has as many lines as the question; or as many bytes, after Ctrl-D within a line.
            while self._lines_owed > 0 and self._came < self._sent:
                await self._next()
            self.patience.waiting = False

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


class _Passage(_Talk):
    """Without a terminal: all of the input goes to the server, and all that it answers to the output."""

    _ended = False

    async def speak(self) -> None:
        """Until the input has ended, and the server is told so or has answered everything."""
        while data := await self._console.read():
            self.patience.waiting = True
            await self._send(data)
            self.patience.waiting = False
        self._ended = self.patience.waiting = True
        # Some servers answer nothing more once they are told that nothing more comes, others only then.
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
        """Whether everything was answered; then the server may well leave it to us to close."""
        return self._ended and self._came >= self._sent

    def _show(self, data: bytes) -> None:
        self._console.write(data)

    def _over(self) -> None:
        if not self._ended:
            raise ServerError("the server has closed the connection before the end of the input")
