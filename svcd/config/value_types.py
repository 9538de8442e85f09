"""Types of option values: each is read from a word, and written back as a word.

`read` raises a ValueError without a text if the word is not of the type; `accepts` describes valid words, in problems,
the manual page and the reference. `write` returns a word that reads back as the same value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Generic, TypeVar

from svcd.model import FileOwner

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "COUNT",
    "DURATION",
    "ID",
    "MODE",
    "NAMES",
    "OWNER",
    "PATH",
    "TEXT",
    "TIMEOUT",
    "UNLIMITED",
    "WORD",
    "WORDS",
    "YES_NO",
    "ValueType",
    "choice",
    "choices",
    "or_none",
    "require",
]

T = TypeVar("T")

#: The value of the limit `none`, equal to resource.RLIM_INFINITY.
UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class ValueType(Generic[T]):
    """A type of values.

    Attributes:
        name: the name of the type.
        accepts: the description of valid words.
        read: returns the value of a word; raises ValueError.
        write: returns the word for a value.
        takes_none: whether None is a value, written `none`.
    """

    name: str
    accepts: str
    read: Callable[[str], T]
    write: Callable[[T], str]
    takes_none: bool = False


def require(condition: object) -> None:
    """Check a condition.

    Raises:
        ValueError: the condition is false.
    """
    if not condition:
        raise ValueError


def or_none(kind: ValueType[T]) -> ValueType[T | None]:
    """Return the type that takes the values of another one, and None, written `none`."""
    return ValueType(
        f"{kind.name} or none",
        f"{kind.accepts}; or none",
        lambda word: None if word == "none" else kind.read(word),
        lambda value: "none" if value is None else kind.write(value),
        takes_none=True,
    )


def _read_yes_no(word: str) -> bool:
    require(word in ("yes", "no"))
    return word == "yes"


YES_NO: ValueType[bool] = ValueType("yes/no", "yes or no", _read_yes_no, lambda value: "yes" if value else "no")


def _read_count(word: str) -> int:
    require(re.fullmatch("[0-9]{1,7}", word) and int(word) > 0)
    return int(word)


COUNT: ValueType[int] = ValueType("count", "a whole number from 1 to 9999999", _read_count, str)


def _read_mode(word: str) -> int:
    require(re.fullmatch("0?[0-7]{3}", word))
    return int(word, 8)


MODE: ValueType[int] = ValueType("mode", "three octal digits, as in 0660", _read_mode, lambda value: f"0{value:03o}")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _read_duration(word: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,20})?)([smh]?)", word)
    require(match)
    assert match is not None  # noqa: S101 - for the type checker
    # Rounded to microseconds and below 1e9 seconds, so that every value is written in the same way as it is read.
    seconds = round(float(match[1]) * _UNITS[match[2]], 6)
    require(seconds < 1e9)
    return seconds


DURATION: ValueType[float] = ValueType(
    "duration",
    "a time in seconds, or with a unit: 10s, 1.5m, 2h",
    _read_duration,
    lambda value: f"{Decimal(repr(value)):f}s".replace(".0s", "s"),
)


def _read_timeout(word: str) -> float:
    # 0 is refused: in other programs it means no limit, which is `none` here.
    seconds = _read_duration(word)
    require(seconds)
    return seconds


TIMEOUT: ValueType[float] = ValueType("timeout", f"{DURATION.accepts}, above 0", _read_timeout, DURATION.write)


def _read_path(word: str) -> str:
    require(word.startswith("/"))
    return word


PATH: ValueType[str] = ValueType("path", "an absolute path", _read_path, str)


def _read_word(word: str) -> str:
    require(word and not re.search(r"\s", word))
    return word


WORD: ValueType[str] = ValueType("word", "a word without blanks", _read_word, str)
TEXT: ValueType[str] = ValueType("text", "any text", str, str)


def _read_id(word: str) -> str:
    require("/" not in word and "=" not in word)
    return _read_word(word)


ID: ValueType[str] = ValueType("id", "a word without blanks, / and =", _read_id, str)


def _read_owner(word: str) -> FileOwner:
    user, colon, group = _read_word(word).partition(":")
    # A colon without a group is refused: it means the user's login group to chown(1).
    require(":" not in group and (group or not colon))
    return FileOwner(user, group)


OWNER: ValueType[FileOwner] = ValueType(
    "owner",
    "USER, USER:GROUP or :GROUP",
    _read_owner,
    lambda owner: f"{owner.user}:{owner.group}" if owner.group else owner.user,
)


def _read_words(word: str) -> tuple[str, ...]:
    words = tuple(word.split(","))
    for each in words:
        _read_word(each)
    return words


WORDS: ValueType[tuple[str, ...]] = ValueType("words", "a comma-separated list of words", _read_words, ",".join)


def _read_names(word: str) -> tuple[str, ...]:
    names = _read_words(word)
    for name in names:
        require("/" not in name and name not in (".", ".."))
    return names


NAMES: ValueType[tuple[str, ...]] = ValueType("names", "a comma-separated list of file names", _read_names, ",".join)


def choice(*accepted: str) -> ValueType[str]:
    """Return the type of a value that is one of a few words."""

    def read(word: str) -> str:
        require(word in accepted)
        return word

    return ValueType("choice", " or ".join(accepted), read, str)


def choices(*accepted: str) -> ValueType[tuple[str, ...]]:
    """Return the type of a list of words out of a few, or `none`; the value has the order of the arguments."""

    def read(word: str) -> tuple[str, ...]:
        if word == "none":
            return ()
        words = word.split(",")
        require(all(each in accepted for each in words))
        return tuple(each for each in accepted if each in words)

    return ValueType(
        "choices",
        f"a comma-separated list of {', '.join(accepted)}; or none",
        read,
        lambda value: ",".join(value) or "none",
    )
