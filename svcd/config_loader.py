"""Loading of a services file: it is read, parsed, shifted by the port offset, and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from svcd.config.endpoints import DesiredServices, Endpoint, check
from svcd.config.parser import parse, parse_text
from svcd.config.service import Config
from svcd.defaults import DEFAULT_NAME, SERVICES_FILE
from svcd.errors import ConfigError
from svcd.host.info import Host
from svcd.model import ConfigProblem, Severity, SourceLocation
from svcd.protocols.catalog import BUILTINS
from svcd.protocols.sample_files import default_services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from svcd.config.service import Service
    from svcd.interfaces import FileReader, HostInfo

__all__ = ["Loaded", "check_again", "listing", "load_config", "usual_file"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A services file that was read and checked.

    Attributes:
        config: its services.
        endpoints: the sockets of its services.
        faults: what the machine lacks for single services.
        warnings: problems without an effect.
    """

    config: Config
    endpoints: list[Endpoint]
    faults: tuple[ConfigProblem, ...] = ()
    warnings: tuple[ConfigProblem, ...] = ()

    @property
    def desired(self) -> DesiredServices:
        """The services of the file; those that the machine can't serve, and disabled ones, are kept separately."""
        desired = DesiredServices.checked(self.config.enabled, self.endpoints, self.faults)
        return replace(desired, disabled=self.config.disabled)


def load_config(
    path: str | None,
    files: FileReader,
    *,
    port_offset: int = 0,
    machine: HostInfo | None = None,
    parsed: Callable[[Config], object] | None = None,
) -> Loaded:
    """Read and check a services file.

    Args:
        path: the file; None for SERVICES_FILE or the embedded default.
        files: reads files.
        port_offset: added to every port except 0.
        machine: facts about the machine; the local host by default.
        parsed: called with the parsed file, also if it has mistakes.

    Raises:
        ConfigError: there is a mistake; it has every mistake and fault.
    """
    if path == "":
        raise ConfigError([ConfigProblem(SourceLocation("--services"), "the file name is empty; give one")])
    path = usual_file() if path is None else path
    if path is None:
        config, problems = parse_text(default_services(), DEFAULT_NAME, files, BUILTINS)
    else:
        config, problems = parse(path, files, BUILTINS)
    if parsed is not None:
        parsed(config)
    config, outside = config.shifted(port_offset)
    endpoints, missing = check(config, files, machine or Host())
    problems = _sorted([*problems, *outside, *missing])
    warnings = tuple(each for each in problems if each.severity is Severity.WARNING)
    problems = [each for each in problems if each.severity is not Severity.WARNING]
    if any(each.severity is Severity.MISTAKE for each in problems):
        raise ConfigError(problems)
    return Loaded(config, endpoints, tuple(problems), warnings)


def usual_file() -> str | None:
    """Return the services file that is read when none is named; None for the embedded default."""
    return SERVICES_FILE if os.path.exists(SERVICES_FILE) else None  # noqa: PTH110 - Path.exists raises


def check_again(services: Sequence[Service], files: FileReader, machine: HostInfo) -> DesiredServices:
    """Check whether the machine can now serve services of a file that was loaded before."""
    endpoints, problems = check(Config(tuple(services)), files, machine)
    faults = [each for each in problems if each.severity is Severity.FAULT]
    return DesiredServices.checked(services, endpoints, faults)


def _sorted(problems: Sequence[ConfigProblem]) -> list[ConfigProblem]:
    """Sort problems by location, with the files in the order in which they were read."""
    file_order = {file: number for number, file in reversed(list(enumerate(each.location.file for each in problems)))}
    return sorted(problems, key=lambda each: (file_order[each.location.file], each))


def _handler_of(service: Service) -> str:
    websocket = "" if service.options.websocket is None else " over WebSocket"
    return f"{service.handler_text}{websocket}{' over TLS' if service.tls else ''}"


def listing(endpoints: Sequence[Endpoint]) -> Iterator[str]:
    """Yield a line for each listener, in columns: the service, the address, the handler."""
    rows = [(each.service.id, each.address, _handler_of(each.service)) for each in endpoints]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for row in rows:
        yield f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}"
