"""Parser of a services file and the files that it includes. The manual page describes the grammar.

A mistake does not stop the parser: it finds the problems of all files in one pass.
"""

from __future__ import annotations

import glob
import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svcd.config.lexer import Word, decode, split
from svcd.config.option_info import HANDLERS
from svcd.config.port_names import PortNames
from svcd.config.service import Config, Service
from svcd.config.statement import StatementParser, nearest
from svcd.config.word_order import sort_words
from svcd.model import ConfigProblem, Severity, SourceLocation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from svcd.config.builtin_info import BuiltinInfo
    from svcd.interfaces import FileReader

__all__ = ["parse", "parse_text"]

#: The deepest nesting of includes, and the largest number of files in all.
_MAX_DEPTH = 16
_MAX_FILES = 2000
_DIRECTIVES = ("@defaults", "@include")
#: The names that patterns of @include skip: hidden files, documentation, and backup files of editors, patch(1), dpkg,
#: ucf and rpm.
_LEFTOVER = re.compile(
    r"\..*|README.*|#.*#|.*~|.*\.(?:bak|new|old|orig|rej|rpmnew|rpmorig|rpmsave|swp|tmp|(?:dpkg|ucf)-[^.]*)", re.DOTALL
)


def parse(path: str, files: FileReader, builtins: Mapping[str, BuiltinInfo]) -> tuple[Config, list[ConfigProblem]]:
    """Parse a services file.

    Args:
        path: the path of the file.
        files: reads and finds files.
        builtins: the facts about the built-ins, by name.

    Returns:
        The services of lines without a mistake, and the problems, by file and line. If there is a mistake, the Config
        may be used for further checks only.
    """
    parser = _Parser(files, builtins)
    parser.parse_file(path, _ParserState(), None)
    parser.warn_if_empty(SourceLocation(path))
    return parser.config, parser.problems


def parse_text(
    text: str, name: str, files: FileReader, builtins: Mapping[str, BuiltinInfo]
) -> tuple[Config, list[ConfigProblem]]:
    """Parse the text of a services file.

    Args:
        text: the text.
        name: the name of the file in problems.
        files: reads and finds included files.
        builtins: the facts about the built-ins, by name.

    Returns:
        As parse().
    """
    parser = _Parser(files, builtins)
    parser.parse_text(text, name, _ParserState())
    return parser.config, parser.problems


@dataclass(slots=True)
class _ParserState:
    """The state at a point of a file: the defaults, and the files that include it, outermost first."""

    values: dict[str, object] = field(default_factory=dict)
    locations: dict[str, SourceLocation] = field(default_factory=dict)
    open_files: tuple[tuple[str, str], ...] = ()

    def inner(self, identity: str, path: str) -> _ParserState:
        """Return the state at the start of an included file, whose own defaults end with it."""
        return _ParserState(dict(self.values), dict(self.locations), (*self.open_files, (identity, path)))


class _Parser:
    def __init__(self, files: FileReader, builtins: Mapping[str, BuiltinInfo]) -> None:
        self._files = files
        self._files_read = 0
        self.services: list[Service] = []
        self.sources: dict[str, None] = {}
        self.problems: list[ConfigProblem] = []
        self._lines = StatementParser(builtins, self.problems, PortNames(files))

    @property
    def config(self) -> Config:
        """The services of lines without a mistake."""
        return Config(tuple(self.services), tuple(self.sources))

    def _problem(self, location: SourceLocation, text: str) -> None:
        self.problems.append(ConfigProblem(location, text))

    def _warn(self, location: SourceLocation, text: str) -> None:
        self.problems.append(ConfigProblem(location, text, Severity.WARNING))

    def parse_file(self, path: str, state: _ParserState, included_at: SourceLocation | None) -> None:
        location = included_at or SourceLocation(path)
        identity = self._files.identity(path)
        self._files_read += 1
        if len(state.open_files) >= _MAX_DEPTH or self._files_read > _MAX_FILES:
            self._problem(
                location, f"more than {_MAX_DEPTH} nested files, or {_MAX_FILES} in total; include fewer files"
            )
            return
        names = [name for known, name in state.open_files if known == identity]
        if names:
            chain = " -> ".join([name for _, name in state.open_files] + [path])
            self._problem(location, f"includes itself: {chain}; remove one of these lines")
            return
        self.sources[path] = None
        try:
            data = self._files.read(path)
        except OSError as error:
            is_directory = included_at is not None and isinstance(error, IsADirectoryError)
            remedy = f"; to include the files in it, write @include {path.rstrip('/')}/*" if is_directory else ""
            self._problem(location, f"can't read {path}: {error.strerror or error}{remedy}")
            return
        text, problems = decode(data, path)
        self.problems += problems
        if not self.parse_text(text, path, state.inner(identity, path)) and included_at is not None:
            self._warn(included_at, f"{path} has no lines; add a service, or remove the file")

    def warn_if_empty(self, location: SourceLocation) -> None:
        """Warn if no service is enabled, unless there is a mistake."""
        if any(each.severity is Severity.MISTAKE for each in self.problems):
            return
        if not self.services:
            self._warn(location, "no line defines a service; nothing is served")
        elif all(service.options.disable for service in self.services):
            self._warn(location, "every service is disabled; nothing is served")

    def parse_text(self, text: str, name: str, state: _ParserState) -> int:
        """Parse the lines of a text; return the number of lines."""
        lines = list(split(text, name))
        for line in lines:
            if isinstance(line, ConfigProblem):
                self.problems.append(line)
            elif line.broken:
                continue
            elif line.words[0].text.startswith("@"):
                self._directive(line.words, state)
            else:
                service = self._lines.service(line.words, state.values, state.locations)
                if service is not None:
                    self.services.append(service)
        return len(lines)

    def _directive(self, words: Sequence[Word], state: _ParserState) -> None:
        first, *rest = words
        if first.text == "@include":
            self._include(first, rest, state)
        elif first.text == "@defaults":
            self._defaults(rest, state)
        else:
            known = " and ".join(_DIRECTIVES)
            self._problem(first.location, f"unknown directive {first.text!r}{nearest(first.text, _DIRECTIVES)}; "
                          f"the directives are {known}")  # fmt: skip

    def _defaults(self, words: Sequence[Word], state: _ParserState) -> None:
        taken = []
        bare, options = sort_words(words, self.problems)
        for word in bare:
            self._problem(word.location, f"@defaults takes option=value, not {word.text!r}")
        for word in options:
            name = word.text.partition("=")[0]
            if name in HANDLERS:
                self._problem(
                    word.location, f"{name}= selects the handler of one service; set it on its line, not in @defaults"
                )
            elif name == "id":
                self._problem(word.location, "id= names one service; set it on its line, not in @defaults")
            else:
                taken.append(word)
        values, locations = self._lines.options(taken)
        state.values.update(values)
        state.locations.update(locations)

    def _include(self, first: Word, rest: Sequence[Word], state: _ParserState) -> None:
        if len(rest) != 1:
            self._problem(first.location, "@include takes one file name or pattern; quote it if it has blanks")
            return
        word = rest[0]
        folder = posixpath.dirname(word.location.file)
        if not re.search(r"[*?\[]", word.text):
            self.parse_file(posixpath.join(folder, word.text), state, word.location)
            return
        self.sources[f"{_fixed_part(posixpath.join(folder, word.text), len(folder))}/*"] = None
        found = self._files.matches(posixpath.join(glob.escape(folder), word.text))
        paths = [path for path in found if not _LEFTOVER.fullmatch(posixpath.basename(path))]
        paths = [path for path in paths if not self._files.is_directory(path)]
        if not paths:
            skipped = f" except {len(found)} skipped" if found else ""
            self._warn(word.location, f"no file matches {word.text}{skipped}")
        for path in paths:
            self.parse_file(path, state, word.location)


def _fixed_part(pattern: str, least: int) -> str:
    """Return the directory of a pattern above its first wildcard; the first `least` characters are no pattern."""
    folder = posixpath.dirname(pattern)
    while len(folder) > least and re.search(r"[*?\[]", folder[least:]):
        folder = posixpath.dirname(folder)
    return folder
