"""What a parser knows, as values: for what is made of it, so that nothing is written twice."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ParserArgument", "ParserCommand", "commands_of"]

#: What arguments are called whose values are names of files, or of directories.
_FILES = frozenset({"FILE", "PATH", "file"})
_FOLDERS = frozenset({"DIR"})


@dataclass(frozen=True, slots=True)
class ParserArgument:
    """An option, or an argument without a name.

    Attributes:
        names: of the option; none for an argument.
        help: a line about it.
        label: what its value is called; empty where it takes none.
        kind: of the value: words, files, folders or text.
        words: if these are all there are.
        arity: of an argument without a name, as argparse has it: ?, * or +; empty for one that must be there.
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
        name: the word that it is called by.
        help: a line about it.
        description: more about it, or nothing.
        arguments: what it takes.
    """

    name: str
    help: str
    description: str
    arguments: tuple[ParserArgument, ...]

    @property
    def options(self) -> Iterator[ParserArgument]:
        """Those with names."""
        return (each for each in self.arguments if each.names)

    @property
    def others(self) -> Iterator[ParserArgument]:
        """Those without."""
        return (each for each in self.arguments if not each.names)


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    # argparse has no public way to look at a parser; this one has been there since it exists.
    return parser._actions  # noqa: SLF001


def commands_of(parser: argparse.ArgumentParser) -> list[ParserCommand]:
    """The program, then its commands."""
    found = [ParserCommand("", "", parser.description or "", _arguments(parser))]
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}  # noqa: SLF001 - as above
            for name, each in action.choices.items():
                found.append(ParserCommand(name, helps.get(name, ""), each.description or "", _arguments(each)))
    return found


def _arguments(parser: argparse.ArgumentParser) -> tuple[ParserArgument, ...]:
    found = []
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:  # noqa: SLF001 - as above
            continue
        takes = action.nargs != 0
        label = str(action.metavar or action.dest) if takes else ""
        words = tuple(map(str, action.choices)) if action.choices is not None else ()
        kind = "words" if words else "files" if label in _FILES else "folders" if label in _FOLDERS else "text"
        text = (action.help or "").replace("%%", "%")
        arity = action.nargs if isinstance(action.nargs, str) else ""
        found.append(ParserArgument(tuple(action.option_strings), text, label, kind, words, arity))
    return tuple(found)
