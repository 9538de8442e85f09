"""A Config rendered as a services file parses to an equal Config."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.config.option_info import HANDLERS
from svcd.config.options import TABLE
from svcd.config.parser import parse_text
from svcd.config.value_types import DURATION
from svcd.model import NetProtocol, SocketType
from svcd.protocols.catalog import BUILTINS
from tests.doubles import FakeFiles, config_of

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    from svcd.config.service import Config

#: What quoting has trouble with.
_TRICKY = st.text(
    st.one_of(
        st.sampled_from(" \t'\"\\#=,@$`!*?[]~/.-\N{NO-BREAK SPACE}\N{LINE SEPARATOR}é\ufeff\x7f\x85\N{GRINNING FACE}"),
        st.characters(min_codepoint=0x20, exclude_categories=["Cs"]),
    ),
    max_size=12,
)
_WORD = _TRICKY.filter(lambda text: text and not any(character.isspace() for character in text))
_DURATIONS = st.one_of(
    st.from_regex(r"\A[0-9]{1,5}(\.[0-9]{1,20})?[smh]?\Z"),
    st.sampled_from(["0", "0.000001", "0.00000000000012345678h", "0.1h", "99999h", "1.50m", "0.30000000000000004"]),
)
_IDENTIFIER = st.from_regex(r"\A[a-zA-Z_][a-zA-Z0-9_]{0,5}\Z")
_DOTTED = st.lists(_IDENTIFIER.filter(lambda name: name.isidentifier()), min_size=1, max_size=3).map(".".join)
_NAME = _WORD.map(lambda text: text.replace(":", "") or "x")
_PATH = _TRICKY.map(lambda text: f"/{text}")
_HOST = st.from_regex(r"\A[a-z0-9.-]{1,12}\Z") | st.ip_addresses(v=6).map(lambda address: f"[{address}]")


def _or_none(values: SearchStrategy[str]) -> SearchStrategy[str]:
    return values | st.just("none")


_VALUES: dict[str, SearchStrategy[str]] = {
    "yes/no": st.sampled_from(["yes", "no"]),
    "count": st.integers(1, 9_999_999).map(str),
    "count or none": _or_none(st.integers(1, 9_999_999).map(str)),
    "mode": st.integers(0, 0o777).map(lambda mode: f"{mode:03o}"),
    "duration": _DURATIONS,
    "timeout or none": _or_none(_DURATIONS.filter(DURATION.read)),
    "path": _PATH,
    "paths": st.lists(_PATH.map(lambda path: path.replace(",", "")), min_size=1, max_size=3).map(",".join),
    "owner": st.one_of(_NAME, _NAME.map(":{}".format), st.builds("{}:{}".format, _NAME, _NAME)),
    "command": st.builds(lambda path, rest: shlex.join([f"{path}x", *rest]), _PATH, st.lists(_TRICKY, max_size=3)),
    "environment": st.lists(st.builds("{}={}".format, _IDENTIFIER, _TRICKY), min_size=1, max_size=3).map(shlex.join),
    "variables": st.lists(_IDENTIFIER, min_size=1, max_size=3).map(",".join),
    "reference": st.builds("{}:{}".format, _DOTTED, _DOTTED),
    "host:port": st.builds("{}:{}".format, _HOST, st.integers(1, 65_535)),
    "nice": st.integers(-20, 19).map(str),
    "size limit": _or_none(st.builds("{}{}".format, st.integers(0, 10**9), st.sampled_from(["", "K", "M", "G"]))),
    "buffer size": st.builds("{}{}".format, st.integers(1, 1023), st.sampled_from(["", "K", "M"])),
    "memory size": st.builds("{}{}".format, st.integers(1, 16), st.sampled_from(["", "K", "M"])),
    "traffic class": st.sampled_from(["0", "0x10", "184", "0xfc", "EF", "cs1", "AF43"]),
    "seconds limit": _or_none(st.builds("{}{}".format, st.integers(1, 10**5), st.sampled_from(["", "s", "m", "h"]))),
    "count limit": _or_none(st.integers(1, 10**9 - 1).map(str)),
    "text": _TRICKY,
    "word": _WORD,
    "id": _WORD.map(lambda text: text.replace("/", "").replace("=", "") or "x"),
    "names": st.lists(
        _WORD.map(lambda text: text.replace(",", "").replace("/", "") or "x").filter(
            lambda name: name not in (".", "..")
        ),
        min_size=1,
        max_size=3,
    ).map(",".join),
    "words": st.lists(_WORD.map(lambda text: text.replace(",", "") or "x"), min_size=1, max_size=3).map(",".join),
}


def _lists(values: SearchStrategy[str]) -> SearchStrategy[str]:
    return st.lists(values, min_size=1, max_size=3).map(",".join)


_MINUTES = st.builds("{}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
_SOURCE = st.one_of(
    st.ip_addresses().map(str),
    st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds("{}/{}".format, st.ip_addresses(v=6), st.integers(0, 128)),
    st.from_regex(r"\A\.?([a-z0-9]{1,5}\.){0,2}[A-Za-z]{1,5}\.?\Z"),
)
_VALUES |= {
    "sources": _lists(_SOURCE) | st.just(""),
    "proxies": _or_none(_lists(st.ip_addresses().map(str) | st.sampled_from(["local", "10.0.0.0/8", "fd00::/8"]))),
    "hours": _lists(st.tuples(_MINUTES, _MINUTES).filter(lambda ends: ends[0] != ends[1]).map("-".join)),
    "zone": st.sampled_from(["UTC", "Europe/Berlin", "Etc/GMT+5"]),
    "load": _or_none(st.from_regex(r"\A[1-9][0-9]{0,3}(\.[0-9]{1,2})?\Z")),
    "limit": _or_none(st.integers(1, 9_999_999).map(str)),
    "rate": _or_none(st.builds("{}/{}".format, st.integers(1, 9_999_999), st.sampled_from("smh"))),
    "output rate": _or_none(
        st.builds("{}/s,{}{}/s".format, *[st.integers(1, 9_999_999)] * 2, st.sampled_from(["", "K", "M", "G"]))
    ),
    "prefixes": st.builds("/{},/{}".format, st.integers(1, 32), st.integers(1, 128)),
    "path or none": _or_none(_PATH),
    "web path": st.sampled_from(["/", "/chat", "/a/b~c", "/ü/", "/x=y"]),
    "origins": _lists(st.sampled_from(["*", "null", "https://example.org", "http://[::1]:8080", "app://x"])),
    "subprotocols": _lists(st.from_regex(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,9}\Z")),
    "days": st.integers(0, 9999).map("{}d".format),
    "protocols": _or_none(_lists(st.from_regex(r"\A[!-+\--~]{1,12}\Z"))),
    "client names": _lists(
        st.ip_addresses().map(str)
        | st.from_regex(r"\A(\*\.[a-z]{1,5}\.)?([A-Za-z0-9]{1,5}\.){0,2}[A-Za-z]{1,5}\Z")
        | st.sampled_from(["Anna@Example.org", "spiffe://a.example/B?c=d", "urn:x:y"])
    ),
}


def _values(name: str) -> SearchStrategy[str]:
    kind = TABLE[name].value_type
    if kind.name == "choice":
        return st.sampled_from(kind.accepts.split(" or "))
    if kind.name == "choice or none":
        return st.sampled_from(kind.accepts.replace(";", "").split(" or "))
    if kind.name == "choices":
        words = kind.accepts.removeprefix("a comma-separated list of ").partition(";")[0].split(", ")
        return st.lists(st.sampled_from(words), unique=True).map(lambda some: ",".join(some) or "none")
    return _VALUES[kind.name]


def _quoted(text: str, style: str) -> str:
    """Return a word quoted in a given style."""
    if style == "double" or "'" in text:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"'{text}'"


@st.composite
def _lines(draw: DrawFn) -> str:
    """Draw a valid line with any options of the table that apply to it."""
    net = draw(st.sampled_from(list(NetProtocol)))
    fitting = sorted(name for name, builtin in BUILTINS.items() if net.shape in builtin.shapes)
    handlers = HANDLERS if net.shape is SocketType.STREAM else ("server",)
    runs = draw(st.sampled_from([*fitting, *handlers]))
    where = draw(_TRICKY.map(lambda text: f"/r/{text}x")) if net.local else str(draw(st.integers(0, 65_535)))
    aliases = draw(st.lists(_WORD.filter(lambda text: not {"=", "/"} & {*text} and text not in {*BUILTINS, *TABLE})))
    options = [name for name, info in TABLE.items() if info.applies_to(net, runs, BUILTINS) and name not in HANDLERS]
    chosen = draw(st.lists(st.sampled_from(options), unique=True))
    values = {name: draw(_values(name)) for name in chosen}
    words = ["a service", f"{where}/{net}", *aliases]
    if runs in HANDLERS:
        values[runs] = draw(_values(runs))
        if net.shape is SocketType.DATAGRAM:
            values["wait"] = "yes"
    else:
        words.append(runs)
    words += [f"{name}={value}" for name, value in values.items()]
    style = draw(st.sampled_from(["single", "double"]))
    return " ".join(_quoted(word, style) for word in words)


def _rendered(config: Config) -> str:
    return "".join(f"{service.line}\n" for service in config.services)


@given(st.lists(_lines(), max_size=4))
def test_rendering_is_the_inverse_of_parsing(lines: list[str]) -> None:
    """A rendered Config parses to an equal one, for any options and any quoting."""
    config = config_of("\n".join(lines))
    assert len(config.services) == len(lines)
    again, problems = parse_text(_rendered(config), "again", FakeFiles(), BUILTINS)
    assert not problems
    assert again == config


@pytest.mark.parametrize("value", ["99999h", "999999999s", "0.1h", "0.00000000000012345678h", "0.5"])
def test_extreme_durations_are_rendered(value: str) -> None:
    """A duration that can be read is written in a spelling that reads as the same duration."""
    kind = TABLE["shutdown_timeout"].value_type
    seconds = kind.read(value)
    assert kind.read(kind.write(seconds)) == seconds


def test_defaults_and_includes_are_resolved() -> None:
    """A rendered Config has one line for each service, with every option that differs from the table's default."""
    text = "@defaults backlog=5 description='a b'\necho 7/tcp backlog=1024\necho 7/udp\nx /r/s/unix echo mode=600"
    assert _rendered(config_of(text)) == (
        "echo 7/tcp description='a b'\n"
        "echo 7/udp description='a b'\n"
        "x /r/s/unix echo backlog=5 mode=0600 description='a b'\n"
    )


@pytest.mark.parametrize(("offset", "kept", "refused"), [(0, [7, 0, 65_535], []), (10_000, [10_007, 0], [65_535]),
                                                         (-7, [0, 65_528], [7]), (-6, [1, 0, 65_529], [])])  # fmt: skip
def test_offset_shifts_every_port_except_0(offset: int, kept: list[int], refused: list[int]) -> None:
    """A port that would leave 1 to 65535 is a problem at its line."""
    config, problems = config_of("echo 7/tcp\nupper 0/tcp\ntime 65535/udp").shifted(offset)
    assert [service.port for service in config.services] == kept
    assert [str(problem) for problem in problems] == [
        f"s:{1 if port == 7 else 3}:1: port {port} with the offset {offset} is {port + offset}, not in 1 to 65535; "
        "choose another --port-offset"
        for port in refused
    ]


def test_offset_ignores_unix_sockets() -> None:
    """A service with a path is not changed."""
    config, problems = config_of("echo /r/e/unix").shifted(60_000)
    assert not problems
    assert config.services[0].path == "/r/e"


def test_protocols_have_a_socket_type_and_ip_versions() -> None:
    """Of the eight protocols four are stream and four datagram protocols."""
    facts: dict[NetProtocol, Any] = {
        net: (net.shape is SocketType.STREAM, net.local, net.versions) for net in NetProtocol
    }
    assert facts == {
        NetProtocol.TCP: (True, False, (4, 6)),
        NetProtocol.TCP4: (True, False, (4,)),
        NetProtocol.TCP6: (True, False, (6,)),
        NetProtocol.UDP: (False, False, (4, 6)),
        NetProtocol.UDP4: (False, False, (4,)),
        NetProtocol.UDP6: (False, False, (6,)),
        NetProtocol.UNIX: (True, True, ()),
        NetProtocol.UNIXGRAM: (False, True, ()),
    }
