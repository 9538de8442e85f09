"""The content of an argparse parser as values, from which completion and the manual page are made."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ParserArgument", "ParserCommand", "commands_of"]

#: The labels of arguments whose values are names of files, or of directories.
_FILES = frozenset({"FILE", "PATH", "file"})
_FOLDERS = frozenset({"DIR"})
#: The labels of arguments whose values svcctl itself lists: the names of services, and of options and built-ins.
_LISTED = {"SERVICE": "services", "OPTION": "options"}


@dataclass(frozen=True, slots=True)
class ParserArgument:
    """An option or a positional argument.

    Attributes:
        names: the names of the option; none for a positional argument.
        help: its help line.
        label: the label of its value; empty if it takes none.
        kind: the kind of its value: words, files, folders, services, options or text.
        words: the permitted values, if they are limited.
        arity: the nargs of a positional argument: ?, * or +; empty if it is required.
    """

    names: tuple[str, ...]
    help: str
    label: str
    kind: str
    words: tuple[str, ...]
    arity: str


@dataclass(frozen=True, slots=True)
class ParserCommand:
    """The program itself, with an empty name, or one of its commands.

    Attributes:
        name: its name.
        help: its help line.
        description: its description; it may be empty.
        arguments: its options and arguments.
    """

    name: str
    help: str
    description: str
    arguments: tuple[ParserArgument, ...]

    @property
    def options(self) -> Iterator[ParserArgument]:
        """Its options."""
        return (each for each in self.arguments if each.names)

    @property
    def others(self) -> Iterator[ParserArgument]:
        """Its positional arguments."""
        return (each for each in self.arguments if not each.names)


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    # argparse has no public access to the actions of a parser; this attribute is as old as argparse.
    return parser._actions  # noqa: SLF001


def commands_of(parser: argparse.ArgumentParser) -> list[ParserCommand]:
    """Return the program, then its commands."""
    found = [ParserCommand("", "", parser.description or "", _arguments(parser))]
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}  # noqa: SLF001 - as above
            for name, each in action.choices.items():
                found.append(ParserCommand(name, helps.get(name, ""), each.description or "", _arguments(each)))
    return found


def _kind_of(label: str) -> str:
    if label in _FILES:
        return "files"
    return "folders" if label in _FOLDERS else _LISTED.get(label, "text")


def _arguments(parser: argparse.ArgumentParser) -> tuple[ParserArgument, ...]:
    found = []
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:  # noqa: SLF001 - as above
            continue
        takes = action.nargs != 0
        label = str(action.metavar or action.dest) if takes else ""
        words = tuple(map(str, action.choices)) if action.choices is not None else ()
        kind = "words" if words else _kind_of(label)
        text = (action.help or "").replace("%%", "%")
        arity = action.nargs if isinstance(action.nargs, str) else ""
        found.append(ParserArgument(tuple(action.option_strings), text, label, kind, words, arity))
    return tuple(found)
