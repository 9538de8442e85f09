"""What the daemon can run by itself: each built-in's name, and how it is made for a service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.model import Shape
from svcd.protocols.chargen import ChargenDatagrams, ChargenFactory
from svcd.protocols.daytime import DaytimeDatagrams, DaytimeFactory
from svcd.protocols.discard import DiscardDatagrams, DiscardFactory
from svcd.protocols.echo import EchoDatagrams, EchoFactory
from svcd.protocols.files import StaticFiles
from svcd.protocols.hello import HelloPage
from svcd.protocols.http import HttpFactory
from svcd.protocols.qotd import QotdDatagrams, QotdFactory
from svcd.protocols.timeofday import TimeDatagrams, TimeFactory
from svcd.protocols.upper import UpperFactory
from svcd.wire.quotes import DEFAULT, read_quotes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.interfaces import IReactorTime
    from twisted.internet.protocol import DatagramProtocol, Factory

    from svcd.config.options import Options
    from svcd.interfaces import Files, Names

__all__ = ["BUILTINS", "SHAPES", "Builtin", "Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a built-in may need beside its options."""

    clock: IReactorTime
    names: Names
    files: Files


@dataclass(frozen=True, slots=True)
class Builtin:
    """One built-in.

    Attributes:
        summary: one line for people.
        stream: makes its factory.
        datagram: makes its protocol for one socket; None if it has none.
    """

    summary: str
    stream: Callable[[Options, Surroundings], Factory]
    datagram: Callable[[Options, Surroundings], DatagramProtocol] | None = None

    @property
    def shapes(self) -> frozenset[Shape]:
        """How it can be served."""
        return frozenset({Shape.STREAM} if self.datagram is None else Shape)


def _daytime(options: Options, around: Surroundings) -> DaytimeFactory:
    return DaytimeFactory(around.clock, utc=options.utc, iso8601=options.date_format == "iso8601")


def _daytime_datagrams(options: Options, around: Surroundings) -> DaytimeDatagrams:  # noqa: ARG001 - as all
    return DaytimeDatagrams(utc=options.utc, iso8601=options.date_format == "iso8601")


def _quotes(options: Options, around: Surroundings) -> Sequence[bytes]:
    return read_quotes(around.files.read(options.quotes)) if options.quotes else DEFAULT


def _http(options: Options, around: Surroundings) -> HttpFactory:
    if options.root:
        return HttpFactory(StaticFiles(options.root, options.index, symlinks=options.symlinks), around.clock)
    return HttpFactory(HelloPage(around.names), around.clock)


BUILTINS: Mapping[str, Builtin] = {
    "echo": Builtin(
        "sends back what it receives (RFC 862)",
        lambda _options, _around: EchoFactory(),
        lambda _options, _around: EchoDatagrams(),
    ),
    "upper": Builtin(
        "sends back what it receives in capitals",
        lambda _options, _around: UpperFactory(),
    ),
    "discard": Builtin(
        "throws away what it receives (RFC 863)",
        lambda _options, _around: DiscardFactory(),
        lambda _options, _around: DiscardDatagrams(),
    ),
    "chargen": Builtin(
        "sends rotating lines of printable characters (RFC 864)",
        lambda _options, _around: ChargenFactory(),
        lambda _options, _around: ChargenDatagrams(),
    ),
    "qotd": Builtin(
        "sends a quotation (RFC 865)",
        lambda options, around: QotdFactory(_quotes(options, around), around.clock),
        lambda options, around: QotdDatagrams(_quotes(options, around)),
    ),
    "daytime": Builtin("sends the date and time as text (RFC 867)", _daytime, _daytime_datagrams),
    "time": Builtin(
        "sends the seconds since 1900 (RFC 868)",
        lambda _options, around: TimeFactory(around.clock),
        lambda _options, _around: TimeDatagrams(),
    ),
    "http": Builtin("a tiny HTTP server: a greeting, or the files of a directory", _http),
}

#: What the parser needs to know of them.
SHAPES: Mapping[str, frozenset[Shape]] = {name: builtin.shapes for name, builtin in BUILTINS.items()}
