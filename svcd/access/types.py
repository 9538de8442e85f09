"""Value types of access options.

The config package parses them, the access package applies them. Addresses are numbers, IPv4 and IPv6 in one range, so
that a rule is a range and a comparison of two addresses is one of two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NO_RATE", "PrefixLengths", "Rate", "SourcePattern", "TimeRange"]


@dataclass(frozen=True, slots=True)
class SourcePattern:
    """One entry of only_from or no_access: a range of addresses, or a name.

    Attributes:
        text: as in the file.
        first, last: the first and the last address as numbers; meaningless for a name.
        name: in lower case: `host.example.com`, or `.example.com` for all hosts below; empty for addresses.
    """

    text: str
    first: int = 0
    last: int = -1
    name: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A range of the day, in minutes since midnight in local time: from `start` to before `end`.

    `end` is at most 1440 and never equals `start`; if it is less, the range spans midnight.
    """

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start // 60}:{self.start % 60:02}-{self.end // 60}:{self.end % 60:02}"


_UNITS = {1: "s", 60: "m", 3600: "h"}


@dataclass(frozen=True, slots=True)
class OutputRate:
    """Limit on handler output in the log: lines and bytes per second."""

    lines: int
    size: int


@dataclass(frozen=True, slots=True)
class Rate:
    """A count per 1, 60 or 3600 seconds; a count of 0 is unlimited."""

    count: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.count}/{_UNITS[self.seconds]}" if self.count else "none"


#: An explicit "none" in the file; None stands for a missing option.
NO_RATE = Rate(0, 1)


@dataclass(frozen=True, slots=True)
class PrefixLengths:
    """How many leading bits of an address make a source, for IPv4 (1 to 32) and for IPv6 (1 to 128)."""

    v4: int = 32
    v6: int = 64

    def __str__(self) -> str:
        return f"/{self.v4},/{self.v6}"
