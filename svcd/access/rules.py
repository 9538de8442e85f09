"""Rules of one service, named after its options, and refusals with the rule that decided."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svcd.access.types import PrefixLengths
from svcd.model import SourceLocation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import tzinfo

    from svcd.access.types import Rate, SourcePattern, TimeRange

__all__ = ["AccessRule", "AccessRules", "Refusal", "RefusalReason"]


class RefusalReason(enum.StrEnum):
    """Why a client is refused, as logs, status and metrics write it."""

    ADDRESS = "address"
    TIME = "time"
    LOAD = "load"
    GLOBAL = "global"
    DESCRIPTORS = "descriptors"
    INSTANCES = "instances"
    PER_SOURCE = "per_source"
    RATE = "rate"
    PER_SOURCE_RATE = "per_source_rate"
    NAME = "name"
    #: The service itself accepts no connection.
    SERVICE = "service"
    #: A proxy has sent no PROXY header, or an invalid one.
    PROXY = "proxy"
    #: Datagrams only: the question comes from a port of a service.
    PORT = "port"


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One rule that decides.

    Attributes:
        text: as in the services file: `no_access=10.0.0.0/8`, of a list only the entry that decides.
        location: its location; None for a default.
    """

    text: str
    location: SourceLocation | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.location})" if self.location else f"{self.text} (the default)"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused client.

    Attributes:
        reason: the reason in one word.
        text: the reason in a few words.
        rule: the rule that decided; None if it is not a rule of the file.
    """

    reason: RefusalReason
    text: str
    rule: AccessRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """The access options of a service; the defaults admit every client.

    Attributes:
        only_from: the clients that are admitted; empty for none, None for all.
        no_access: the clients that are refused.
        proxy_protocol: the proxies that announce the client of each connection.
        access_times: the times of day at which clients are admitted; empty for all day.
        zone: the time zone of access_times; None for the machine's.
        max_load: the load average from which on all clients are refused.
        instances: the largest number of connections at once.
        per_source: the largest number of connections of one source.
        per_source_prefix: the prefix lengths that make a source.
        rate: how many clients are admitted, all sources together.
        per_source_rate: how many clients of one source are admitted.
        rate_burst: how many of them at once; None for the count of the rate.
        amplify: of datagrams: whether an answer may be larger than its question.
        answer_service_ports: of datagrams: whether a port of a service is answered.
        resolved: of datagrams: the addresses of the host names in only_from and no_access that are known, as numbers;
            None if names are those of the clients.
        locations: the locations of the options in the file, by option name.
    """

    only_from: tuple[SourcePattern, ...] | None = None
    no_access: tuple[SourcePattern, ...] = ()
    proxy_protocol: tuple[SourcePattern, ...] = ()
    access_times: tuple[TimeRange, ...] = ()
    zone: tzinfo | None = None
    max_load: float | None = None
    instances: int | None = None
    per_source: int | None = None
    per_source_prefix: PrefixLengths = PrefixLengths()  # noqa: RUF009 - it is frozen
    rate: Rate | None = None
    per_source_rate: Rate | None = None
    rate_burst: int | None = None
    amplify: bool = False
    answer_service_ports: bool = False
    resolved: Mapping[str, Collection[int]] | None = None
    locations: Mapping[str, SourceLocation] = field(default_factory=dict, compare=False)

    @property
    def has_address_lists(self) -> bool:
        """Whether there is an only_from or a no_access."""
        return self.only_from is not None or bool(self.no_access)

    @property
    def host_names(self) -> frozenset[str]:
        """The host names in only_from and no_access, without the domains."""
        sources = (*(self.only_from or ()), *self.no_access)
        return frozenset(source.name for source in sources if source.name and not source.name.startswith("."))

    def rule(self, option: str) -> AccessRule:
        """Return the rule of an option that has a single value."""
        return AccessRule(f"{option}={_text(getattr(self, option))}", self.locations.get(option))

    def entries(self, option: str) -> list[tuple[SourcePattern, AccessRule]]:
        """Return the entries of an option that has a list of sources, each with its rule at its own location."""
        found, column = [], 0
        location = self.locations.get(option)
        for source in getattr(self, option) or ():
            own = location and SourceLocation(location.file, location.line, location.column + column)
            found.append((source, AccessRule(f"{option}={source}", own)))
            column += len(source.text) + 1
        return found

    def refusal(self, reason: RefusalReason, text: str, option: str = "") -> Refusal:
        """Return the Refusal by an option; by default the option that the reason is named after."""
        return Refusal(reason, text, self.rule(option or reason))


def _text(value: object) -> str:
    match value:
        case tuple():
            return ",".join(map(str, value))
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
    return str(value)
