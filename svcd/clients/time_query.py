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

#: No daytime is longer, in bytes.
_MOST = 1024
_TIME_BYTES = 4
#: What GNU's inetd sends behind them on 64-bit machines: it takes a long for 32 bits.
_SURPLUS = bytes(4)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a server's clock has said.

    Attributes:
        moment: seconds since 1970-01-01 00:00 UTC.
        offset: how many seconds that is before our clock; negative if it is behind. Right to half a second and half the
            time that the answer took, since whole seconds are told.
    """

    moment: int
    offset: float


async def _answer(reactor: Reactor, target: Target, datagram: bool, most: int) -> bytes:
    """What a server says by itself, until it closes; or one datagram.

    Raises:
        ServerError: it is more than `most` bytes, or the connection was lost.
        UnavailableError: it can't be reached, or does not answer in time.
    """
    if datagram:
        # What is in the question does not count. Some servers do not see one that is empty.
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
    """The lines that a server tells, without the last line end.

    Raises:
        ServerError: it tells no text, or too much, or nothing.
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
    # Nothing that would do something to a terminal.
    if not all(line.replace("\t", " ").isprintable() for line in lines):
        raise ServerError(f"the answer is no text: {data[:60]!r}")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


async def time(reactor: Reactor, target: Target, now: Callable[[], float], *, datagram: bool = False) -> Reading:
    """What a server's clock says.

    Args:
        reactor: where.
        target: the server.
        now: our clock, in seconds since 1970-01-01 00:00 UTC.
        datagram: whether to ask over UDP.

    Raises:
        ServerError: it does not tell 4 bytes.
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
    # The second that is told began half a second ago, on average.
    return Reading(moment, moment + 0.5 - between)
