"""How long HTTP connections may wait, and which of them give way to others."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from svcd.protocols.base import LINGER_SECONDS
from svcd.protocols.http.connections import CHECK_SECONDS, LOWEST_RATE, SLICE, HttpTimeouts
from svcd.protocols.http.response import Response, text_response
from svcd.protocols.http.server import HttpFactory
from tests.doubles import PEER, StreamDouble

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
LARGE = b"x" * 10_000


class _File:
    """Something that is sent in two pieces."""

    def __init__(self, others: _File | None = None) -> None:
        self.pieces = [b"f" * 10] * 2
        self.closed = False
        self.budget: Any = None
        # Another answer that has it open.
        self.others = others

    @property
    def uncounted(self) -> bool:
        """Whether nothing counts it."""
        return self.budget is None and self.others is None

    def count(self, budget: Any) -> None:
        """It is counted."""
        assert self.uncounted
        self.budget = budget

    def read(self) -> bytes:
        """The next."""
        return self.pieces.pop() if self.pieces else b""

    def close(self) -> None:
        """It is over."""
        self.closed = True
        if self.budget is not None:
            self.budget.release()


class _Counter:
    """svcd.interfaces.DescriptorCounter with a limit."""

    def __init__(self, limit: int) -> None:
        self.open = 0
        self.limit = limit

    def acquire(self) -> None:
        """One more."""
        self.open += 1

    def release(self) -> None:
        """One less."""
        self.open -= 1
        assert self.open >= 0

    def try_acquire(self) -> bool:
        """One more, if there is one."""
        found = self.open < self.limit
        self.open += found
        return found


class _Handler:
    """Answers with a text, which is large on demand, or later."""

    def __init__(self) -> None:
        self.later: Deferred[Response] = Deferred()
        self.files: list[_File] = []
        self.shared = False

    def respond(self, request: Any, peer: object) -> Any:  # noqa: ARG002 - as handlers
        """Answer."""
        if request.target == b"/later":
            return self.later
        if request.target == b"/file":
            body = _File(self.files[0] if self.shared and self.files else None)
            self.files.append(body)
            return Response(HTTPStatus.OK, {"Content-Length": "20"}, body=body)
        if request.target == b"/large":
            return Response(HTTPStatus.OK, {"Content-Length": str(len(LARGE))}, LARGE)
        return text_response(HTTPStatus.OK, "text/plain", "answer")


class _Site:
    """An HTTP service."""

    def __init__(
        self,
        request: float | None = 30,
        keepalive: float | None = 75,
        send: float | None = 60,
        descriptors: _Counter | None = None,
    ) -> None:
        self.clock = Clock()
        self.handler = _Handler()
        timeouts = HttpTimeouts(request, keepalive, send)
        self.factory = HttpFactory(self.handler, self.clock, timeouts=timeouts, descriptors=descriptors)

    def connect(self, data: bytes = b"", room: float = float("inf")) -> StreamDouble:
        """Return a client that has sent data."""
        protocol: Any = self.factory.buildProtocol(PEER)
        transport = StreamDouble(protocol, room=room)
        protocol.makeConnection(transport)
        if data:
            protocol.dataReceived(data)
        return transport

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([CHECK_SECONDS] * int(seconds / CHECK_SECONDS))


@pytest.fixture
def site() -> _Site:
    """With the timeouts that hold by default."""
    return _Site()


def test_a_client_that_says_nothing(site: _Site) -> None:
    """Its connection is closed when the time for a request is over, without a word."""
    client = site.connect()
    site.wait(29.5)
    assert not client.lost
    site.wait(1)
    assert (client.lost, client.sent, client.protocol.end_reason) == ("done", b"", "request")


@pytest.mark.parametrize("start", [b"GET /", HEAD, HEAD + b"X-A: 1"])
def test_a_slow_head(site: _Site, start: bytes) -> None:
    """However often another piece comes: the whole head has to be there in time, else the answer is 408."""
    client = site.connect(start)
    for _ in range(59):
        site.wait(0.5)
        client.protocol.dataReceived(b"y")
    assert not client.sent
    site.wait(1)
    assert client.sent.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"\r\nConnection: close\r\n" in client.sent
    site.wait(LINGER_SECONDS)
    assert (client.lost, client.protocol.end_reason) == ("done", "request")


def test_line_ends_before_a_request_begin_none(site: _Site) -> None:
    """They may come before a request (RFC 9112, section 2.2), and keep no connection open."""
    client = site.connect(HEAD + b"\r\n")
    for _ in range(74):
        site.wait(1)
        client.protocol.dataReceived(b"\r\n")
    assert not client.lost
    site.wait(2)
    assert (client.lost, client.protocol.end_reason) == ("done", "keepalive")


@pytest.mark.parametrize(("rate", "ends"), [(LOWEST_RATE // 2, True), (LOWEST_RATE * 2, False)])
def test_a_body_has_as_long_as_it_comes(site: _Site, rate: int, ends: bool) -> None:
    """One that comes at the lowest rate is read to its end; a slower one ends as a slow head does."""
    client = site.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(120):
        client.protocol.dataReceived(b"b" * rate)
        site.wait(1)
    assert client.sent.startswith(b"HTTP/1.1 408") == ends


def test_an_idle_connection(site: _Site) -> None:
    """After an answer it may wait for another request, counted anew from each answer."""
    client = site.connect()
    for _ in range(3):
        client.protocol.dataReceived(HEAD + b"\r\n")
        site.wait(70)
        assert not client.lost
    site.wait(6)
    assert (client.lost, client.protocol.end_reason) == ("done", "keepalive")


def test_the_next_request_has_its_own_time(site: _Site) -> None:
    """From its first byte, however long the connection was idle or whatever was pipelined before."""
    client = site.connect(HEAD + b"\r\n")
    site.wait(70)
    client.protocol.dataReceived(HEAD + b"\r\n" + HEAD)
    site.wait(29)
    assert client.sent.count(b"200 OK") == 2
    assert not client.write_closed
    site.wait(2)
    assert client.sent.count(b"HTTP/1.1 408") == 1


def test_an_answer_that_takes_long_is_not_the_clients_fault(site: _Site) -> None:
    """While the handler works nothing runs out, and nothing gives way."""
    client = site.connect(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
    site.wait(300)
    assert not client.lost
    assert not site.factory.evict()
    site.handler.later.callback(text_response(HTTPStatus.OK, "text/plain", "at last"))
    assert client.sent.endswith(b"at last")
    site.wait(74)
    assert not client.lost


def test_a_client_that_takes_nothing(site: _Site) -> None:
    """It is cut off in the end, and what it was to be sent is forgotten."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    site.wait(59)
    assert not client.lost
    site.wait(2)
    assert (client.lost, client.protocol.end_reason) == ("aborted", "send")


@pytest.mark.parametrize(("taken", "lost"), [(LOWEST_RATE // 4, "aborted"), (LOWEST_RATE, "")])
def test_a_slow_reader(site: _Site, taken: int, lost: str) -> None:
    """What counts is how fast it takes the answer, not whether it takes any of it."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    client.bytes_out = client.pending = 1_000_000
    for _ in range(140):
        site.wait(CHECK_SECONDS)
        if not client.lost:
            client.pending -= taken
    assert client.lost == lost


def test_a_reader_that_pauses_now_and_then(site: _Site) -> None:
    """Half a minute without a byte is no slow reader, if it goes on after it."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    client.bytes_out = client.pending = 1_000_000
    for _ in range(6):
        site.wait(50)
        client.pending -= 10_000
    assert not client.lost


def test_the_end_of_a_connection_has_to_be_taken_as_well(site: _Site) -> None:
    """A client that asks for one answer and does not take it is cut off like others."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", room=100)
    client.producer = None
    site.wait(61)
    assert (client.lost, client.protocol.end_reason) == ("aborted", "send")


def test_none_is_as_long_as_they_like() -> None:
    """Without timeouts nothing ends by itself."""
    site = _Site(None, None, None)
    clients = [
        site.connect(),
        site.connect(HEAD),
        site.connect(HEAD + b"\r\n"),
        site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100),
    ]
    site.wait(300)
    assert [client.lost for client in clients] == [""] * 4


def test_without_connections_nothing_is_looked_at(site: _Site) -> None:
    """The timer ends with the last of them."""
    client = site.connect(HEAD + b"\r\n")
    client.protocol.readConnectionLost()
    assert client.lost
    site.wait(CHECK_SECONDS)
    assert not site.clock.getDelayedCalls()
    assert site.factory.connections.open == 0


def test_very_many_that_are_late_are_ended_in_slices(site: _Site) -> None:
    """The reactor has its turn between them."""
    clients = [site.connect(HEAD + b"\r\n") for _ in range(SLICE * 2 + 10)]
    turns: list[int] = []
    call_later = site.clock.callLater

    def counting(delay: float, *call: Any) -> Any:
        turns.append(sum(bool(client.lost) for client in clients))
        return call_later(delay, *call)

    site.clock.callLater = counting  # type: ignore[method-assign,assignment]
    site.wait(76)
    ended = [count for count in turns if count]
    assert ended == [SLICE, SLICE * 2]
    assert all(client.lost for client in clients)


# Giving way.


def test_the_connection_that_is_idle_longest_gives_way_first(site: _Site) -> None:
    """Then the next; and none that has just been answered."""
    first, second, third = (site.connect(HEAD + b"\r\n") for _ in range(3))
    site.wait(10)
    first.protocol.dataReceived(HEAD + b"\r\n")
    assert site.factory.evict()
    assert [bool(each.lost) for each in (first, second, third)] == [False, True, False]
    assert (second.lost, second.protocol.end_reason) == ("done", "evicted")
    assert site.factory.evict()
    assert third.lost
    assert not site.factory.evict()
    site.wait(1)
    assert site.factory.evict()
    assert first.lost


def test_then_the_slowest(site: _Site) -> None:
    """The connection that has waited longest is evicted, whether for a request or for its client."""
    slow_head = site.connect(HEAD)
    site.wait(5)
    slow_reader = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    site.wait(5)
    body = site.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"b" * 100_000)
    idle = site.connect(HEAD + b"\r\n")
    site.wait(5)
    ended = []
    while site.factory.evict():
        ended += [each for each in (slow_head, slow_reader, body, idle) if each.lost and each not in ended]
    assert ended == [idle, slow_head, slow_reader]
    assert [each.lost for each in ended] == ["done", "aborted", "aborted"]
    assert not body.lost


LARGE_ONE = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"


def test_who_has_just_come_does_not_give_way(site: _Site) -> None:
    """A client has half a second for its first request in any case, and three quarters to take something."""
    site.connect()
    reader = site.connect(LARGE_ONE, room=100)
    for seconds in (0, 0.25):
        site.clock.advance(seconds)
        assert not site.factory.evict()
    site.clock.advance(0.25)
    assert site.factory.evict()
    assert not site.factory.evict()
    site.clock.advance(0.25)
    assert site.factory.evict()
    assert (reader.lost, reader.protocol.end_reason) == ("aborted", "evicted")


def test_a_reader_is_known_before_it_gives_way(site: _Site) -> None:
    """What it takes is looked at twice, with half a second between."""
    reader = site.connect(LARGE_ONE, room=100)
    site.clock.advance(0.45)
    assert not site.factory.evict()
    site.clock.advance(0.4)
    assert not site.factory.evict()
    site.clock.advance(0.11)
    assert site.factory.evict()
    assert reader.lost


def test_what_fills_a_clients_buffer_is_not_taken(site: _Site) -> None:
    """That is done in the first moment, and not counted; without a look at that time it counts once."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    site.clock.advance(0.1)
    assert not site.factory.evict()
    reader.pending -= 100_000
    site.clock.advance(0.15)
    assert not site.factory.evict()
    site.clock.advance(0.5)
    assert site.factory.evict()
    assert reader.lost


@pytest.mark.parametrize("when", [0.3, 0.6, 0.74])
def test_a_reader_that_takes_its_answer_does_not_give_way(site: _Site, when: float) -> None:
    """Whenever it was that it took something: what it has taken until now counts, not until the last look."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    for _ in range(10):
        slow = site.connect(LARGE_ONE, room=100)
        site.clock.advance(0.26)
        assert not site.factory.evict()
        site.clock.advance(when - 0.26)
        reader.pending -= LOWEST_RATE
        site.clock.advance(0.77 - when)
        assert site.factory.evict()
        assert (slow.lost, reader.lost) == ("aborted", "")


@pytest.mark.parametrize("rate", [0, 100, LOWEST_RATE // 2])
def test_a_reader_below_the_lowest_rate_gives_way(site: _Site, rate: int) -> None:
    """A byte now and then is not enough."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    for _ in range(75):
        assert not site.factory.evict()
        site.clock.advance(0.01)
        reader.pending -= rate // 100
    site.clock.advance(0.01)
    assert site.factory.evict()
    assert reader.lost


def test_a_reader_that_takes_pieces_now_and_then(site: _Site) -> None:
    """Its system acknowledges them as a whole: what counts is how much it takes, until it pauses for three seconds."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    for hundredths in range(1, 2000):
        site.clock.advance(0.01)
        assert not site.factory.evict()
        if hundredths % 115 == 60:
            reader.pending -= 2304
    site.clock.advance(2)
    assert not site.factory.evict()
    site.clock.advance(1.1)
    assert site.factory.evict()
    assert reader.lost


@pytest.mark.parametrize("rate", [LOWEST_RATE * 2, LOWEST_RATE * 20])
def test_a_reader_above_the_lowest_rate_does_not(site: _Site, rate: int) -> None:
    """However often room is wanted."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    for _ in range(1000):
        assert not site.factory.evict()
        site.clock.advance(0.01)
        reader.pending -= rate // 100
    assert not reader.lost


def test_a_connection_whose_answer_waits_is_cut_off(site: _Site) -> None:
    """An idle connection whose client has not taken the last response would stay for long otherwise."""
    client = site.connect(HEAD + b"\r\n")
    client.writing = True  # type: ignore[attr-defined]
    site.wait(1)
    assert site.factory.evict()
    assert client.lost == "aborted"


def test_one_that_has_been_told_all_is_closed_in_order(site: _Site) -> None:
    """A connection that waits for its client to close is closed; the kernel still delivers its data."""
    client = site.connect(HEAD + b"Connection: close\r\n\r\n")
    assert client.write_closed
    site.wait(1.5)
    assert site.factory.evict()
    assert client.lost == "done"


# Descriptors of files.

FILE = b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n"


def test_the_first_answer_finds_a_descriptor() -> None:
    """It is counted from the accept on, until the first answer is given or its file was sent."""
    counter = _Counter(0)
    site = _Site(descriptors=counter)
    client = site.connect()
    assert counter.open == 1
    client.protocol.dataReceived(HEAD)
    assert counter.open == 1
    client.protocol.dataReceived(b"\r\n")
    assert counter.open == 0
    other = site.connect(FILE, room=0)
    assert counter.open == 1
    other.drain()
    other.drain()
    other.drain()
    assert other.sent.endswith(b"f" * 20)
    other.drain()
    assert (counter.open, site.handler.files[0].closed) == (0, True)
    site.connect().abortConnection()
    assert counter.open == 0


def test_later_answers_get_one_if_there_is_one() -> None:
    """Without one the answer is 503 and the file is closed; the connection may go on."""
    counter = _Counter(1)
    site = _Site(descriptors=counter)
    client = site.connect(HEAD + b"\r\n" + FILE)
    assert client.sent.count(b"HTTP/1.1 200 ") == 2
    counter.open = 1
    client.protocol.dataReceived(FILE + HEAD + b"\r\n")
    assert client.sent.count(b"HTTP/1.1 503 ") == 1
    assert client.sent.count(b"HTTP/1.1 200 ") == 3
    assert (counter.open, [file.closed for file in site.handler.files]) == (1, [True, True])


def test_a_file_that_is_open_already_needs_no_descriptor() -> None:
    """A connection that is sent what another one is sent gives up what was counted for it."""
    counter = _Counter(1)
    site = _Site(descriptors=counter)
    site.handler.shared = True
    clients = [site.connect(FILE, room=0) for _ in range(3)]
    assert counter.open == 1
    # A later answer of a connection that was kept alive.
    other = site.connect(HEAD + b"\r\n")
    other.protocol.dataReceived(FILE)
    assert (counter.open, other.sent.count(b"HTTP/1.1 200 ")) == (1, 2)
    for client in clients:
        client.abortConnection()
    assert counter.open == 0


def test_who_asks_for_a_file_does_not_give_way_itself() -> None:
    """Where there is no descriptor another connection is closed for it, also if it was idle itself until now."""
    site = _Site()
    counter = _Counter(0)
    site.factory.descriptors = counter
    first, second = site.connect(HEAD + b"\r\n"), site.connect(HEAD + b"\r\n")
    counter.try_acquire = site.factory.evict  # type: ignore[method-assign]
    counter.open = 1
    site.wait(10)
    first.protocol.dataReceived(FILE)
    assert (first.lost, second.protocol.end_reason) == ("", "evicted")
    assert first.sent.count(b"HTTP/1.1 200 ") == 2


def test_a_file_whose_client_leaves_is_no_longer_counted() -> None:
    """As it is closed."""
    counter = _Counter(5)
    site = _Site(descriptors=counter)
    client = site.connect(FILE, room=0)
    client.abortConnection()
    assert (counter.open, site.handler.files[0].closed) == (0, True)
