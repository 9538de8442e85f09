"""What a parsed Config must hold beyond its grammar: nothing twice, and the machine has what it names.

Two sides ask this: `--check`, which shows where each service would listen, and the start, which listens there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svcd.addresses import address_text
from svcd.config.checks import access_problems, datagram_problems, handler_problems, time_problems, tls_problems
from svcd.model import ConfigProblem, SocketType, SourceLocation, ip_literal
from svcd.wire.fortune import read_quotes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from svcd.config.service import Config, Service
    from svcd.interfaces import FileReader, HostInfo

__all__ = ["DesiredServices", "Endpoint", "FaultyService", "check", "grouped"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One socket that a service listens with.

    Attributes:
        service: whose it is.
        version: of IP, 4 or 6; 0 for a UNIX socket.
        host: the address as a literal, perhaps with a %scope; empty for a UNIX socket.
    """

    service: Service
    version: int
    host: str

    @property
    def address(self) -> str:
        """As people write it: `127.0.0.1:7`, `[::1]:7`, or the path."""
        return address_text(self.host, self.service.port) if self.version else self.service.path


@dataclass(frozen=True, slots=True)
class FaultyService:
    """A service that the machine can't serve at the moment.

    Attributes:
        service: the service.
        endpoints: its sockets, as far as they are known.
        problems: what the machine lacks; never empty.
    """

    service: Service
    endpoints: tuple[Endpoint, ...]
    problems: tuple[ConfigProblem, ...]


@dataclass(frozen=True, slots=True)
class DesiredServices:
    """The services that a file asks for.

    Attributes:
        endpoints: the sockets of services that can be served, as far as the check tells.
        faulty: the other services.
    """

    endpoints: tuple[Endpoint, ...]
    faulty: tuple[FaultyService, ...] = ()

    @classmethod
    def checked(
        cls, services: Iterable[Service], endpoints: Sequence[Endpoint], problems: Iterable[ConfigProblem]
    ) -> DesiredServices:
        """Sort services by what a check found.

        Args:
            services: all services.
            endpoints: the sockets of all services.
            problems: faults of single services.
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


def grouped(endpoints: Iterable[Endpoint]) -> dict[str, list[Endpoint]]:
    """Return endpoints by the id of their service."""
    found: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        found.setdefault(endpoint.service.id, []).append(endpoint)
    return found


_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - all addresses is what a line without bind= asks for

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_LOOPBACKS = ("localhost", *_LOOPBACK.values())


def check(config: Config, files: FileReader, machine: HostInfo) -> tuple[list[Endpoint], list[ConfigProblem]]:
    """Where the services of a Config listen, and every Problem that only the whole or the machine shows."""
    problems = list(_repeated_names(config))
    endpoints: list[Endpoint] = []
    versions = machine.versions()
    machine.look_up(dict.fromkeys(name for service in config.enabled for name in service.options.bind))
    # Imports take a while, too: names are looked up at the same time.
    handlers = list(handler_problems(config.enabled, machine))
    for service in config.enabled:
        found, mistakes = _endpoints(service, versions, machine)
        endpoints += found
        problems += mistakes
        problems += _missing(service, files, machine)
        problems += access_problems(service, files, machine)
        problems += time_problems(service)
        problems += datagram_problems(service)
        problems += tls_problems(service, files, machine.now())
    problems += handlers
    problems += _collisions(endpoints)
    problems += _loops(endpoints)
    return endpoints, problems


def _repeated_names(config: Config) -> Iterator[ConfigProblem]:
    first: dict[str, Service] = {}
    for service in config.enabled:
        known = first.setdefault(service.id, service)
        if known is not service:
            text = f"{service.id} stands at {known.place} already; give one another id=NAME, or remove it"
            yield ConfigProblem(service.place, text)


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
        text = "with no, the protocol must be tcp6 or udp6, which then takes IPv4 clients too"
        return [], [service.problem("v6only", text)]
    if not service.options.bind:
        hosts = _LOOPBACK if service.builtin.loopback_only else _ANY
        return [Endpoint(service, version, hosts[version]) for version in usable], []
    return _bound(service, usable, machine)


def _bound(service: Service, usable: Sequence[int], machine: HostInfo) -> tuple[list[Endpoint], list[ConfigProblem]]:
    """Where a service with bind= listens."""
    wanted = service.net.versions
    hosts: dict[str, int] = {}
    problems, unfit = [], []
    for name in service.options.bind:
        try:
            literals = machine.addresses(name)
        except OSError as error:
            cause = error.strerror or error
            problems.append(service.fault("bind", f"{name!r} is no address, interface or known host name: {cause}"))
            continue
        fitting = [literal for literal in literals if _version(literal) in wanted]
        if not fitting:
            unfit.append(service.fault("bind", f"{name!r} has no address for {service.net}"))
        hosts.update((literal, _version(literal)) for literal in fitting)
    if service.has_own("bind") or not hosts:
        # Addresses in @defaults are for services of both versions of IP.
        problems += unfit
    for version, wildcard in _ANY.items():
        if wildcard in hosts and sum(each == version for each in hosts.values()) > 1:
            problems.append(service.problem("bind", f"{wildcard} means every IPv{version} address; remove the others"))
    # Of both families the machine may lack one, as it may without bind=; of a single one it may not.
    found = [Endpoint(service, version, host) for host, version in hosts.items() if version in usable]
    if hosts and not found:
        problems.append(service.fault("bind", "this machine has no IP of the version of these addresses"))
    return found, problems


def _version(literal: str) -> int:
    return 6 if ":" in literal else 4


def _missing(service: Service, files: FileReader, machine: HostInfo) -> Iterator[ConfigProblem]:
    options = service.options
    yield from _no_file(service) if service.abstract else _no_owner(service, machine)
    if options.mptcp and not machine.has_mptcp():
        text = "this kernel has no Multipath TCP (CONFIG_MPTCP, net.mptcp.enabled); enable it, or remove mptcp=yes"
        yield service.fault("mptcp", text)
    if options.root and not files.is_directory(options.root):
        yield service.fault("root", f"{options.root} is no directory that can be read")
    if options.quotes:
        try:
            quotes = read_quotes(files.read(options.quotes))
        except OSError as error:
            yield service.fault("quotes", f"can't read {options.quotes}: {error.strerror or error}")
        else:
            if not quotes:
                yield service.fault("quotes", f"{options.quotes} has no entry shorter than 512 characters")


def _no_file(service: Service) -> Iterator[ConfigProblem]:
    """Permissions of an abstract socket, which nobody would keep."""
    for option in ("mode", "owner", *(() if service.spawned else ("group",))):
        if service.has_own(option):
            yield service.problem(option, f"{service.path} has no file, and no permissions; remove it")


def _no_owner(service: Service, machine: HostInfo) -> Iterator[ConfigProblem]:
    """Users and groups of a socket file that the machine does not have."""
    options = service.options
    owner = options.owner
    if owner.user and not machine.has_user(owner.user):
        yield service.fault("owner", f"no user {owner.user!r} on this machine")
    if owner.group and not machine.has_group(owner.group):
        yield service.fault("owner", f"no group {owner.group!r} on this machine")
    if options.group and not service.spawned and not machine.has_group(options.group):
        yield service.fault("group", f"no group {options.group!r} on this machine")
    if options.group and owner.group and not service.spawned:
        text = f"owner= at {service.places['owner']} names the file's group already; remove one of the two"
        yield service.problem("group", text)


def _collisions(endpoints: Sequence[Endpoint]) -> Iterator[ConfigProblem]:
    """Sockets that could not be bound together: the same port, and the same address or one that means all.

    An address that a service has by the name of an interface or a host can change without the file: where it meets a
    service that does not have that name, it has a fault. Every other collision is a mistake of the text.
    """
    seen: dict[tuple[SocketType, int, int | str], dict[str, Service]] = {}
    told: set[tuple[SourceLocation, SourceLocation]] = set()
    for endpoint in endpoints:
        service = endpoint.service
        for where, host in _claims(endpoint):
            others = seen.setdefault(where, {})
            wildcard = _ANY.get(where[1], host)
            for other_host, other in others.items():
                pair = (other.place, service.place)
                overlap = host == other_host or wildcard in (host, other_host)
                if overlap and other is not service and pair not in told:
                    told.add(pair)
                    yield _collision(endpoint, other, same=host == other_host)
            others.setdefault(host, service)


def _collision(endpoint: Endpoint, other: Service, *, same: bool) -> ConfigProblem:
    """Return the Problem of an address that another service has, too.

    Args:
        endpoint: the address.
        other: the other service, whose line comes first.
        same: whether it has the very address, and not one that means all.
    """
    service = endpoint.service
    text = "{} is taken by {} at {}; change one of the two"
    names, others = (_names_of(each, endpoint.host) if same else frozenset() for each in (service, other))
    if names == others or names & others:
        return ConfigProblem(service.place, text.format(endpoint.address, other.id, other.place))
    if not names:
        service, other = other, service
    return service.fault("bind", text.format(endpoint.address, other.id, other.place))


def _names_of(service: Service, host: str) -> frozenset[str]:
    """The names of bind= that may have given a service an address; none if bind= has the address itself."""
    bind = service.options.bind
    return frozenset() if host in map(ip_literal, bind) else frozenset(name for name in bind if not ip_literal(name))


def _loops(endpoints: Sequence[Endpoint]) -> Iterator[ConfigProblem]:
    """Services that pass connections on to themselves, until nothing is left to connect with."""
    told = set()
    for endpoint in endpoints:
        service = endpoint.service
        server = service.options.redirect
        if server is None or server.port != service.port or service.id in told:
            continue
        here = endpoint.host == _ANY.get(endpoint.version) and server.host in _LOOPBACKS
        if here or server.host == endpoint.host:
            told.add(service.id)
            yield service.problem("redirect", f"{service.handler_text} is this service itself; name another server")


def _claims(endpoint: Endpoint) -> Iterator[tuple[tuple[SocketType, int, int | str], str]]:
    """What a socket takes for itself: in which name space, and there which address."""
    service = endpoint.service
    if not endpoint.version:
        # Both shapes of UNIX socket share the one name space of paths.
        yield (SocketType.STREAM, 0, service.path), ""
    elif service.port:
        yield (service.net.shape, endpoint.version, service.port), endpoint.host
        if endpoint.host == _ANY[6] and not service.options.v6only:
            yield (service.net.shape, 4, service.port), _ANY[4]
