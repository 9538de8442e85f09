"""The catalog of built-in services, and the factories of all services that are served inside the daemon."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from svcd.config.builtin_info import HTTP_ALPN, BuiltinInfo
from svcd.config.value_types import UNLIMITED
from svcd.errors import ConfigError
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from twisted.internet.interfaces import IProtocolFactory, IReactorTime, IStreamClientEndpoint
    from twisted.internet.protocol import DatagramProtocol, Factory

    from svcd.addresses import HostPort
    from svcd.config.options import ServiceOptions
    from svcd.config.service import Service
    from svcd.interfaces import DescriptorCounter, FileReader, HostNameResolver
    from svcd.log.writer import LogWriter
    from svcd.metrics.snapshot import MetricsSource
    from svcd.protocols.http.access_log import AccessLog
    from svcd.protocols.http.cgi import CgiHandler
    from svcd.protocols.http.cgi_script import ScriptLauncher
    from svcd.protocols.http.context import HttpSettings
    from svcd.protocols.http.response import Handler, StreamHandler

__all__ = ["BUILTINS", "Builtin", "ServiceDependencies", "datagram_protocol", "stream_factory"]


@dataclass(frozen=True, slots=True)
class ServiceDependencies:
    """Objects that a service may need in addition to its options.

    Attributes:
        clock: the reactor.
        resolver: looks up the host names of clients.
        files: reads files.
        descriptors: counts the descriptors that a service opens in addition to its clients' connections.
        metrics: the source of the daemon's metrics.
        make_endpoint: makes the client endpoint of a server, given the timeout of an attempt in seconds and the counter
            of its descriptors.
        log_writer: the writer of the log of the daemon.
        open_log: returns the writer of a log file; raises OSError.
        service_id: the id of the service.
        programs: starts the CGI programs of the service; None if it has none.
    """

    clock: IReactorTime
    resolver: HostNameResolver
    files: FileReader
    descriptors: DescriptorCounter
    metrics: MetricsSource
    make_endpoint: Callable[[HostPort, float, DescriptorCounter], IStreamClientEndpoint]
    log_writer: LogWriter
    open_log: Callable[[str], LogWriter]
    service_id: str = ""
    programs: ScriptLauncher | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin(BuiltinInfo):
    """Built-in service: its properties, and the functions that make its factory or protocol.

    Attributes:
        stream: makes the factory of a stream service; None for a multiplexer, whose connections other services serve.
        datagram: makes the protocol of a datagram socket; None if it has no datagram services.
        port: the port in services(5) and in the installed services file.
        aliases: the aliases in services(5).
        default_port: the port if there is no services file; 0 if it is not served then.
        sample: the options of its line in the installed services file. The line is commented out if it has options, or
            if the built-in has no default_port.
        note: the comment above a line that is commented out.
        client: the svcctl command that is its client; empty if there is none.
    """

    stream: Callable[[ServiceOptions, ServiceDependencies], Factory] | None
    datagram: Callable[[ServiceOptions, ServiceDependencies], DatagramProtocol] | None = None
    port: int
    aliases: tuple[str, ...] = ()
    default_port: int = 0
    sample: str = ""
    note: str = ""
    client: str = ""


# The functions below import the modules that they need: a daemon loads only the protocols in its services file.


def _echo(_options: ServiceOptions, _deps: ServiceDependencies) -> Factory:
    from svcd.protocols.echo import EchoFactory

    return EchoFactory()


def _echo_datagrams(_options: ServiceOptions, _deps: ServiceDependencies) -> DatagramProtocol:
    from svcd.protocols.echo import EchoDatagrams

    return EchoDatagrams()


def _upper(_options: ServiceOptions, _deps: ServiceDependencies) -> Factory:
    from svcd.protocols.upper import UpperFactory

    return UpperFactory()


def _discard(_options: ServiceOptions, _deps: ServiceDependencies) -> Factory:
    from svcd.protocols.discard import DiscardFactory

    return DiscardFactory()


def _discard_datagrams(_options: ServiceOptions, _deps: ServiceDependencies) -> DatagramProtocol:
    from svcd.protocols.discard import DiscardDatagrams

    return DiscardDatagrams()


def _chargen(_options: ServiceOptions, _deps: ServiceDependencies) -> Factory:
    from svcd.protocols.chargen import ChargenFactory

    return ChargenFactory()


def _chargen_datagrams(_options: ServiceOptions, _deps: ServiceDependencies) -> DatagramProtocol:
    from svcd.protocols.chargen import ChargenDatagrams

    return ChargenDatagrams()


def _qotd(options: ServiceOptions, deps: ServiceDependencies) -> Factory:
    from svcd.protocols.qotd import QotdFactory

    return QotdFactory(_quotes(options, deps), deps.clock)


def _qotd_datagrams(options: ServiceOptions, deps: ServiceDependencies) -> DatagramProtocol:
    from svcd.protocols.qotd import QotdDatagrams

    return QotdDatagrams(_quotes(options, deps))


def _quotes(options: ServiceOptions, deps: ServiceDependencies) -> Sequence[bytes]:
    from svcd.wire.fortune import DEFAULT, read_quotes

    return read_quotes(deps.files.read(options.quotes)) if options.quotes else DEFAULT


def _daytime(options: ServiceOptions, deps: ServiceDependencies) -> Factory:
    from svcd.protocols.daytime import DaytimeFactory

    return DaytimeFactory(deps.clock, utc=options.utc, iso8601=options.date_format == "iso8601")


def _daytime_datagrams(options: ServiceOptions, _deps: ServiceDependencies) -> DatagramProtocol:
    from svcd.protocols.daytime import DaytimeDatagrams

    return DaytimeDatagrams(utc=options.utc, iso8601=options.date_format == "iso8601")


def _time(_options: ServiceOptions, deps: ServiceDependencies) -> Factory:
    from svcd.protocols.time import TimeFactory

    return TimeFactory(deps.clock)


def _time_datagrams(_options: ServiceOptions, _deps: ServiceDependencies) -> DatagramProtocol:
    from svcd.protocols.time import TimeDatagrams

    return TimeDatagrams()


def _http(options: ServiceOptions, deps: ServiceDependencies) -> Factory:
    from svcd.protocols.http.server import HttpFactory

    files = _files(options, deps)
    handler: Handler | StreamHandler = files
    if deps.programs is not None:
        handler = _programs(options, deps, files, deps.programs)
    # The page that greets needs no descriptors.
    descriptors = deps.descriptors if options.root or options.cgi else None
    settings = _http_settings(options, deps)
    return HttpFactory(_redirected(handler, options), deps.clock, settings, descriptors=descriptors)


def _redirected(handler: Handler | StreamHandler, options: ServiceOptions) -> Handler | StreamHandler:
    """Return the handler of a service, or its redirect to HTTPS."""
    from svcd.protocols.http.https_redirect import HttpsRedirect

    return HttpsRedirect(handler) if options.https_redirect else handler


def _files(options: ServiceOptions, deps: ServiceDependencies) -> Handler:
    """Return the handler of the files of a service; without root= that of the page that greets the client."""
    if not options.root:
        from svcd.protocols.http.greeting import GreetingPage

        return GreetingPage(deps.resolver)
    from svcd.protocols.http.static_files import FileSettings, StaticFiles

    settings = FileSettings(
        index=options.index,
        symlinks=options.symlinks,
        listing=options.listing,
        cache_control=options.cache_control,
        types=_media_types(options, deps),
    )
    return StaticFiles(options.root, settings, deps.clock)


def _programs(
    options: ServiceOptions, deps: ServiceDependencies, others: Handler, programs: ScriptLauncher
) -> CgiHandler:
    """Return the handler of CGI programs, which passes requests for other paths on."""
    from svcd.protocols.http.cgi import CgiHandler, CgiSettings

    instances = None if options.cgi_instances == UNLIMITED else options.cgi_instances
    resolver = deps.resolver if options.resolve else None
    settings = CgiSettings(options.cgi_path, options.cgi_timeout, instances, options.root, resolver)
    return CgiHandler(settings, others, programs)


def _media_types(options: ServiceOptions, deps: ServiceDependencies) -> Mapping[str, str] | None:
    from svcd.wire.media_types import MediaTypesError, parse_media_types

    if not options.types:
        return None
    try:
        return parse_media_types(deps.files.read(options.types))
    except MediaTypesError as error:
        raise OSError(errno.EINVAL, f"{options.types}: {error}") from None


def _status(options: ServiceOptions, deps: ServiceDependencies) -> Factory:
    from svcd.protocols.status.resource import StatusFactory

    return StatusFactory(deps.metrics, deps.clock, _http_settings(options, deps))


def _http_settings(options: ServiceOptions, deps: ServiceDependencies) -> HttpSettings:
    from svcd.protocols.http.connections import HttpTimeouts
    from svcd.protocols.http.context import HttpSettings
    from svcd.wire.http_request import HttpLimits

    timeouts = HttpTimeouts(options.request_timeout, options.keepalive_timeout, options.send_timeout)
    limits = HttpLimits(
        options.max_request_target,
        options.max_header_size,
        options.max_header_fields,
        sys.maxsize if options.max_body_size == UNLIMITED else options.max_body_size,
    )
    return HttpSettings(timeouts, limits, options.keepalive_requests, _access_log(options, deps))


def _access_log(options: ServiceOptions, deps: ServiceDependencies) -> AccessLog | None:
    from svcd.protocols.http.access_log import AccessLog, EventFormat
    from svcd.wire.access_line import CombinedFormat, JsonLineFormat

    if options.access_log is None:
        return None
    writer = deps.log_writer
    if not options.access_log_file:
        return AccessLog(writer, EventFormat(writer, deps.service_id), anonymize=writer.anonymize)
    line_format = CombinedFormat() if options.access_log == "combined" else JsonLineFormat(deps.service_id)
    path = options.access_log_file
    try:
        file = deps.open_log(path)
    except OSError as error:
        text = f"can't open access_log_file {path}: {error.strerror}; create its directory, or let the daemon write it"
        raise OSError(error.errno, text) from error
    return AccessLog(file, line_format, anonymize=writer.anonymize)


_BOTH = frozenset(SocketType)


def _services(_options: ServiceOptions, deps: ServiceDependencies) -> Factory:
    from svcd.protocols.services import ServicesFactory

    return ServicesFactory(deps.metrics, deps.clock)


#: The built-ins by name.
BUILTINS: Mapping[str, Builtin] = {
    "echo": Builtin(
        summary="sends back what it receives (RFC 862)",
        stream=_echo,
        datagram=_echo_datagrams,
        shapes=_BOTH,
        port=7,
        default_port=10_007,
        client="echo",
    ),
    "upper": Builtin(
        summary="sends back what it receives, in upper case",
        stream=_upper,
        port=7007,
        default_port=17_007,
    ),
    "discard": Builtin(
        summary="discards what it receives (RFC 863)",
        stream=_discard,
        datagram=_discard_datagrams,
        shapes=_BOTH,
        port=9,
        aliases=("sink", "null"),
        default_port=10_009,
    ),
    "chargen": Builtin(
        summary="sends rotating lines of printable characters (RFC 864)",
        stream=_chargen,
        datagram=_chargen_datagrams,
        shapes=_BOTH,
        speaks_first=True,
        amplifies=True,
        port=19,
        aliases=("ttytst", "source"),
        default_port=10_019,
        note="Over UDP, one byte with a forged sender address causes an answer of 444 bytes to that address.",
    ),
    "qotd": Builtin(
        summary="sends a quotation (RFC 865)",
        stream=_qotd,
        datagram=_qotd_datagrams,
        shapes=_BOTH,
        speaks_first=True,
        port=17,
        aliases=("quote",),
        sample="quotes=/usr/share/games/fortunes/fortunes",
        note="Sends each client one quotation from a file in the format of fortune(6).",
    ),
    "daytime": Builtin(
        summary="sends the date and time as text (RFC 867)",
        stream=_daytime,
        datagram=_daytime_datagrams,
        shapes=_BOTH,
        speaks_first=True,
        port=13,
        default_port=10_013,
        client="daytime",
    ),
    "time": Builtin(
        summary="sends the seconds since 1900 (RFC 868)",
        stream=_time,
        datagram=_time_datagrams,
        shapes=_BOTH,
        speaks_first=True,
        port=37,
        aliases=("timserver",),
        default_port=10_037,
        client="time",
    ),
    "http": Builtin(
        summary="HTTP server for the files of a directory, or for a page that greets the client",
        stream=_http,
        alpn=(HTTP_ALPN,),
        port=80,
        aliases=("www",),
        default_port=18_080,
        sample="root=/srv/www",
        note="Serves the files of a directory; without root= a page that greets the client.",
        client="get",
    ),
    "status": Builtin(
        summary="status of the daemon over HTTP: a page, /metrics for Prometheus, /status.json, /healthz and /readyz",
        stream=_status,
        loopback_only=True,
        alpn=(HTTP_ALPN,),
        port=9797,
        note="Status of the daemon for browsers and Prometheus (/metrics); by default on loopback addresses only.",
        client="get",
    ),
    "services": Builtin(
        summary="sends the names and ports of the daemon's services, as xinetd's services",
        stream=_services,
        speaks_first=True,
        loopback_only=True,
        port=9098,
        note="Lists the services of the daemon; by default on loopback addresses only.",
    ),
    "tcpmux": Builtin(
        summary="connects a client to the service with mux=yes that the client names (RFC 1078)",
        stream=None,
        multiplexer=True,
        port=1,
        note="One port for all services with mux=yes: the client sends the service name (RFC 1078).",
    ),
}


def _named_factory(service: Service, _deps: ServiceDependencies) -> IProtocolFactory:
    """Return the Twisted factory that factory= names, or that the function with this name returns."""
    from svcd.process.factories import FactoryError, make_factory

    try:
        return make_factory(service.options.factory, service.options)
    except FactoryError as error:
        raise ConfigError([service.fault("factory", str(error))]) from error


def _redirect(service: Service, deps: ServiceDependencies) -> IProtocolFactory:
    from svcd.protocols.redirect import RedirectFactory
    from svcd.wire.proxy_header import block, line

    options = service.options
    server, timeout = options.redirect, options.connect_timeout
    assert server is not None  # noqa: S101 - a redirection has this option
    endpoint = deps.make_endpoint(server, timeout, deps.descriptors)
    proxy_header = None if options.send_proxy is None else {"v1": line, "v2": block}[options.send_proxy]
    return RedirectFactory(endpoint, service.handler_text, timeout, deps.clock, deps.descriptors, proxy_header)


_HANDLERS: Mapping[str, Callable[[Service, ServiceDependencies], IProtocolFactory]] = {
    "factory": _named_factory,
    "redirect": _redirect,
}


def stream_factory(service: Service, deps: ServiceDependencies) -> IProtocolFactory:
    """Return the factory of a stream service that is served inside the daemon.

    Raises:
        ConfigError: the factory that factory= names can't be made.
        OSError: a file that the service needs can't be read.
    """
    handler = _HANDLERS.get(service.runs)
    if handler is not None:
        return handler(service, deps)
    make = BUILTINS[service.runs].stream
    assert make is not None  # noqa: S101 - a multiplexer has no factory of its own
    return make(service.options, replace(deps, service_id=service.id))


def datagram_protocol(service: Service, deps: ServiceDependencies) -> DatagramProtocol:
    """Return the protocol for one socket of a datagram service that is served inside the daemon.

    Raises:
        OSError: a file that the service needs can't be read.
    """
    make = BUILTINS[service.runs].datagram
    assert make is not None  # noqa: S101 - the parser rejects other services
    return make(service.options, deps)
