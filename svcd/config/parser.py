"""A services file and the files it includes, parsed into services and Problems. The grammar is the manual's.

Mistakes never stop the parsing: every Problem of every file is found in one go.
"""

from __future__ import annotations

import difflib
import glob
import posixpath
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from svcd.config.lexer import Word, decode, split
from svcd.config.options import TABLE, Options
from svcd.config.service import HIGHEST_PORT, Config, Service
from svcd.model import Net, Place, Problem, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from svcd.interfaces import Files

__all__ = ["parse", "parse_text"]

#: The longest path of a UNIX socket in bytes: sun_path less its NUL (unix(7)).
_LONGEST_PATH = 107
#: How deep files may include one another, and how many may be read in all.
_DEEPEST = 16
_MOST_FILES = 2000
_DIRECTIVES = ("@defaults", "@include")
_ACCEPTED_NETS = ", ".join(Net)


def parse(path: str, files: Files, builtins: Mapping[str, frozenset[Shape]]) -> tuple[Config, list[Problem]]:
    """Parse a services file.

    Args:
        path: the file.
        files: how files are read and found.
        builtins: what can run, and in which shapes.

    Returns:
        The services that could be understood, and the Problems, by file and line. With any Problem the Config is of
        use for further checks only.
    """
    parser = _Parser(files, builtins)
    parser.file(path, _Setting(), None)
    return Config(tuple(parser.services)), parser.problems


def parse_text(
    text: str, name: str, files: Files, builtins: Mapping[str, frozenset[Shape]]
) -> tuple[Config, list[Problem]]:
    """The same for a text that stands in no file; `name` is what its Problems call it."""
    parser = _Parser(files, builtins)
    parser.text(text, name, _Setting())
    return Config(tuple(parser.services)), parser.problems


@dataclass(slots=True)
class _Setting:
    """What holds at a point of a file: the defaults, and the files that are being read around it."""

    values: dict[str, object] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    open_files: tuple[tuple[str, str], ...] = ()

    def inner(self, identity: str, path: str) -> _Setting:
        """For an included file: its own defaults end with it."""
        return _Setting(dict(self.values), dict(self.places), (*self.open_files, (identity, path)))


class _Parser:
    def __init__(self, files: Files, builtins: Mapping[str, frozenset[Shape]]) -> None:
        self._files = files
        self._builtins = builtins
        self._files_read = 0
        self.services: list[Service] = []
        self.problems: list[Problem] = []

    def _problem(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))

    def file(self, path: str, setting: _Setting, included_at: Place | None) -> None:
        place = included_at or Place(path)
        identity = self._files.identity(path)
        self._files_read += 1
        if len(setting.open_files) >= _DEEPEST or self._files_read > _MOST_FILES:
            self._problem(
                place, f"more than {_DEEPEST} files inside one another, or {_MOST_FILES} in all; include less"
            )
            return
        names = [name for known, name in setting.open_files if known == identity]
        if names:
            chain = " -> ".join([name for _, name in setting.open_files] + [path])
            self._problem(place, f"includes itself: {chain}; remove one of these lines")
            return
        try:
            data = self._files.read(path)
        except OSError as error:
            self._problem(place, f"can't read {path}: {error.strerror or error}")
            return
        text, problems = decode(data, path)
        self.problems += problems
        self.text(text, path, setting.inner(identity, path))

    def text(self, text: str, name: str, setting: _Setting) -> None:
        for line in split(text, name):
            if isinstance(line, Problem):
                self.problems.append(line)
            elif line.broken:
                continue
            elif line.words[0].text.startswith("@"):
                self._directive(line.words, setting)
            else:
                self._service(line.words, setting)

    def _directive(self, words: Sequence[Word], setting: _Setting) -> None:
        first, *rest = words
        if first.text == "@include":
            self._include(first, rest, setting)
        elif first.text == "@defaults":
            for word in rest:
                if "=" not in word.text:
                    self._problem(word.place, f"@defaults takes option=value, not {word.text!r}")
            values, places = self._options([word for word in rest if "=" in word.text])
            setting.values.update(values)
            setting.places.update(places)
        else:
            known = " and ".join(_DIRECTIVES)
            self._problem(first.place, f"unknown directive {first.text!r}{_nearest(first.text, _DIRECTIVES)}: "
                          f"there are {known}")  # fmt: skip

    def _include(self, first: Word, rest: Sequence[Word], setting: _Setting) -> None:
        if len(rest) != 1:
            self._problem(first.place, "@include takes one file name or pattern; quote it if it has blanks")
            return
        word = rest[0]
        folder = posixpath.dirname(word.place.file)
        if not re.search(r"[*?\[]", word.text):
            self.file(posixpath.join(folder, word.text), setting, word.place)
            return
        for path in self._files.matches(posixpath.join(glob.escape(folder), word.text)):
            name = posixpath.basename(path)
            if not (name.startswith(".") or name.endswith(("~", ".bak")) or self._files.is_directory(path)):
                self.file(path, setting, word.place)

    def _options(self, words: Sequence[Word]) -> tuple[dict[str, object], dict[str, Place]]:
        values: dict[str, object] = {}
        places: dict[str, Place] = {}
        for word in words:
            name, _, value = word.text.partition("=")
            info = TABLE.get(name)
            if info is None:
                self._problem(word.place, f"unknown option {name!r}{_nearest(name, TABLE)}")
                continue
            place = word.after(len(name) + 1)
            if name in places:
                self._problem(word.place, f"{name} stands twice; the first is at {places[name]}; remove one")
                continue
            places[name] = place
            try:
                values[name] = info.kind.read(value)
            except ValueError:
                self._problem(place, f"{name} takes {info.kind.accepts}, not {value!r}")
        return values, places

    def _service(self, words: Sequence[Word], setting: _Setting) -> None:
        before = len(self.problems)
        place = words[0].place
        if len(words) < 2:
            self._problem(place, f"{words[0].text!r} has no port; write it as: {words[0].text} port/protocol")
            return
        name = self._name(words[0])
        net, port, path = self._where(words[1])
        aliases = [word for word in words[2:] if "=" not in word.text]
        for alias in aliases:
            self._alias(alias)
        own, own_places = self._options([word for word in words[2:] if "=" in word.text])
        values = {**setting.values, **own}
        if net is None or len(self.problems) > before:
            return
        alias_names = tuple(alias.text for alias in aliases)
        runs = self._runs(place, net, (name, *alias_names), required=not values.get("disable"))
        if runs is None:
            return
        for option, option_place in own_places.items():
            if not TABLE[option].applies_to(net, runs):
                self._problem(
                    option_place,
                    f"{option} is for {TABLE[option].scope_text}, not for {runs or name} over {net}",
                )
        applying = {option for option in values if TABLE[option].applies_to(net, runs)}
        self.services.append(
            Service(
                name=name,
                net=net,
                port=port,
                path=path,
                aliases=alias_names,
                runs=runs,
                options=replace(Options(), **{option: values[option] for option in applying}),  # type: ignore[arg-type]
                place=place,
                places={**{option: where for option, where in setting.places.items() if option in applying},
                        **own_places},
            )
        )  # fmt: skip

    def _name(self, word: Word) -> str:
        if not word.text or "/" in word.text or "=" in word.text:
            self._problem(word.place, f"{word.text!r} is no service name: it must not be empty nor hold / or =")
        return word.text

    def _alias(self, word: Word) -> None:
        if not word.text:
            self._problem(word.place, "an empty word; remove the quotes")
        elif re.fullmatch("[0-9]+/[a-z0-9]+", word.text):
            self._problem(
                word.place,
                f"{word.text!r} among the aliases; a line that begins with white space continues the one before: "
                "remove the white space if this is a service of its own",
            )

    def _where(self, word: Word) -> tuple[Net | None, int, str]:
        """Field 2: the protocol (None after a Problem), the port, the path."""
        where, slash, protocol = word.text.rpartition("/")
        if not slash:
            self._problem(word.place, f"{word.text!r} is not port/protocol, as in 7/tcp or /run/echo.sock/unix")
            return None, 0, ""
        if protocol in ("sctp", "dccp"):
            self._problem(word.after(len(where) + 1), f"{protocol} is not supported; remove or comment out the line")
            return None, 0, ""
        try:
            net = Net(protocol)
        except ValueError:
            text = f"unknown protocol {protocol!r}{_nearest(protocol, tuple(Net))}: there are {_ACCEPTED_NETS}"
            self._problem(word.after(len(where) + 1), text)
            return None, 0, ""
        if net.local:
            if not where.startswith("/") or where.endswith("/"):
                self._problem(word.place, f"a {net} service takes the absolute path of its socket, not {where!r}")
            elif len(where.encode()) > _LONGEST_PATH:
                self._problem(word.place, f"the path is longer than the {_LONGEST_PATH} bytes a UNIX socket can have")
            else:
                return net, 0, where
        elif not re.fullmatch("[0-9]{1,5}", where) or int(where) > HIGHEST_PORT:
            self._problem(word.place, f"port {where!r} is no number from 0 to {HIGHEST_PORT}")
        else:
            return net, int(where), ""
        return None, 0, ""

    def _runs(self, place: Place, net: Net, names: tuple[str, ...], *, required: bool) -> str | None:
        """The built-in that a line runs; "" for none on a disabled line, None after a Problem."""
        found = next((name for name in names if name in self._builtins), "")
        if not found and required:
            fitting = sorted(name for name, shapes in self._builtins.items() if net.shape in shapes)
            self._problem(
                place,
                f"nothing serves {names[0]!r}{_nearest(names[0], fitting)}: add the name of a built-in as an alias "
                f"({', '.join(fitting)}), or disable=yes",
            )
            return None
        if found and required and net.shape not in self._builtins[found]:
            other = "stream" if net.shape is Shape.DATAGRAM else "datagram"
            nets = ", ".join(each for each in Net if each.shape.value == other)
            self._problem(place, f"{found} is not served over {net}, only over {nets}; change it or add disable=yes")
            return None
        return found


def _nearest(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    match = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {str(match[0])!r}?)" if match else ""
