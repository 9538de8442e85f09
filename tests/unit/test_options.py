"""Types of values, and the option table."""

from __future__ import annotations

from typing import Any

import pytest

from svcd.addresses import HostPort
from svcd.config import process_options, tls_options, value_types
from svcd.config.option_info import GROUPS, HANDLERS, SCOPES
from svcd.config.options import TABLE, ServiceOptions
from svcd.config.parser import parse_text
from svcd.model import FileOwner, NetProtocol
from svcd.protocols.catalog import BUILTINS
from svcd.wire.certificates import ClientName, NameKind
from tests.doubles import FakeFiles

_CHOICE = value_types.choice("a", "b")
_CHOICES = value_types.choices("X", "Y", "Z")
_RUNS = {*BUILTINS}
_OR_NONE = value_types.or_none(value_types.DURATION)


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (value_types.YES_NO, "yes", True),
        (value_types.YES_NO, "no", False),
        (value_types.COUNT, "1", 1),
        (value_types.COUNT, "9999999", 9_999_999),
        (value_types.MODE, "660", 0o660),
        (value_types.MODE, "0007", 0o007),
        (value_types.DURATION, "10", 10.0),
        (value_types.DURATION, "10s", 10.0),
        (value_types.DURATION, "1.5m", 90.0),
        (value_types.DURATION, "2h", 7200.0),
        (value_types.DURATION, "0.001", 0.001),
        (value_types.PATH, "/", "/"),
        (value_types.PATH, "/a b", "/a b"),
        (value_types.WORD, "ü#'", "ü#'"),
        (value_types.WORDS, "a,b", ("a", "b")),
        (value_types.TEXT, "", ""),
        (value_types.TEXT, " any = \" thing' ", " any = \" thing' "),
        (value_types.OWNER, "git", FileOwner("git")),
        (value_types.OWNER, "git:adm", FileOwner("git", "adm")),
        (value_types.OWNER, ":4", FileOwner("", "4")),
        (_OR_NONE, "none", None),
        (_OR_NONE, "3s", 3.0),
        (process_options.COMMAND, "/bin/cat", ("/bin/cat",)),
        (process_options.COMMAND, "/bin/sh -c 'echo  \"$x\"' ''", ("/bin/sh", "-c", 'echo  "$x"', "")),
        (process_options.REFERENCE, "a:b", "a:b"),
        (process_options.REFERENCE, "a.b_1.ç:D.e", "a.b_1.ç:D.e"),
        (process_options.PATHS, "/a,/b c", ("/a", "/b c")),
        (process_options.HOST_PORT, "host.example:80", HostPort("host.example", 80)),
        (process_options.HOST_PORT, "127.0.0.1:65535", HostPort("127.0.0.1", 65_535)),
        (process_options.HOST_PORT, "[::1]:7", HostPort("::1", 7)),
        (process_options.HOST_PORT, "[fe80::1%eth0]:7", HostPort("fe80::1%eth0", 7)),
        (process_options.ENVIRONMENT, "A=1", (("A", "1"),)),
        (process_options.ENVIRONMENT, "A= _b2='x y=z'", (("A", ""), ("_b2", "x y=z"))),
        (process_options.VARIABLES, "TZ,LC_ALL", ("TZ", "LC_ALL")),
        (process_options.NICE, "-20", -20),
        (process_options.NICE, "19", 19),
        (process_options.SIZE_LIMIT, "0", 0),
        (process_options.SIZE_LIMIT, "64K", 65_536),
        (process_options.SIZE_LIMIT, "1000M", 1000 * 1024**2),
        (process_options.SIZE_LIMIT, "2G", 2 * 1024**3),
        (process_options.SIZE_LIMIT, "none", value_types.UNLIMITED),
        (process_options.BUFFER_SIZE, "1", 1),
        (process_options.BUFFER_SIZE, "64K", 65_536),
        (process_options.BUFFER_SIZE, "1023M", 1023 * 1024**2),
        (value_types.ID, "echo-lan:1", "echo-lan:1"),
        (process_options.SECONDS_LIMIT, "1.5m", 90),
        (process_options.SECONDS_LIMIT, "none", value_types.UNLIMITED),
        (process_options.COUNT_LIMIT, "1", 1),
        (process_options.COUNT_LIMIT, "none", value_types.UNLIMITED),
        (_CHOICE, "b", "b"),
        (_CHOICES, "none", ()),
        (_CHOICES, "Z,X", ("X", "Z")),
        (_CHOICES, "Y,Y", ("Y",)),
        (tls_options.DAYS, "14d", 14),
        (tls_options.ALPN, "h2,http/1.1", ("h2", "http/1.1")),
        (tls_options.ALPN, "none", ()),
        (
            tls_options.CLIENT_NAMES,
            "*.Example.org,a@B.example,spiffe://c/D,2001:DB8::1",
            (
                ClientName(NameKind.DNS, "*.example.org"),
                ClientName(NameKind.EMAIL, "a@b.example"),
                ClientName(NameKind.URI, "spiffe://c/D"),
                ClientName(NameKind.IP, "2001:db8::1"),
            ),
        ),
    ],
)
def test_values_are_written_as_they_are_read(kind: value_types.ValueType[Any], word: str, value: object) -> None:
    """A word reads as its value, and the value's own spelling reads as the same value."""
    assert kind.read(word) == value
    assert kind.read(kind.write(value)) == value


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (value_types.YES_NO, ["", "Yes", "true", "1", "yes "]),
        (value_types.COUNT, ["", "0", "-1", "1.5", "10000000", "٣", "1_0", " 1"]),
        (value_types.MODE, ["", "66", "888", "00660", "1777", "0o66", "rw-"]),
        (
            value_types.DURATION,
            ["", "s", "-1", "1d", "1 s", "1.", ".5", "1e3", "inf", "nan", "1,5s", "٣s", "9999999999"],
        ),
        (value_types.PATH, ["", "a", "./a", "~/a"]),
        (value_types.WORD, ["", "a b", "a\tb", "a\u00a0b"]),
        (value_types.WORDS, ["", ",", "a,", ",a", "a,,b", "a, b"]),
        (value_types.OWNER, ["", ":", "a:", "a:b:c", "a b", "::"]),
        (_OR_NONE, ["", "None", "-1"]),
        (process_options.COMMAND, ["", " ", "cat", "./cat", "'/bin/cat", "bin/cat -u", "/bin/", "'' /bin/cat"]),
        (process_options.REFERENCE, ["", "a", "a:", ":a", "a:b:c", "a.:b", ".a:b", "a:b.", "a/b:c", "a-b:c", "a:b()"]),
        (process_options.PATHS, ["", "a", "/a,", "/a,b"]),
        (
            process_options.HOST_PORT,
            [
                "",
                "host",
                "host:",
                ":80",
                "host:0",
                "host:65536",
                "host:http",
                "::1:80",
                "[::1]",
                "[host]:80",
                "[::1:80",
                "::1]:80",
                "a b:80",
                "a/b:80",
                "u@h:80",
                "h:٣",
            ],
        ),
        (process_options.ENVIRONMENT, ["", "A", "=x", "1A=x", "A=1 B", "A='", "A-B=1", "Ä=1"]),
        (process_options.VARIABLES, ["", "A,", "A,1", "A B", "A=1", "Ä"]),
        (process_options.NICE, ["", "20", "-21", "+1", "1.0", "x", "٣"]),
        (process_options.SIZE_LIMIT, ["", "-1", "1k", "1.5M", "K", "1T", "999999999999999G", "None"]),
        (process_options.BUFFER_SIZE, ["", "0", "-1", "none", "1G", "64k", "1.5M"]),
        (value_types.ID, ["", "a/b", "a=b", "a b"]),
        (process_options.SECONDS_LIMIT, ["", "0", "0.5", "1.5s", "1d", "-1"]),
        (process_options.COUNT_LIMIT, ["", "0", "-1", "1K", "9999999999"]),
        (tls_options.DAYS, ["", "14", "d", "1.5d", "-1d", "12345d", "٣d"]),
        (tls_options.ALPN, ["", ",", "a,", "a b", "ä", "x" * 256]),
        (
            tls_options.CLIENT_NAMES,
            ["", "*", "*.org", "*.*.example.org", "a.*.org", "f*.example.org", "a,", "a b", "a@"],
        ),
        (tls_options.CLIENT_NAMES, ["@b", "a@b@c", "1.2.3", "-a.org", "a..b", "x" * 64, "a." * 126 + "org"]),
        (_CHOICE, ["", "c", "A", "a,b"]),
        (_CHOICES, ["", "x", "X,", "X,none", "X Y"]),
    ],
)
def test_invalid_words_are_refused(kind: value_types.ValueType[Any], words: list[str]) -> None:
    """Any other word raises a ValueError, and the problem lists what is accepted."""
    for word in words:
        with pytest.raises(ValueError):
            kind.read(word)
    assert kind.accepts


@pytest.mark.parametrize("name", TABLE)
def test_rows_of_the_table_are_complete(name: str) -> None:
    """Every option has a known group and scope, a sentence of help, and a default that reads back."""
    info = TABLE[name]
    assert info.name == name
    assert info.group in GROUPS
    assert info.scope in SCOPES.keys() | _RUNS
    assert info.scope_text(BUILTINS)
    assert info.help.endswith(".")
    assert info.default == getattr(ServiceOptions(), name)
    if info.default_text:
        assert info.value_type.read(info.default_text) == info.default


def test_options_of_a_group_are_adjacent() -> None:
    """The table is in the order of the groups."""
    groups = [info.group for info in TABLE.values()]
    order = list(GROUPS)
    assert groups == sorted(groups, key=order.index)


@pytest.mark.parametrize(
    ("option", "takers"),
    [
        ("disable", set(NetProtocol)),
        ("backlog", {NetProtocol.TCP, NetProtocol.TCP4, NetProtocol.TCP6, NetProtocol.UNIX}),
        ("bind", set(NetProtocol) - {NetProtocol.UNIX, NetProtocol.UNIXGRAM}),
        ("nodelay", {NetProtocol.TCP, NetProtocol.TCP4, NetProtocol.TCP6}),
        ("mode", {NetProtocol.UNIX, NetProtocol.UNIXGRAM}),
        ("utc", set()),
        ("server", set(NetProtocol)),
        ("python", {NetProtocol.TCP, NetProtocol.TCP4, NetProtocol.TCP6, NetProtocol.UNIX}),
        ("user", set()),
        ("group", {NetProtocol.UNIX, NetProtocol.UNIXGRAM}),
    ],
)
def test_scopes_of_options(option: str, takers: set[NetProtocol]) -> None:
    """An option applies to the protocols of its scope, an option of a built-in only to that built-in."""
    assert {net for net in NetProtocol if TABLE[option].applies_to(net, "echo", BUILTINS)} == takers
    assert TABLE["utc"].applies_to(NetProtocol.UDP, "daytime", BUILTINS)


@pytest.mark.parametrize(
    ("option", "takers"),
    [
        ("user", {"server", "python"}),
        ("group", {"server", "python"}),
        ("argv0", {"server"}),
        ("model", {"python"}),
        ("connect_timeout", {"redirect"}),
        ("idle_timeout", {"server", "python", "factory", "redirect", "echo"}),
        ("mux", {"server", "python", "factory", "redirect", "echo"}),
    ],
)
def test_scopes_by_handler(option: str, takers: set[str]) -> None:
    """Options of processes apply to spawned services."""
    assert {runs for runs in (*HANDLERS, "echo") if TABLE[option].applies_to(NetProtocol.TCP, runs, BUILTINS)} == takers


def test_default_has_a_text_if_it_can_be_written() -> None:
    """A default that no word stands for has no text; None is written none if the type reads it."""
    assert TABLE["session_timeout"].default_text == "none"
    assert TABLE["umask"].default_text == "0022"
    assert not any(TABLE[name].default_text for name in ("rlimit_as", "redirect", "log_on_success", "owner"))


def test_scopes_of_byte_timeouts() -> None:
    """Built-ins that send first have no first_byte_timeout; of other processes only TCP bytes are counted."""
    first_byte, idle, session = (TABLE[f"{name}_timeout"] for name in ("first_byte", "idle", "session"))
    without = {runs for runs in BUILTINS if not first_byte.applies_to(NetProtocol.TCP, runs, BUILTINS)}
    assert without == {runs for runs, builtin in BUILTINS.items() if builtin.speaks_first}
    assert without >= {"chargen", "daytime", "qotd", "time"}
    assert without.isdisjoint({"echo", "http", "status"})
    assert all(idle.applies_to(NetProtocol.TCP, runs, BUILTINS) for runs in BUILTINS)
    assert idle.applies_to(NetProtocol.UNIX, "echo", BUILTINS)
    for info in (first_byte, idle):
        assert info.applies_to(NetProtocol.TCP, "server", BUILTINS)
        assert not info.applies_to(NetProtocol.UNIX, "server", BUILTINS)
        assert not info.applies_to(NetProtocol.UDP, "echo", BUILTINS)
    assert session.applies_to(NetProtocol.UNIX, "server", BUILTINS)
    assert session.applies_to(NetProtocol.UDP, "server", BUILTINS)
    assert not session.applies_to(NetProtocol.UDP, "echo", BUILTINS)


@pytest.mark.parametrize("name", TABLE)
def test_an_option_has_an_example(name: str) -> None:
    """The example is a line of a services file that sets the option and has no mistake."""
    line = TABLE[name].example
    config, problems = parse_text(line, "services", FakeFiles(), BUILTINS)
    assert not problems
    [service] = config.services
    assert f" {name}=" in line
    assert name in service.locations
