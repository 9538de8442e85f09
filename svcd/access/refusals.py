"""What the policy answers with, when it does not let somebody in: why, by which rule, and where that stands."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svcd.model import SourceLocation

__all__ = ["AccessRule", "Refusal", "RefusalReason"]


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
