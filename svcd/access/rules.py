"""The rules of one service, as its options give them. The names are those of the options."""

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
    """Why somebody is refused, as logs, status and metrics say it."""

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
    #: The service itself wants no connection.
    SERVICE = "service"
    #: A proxy has not said, or not well, whose connection it is.
    PROXY = "proxy"
    #: Of datagrams alone: the question comes from a port that asks no questions.
    PORT = "port"


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One rule that decides.

    Attributes:
        text: as the services file has it: `no_access=10.0.0.0/8`, of a list the one entry that counts.
        place: where it stands; None for a default.
    """

    text: str
    place: SourceLocation | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.place})" if self.place else f"{self.text} (the default)"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody is not let in.

    Attributes:
        reason: in a word.
        text: in a sentence's worth of words.
        rule: what decided; None where it is no rule of the file's.
    """

    reason: RefusalReason
    text: str
    rule: AccessRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """What a service asks of those who come; without anything, nothing.

    Attributes:
        only_from: who may come in; empty for nobody, None for everybody.
        no_access: who may not.
        proxy_protocol: who brings others, and says of each connection who that is.
        access_times: the spans of the day in which somebody may; empty for all day.
        zone: whose wall clock that is; None for the machine's.
        max_load: from this load average on nobody is taken in.
        instances: the most connections at once.
        per_source: the most of one source.
        per_source_prefix: what one source is.
        rate: how many may come, all sources together.
        per_source_rate: how many of one source.
        rate_burst: how many of them at once; None for the rate's own count.
        amplify: of datagrams: whether an answer may be larger than its question.
        answer_service_ports: of datagrams: whether a service's port is answered.
        resolved: of datagrams: the addresses of the host names in only_from and no_access, as far as they are known, by
            their numbers; None where names are those of the clients.
        places: where the options stand in the file, by name.
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
    places: Mapping[str, SourceLocation] = field(default_factory=dict, compare=False)

    @property
    def has_address_lists(self) -> bool:
        """Whether it matters who comes."""
        return self.only_from is not None or bool(self.no_access)

    @property
    def host_names(self) -> frozenset[str]:
        """The host names in only_from and no_access, without the domains."""
        sources = (*(self.only_from or ()), *self.no_access)
        return frozenset(source.name for source in sources if source.name and not source.name.startswith("."))

    def rule(self, option: str) -> AccessRule:
        """The rule that an option with a single value makes."""
        return AccessRule(f"{option}={_text(getattr(self, option))}", self.places.get(option))

    def entries(self, option: str) -> list[tuple[SourcePattern, AccessRule]]:
        """The rules that an option with a list of sources makes: one for each entry, at its own place."""
        found, column = [], 0
        place = self.places.get(option)
        for source in getattr(self, option) or ():
            own = place and SourceLocation(place.file, place.line, place.column + column)
            found.append((source, AccessRule(f"{option}={source}", own)))
            column += len(source.text) + 1
        return found

    def refusal(self, reason: RefusalReason, text: str, option: str = "") -> Refusal:
        """The Refusal for an option; by default for the option that the reason is named after."""
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
