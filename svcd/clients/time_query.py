"""The clients of daytime (RFC 867) and time (RFC 868)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from svcd.clients.connect import connect, within
from svcd.clients.udp_query import ask_once
from svcd.errors import ServerError
from svcd.wire.daytime import moment_1900

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.clients.stream import Stream
    from svcd.clients.target import Reactor, Target

__all__ = ["Reading", "daytime", "time"]

#: The longest daytime, in bytes.
_MOST = 1024
_TIME_BYTES = 4
#: The bytes after them from GNU's inetd on 64-bit machines, which sends a long as if it had 32 bits.
_SURPLUS = bytes(4)


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading of a server's clock.

    Attributes:
        moment: seconds since 1970-01-01 00:00 UTC.
        offset: the seconds that it is ahead of the local clock; negative if it is behind. The error is at most half a
            second and half the time of the answer, since the protocol has whole seconds.
    """

    moment: int
    offset: float


async def _answer(reactor: Reactor, target: Target, datagram: bool, most: int) -> bytes:
    """Return all bytes that a server sends until it closes; over UDP, those of one datagram.

    Raises:
        ServerError: there are more than `most` bytes, or the connection was lost.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    if datagram:
        # The content of the question is ignored; some servers do not receive an empty one.
        return await ask_once(reactor, target, b"\n")
    stream = await connect(reactor, target)
    try:
        whole = Deferred.fromCoroutine(_whole(stream, most))
        return await within(reactor, target.timeout, whole, f"{target} has not answered and closed")
    finally:
        stream.close()


async def _whole(stream: Stream, most: int) -> bytes:
    data = b""
    while len(data) <= most and (piece := await stream.read()):
        data += piece
    return data


async def daytime(reactor: Reactor, target: Target, *, datagram: bool = False) -> str:
    """Return the lines of a daytime server, without the last line end.

    Raises:
        ServerError: the answer is empty, too long, or not text.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    data = await _answer(reactor, target, datagram, _MOST)
    if not data:
        raise ServerError("the server has closed the connection without an answer")
    if len(data) > _MOST:
        raise ServerError(f"the answer is longer than {_MOST} bytes: that is no daytime")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = ["\0"]
    # No control characters for a terminal.
    if not all(line.replace("\t", " ").isprintable() for line in lines):
        raise ServerError(f"the answer is no text: {data[:60]!r}")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


async def time(reactor: Reactor, target: Target, now: Callable[[], float], *, datagram: bool = False) -> Reading:
    """Return the reading of the clock of a time server.

    Args:
        reactor: makes the connections.
        target: the server.
        now: the local clock, in seconds since 1970-01-01 00:00 UTC.
        datagram: whether to use UDP.

    Raises:
        ServerError: the answer has not 4 bytes.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    start = now()
    data = await _answer(reactor, target, datagram, _TIME_BYTES + len(_SURPLUS))
    data = data.removesuffix(_SURPLUS) if len(data) == _TIME_BYTES + len(_SURPLUS) else data
    if len(data) != _TIME_BYTES:
        more = "more" if len(data) > _TIME_BYTES else len(data)
        raise ServerError(f"a time has {_TIME_BYTES} bytes, and the answer has {more}")
    between = (start + now()) / 2
    moment = moment_1900(data, between)
    # The second in the answer began half a second ago, on average.
    return Reading(moment, moment + 0.5 - between)
