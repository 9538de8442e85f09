"""Parser of one line of a services file: words become a Service, or problems."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from svcd.config.builtin_info import NO_BUILTIN
from svcd.config.checks import AT_ACCEPT
from svcd.config.option_info import CGI, HANDLERS
from svcd.config.options import TABLE, ServiceOptions
from svcd.config.port_names import SERVICES
from svcd.config.service import MAX_PORT, Service
from svcd.config.word_order import CONTINUED, sort_words
from svcd.config.xinetd_words import block_remedy, option_remedy, protocol_remedy, value_remedy
from svcd.model import ConfigProblem, NetProtocol, Severity, SocketType, SourceLocation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from svcd.config.builtin_info import BuiltinInfo
    from svcd.config.lexer import Word
    from svcd.config.port_names import PortNames

__all__ = ["StatementParser", "nearest", "nearest_word"]

#: The longest path of a UNIX socket in bytes: sun_path less its NUL (unix(7)).
_MAX_PATH = 107
#: A name of a port (RFC 6335, 5.1, and the older ones of services(5)), which has a letter.
_PORT_NAME = re.compile("(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9+_.*-]*")
_ACCEPTED_NETS = ", ".join(NetProtocol)
_HANDLER_WORDS = f"{', '.join(f'{handler}=' for handler in HANDLERS[:-1])} or {HANDLERS[-1]}="


def nearest(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """Return a hint at the known word that is most like an unknown one; empty if none is like it."""
    best = nearest_word(word, known)
    return f" (did you mean {best!r}?)" if best else ""


def nearest_word(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like an unknown one; empty if none is like it."""
    matches = difflib.get_close_matches(word, list(known), 3)
    # Two letters in the wrong order are more likely than a missing one.
    same_letters = (each for each in matches if sorted(each) == sorted(word))
    return str(next(same_letters, matches[0] if matches else ""))


def _unknown(name: str, value: str) -> str:
    """Return the problem of an option that is not in the table, with a remedy."""
    remedy = option_remedy(name, value)
    if remedy:
        return f"no option {name!r}: {remedy}"
    if name[-1:] in ("+", "-") and name[:-1] in TABLE:
        return f"{name}=: write all its values in one {name[:-1]}="
    return f"unknown option {name!r}{nearest(name, TABLE)}"


def _with_commas(name: str, value: str) -> str:
    """Return the remedy for a list whose values are separated by blanks, as in xinetd.conf(5); empty for others."""
    parts = value.replace(",", " ").split()
    if len(parts) < 2:
        return ""
    try:
        TABLE[name].value_type.read(",".join(parts))
    except ValueError:
        return ""
    return f"separate the values by commas: {name}={','.join(parts)}"


class StatementParser:
    """Parses the words of lines.

    Args:
        builtins: the facts about the built-ins, by name.
        problems: gets the problems.
        ports: the names of ports.
    """

    def __init__(self, builtins: Mapping[str, BuiltinInfo], problems: list[ConfigProblem], ports: PortNames) -> None:
        self._builtins = builtins
        self._problems = problems
        self._ports = ports

    def _problem(self, location: SourceLocation, text: str) -> None:
        self._problems.append(ConfigProblem(location, text))

    def options(self, words: Sequence[Word]) -> tuple[dict[str, object], dict[str, SourceLocation]]:
        """Return the values of options and the locations of these, by name; add a problem for each mistake."""
        values: dict[str, object] = {}
        locations: dict[str, SourceLocation] = {}
        for word in words:
            name, _, value = word.text.partition("=")
            info = TABLE.get(name)
            if info is None:
                self._problem(word.location, _unknown(name, value))
                continue
            location = word.after(len(name) + 1)
            if name in locations:
                self._problem(word.location, f"{name} is set twice; the first is at {locations[name]}; remove one")
                continue
            locations[name] = location
            try:
                values[name] = info.value_type.read(value)
            except ValueError:
                remedy = value_remedy(value) or _with_commas(name, value)
                more = f"; {remedy}" if remedy else ""
                self._problem(location, f"{name} takes {info.value_type.accepts}, not {value!r}{more}")
        return values, locations

    def service(
        self, words: Sequence[Word], defaults: Mapping[str, object], default_locations: Mapping[str, SourceLocation]
    ) -> Service | None:
        """Return the service of a line; None if the line has a mistake.

        Args:
            words: the words of the line.
            defaults: the values of @defaults at the line, by option.
            default_locations: the locations of these values.
        """
        before = len(self._problems)
        location = words[0].location
        remedy = block_remedy(words[0].text, words[1].text if len(words) > 1 else "")
        if remedy:
            self._problem(location, remedy)
            return None
        if len(words) < 2:
            self._problem(location, f"{words[0].text!r} has no port; write it as: {words[0].text} port/protocol")
            return None
        name = self._name(words[0])
        net, port, path = self._where(words[1])
        aliases, options = sort_words(words[2:], self._problems)
        for alias in aliases:
            self._alias(alias)
        own, own_locations = self.options(options)
        values = {**defaults, **own}
        if net is None or len(self._problems) > before:
            return None
        names = (name, *(alias.text for alias in aliases))
        runs = self._runs(location, net, names, values, own_locations)
        if runs is None:
            return None
        cgi = bool(values.get(CGI)) and TABLE[CGI].applies_to(net, runs, self._builtins)
        self._check_scopes(net, runs, own_locations, name, cgi=cgi)
        applying = {option for option in values if TABLE[option].applies_to(net, runs, self._builtins, cgi=cgi)}
        if "wait" in applying and values["wait"] and net.shape is SocketType.STREAM:
            applying -= self._ignored_defaults(f"{name}/{net}", applying - set(own), values, default_locations)
        return Service(
            name=name,
            net=net,
            port=port,
            path=path,
            aliases=names[1:],
            runs=runs,
            options=ServiceOptions(**{option: values[option] for option in applying}),  # type: ignore[arg-type]
            location=location,
            locations={option: default_locations[option] for option in default_locations if option in applying}
            | own_locations,
            builtin=self._builtins.get(runs, NO_BUILTIN),
        )

    def _check_scopes(
        self, net: NetProtocol, runs: str, own_locations: Mapping[str, SourceLocation], name: str, *, cgi: bool
    ) -> None:
        what = f"{runs}=" if runs in HANDLERS else runs or name
        for option, location in own_locations.items():
            if not TABLE[option].applies_to(net, runs, self._builtins, cgi=cgi):
                self._problem(
                    location, f"{option} is for {TABLE[option].scope_text(self._builtins)}, not for {what} over {net}"
                )

    def _ignored_defaults(
        self, service: str, defaults: set[str], values: Mapping[str, object], locations: Mapping[str, SourceLocation]
    ) -> set[str]:
        """Return the defaults that can't take effect because the process accepts connections itself (wait=yes).

        A warning is added for each of them, unless the service is disabled.
        """
        ignored = {option for option in AT_ACCEPT if option in defaults and values[option] != TABLE[option].default}
        for option in sorted(ignored) if not values.get("disable") else ():
            text = f"{option}: ignored for {service}, whose process accepts the connections itself (wait=yes)"
            self._problems.append(ConfigProblem(locations[option], text, Severity.WARNING))
        return ignored

    def _name(self, word: Word) -> str:
        if not word.text or "/" in word.text or "=" in word.text:
            self._problem(
                word.location, f"{word.text!r} is not a service name; a name is not empty and contains no / or ="
            )
        return word.text

    def _alias(self, word: Word) -> None:
        if not word.text:
            self._problem(word.location, "an empty word; remove the quotes")
        elif re.fullmatch("[0-9]+/[a-z0-9]+", word.text):
            self._problem(word.location, f"{word.text!r} among the aliases; {CONTINUED}")
        elif word.text in TABLE:
            self._problem(word.location, f"{word.text!r} is an option, not an alias; write {word.text}=VALUE")

    def _where(self, word: Word) -> tuple[NetProtocol | None, int, str]:
        """Parse the second field: return the protocol (None after a mistake), the port and the path."""
        where, slash, protocol = word.text.rpartition("/")
        if not slash:
            self._problem(word.location, f"{word.text!r} is not port/protocol, as in 7/tcp or /run/echo.sock/unix")
            return None, 0, ""
        remedy = protocol_remedy(protocol, where)
        if remedy:
            self._problem(word.after(len(where) + 1), remedy)
            return None, 0, ""
        try:
            net = NetProtocol(protocol)
        except ValueError:
            hint = nearest(protocol, tuple(NetProtocol))
            text = f"unknown protocol {protocol!r}{hint}; the protocols are {_ACCEPTED_NETS}"
            self._problem(word.after(len(where) + 1), text)
            return None, 0, ""
        found: int | str | None = self._path(word, where, net) if net.local else self._port(word, where, net)
        if found is None:
            return None, 0, ""
        return (net, 0, found) if isinstance(found, str) else (net, found, "")

    def _path(self, word: Word, where: str, net: NetProtocol) -> str | None:
        """Return the path of a UNIX socket, or @ and the name of an abstract one; None after a mistake."""
        text = ""
        if where == "@":
            text = "an abstract socket needs a name after the @"
        elif where.startswith("@") and len(where.encode()) > _MAX_PATH + 1:
            text = f"the name is longer than the {_MAX_PATH} bytes an abstract socket can have"
        elif not where.startswith(("@", "/")) or (where.startswith("/") and where.endswith("/")):
            text = f"a {net} service takes the absolute path of its socket, or @NAME, not {where!r}"
        elif where.startswith("/") and len(where.encode()) > _MAX_PATH:
            text = f"the path is longer than the {_MAX_PATH} bytes a UNIX socket can have"
        if text:
            self._problem(word.location, text)
        return None if text else where

    def _port(self, word: Word, where: str, net: NetProtocol) -> int | None:
        """Return the port, given by number or by name; None after a mistake."""
        if re.fullmatch("[0-9]{1,5}", where) and int(where) <= MAX_PORT:
            return int(where)
        names = ""
        if _PORT_NAME.fullmatch(where):
            port = self._ports.port(where, net)
            if port is not None:
                return port
            names = f", and not a name in {SERVICES} for {net}{nearest(where, self._ports.names(net))}"
        self._problem(word.location, f"port {where!r} is not a number from 0 to {MAX_PORT}{names}")
        return None

    def _runs(
        self,
        location: SourceLocation,
        net: NetProtocol,
        names: tuple[str, ...],
        values: Mapping[str, object],
        locations: Mapping[str, SourceLocation],
    ) -> str | None:
        """Return what a line runs: one of HANDLERS, a built-in, "" if disabled without one; None after a mistake."""
        # In the order of the line.
        handlers = [option for option in locations if option in HANDLERS]
        if not handlers:
            return self._builtin(location, net, names, required=not values.get("disable"))
        first, *others = handlers
        for other in others:
            text = f"{other}: {first}= at {locations[first]} already selects the handler; remove one of the two"
            self._problem(locations[other], text)
        if others:
            return None
        if net.shape is SocketType.DATAGRAM and not (first == "server" and values.get("wait")):
            with_wait = "add wait=yes" if first == "server" else "only server= with wait=yes serves datagrams"
            self._problem(locations[first], f"{first}: {net} has no connections; {with_wait}")
            return None
        return first

    def _builtin(
        self, location: SourceLocation, net: NetProtocol, names: tuple[str, ...], *, required: bool
    ) -> str | None:
        found = next((name for name in names if name in self._builtins), "")
        if not found and required:
            fitting = sorted(name for name, builtin in self._builtins.items() if net.shape in builtin.shapes)
            handlers = _HANDLER_WORDS if net.shape is SocketType.STREAM else "server= with wait=yes"
            self._problem(
                location,
                f"no handler for {names[0]!r}{nearest(names[0], fitting)}; add {handlers}, a built-in as an alias "
                f"({', '.join(fitting)}), or disable=yes",
            )
            return None
        if found and required and net.shape not in self._builtins[found].shapes:
            other = "stream" if net.shape is SocketType.DATAGRAM else "datagram"
            nets = ", ".join(each for each in NetProtocol if each.shape.value == other)
            self._problem(
                location, f"{found} is not served over {net}, only over {nets}; change the protocol, or add disable=yes"
            )
            return None
        return found
