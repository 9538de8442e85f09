"""Messages between the daemon, the zygote and the launchers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.process.messages import (
    MAX_PACKET,
    Changed,
    CheckModule,
    ChildExited,
    Connection,
    Dropped,
    Ended,
    Failed,
    Idle,
    Kill,
    LauncherStarted,
    Message,
    Ready,
    Signal,
    Started,
    Starting,
    StartLauncher,
    StderrLine,
    pack,
    parse,
    parse_all,
)
from svcd.process.spec import LaunchSpec, ProcessCredentials, ResourceLimit, dump, load
from svcd.process.stderr import BLOCK, MAX_BLOCK, MAX_LINE, StderrSplitter

NUMBERS = st.integers(0, 2**64 - 1)
PIDS = st.integers(0, 2**22)
TEXTS = st.binary(max_size=200)
SECONDS = st.floats(0, 1e9)
COUNTS = st.integers(-1, 2**62)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Connection, NUMBERS, TEXTS),
    st.builds(Signal, NUMBERS, PIDS, st.integers(1, 64)),
    st.builds(Ready, TEXTS),
    st.just(CheckModule()),
    st.just(Idle()),
    st.builds(Starting, NUMBERS),
    st.builds(Dropped, NUMBERS, NUMBERS),
    st.builds(Changed, TEXTS),
    st.builds(Kill, PIDS),
    st.builds(Started, NUMBERS, PIDS),
    st.builds(Failed, NUMBERS, st.integers(0, 200)),
    st.builds(Ended, NUMBERS, st.integers(0, 65_535), SECONDS, SECONDS, COUNTS, COUNTS),
    st.builds(StderrLine, NUMBERS, TEXTS),
    st.builds(StartLauncher, st.integers(0, 2**32 - 1)),
    st.builds(LauncherStarted, st.integers(0, 2**32 - 1), PIDS, st.integers(0, 200)),
    st.builds(ChildExited, PIDS, st.integers(0, 65_535)),
)


@given(MESSAGES)
def test_a_message_is_read_as_it_was_packed(message: Message) -> None:
    """parse() returns the message that pack() was called with."""
    again = parse(pack(message))
    assert (type(again), again) == (type(message), message)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    """Any bytes are parsed to messages or raise ValueError, no other exception."""
    try:
        message = parse(data)
    except ValueError:
        return
    assert pack(message) == data


@given(MESSAGES, st.data())
def test_truncated_message_is_an_error(message: Message, data: st.DataObject) -> None:
    """A packet that ends within the numbers of a message raises ValueError."""
    packet = pack(message)
    last: object = (0, *message)[-1]
    tail = len(last) if isinstance(last, bytes) else 0
    if len(packet) > 1 + tail:
        end = data.draw(st.integers(0, len(packet) - tail - 1))
        with pytest.raises(ValueError):
            parse(packet[:end])


@given(st.lists(MESSAGES, min_size=1, max_size=5))
def test_a_packet_has_messages_up_to_one_that_ends_in_bytes(messages: list[Message]) -> None:
    """A packet has several messages; one that ends in bytes is the last, with all that follows."""
    ends = [isinstance((0, *message)[-1], bytes) for message in messages]
    whole = messages[: ends.index(True) + 1] if True in ends else messages
    assert parse_all(b"".join(map(pack, whole))) == whole
    if len(whole) > 1:
        with pytest.raises(ValueError):
            parse(b"".join(map(pack, whole)))


def test_message_is_truncated_to_the_maximum() -> None:
    """A message that is too long is cut off at MAX_PACKET."""
    packet = pack(StderrLine(1, b"x" * 2 * MAX_PACKET))
    assert len(packet) == MAX_PACKET
    assert parse(packet) == StderrLine(1, b"x" * (MAX_PACKET - 9))
    with pytest.raises(ValueError):
        parse(packet + b"x")


def test_table_of_services() -> None:
    """load() returns the LaunchSpecs that dump() was called with, with the same types."""
    limits = (ResourceLimit(1, 2, 3), ResourceLimit(7, -1, -1))
    identity = ProcessCredentials(1, 2, (3, 4), 0o22, 5, "/root", "/folder", no_new_privs=True, own_limits=limits)
    specs = (
        LaunchSpec("a/tcp", identity, {"PATH": "/bin"}, program="/bin/cat", argv=("cat", "-u")),
        LaunchSpec("b/tcp", ProcessCredentials(handler_limits=limits), {}, handler="m:f", path=("/lib",), threads=True),
    )
    loaded = load(dump(specs))
    assert loaded == specs
    assert isinstance(loaded[1].identity.handler_limits[0], ResourceLimit)


@given(st.lists(st.binary(max_size=30)))
def test_lines_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    """The lines are the same for any split of the output."""
    whole, split = StderrSplitter(), StderrSplitter()
    lines = []
    for piece in pieces:
        lines += split.feed(piece)
    data = b"".join(pieces)
    assert lines + split.end() == whole.feed(data) + whole.end()


def test_lines_and_blocks() -> None:
    """A block is one text with its line ends; empty lines are left out; the last line needs no end."""
    splitter = StderrSplitter()
    assert splitter.feed(b"one\r\n\n" + BLOCK + b"two\nthree\n" + BLOCK + b"four\nfi") == [
        b"one", b"two\nthree\n", b"four",
    ]  # fmt: skip
    assert splitter.end() == [b"fi"]


def test_endless_lines_and_blocks_are_split() -> None:
    """A line or block without an end is returned in pieces, which bounds the memory."""
    lines = StderrSplitter()
    assert [len(each) for each in lines.feed(b"x" * (3 * MAX_LINE))] == [MAX_LINE, MAX_LINE]
    block = StderrSplitter()
    assert len(block.feed(BLOCK + b"y" * 2 * MAX_BLOCK)[0]) == MAX_BLOCK - 1
