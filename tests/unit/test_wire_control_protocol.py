"""Lines of the control protocol."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.wire.control_protocol import COMMANDS, LONGEST, ControlRequest, Lines, RequestError, answer, mistake, request


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line and line.strip())), st.data())
def test_lines_do_not_depend_on_how_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    """Lines are the same however the bytes are split; a line without its end is kept."""
    text = b"".join(line + b"\n" for line in lines) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader, found = Lines(), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += reader.feed(text[begin:end])
    assert found == lines
    assert reader.feed(b"\n") == [b"rest"]


def test_a_line_that_is_too_long() -> None:
    """A line above LONGEST is reported once and dropped up to its end; the next one is read."""
    reader = Lines()
    assert reader.feed(b"x" * LONGEST) == []
    assert reader.feed(b"x") == [None]
    assert reader.feed(b"y" * 3 * LONGEST) == []
    assert reader.feed(b"z\nnext\n") == [b"next"]
    assert reader.feed(b"w" * (LONGEST + 1) + b"\n") == [None]


def test_the_last_line_needs_no_end() -> None:
    """The last line needs no end, unless it is empty or the rest of one that was too long."""
    reader = Lines()
    assert reader.end() == []
    assert reader.feed(b"a\nb") == [b"a"]
    assert reader.end() == [b"b"]
    assert reader.end() == []
    assert reader.feed(b"x" * (LONGEST + 1)) == [None]
    assert reader.end() == []


def test_a_request() -> None:
    """A request has an id, a command and arguments."""
    line = b'{"id": "a", "command": "show", "arguments": {"service": "echo"}}'
    assert request(line) == ControlRequest("a", "show", {"service": "echo"})
    assert request(b'{"command":"status"}') == ControlRequest(None, "status", {})
    for number in (b"2", b"2.5"):
        assert request(b'{"command":"upgrade","arguments":{"timeout":%s}}' % number).arguments["timeout"] == float(
            number
        )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"hello", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 50_000, "nested"),
        (b"3", "not an object"),
        (b'{"id": [], "command": "status"}', "id is neither"),
        (b'{"id": true, "command": "status"}', "id is neither"),
        (b'{"id": 1}', "unknown command"),
        (b'{"command": "stauts"}', "unknown command"),
        (b'{"command": ["status"]}', "unknown command"),
        (b'{"command": "status", "arguments": []}', "arguments is not an object"),
        (b'{"command": "status", "arguments": {"x": 1}}', "no such argument"),
        (b'{"command": "show"}', "show needs service"),
        (b'{"command": "show", "arguments": {"service": 7}}', "service must be a string"),
        (
            b'{"command": "kick", "arguments": {"who": ""}}',
            "WHO of kick is empty; expected: connection id, or client address",
        ),
        (b'{"command": "pause", "arguments": {"service": " "}}', "SERVICE of pause is empty"),
        (b'{"command": "diff", "arguments": {"file": ""}}', "FILE of diff is empty"),
        (b'{"command": "reload", "arguments": {"now": 1}}', "now must be true or false"),
        (b'{"command": "upgrade", "arguments": {"timeout": true}}', "timeout must be a number"),
        (b'{"command": "upgrade", "arguments": {"timeout": "1"}}', "timeout must be a number"),
    ],
)
def test_malformed_requests(line: bytes, text: str) -> None:
    """Each malformed request is a RequestError with the reason."""
    with pytest.raises(RequestError, match=text):
        request(line)


@given(st.binary(max_size=200))
def test_arbitrary_lines(line: bytes) -> None:
    """Any line is a request or a RequestError."""
    with contextlib.suppress(RequestError):
        assert request(line).command in COMMANDS


def test_answers_are_lines() -> None:
    """Each answer is one line, whatever its content."""
    for data in (answer(1, {"text": "a\nb"}), mistake("x", "usage", "no\n")):
        assert data.count(b"\n") == 1
        assert data.endswith(b"\n")
        assert json.loads(data)["id"] in (1, "x")


def test_an_error_has_the_id_of_its_request() -> None:
    """A RequestError has the id of its request, if there is one."""
    with pytest.raises(RequestError) as caught:
        request(b'{"id": 7, "command": "show"}')
    assert caught.value.id == 7
