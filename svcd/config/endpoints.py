"""Endpoints of services, and the check of a parsed Config: conflicts, and everything that the host has to provide.

`--check` shows the endpoints; a start listens on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.addresses import address_text
from svcd.config.checks import access_problems, datagram_problems, handler_problems, timeout_problems, tls_problems
from svcd.config.websocket_checks import websocket_problems
from svcd.model import ConfigProblem, SocketType, SourceLocation, ip_literal
from svcd.wire.fortune import read_quotes
from svcd.wire.media_types import MediaTypesError, parse_media_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from svcd.config.service import Config, Service
    from svcd.interfaces import FileReader, HostInfo

__all__ = ["DesiredServices", "Endpoint", "FaultyService", "check", "grouped"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that a service listens on.

    Attributes:
        service: the service.
        version: the version of IP, 4 or 6; 0 for a UNIX socket.
        host: the IP address, perhaps with a %scope; empty for a UNIX socket.
    """

    service: Service
    version: int
    host: str

    @property
    def address(self) -> str:
        """The address as text: `127.0.0.1:7`, `[::1]:7`, or the path."""
        return address_text(self.host, self.service.port) if self.version else self.service.path


@dataclass(frozen=True, slots=True)
class FaultyService:
    """A service that the host can't serve at the moment.

    Attributes:
        service: the service.
        endpoints: its endpoints, as far as they are known.
        problems: the faults; never empty.
    """

    service: Service
    endpoints: tuple[Endpoint, ...]
    problems: tuple[ConfigProblem, ...]


@dataclass(frozen=True, slots=True)
class DesiredServices:
    """The enabled services of a file.

    Attributes:
        endpoints: the endpoints of the services for which the check found no fault.
        faulty: the other services.
        disabled: the services with disable=yes.
    """

    endpoints: tuple[Endpoint, ...]
    faulty: tuple[FaultyService, ...] = ()
    disabled: tuple[Service, ...] = ()

    @classmethod
    def checked(
        cls, services: Iterable[Service], endpoints: Sequence[Endpoint], problems: Iterable[ConfigProblem]
    ) -> DesiredServices:
        """Sort services by whether a check found faults.

        Args:
            services: all services.
            endpoints: the endpoints of all services.
            problems: the faults of single services.
        """
        faults: dict[str, list[ConfigProblem]] = {}
        for problem in problems:
            faults.setdefault(problem.service, []).append(problem)
        sockets = grouped(endpoint for endpoint in endpoints if endpoint.service.id in faults)
        faulty = tuple(
            FaultyService(service, tuple(sockets.get(service.id, ())), tuple(faults[service.id]))
            for service in services
            if service.id in faults
        )
        return cls(tuple(endpoint for endpoint in endpoints if endpoint.service.id not in faults), faulty)

    def __iter__(self) -> Iterator[Endpoint]:
        """Iterate over all endpoints, those of faulty services last."""
        yield from self.endpoints
        for each in self.faulty:
            yield from each.endpoints

    def services(self) -> Iterator[Service]:
        """Yield the enabled services, those with faults last; one with several sockets more than once."""
        yield from (endpoint.service for endpoint in self.endpoints)
        yield from (each.service for each in self.faulty)


def grouped(endpoints: Iterable[Endpoint]) -> dict[str, list[Endpoint]]:
    """Return endpoints grouped by the ids of their services."""
    found: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        found.setdefault(endpoint.service.id, []).append(endpoint)
    return found


_WILDCARDS = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - all addresses is what a line without bind= asks for

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_LOOPBACKS = ("localhost", *_LOOPBACK.values())


def check(config: Config, files: FileReader, machine: HostInfo) -> tuple[list[Endpoint], list[ConfigProblem]]:
    """Check a Config as a whole and against the host.

    Args:
        config: the parsed services.
        files: reads files.
        machine: the host.

    Returns:
        The endpoints of the enabled services, and the problems.
    """
    problems = list(_repeated_names(config))
    endpoints: list[Endpoint] = []
    versions = machine.versions()
    machine.look_up(dict.fromkeys(name for service in config.enabled for name in service.options.bind))
    # Host names are looked up while handlers are imported.
    handlers = list(handler_problems(config.enabled, machine))
    for service in config.enabled:
        found, mistakes = _endpoints(service, versions, machine)
        endpoints += found
        problems += mistakes
        problems += _host_problems(service, files, machine)
        problems += access_problems(service, files, machine)
        problems += timeout_problems(service)
        problems += datagram_problems(service)
        problems += tls_problems(service, files, machine.now())
        problems += websocket_problems(service, machine)
    problems += handlers
    problems += _collisions(endpoints)
    problems += _redirect_loops(endpoints)
    return endpoints, problems


def _repeated_names(config: Config) -> Iterator[ConfigProblem]:
    first: dict[str, Service] = {}
    for service in config.enabled:
        known = first.setdefault(service.id, service)
        if known is not service:
            text = (
                f"{service.id} is already defined at {known.location}; give one of them another id=NAME, or remove it"
            )
            yield ConfigProblem(service.location, text)


def _endpoints(
    service: Service, versions: frozenset[int], machine: HostInfo
) -> tuple[list[Endpoint], list[ConfigProblem]]:
    if service.net.local:
        return [Endpoint(service, 0, "")], []
    wanted = service.net.versions
    usable = [version for version in wanted if version in versions]
    if not usable:
        return [], [service.fault("", f"this machine has no IPv{wanted[0]}; use another protocol than {service.net}")]
    if not service.options.v6only and len(wanted) > 1:
        text = "no requires the protocol tcp6 or udp6, which then accepts IPv4 clients as well"
        return [], [service.problem("v6only", text)]
    if not service.options.bind:
        hosts = _LOOPBACK if service.builtin.loopback_only else _WILDCARDS
        return [Endpoint(service, version, hosts[version]) for version in usable], []
    return _bound_endpoints(service, usable, machine)


def _bound_endpoints(
    service: Service, usable: Sequence[int], machine: HostInfo
) -> tuple[list[Endpoint], list[ConfigProblem]]:
    """Return the endpoints of a service with bind=, and the problems."""
    wanted = service.net.versions
    hosts: dict[str, int] = {}
    problems, unsuitable = [], []
    for name in service.options.bind:
        try:
            literals = machine.addresses(name)
        except OSError as error:
            cause = error.strerror or error
            problems.append(service.fault("bind", f"{name!r} is not an address, interface or known host name: {cause}"))
            continue
        suitable = [literal for literal in literals if _version(literal) in wanted]
        if not suitable:
            unsuitable.append(service.fault("bind", f"{name!r} has no address for {service.net}"))
        hosts.update((literal, _version(literal)) for literal in suitable)
    if service.has_own("bind") or not hosts:
        # Addresses in @defaults may be for other services, with another version of IP.
        problems += unsuitable
    for version, wildcard in _WILDCARDS.items():
        if wildcard in hosts and sum(each == version for each in hosts.values()) > 1:
            problems.append(service.problem("bind", f"{wildcard} means every IPv{version} address; remove the others"))
    # A host without one version of IP is no fault if the service has addresses of both.
    found = [Endpoint(service, version, host) for host, version in hosts.items() if version in usable]
    if hosts and not found:
        problems.append(service.fault("bind", "this machine does not support the IP version of these addresses"))
    return found, problems


def _version(literal: str) -> int:
    return 6 if ":" in literal else 4


def _host_problems(service: Service, files: FileReader, machine: HostInfo) -> Iterator[ConfigProblem]:
    options = service.options
    yield from _abstract_problems(service) if service.abstract else _owner_problems(service, machine)
    if options.mptcp and not machine.has_mptcp():
        text = "this kernel has no Multipath TCP (CONFIG_MPTCP, net.mptcp.enabled); enable it, or remove mptcp=yes"
        yield service.fault("mptcp", text)
    if options.root and not files.is_directory(options.root):
        yield service.fault("root", f"{options.root} is not a readable directory")
    if options.https_redirect and service.tls:
        text = "a request over TLS would be redirected for ever; use it on the service without TLS, or remove it"
        yield service.fault("https_redirect", text)
    if options.types:
        yield from _types_problems(service, files)
    if options.quotes:
        try:
            quotes = read_quotes(files.read(options.quotes))
        except OSError as error:
            yield service.fault("quotes", f"can't read {options.quotes}: {error.strerror or error}")
        else:
            if not quotes:
                yield service.fault("quotes", f"{options.quotes} has no entry shorter than 512 characters")


def _types_problems(service: Service, files: FileReader) -> Iterator[ConfigProblem]:
    path = service.options.types
    try:
        parse_media_types(files.read(path))
    except OSError as error:
        yield service.fault("types", f"can't read {path}: {error.strerror or error}")
    except MediaTypesError as error:
        yield service.fault("types", f"{path}:{error.line}: {error.text}")


def _abstract_problems(service: Service) -> Iterator[ConfigProblem]:
    """Yield a problem for each permission of an abstract socket: it has no file that could have permissions."""
    for option in ("mode", "owner", *(() if service.launches else ("group",))):
        if service.has_own(option):
            yield service.problem(option, f"{service.path} has no file and no permissions; remove it")


def _owner_problems(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    """Yield a problem for each user and group of a socket's file that does not exist."""
    options = service.options
    owner = options.owner
    if owner.user and not machine.has_user(owner.user):
        yield service.fault("owner", f"no user {owner.user!r} on this machine")
    if owner.group and not machine.has_group(owner.group):
        yield service.fault("owner", f"no group {owner.group!r} on this machine")
    if options.group and not service.launches and not machine.has_group(options.group):
        yield service.fault("group", f"no group {options.group!r} on this machine")
    if options.group and owner.group and not service.launches:
        text = f"owner= at {service.locations['owner']} already sets the file's group; remove one of the two"
        yield service.problem("group", text)


def _collisions(endpoints: Sequence[Endpoint]) -> Iterator[ConfigProblem]:
    """Yield a problem for each pair of services whose sockets can't be bound together.

    Such sockets have the same port, and the same address or a wildcard. The addresses of an interface or a host name
    can change without the file: a collision with a service that does not have that name in bind= is a fault. Every
    other collision is a mistake.
    """
    seen: dict[tuple[SocketType, int, int | str], dict[str, Service]] = {}
    reported: set[tuple[SourceLocation, SourceLocation]] = set()
    for endpoint in endpoints:
        service = endpoint.service
        for where, host in _occupied(endpoint):
            others = seen.setdefault(where, {})
            wildcard = _WILDCARDS.get(where[1], host)
            for other_host, other in others.items():
                pair = (other.location, service.location)
                overlap = host == other_host or wildcard in (host, other_host)
                if overlap and other is not service and pair not in reported:
                    reported.add(pair)
                    yield _collision(endpoint, other, same=host == other_host)
            others.setdefault(host, service)


def _collision(endpoint: Endpoint, other: Service, *, same: bool) -> ConfigProblem:
    """Return the problem of an address that another service has, too.

    Args:
        endpoint: the endpoint.
        other: the other service, whose line comes first.
        same: whether the addresses are equal; otherwise one of them is a wildcard.
    """
    service = endpoint.service
    text = "{} is taken by {} at {}; change one of the two"
    names, others = (_names_of(each, endpoint.host) if same else frozenset() for each in (service, other))
    if names == others or names & others:
        return ConfigProblem(service.location, text.format(endpoint.address, other.id, other.location))
    if not names:
        service, other = other, service
    return service.fault("bind", text.format(endpoint.address, other.id, other.location))


def _names_of(service: Service, host: str) -> frozenset[str]:
    """Return the names in bind= that may resolve to an address; none if bind= has the address itself."""
    bind = service.options.bind
    return frozenset() if host in map(ip_literal, bind) else frozenset(name for name in bind if not ip_literal(name))


def _redirect_loops(endpoints: Sequence[Endpoint]) -> Iterator[ConfigProblem]:
    """Yield a problem for each service that redirects connections to itself, in an endless loop."""
    reported = set()
    for endpoint in endpoints:
        service = endpoint.service
        server = service.options.redirect
        if server is None or server.port != service.port or service.id in reported:
            continue
        here = endpoint.host == _WILDCARDS.get(endpoint.version) and server.host in _LOOPBACKS
        if here or server.host == endpoint.host:
            reported.add(service.id)
            yield service.problem("redirect", f"{service.handler_text} is this service itself; use another server")


def _occupied(endpoint: Endpoint) -> Iterator[tuple[tuple[SocketType, int, int | str], str]]:
    """Yield the addresses that a socket occupies, each with its name space: type, version of IP, and port or path."""
    service = endpoint.service
    if not endpoint.version:
        # Stream and datagram sockets share the name space of paths.
        yield (SocketType.STREAM, 0, service.path), ""
    elif service.port:
        yield (service.net.shape, endpoint.version, service.port), endpoint.host
        if endpoint.host == _WILDCARDS[6] and not service.options.v6only:
            yield (service.net.shape, 4, service.port), _WILDCARDS[4]
