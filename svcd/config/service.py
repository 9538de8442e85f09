"""What a services file says, once understood: Service and Config."""

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

__all__ = ["HIGHEST_PORT", "Config", "Service"]

HIGHEST_PORT = 65_535
#: What connections log where log_on_success does not say it. The traffic of a spawned service costs a descriptor for
#: each connection: a copy of its socket, asked once the process has ended.
_LOGGED = ("HOST", "EXIT", "DURATION", "TRAFFIC")
_LOGGED_SPAWNED = ("PID", "HOST", "EXIT", "DURATION")


@dataclass(frozen=True, slots=True)
class Service:
    """One line of the file.

    Attributes:
        name: field 1.
        net: the protocol.
        port: 0 to 65535, where 0 lets the kernel pick; 0 for a local service.
        path: of a local service's socket, or @ and its name in the abstract name space; else empty.
        aliases: the words without `=`.
        runs: the option that says what answers (one of HANDLERS), or the built-in that does; empty for a disabled
            line that nothing serves.
        options: every option with its value.
        place: where the line begins. Places do not count when services are compared.
        places: where each option's value stands, for the options set by the line or its defaults.
        builtin: the facts about the built-in that it runs; NO_BUILTIN if it runs another handler.
    """

    name: str
    net: NetProtocol
    port: int
    path: str
    aliases: tuple[str, ...]
    runs: str
    options: ServiceOptions
    place: SourceLocation = field(compare=False)
    places: Mapping[str, SourceLocation] = field(compare=False, repr=False)
    builtin: BuiltinInfo = field(default=NO_BUILTIN, compare=False, repr=False)

    @property
    def id(self) -> str:
        """Unique in a Config: `echo/tcp`."""
        return f"{self.options.id or self.name}/{self.net}"

    @property
    def abstract(self) -> bool:
        """Whether it is a UNIX socket without a file (unix(7), abstract)."""
        return self.path.startswith("@")

    @property
    def socket_file(self) -> str:
        """The file of a UNIX socket; empty if there is none."""
        return "" if self.abstract else self.path

    @property
    def spawned(self) -> bool:
        """Whether processes of their own answer."""
        return self.runs in SPAWNED

    @property
    def runner(self) -> RunAs:
        """As whom a spawned service runs."""
        options = self.options
        return RunAs(options.user, options.group, options.groups, options.chroot)

    @property
    def tls(self) -> bool:
        """Whether clients speak TLS."""
        return self.options.tls_cert is not None or self.options.tls_sni is not None

    @property
    def handler_text(self) -> str:
        """What answers, for people: the program's path, module:name, host:port, or the built-in."""
        if self.runs == "server":
            return self.options.server[0]
        if self.runs in HANDLERS:
            return TABLE[self.runs].kind.write(getattr(self.options, self.runs))
        return self.runs

    @property
    def file_group(self) -> str:
        """The group of a local service's socket file: group= is that of the process where there is one."""
        return self.options.owner.group or ("" if self.spawned else self.options.group)

    @property
    def logged(self) -> tuple[str, ...]:
        """The words of log_on_success that hold."""
        chosen = self.options.log_on_success
        return (_LOGGED_SPAWNED if self.spawned else _LOGGED) if chosen is None else chosen

    @property
    def alpn(self) -> tuple[str, ...]:
        """The protocols that TLS clients may choose from (RFC 7301), the preferred one first; empty for no choice."""
        chosen = self.options.tls_alpn
        return self.builtin.alpn if chosen is None else chosen

    def has_own(self, option: str) -> bool:
        """Whether an option stands on the service's own line; what @defaults say to all means nothing to some."""
        place = self.places.get(option)
        return place is not None and place > self.place and place.file == self.place.file

    def problem(self, option: str, text: str) -> ConfigProblem:
        """A Problem at an option's value, or at the line if it has none."""
        return self._problem(option, text, Severity.MISTAKE)

    def fault(self, option: str, text: str) -> ConfigProblem:
        """Return a Problem of the machine at an option's value, or at the line if it has none."""
        return self._problem(option, text, Severity.FAULT)

    def warning(self, option: str, text: str) -> ConfigProblem:
        """Return a warning at an option's value, or at the line if it has none."""
        return self._problem(option, text, Severity.WARNING)

    def _problem(self, option: str, text: str, severity: Severity) -> ConfigProblem:
        value = getattr(self.options, option, "")
        named = value[0] if isinstance(value, tuple) and value else value
        path = named if isinstance(named, str) and named.startswith("/") else ""
        place = self.places.get(option, self.place)
        return ConfigProblem(place, f"{option}: {text}" if option else text, severity, self.id, path)

    @property
    def line(self) -> str:
        """A line of a services file that says the same."""
        return " ".join(map(_quoted, self.words()))

    def words(self) -> Iterator[str]:
        """The words of a line that says the same, before quoting."""
        yield self.name
        yield f"{self.path or self.port}/{self.net}"
        yield from self.aliases
        for name, info in TABLE.items():
            value = getattr(self.options, name)
            if value != info.default:
                yield f"{name}={info.kind.write(value)}"


def _quoted(word: str) -> str:
    """A word as a services file has it: of an option the value is quoted, where it has to be."""
    name, equals, value = word.partition("=")
    quotes_value = equals and shlex.quote(name) == name
    return f"{name}={shlex.quote(value) if value else ''}" if quotes_value else shlex.quote(word)


@dataclass(frozen=True, slots=True)
class Config:
    """All services of a file and of those it includes, in their order."""

    services: tuple[Service, ...] = ()

    @property
    def enabled(self) -> tuple[Service, ...]:
        """The services that are to run."""
        return tuple(service for service in self.services if not service.options.disable)

    def shifted(self, offset: int) -> tuple[Config, list[ConfigProblem]]:
        """The same with every port moved by an offset, and a Problem for each port that leaves 1 to 65535."""
        moved, problems = [], []
        for service in self.services:
            if service.options.disable or not service.port:
                moved.append(service)
                continue
            port = service.port + offset
            if not 1 <= port <= HIGHEST_PORT:
                text = f"port {service.port} with the offset {offset} is {port}, not in 1 to {HIGHEST_PORT}"
                problems.append(ConfigProblem(service.place, f"{text}; choose another --port-offset"))
                continue
            moved.append(replace(service, port=port))
        return Config(tuple(moved)), problems
