"""The parsed services file: Service and Config."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from svcd.config.builtin_info import NO_BUILTIN
from svcd.config.option_info import HANDLERS, SPAWNED
from svcd.config.options import TABLE, ServiceOptions
from svcd.model import ConfigProblem, NetProtocol, RunAs, Severity, SourceLocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from svcd.config.builtin_info import BuiltinInfo

__all__ = ["MAX_PORT", "Config", "Service"]

MAX_PORT = 65_535
#: The defaults of log_on_success. The traffic of a spawned service takes a descriptor for each connection: a copy of
#: the socket, which has the byte counts when the process has ended.
_LOGGED = ("HOST", "EXIT", "DURATION", "TRAFFIC")
_LOGGED_SPAWNED = ("PID", "HOST", "EXIT", "DURATION")


@dataclass(frozen=True, slots=True)
class Service:
    """A service: one line of the file, with the defaults that apply to it.

    Attributes:
        name: the first field.
        net: the protocol.
        port: the port, 0 to 65535; with 0 the kernel picks one. 0 for a UNIX socket.
        path: the path of a UNIX socket, or @ and its name in the abstract name space; empty for other services.
        aliases: the words without `=`.
        runs: the option that names the handler (one of HANDLERS), or the name of the built-in; empty for a disabled
            line without either.
        options: the values of all options.
        location: the location of the line. Comparisons of services ignore locations.
        locations: the locations of the values of options that the line or its defaults set.
        builtin: the facts about the built-in that it runs; NO_BUILTIN if it runs another handler.
    """

    name: str
    net: NetProtocol
    port: int
    path: str
    aliases: tuple[str, ...]
    runs: str
    options: ServiceOptions
    location: SourceLocation = field(compare=False)
    locations: Mapping[str, SourceLocation] = field(compare=False, repr=False)
    builtin: BuiltinInfo = field(default=NO_BUILTIN, compare=False, repr=False)

    @property
    def id(self) -> str:
        """The identifier of the service, which is unique in a Config: `echo/tcp`."""
        return f"{self.options.id or self.name}/{self.net}"

    @property
    def abstract(self) -> bool:
        """Whether the service has an abstract UNIX socket, which has no file (unix(7))."""
        return self.path.startswith("@")

    @property
    def socket_file(self) -> str:
        """The path of a UNIX socket that has a file; empty for other sockets."""
        return "" if self.abstract else self.path

    @property
    def spawned(self) -> bool:
        """Whether processes of their own handle the connections."""
        return self.runs in SPAWNED

    @property
    def launches(self) -> bool:
        """Whether the service has a launcher: it is spawned, or runs CGI programs."""
        return self.spawned or bool(self.options.cgi)

    @property
    def runner(self) -> RunAs:
        """The user, groups and root directory of the processes of a service."""
        options = self.options
        return RunAs(options.user, options.group, options.groups, options.chroot)

    @property
    def tls(self) -> bool:
        """Whether the service uses TLS."""
        return self.options.tls_cert is not None or self.options.tls_sni is not None

    @property
    def piped(self) -> bool:
        """Whether the daemon keeps the connections of clients and its processes get pairs of sockets."""
        return self.spawned and (self.tls or self.options.websocket is not None)

    @property
    def handler_text(self) -> str:
        """The handler as text: the path of the program, module:name, host:port, or the name of the built-in."""
        if self.runs == "server":
            return self.options.server[0]
        if self.runs in HANDLERS:
            return TABLE[self.runs].value_type.write(getattr(self.options, self.runs))
        return self.runs

    @property
    def file_group(self) -> str:
        """The group of the socket's file: owner=:GROUP, or group= if that is not the group of a process."""
        return self.options.owner.group or ("" if self.launches else self.options.group)

    @property
    def logged(self) -> tuple[str, ...]:
        """The words of log_on_success in effect."""
        chosen = self.options.log_on_success
        return (_LOGGED_SPAWNED if self.spawned else _LOGGED) if chosen is None else chosen

    @property
    def alpn(self) -> tuple[str, ...]:
        """The ALPN protocols that are offered (RFC 7301), the preferred one first; empty for no ALPN."""
        chosen = self.options.tls_alpn
        return self.builtin.alpn if chosen is None else chosen

    def has_own(self, option: str) -> bool:
        """Return whether the service's own line sets an option, rather than @defaults."""
        location = self.locations.get(option)
        return location is not None and location > self.location and location.file == self.location.file

    def problem(self, option: str, text: str) -> ConfigProblem:
        """Return a mistake, located at an option's value, or at the line if the option is not set."""
        return self._problem(option, text, Severity.MISTAKE)

    def fault(self, option: str, text: str) -> ConfigProblem:
        """Return a fault of the host, located at an option's value, or at the line if the option is not set."""
        return self._problem(option, text, Severity.FAULT)

    def warning(self, option: str, text: str) -> ConfigProblem:
        """Return a warning, located at an option's value, or at the line if the option is not set."""
        return self._problem(option, text, Severity.WARNING)

    def _problem(self, option: str, text: str, severity: Severity) -> ConfigProblem:
        value = getattr(self.options, option, "")
        named = value[0] if isinstance(value, tuple) and value else value
        path = named if isinstance(named, str) and named.startswith("/") else ""
        location = self.locations.get(option, self.location)
        return ConfigProblem(location, f"{option}: {text}" if option else text, severity, self.id, path)

    @property
    def line(self) -> str:
        """The service as a line of a services file, without defaults."""
        return " ".join(map(_quoted, self.words()))

    def words(self) -> Iterator[str]:
        """Yield the words of that line, before quoting."""
        yield self.name
        yield f"{self.path or self.port}/{self.net}"
        yield from self.aliases
        for name, info in TABLE.items():
            value = getattr(self.options, name)
            if value != info.default:
                yield f"{name}={info.value_type.write(value)}"


def _quoted(word: str) -> str:
    """Return a word quoted for a services file, if necessary; of an option only the value is quoted."""
    name, equals, value = word.partition("=")
    quotes_value = equals and shlex.quote(name) == name
    return f"{name}={shlex.quote(value) if value else ''}" if quotes_value else shlex.quote(word)


@dataclass(frozen=True, slots=True)
class Config:
    """The services of a file and of the files that it includes, in their order.

    Attributes:
        services: the services.
        sources: the paths of the files; a path that ends in /* stands for the directory of a pattern.
    """

    services: tuple[Service, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def enabled(self) -> tuple[Service, ...]:
        """The services without disable=yes."""
        return tuple(service for service in self.services if not service.options.disable)

    @property
    def disabled(self) -> tuple[Service, ...]:
        """The services with disable=yes, except those with the id of an enabled service."""
        ids = {service.id for service in self.enabled}
        return tuple(service for service in self.services if service.options.disable and service.id not in ids)

    def shifted(self, offset: int) -> tuple[Config, list[ConfigProblem]]:
        """Return a Config with every port shifted by an offset, and a problem for each port outside 1 to 65535."""
        moved, problems = [], []
        for service in self.services:
            if service.options.disable or not service.port:
                moved.append(service)
                continue
            port = service.port + offset
            if not 1 <= port <= MAX_PORT:
                text = f"port {service.port} with the offset {offset} is {port}, not in 1 to {MAX_PORT}"
                problems.append(ConfigProblem(service.location, f"{text}; choose another --port-offset"))
                continue
            moved.append(replace(service, port=port))
        return replace(self, services=tuple(moved)), problems
