"""What the daemon runs inside itself: built-ins by their names, Twisted factories, redirections; how each is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.errors import ConfigError
from svcd.model import SocketType
from svcd.process.factories import FactoryError, make_factory
from svcd.protocols.chargen import ChargenDatagrams, ChargenFactory
from svcd.protocols.daytime import DaytimeDatagrams, DaytimeFactory
from svcd.protocols.discard import DiscardDatagrams, DiscardFactory
from svcd.protocols.echo import EchoDatagrams, EchoFactory
from svcd.protocols.http.connections import HttpTimeouts
from svcd.protocols.http.greeting import GreetingPage
from svcd.protocols.http.server import HttpFactory
from svcd.protocols.http.static_files import StaticFiles
from svcd.protocols.qotd import QotdDatagrams, QotdFactory
from svcd.protocols.redirect import RedirectFactory
from svcd.protocols.status.resource import StatusFactory
from svcd.protocols.time import TimeDatagrams, TimeFactory
from svcd.protocols.upper import UpperFactory
from svcd.wire.fortune import DEFAULT, read_quotes
from svcd.wire.proxy_header import block, line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.interfaces import IProtocolFactory, IReactorTime, IStreamClientEndpoint
    from twisted.internet.protocol import DatagramProtocol, Factory

    from svcd.addresses import HostPort
    from svcd.config.options import ServiceOptions
    from svcd.config.service import Service
    from svcd.interfaces import DescriptorCounter, FileReader, HostNameResolver
    from svcd.metrics.snapshot import MetricsSource

__all__ = [
    "BUILTINS",
    "MUX",
    "SHAPES",
    "SUMMARIES",
    "Builtin",
    "ServiceDependencies",
    "datagram_protocol",
    "stream_factory",
]


@dataclass(frozen=True, slots=True)
class ServiceDependencies:
    """What a service may need beside its options.

    Attributes:
        clock: the reactor.
        names: finds the host names of clients.
        files: reads files.
        descriptors: counts what a service opens besides its clients' connections.
        observed: what the daemon counts, for who shows it.
        outgoing: makes what connects to a server, given how many seconds an attempt may take
            and what counts attempts.
    """

    clock: IReactorTime
    names: HostNameResolver
    files: FileReader
    descriptors: DescriptorCounter
    observed: MetricsSource
    outgoing: Callable[[HostPort, float, DescriptorCounter], IStreamClientEndpoint]


@dataclass(frozen=True, slots=True)
class Builtin:
    """One built-in.

    Attributes:
        summary: one line for people.
        stream: makes its factory.
        datagram: makes its protocol for one socket; None if it has none.
    """

    summary: str
    stream: Callable[[ServiceOptions, ServiceDependencies], Factory]
    datagram: Callable[[ServiceOptions, ServiceDependencies], DatagramProtocol] | None = None

    @property
    def shapes(self) -> frozenset[SocketType]:
        """How it can be served."""
        return frozenset({SocketType.STREAM} if self.datagram is None else SocketType)


def _daytime(options: ServiceOptions, deps: ServiceDependencies) -> DaytimeFactory:
    return DaytimeFactory(deps.clock, utc=options.utc, iso8601=options.date_format == "iso8601")


def _daytime_datagrams(options: ServiceOptions, deps: ServiceDependencies) -> DaytimeDatagrams:  # noqa: ARG001 - as all
    return DaytimeDatagrams(utc=options.utc, iso8601=options.date_format == "iso8601")


def _quotes(options: ServiceOptions, deps: ServiceDependencies) -> Sequence[bytes]:
    return read_quotes(deps.files.read(options.quotes)) if options.quotes else DEFAULT


def _http_timeouts(options: ServiceOptions) -> HttpTimeouts:
    return HttpTimeouts(options.request_timeout, options.keepalive_timeout, options.send_timeout)


def _http(options: ServiceOptions, deps: ServiceDependencies) -> HttpFactory:
    timeouts = _http_timeouts(options)
    if options.root:
        files = StaticFiles(options.root, options.index, symlinks=options.symlinks)
        return HttpFactory(files, deps.clock, timeouts=timeouts, descriptors=deps.descriptors)
    return HttpFactory(GreetingPage(deps.names), deps.clock, timeouts=timeouts)


def _status(options: ServiceOptions, deps: ServiceDependencies) -> StatusFactory:
    return StatusFactory(deps.observed, deps.clock, _http_timeouts(options))


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
        lambda options, deps: QotdFactory(_quotes(options, deps), deps.clock),
        lambda options, deps: QotdDatagrams(_quotes(options, deps)),
    ),
    "daytime": Builtin("sends the date and time as text (RFC 867)", _daytime, _daytime_datagrams),
    "time": Builtin(
        "sends the seconds since 1900 (RFC 868)",
        lambda _options, deps: TimeFactory(deps.clock),
        lambda _options, _around: TimeDatagrams(),
    ),
    "http": Builtin("a tiny HTTP server: a greeting, or the files of a directory", _http),
    "status": Builtin(
        "what the daemon does, over HTTP: a page, /metrics for Prometheus, /status.json, /healthz and /readyz",
        _status,
    ),
}

#: The service that connects its clients to others of this daemon (RFC 1078), which no protocol alone can do.
MUX = "tcpmux"
#: One line for people on all that stands in a services file by its name.
SUMMARIES: Mapping[str, str] = {
    **{name: builtin.summary for name, builtin in BUILTINS.items()},
    MUX: "connects a client to the service that it names, if that is marked mux=yes (RFC 1078)",
}
#: What the parser needs to know of them.
SHAPES: Mapping[str, frozenset[SocketType]] = {
    **{name: builtin.shapes for name, builtin in BUILTINS.items()},
    MUX: frozenset({SocketType.STREAM}),
}


def _named_factory(service: Service, deps: ServiceDependencies) -> IProtocolFactory:  # noqa: ARG001 - as all
    """The Factory that factory= names, or that what it names returns."""
    try:
        return make_factory(service.options.factory, service.options)
    except FactoryError as error:
        raise ConfigError([service.fault("factory", str(error))]) from error


#: By send_proxy: what makes the header that the other server is sent first.
_ANNOUNCEMENTS = {"v1": line, "v2": block}


def _redirect(service: Service, deps: ServiceDependencies) -> RedirectFactory:
    options = service.options
    server, timeout = options.redirect, options.connect_timeout
    assert server is not None  # noqa: S101 - it is what makes the service a redirection
    endpoint = deps.outgoing(server, timeout, deps.descriptors)
    announce = None if options.send_proxy is None else _ANNOUNCEMENTS[options.send_proxy]
    return RedirectFactory(endpoint, service.handler_text, timeout, deps.clock, deps.descriptors, announce)


_HANDLERS: Mapping[str, Callable[[Service, ServiceDependencies], IProtocolFactory]] = {
    "factory": _named_factory,
    "redirect": _redirect,
}


def stream_factory(service: Service, deps: ServiceDependencies) -> IProtocolFactory:
    """What makes the protocols of a service that is served inside the daemon.

    Raises:
        ConfigError: its factory= can't be made.
        OSError: a file that it needs can't be read.
    """
    make = _HANDLERS.get(service.runs)
    if make is not None:
        return make(service, deps)
    return BUILTINS[service.runs].stream(service.options, deps)


def datagram_protocol(service: Service, deps: ServiceDependencies) -> DatagramProtocol:
    """The protocol for one socket of a service that is served inside the daemon.

    Raises:
        OSError: a file that it needs can't be read.
    """
    make = BUILTINS[service.runs].datagram
    assert make is not None  # noqa: S101 - the parser lets no other through
    return make(service.options, deps)
