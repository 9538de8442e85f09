"""Clients for daytime (RFC 867) and time (RFC 868)."""

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

#: The longest accepted answer of daytime, in bytes.
_MOST = 1024
_TIME_BYTES = 4
#: Bytes that GNU's inetd sends after the time on 64-bit machines: it sends a long, which has 64 bits there.
_SURPLUS = bytes(4)


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading of a server's clock.

    Attributes:
        moment: the time in seconds since 1970-01-01 00:00 UTC.
        offset: the seconds by which the clock is ahead of the local clock; negative if it is behind. The error is at
            most half a second plus half the round-trip time, since the protocol has whole seconds.
    """

    moment: int
    offset: float


async def _answer(reactor: Reactor, target: Target, datagram: bool, most: int) -> bytes:
    """Return all bytes that a server sends until it closes, or some more than `most`; over UDP, those of a datagram.

    Raises:
        ServerError: the connection was lost.
        UnavailableError: the server can't be reached, or does not answer in time.
    """
    if datagram:
        # Servers ignore the content of the question, but some do not receive an empty datagram.
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
        UnavailableError: the server can't be reached, or does not answer in time.
    """
    data = await _answer(reactor, target, datagram, _MOST)
    if not data:
        raise ServerError("the server has closed the connection without an answer")
    if len(data) > _MOST:
        raise ServerError(f"the answer is longer than {_MOST} bytes, so it is not a daytime")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = ["\0"]
    # Control characters must not reach a terminal.
    if not all(line.replace("\t", " ").isprintable() for line in lines):
        raise ServerError(f"the answer is not text: {data[:60]!r}")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


async def time(reactor: Reactor, target: Target, now: Callable[[], float], *, datagram: bool = False) -> Reading:
    """Return the reading of the clock of a time server.

    Args:
        reactor: makes the connections.
        target: the server.
        now: the local clock, in seconds since 1970-01-01 00:00 UTC.
        datagram: whether to use UDP.

    Raises:
        ServerError: the answer does not have 4 bytes.
        UnavailableError: the server can't be reached, or does not answer in time.
    """
    start = now()
    data = await _answer(reactor, target, datagram, _TIME_BYTES + len(_SURPLUS))
    data = data.removesuffix(_SURPLUS) if len(data) == _TIME_BYTES + len(_SURPLUS) else data
    if len(data) != _TIME_BYTES:
        more = "more" if len(data) > _TIME_BYTES else len(data)
        raise ServerError(f"a time has {_TIME_BYTES} bytes, and the answer has {more}")
    between = (start + now()) / 2
    moment = moment_1900(data, between)
    # The answer is truncated to whole seconds, so the clock is half a second ahead of it on average.
    return Reading(moment, moment + 0.5 - between)
