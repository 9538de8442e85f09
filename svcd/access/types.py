"""The terms on which clients are taken in, as values: what the options of the services file say of them.

They are read from the file's words by config and applied by policy. Addresses are numbers here, IPv4 and IPv6 on one
line, so that a rule is a range and a comparison of two addresses one of two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NO_RATE", "PrefixLengths", "Rate", "SourcePattern", "TimeRange"]


@dataclass(frozen=True, slots=True)
class SourcePattern:
    """One entry of only_from or no_access: a range of addresses, or a name.

    Attributes:
        text: as the file has it.
        first, last: the numbers of its addresses, both included; meaningless for a name.
        name: in small letters: `host.example.com`, or `.example.com` for all hosts below; empty for addresses.
    """

    text: str
    first: int = 0
    last: int = -1
    name: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A span of the day, in minutes since midnight on the wall clock: from `start` to before `end`.

    `end` is at most 1440 and never `start`; where it is less the span goes across midnight.
    """

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start // 60}:{self.start % 60:02}-{self.end // 60}:{self.end % 60:02}"


_UNITS = {1: "s", 60: "m", 3600: "h"}


@dataclass(frozen=True, slots=True)
class OutputRate:
    """How much may be written for the log: so many lines, and so many bytes of them, a second."""

    lines: int
    size: int


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds: 1, 60 or 3600."""

    count: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.count}/{_UNITS[self.seconds]}" if self.count else "none"


#: As many as come, for an option that says so: with None it says nothing.
NO_RATE = Rate(0, 1)


@dataclass(frozen=True, slots=True)
class PrefixLengths:
    """How many leading bits of an address make a source, for IPv4 (1 to 32) and for IPv6 (1 to 128)."""

    v4: int = 32
    v6: int = 64

    def __str__(self) -> str:
        return f"/{self.v4},/{self.v6}"
