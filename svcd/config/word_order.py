"""The words of a line after its port: aliases first, then options. Any other order is a problem with a remedy.

A word without `=` after an option is most likely the rest of a value with a blank in it, not an alias. To accept it
silently would change the meaning of the line.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from svcd.config.options import TABLE
from svcd.config.xinetd_words import option_remedy
from svcd.model import ConfigProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svcd.config.lexer import Word

__all__ = ["CONTINUED", "sort_words"]

#: The remedy for a line that begins with white space, and so continues the line before.
CONTINUED = (
    "a line that begins with white space continues the previous line; remove the white space if this is a separate "
    "service"
)

#: An equals sign at the beginning of a word, or an operator of xinetd.conf(5).
_EQUALS = re.compile("([+-]?=)(.*)", re.DOTALL)
#: A unit that a blank may have separated from its number.
_UNIT = re.compile("[smhdKMG]")
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)


def sort_words(words: Sequence[Word], problems: list[ConfigProblem]) -> tuple[list[Word], list[Word]]:
    """Sort the words of a line into aliases and options.

    Args:
        words: the words of a line after its port.
        problems: gets a problem for each word that is neither.

    Returns:
        The aliases, which stand before the first option, and the options.
    """
    aliases: list[Word] = []
    options: list[Word] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if rest and "=" not in word.text and _EQUALS.match(rest[0].text):
            problems.append(_spaced_equals_problem(word, rest))
        elif "=" not in word.text:
            # It stands before the first option: the words after an option are taken together with it, below.
            aliases.append(word)
        else:
            name, _, value = word.text.partition("=")
            more = _take_value_words(name, rest)
            if more:
                problems.append(_trailing_problem(name, value, more))
            else:
                options.append(word)
    return aliases, options


def _take_value_words(name: str, rest: list[Word]) -> list[Word]:
    """Remove the leading words of `rest` that belong to the value of an option; return them."""
    found: list[Word] = []
    while rest and _continues_value(name, rest[0]) and not (len(rest) > 1 and _EQUALS.match(rest[1].text)):
        found.append(rest.pop(0))
    return found


def _continues_value(name: str, word: Word) -> bool:
    """Return whether a word can only be a part of the value of the option before it."""
    option = word.text.partition("=")[0]
    if "=" not in word.text:
        return True
    return option not in TABLE and (
        option.startswith("-") or (name == "env" and _VARIABLE.fullmatch(word.text) is not None)
    )


def _spaced_equals_problem(word: Word, rest: list[Word]) -> ConfigProblem:
    """Return the problem of `name = value`; remove its words from `rest`."""
    match = _EQUALS.fullmatch(rest.pop(0).text)
    assert match is not None  # noqa: S101 - the caller has matched it
    parts = [match[2]] if match[2] else []
    parts += [each.text for each in _take_value_words(word.text, rest)]
    remedy = option_remedy(word.text, " ".join(parts))
    if remedy:
        return ConfigProblem(word.location, f"no option {word.text!r}: {remedy}")
    if match[1] != "=":
        return ConfigProblem(word.location, f"{word.text} {match[1]}: write all its values in one {word.text}=")
    joined = _joined(word.text, parts) or f"{word.text}=VALUE"
    return ConfigProblem(word.location, f"blanks around = in {word.text} =; write {joined}")


def _trailing_problem(name: str, value: str, more: Sequence[Word]) -> ConfigProblem:
    """Return the problem of words that follow an option."""
    line = next((each for each in more if re.fullmatch("[0-9]+/[a-z0-9]+", each.text)), None)
    if line is not None:
        return ConfigProblem(line.location, f"{line.text!r} among the options; {CONTINUED}")
    if not all(each.text for each in more):
        return ConfigProblem(more[0].location, "an empty word; remove the quotes")
    shown = " ".join(each.text for each in more)
    remedy = option_remedy(name, f"{value} {shown}".strip())
    if remedy and name not in TABLE:
        return ConfigProblem(more[0].location, f"{shown!r} follows {name}=, and there is no option {name!r}: {remedy}")
    parts = [value, *(each.text for each in more)] if value else [each.text for each in more]
    joined = _joined(name, parts)
    if joined:
        remedy = f"write {joined}" if not value else f"if it belongs to that value, write {joined}"
    else:
        remedy = "quote a value with blanks, or separate its parts with commas"
    return ConfigProblem(more[0].location, f"{shown!r} follows {name}=: {remedy}; aliases come before the options")


def _joined(name: str, parts: Sequence[str]) -> str:
    """Return an option with its value put together from parts; empty if there is no valid way to do that."""
    info = TABLE.get(name)
    if info is None or not parts:
        return ""
    ways = []
    if "comma-separated" in info.value_type.accepts:
        ways.append(",".join(part.strip(",") for part in parts))
    ways.append(" ".join(parts))
    if len(parts) == 2 and _UNIT.fullmatch(parts[1]):
        ways.append("".join(parts))
    if name == "redirect":
        ways.append(":".join(parts))
    for way in ways:
        try:
            info.value_type.read(way)
        except ValueError:
            continue
        return f"{name}={shlex.quote(way)}" if way else f"{name}="
    return ""
