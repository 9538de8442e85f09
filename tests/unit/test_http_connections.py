"""Timeouts of HTTP connections, and the order in which connections are evicted."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from svcd.protocols.base import LINGER_SECONDS
from svcd.protocols.http.connections import CHECK_SECONDS, LOWEST_RATE, SLICE, HttpTimeouts
from svcd.protocols.http.context import HttpSettings
from svcd.protocols.http.response import GET_AND_HEAD, Response, text_response
from svcd.protocols.http.server import HttpFactory
from tests.doubles import PEER, StreamDouble

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
LARGE = b"x" * 10_000


class _File:
    """Response body of two pieces."""

    def __init__(self, others: _File | None = None) -> None:
        self.pieces = [b"f" * 10] * 2
        self.closed = False
        self.budget: Any = None
        # Another response that has the file open.
        self.others = others

    @property
    def uncounted(self) -> bool:
        """Whether its descriptor is not counted in any budget."""
        return self.budget is None and self.others is None

    def count(self, budget: Any) -> None:
        """Count its descriptor in a budget."""
        assert self.uncounted
        self.budget = budget

    def read(self) -> bytes:
        """Return the next piece."""
        return self.pieces.pop() if self.pieces else b""

    def close(self) -> None:
        """Close the file and release its descriptor."""
        self.closed = True
        if self.budget is not None:
            self.budget.release()


class _Counter:
    """svcd.interfaces.DescriptorCounter with a limit."""

    def __init__(self, limit: int) -> None:
        self.open = 0
        self.limit = limit

    def acquire(self) -> None:
        """Count a descriptor."""
        self.open += 1

    def release(self) -> None:
        """Release a descriptor."""
        self.open -= 1
        assert self.open >= 0

    def try_acquire(self) -> bool:
        """Count a descriptor if the limit allows it; return whether it does."""
        found = self.open < self.limit
        self.open += found
        return found


class _Handler:
    """Handler whose responses are small, large, deferred, or files, by target."""

    methods = GET_AND_HEAD
    streams: Literal[False] = False

    def __init__(self) -> None:
        self.later: Deferred[Response] = Deferred()
        self.files: list[_File] = []
        self.shared = False

    def respond(self, request: Any, peer: object) -> Any:  # noqa: ARG002 - as handlers
        """Respond to a request."""
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
    """HTTP service whose clock the test advances."""

    def __init__(
        self,
        request: float | None = 30,
        keepalive: float | None = 75,
        send: float | None = 60,
        descriptors: _Counter | None = None,
    ) -> None:
        self.clock = Clock()
        self.handler = _Handler()
        settings = HttpSettings(HttpTimeouts(request, keepalive, send))
        self.factory = HttpFactory(self.handler, self.clock, settings, descriptors=descriptors)

    def connect(self, data: bytes = b"", room: float = float("inf")) -> StreamDouble:
        """Connect a client that sends data; return its transport."""
        protocol: Any = self.factory.buildProtocol(PEER)
        transport = StreamDouble(protocol, room=room)
        protocol.makeConnection(transport)
        if data:
            protocol.dataReceived(data)
        return transport

    def wait(self, seconds: float) -> None:
        """Advance the clock in steps of CHECK_SECONDS."""
        self.clock.pump([CHECK_SECONDS] * int(seconds / CHECK_SECONDS))


@pytest.fixture
def site() -> _Site:
    """Return a service with the default timeouts."""
    return _Site()


def test_a_connection_without_a_request(site: _Site) -> None:
    """A connection without a request is closed after the request timeout, without a response."""
    client = site.connect()
    site.wait(29.5)
    assert not client.lost
    site.wait(1)
    assert (client.lost, client.sent, client.protocol.end_reason) == ("done", b"", "request")


@pytest.mark.parametrize("start", [b"GET /", HEAD, HEAD + b"X-A: 1"])
def test_a_slow_head(site: _Site, start: bytes) -> None:
    """A head that is incomplete after the request timeout is answered by 408, however often bytes arrive."""
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


def test_empty_lines_before_a_request(site: _Site) -> None:
    """Empty lines before a request (RFC 9112, section 2.2) do not extend the keep-alive timeout."""
    client = site.connect(HEAD + b"\r\n")
    for _ in range(74):
        site.wait(1)
        client.protocol.dataReceived(b"\r\n")
    assert not client.lost
    site.wait(2)
    assert (client.lost, client.protocol.end_reason) == ("done", "keepalive")


@pytest.mark.parametrize(("rate", "ends"), [(LOWEST_RATE // 2, True), (LOWEST_RATE * 2, False)])
def test_a_slow_body(site: _Site, rate: int, ends: bool) -> None:
    """A body that arrives at the lowest rate is read to its end; a slower one is answered by 408."""
    client = site.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(120):
        client.protocol.dataReceived(b"b" * rate)
        site.wait(1)
    assert client.sent.startswith(b"HTTP/1.1 408") == ends


def test_an_idle_connection(site: _Site) -> None:
    """The keep-alive timeout begins anew after each response."""
    client = site.connect()
    for _ in range(3):
        client.protocol.dataReceived(HEAD + b"\r\n")
        site.wait(70)
        assert not client.lost
    site.wait(6)
    assert (client.lost, client.protocol.end_reason) == ("done", "keepalive")


def test_the_timeout_of_the_next_request(site: _Site) -> None:
    """The request timeout begins with the first byte of a request, whatever came before it."""
    client = site.connect(HEAD + b"\r\n")
    site.wait(70)
    client.protocol.dataReceived(HEAD + b"\r\n" + HEAD)
    site.wait(29)
    assert client.sent.count(b"200 OK") == 2
    assert not client.write_closed
    site.wait(2)
    assert client.sent.count(b"HTTP/1.1 408") == 1


def test_a_slow_handler(site: _Site) -> None:
    """While the handler prepares a response there is no timeout, and the connection is not evicted."""
    client = site.connect(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
    site.wait(300)
    assert not client.lost
    assert not site.factory.evict()
    site.handler.later.callback(text_response(HTTPStatus.OK, "text/plain", "at last"))
    assert client.sent.endswith(b"at last")
    site.wait(74)
    assert not client.lost


def test_a_client_that_does_not_read(site: _Site) -> None:
    """A client that reads nothing of its response is aborted after the send timeout."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    site.wait(59)
    assert not client.lost
    site.wait(2)
    assert (client.lost, client.protocol.end_reason) == ("aborted", "send")


@pytest.mark.parametrize(("taken", "lost"), [(LOWEST_RATE // 4, "aborted"), (LOWEST_RATE, "")])
def test_a_slow_reader(site: _Site, taken: int, lost: str) -> None:
    """A client that reads below the lowest rate is aborted, even if it reads something."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    client.bytes_out = client.pending = 1_000_000
    for _ in range(140):
        site.wait(CHECK_SECONDS)
        if not client.lost:
            client.pending -= taken
    assert client.lost == lost


def test_a_reader_that_pauses(site: _Site) -> None:
    """A client that pauses for less than the send timeout is not aborted."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100)
    client.bytes_out = client.pending = 1_000_000
    for _ in range(6):
        site.wait(50)
        client.pending -= 10_000
    assert not client.lost


def test_the_last_response_has_a_timeout(site: _Site) -> None:
    """The last response of a connection has the send timeout, too."""
    client = site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", room=100)
    client.producer = None
    site.wait(61)
    assert (client.lost, client.protocol.end_reason) == ("aborted", "send")


def test_without_timeouts() -> None:
    """Without timeouts no connection is closed."""
    site = _Site(None, None, None)
    clients = [
        site.connect(),
        site.connect(HEAD),
        site.connect(HEAD + b"\r\n"),
        site.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", room=100),
    ]
    site.wait(300)
    assert [client.lost for client in clients] == [""] * 4


def test_without_connections_there_is_no_timer(site: _Site) -> None:
    """The timer is cancelled with the last connection."""
    client = site.connect(HEAD + b"\r\n")
    client.protocol.readConnectionLost()
    assert client.lost
    site.wait(CHECK_SECONDS)
    assert not site.clock.getDelayedCalls()
    assert site.factory.connections.open == 0


def test_late_connections_are_closed_in_slices(site: _Site) -> None:
    """Late connections are closed SLICE at a time, with turns of the reactor between the slices."""
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


# Eviction


def test_idle_connections_are_evicted_first(site: _Site) -> None:
    """The connection that is idle for the longest time is evicted first, and none that was just answered."""
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


def test_slow_connections_are_evicted_next(site: _Site) -> None:
    """Then the connection that has waited longest is evicted, whether for a request or for its client."""
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


def test_a_new_connection_is_not_evicted(site: _Site) -> None:
    """A new connection is not evicted for 0.5 s before its first request, and for 0.75 s while it has a response."""
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


def test_a_reader_is_measured_before_it_is_evicted(site: _Site) -> None:
    """A reader is evicted only after two measurements of its rate that are 0.5 s apart."""
    reader = site.connect(LARGE_ONE, room=100)
    site.clock.advance(0.45)
    assert not site.factory.evict()
    site.clock.advance(0.4)
    assert not site.factory.evict()
    site.clock.advance(0.11)
    assert site.factory.evict()
    assert reader.lost


def test_bytes_in_the_receive_buffer_do_not_count(site: _Site) -> None:
    """Bytes that fill the client's receive buffer in the first moment do not count as read."""
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
def test_a_reader_is_measured_up_to_now(site: _Site, when: float) -> None:
    """A reader above the lowest rate is not evicted, whenever since the last measurement it has read."""
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
def test_a_reader_below_the_lowest_rate_is_evicted(site: _Site, rate: int) -> None:
    """A reader below the lowest rate is evicted, even if it reads something."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    for _ in range(75):
        assert not site.factory.evict()
        site.clock.advance(0.01)
        reader.pending -= rate // 100
    site.clock.advance(0.01)
    assert site.factory.evict()
    assert reader.lost


def test_a_reader_that_acknowledges_large_pieces(site: _Site) -> None:
    """A reader that acknowledges large pieces at intervals is not evicted, until it pauses for 3 s."""
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
def test_a_reader_above_the_lowest_rate_is_not_evicted(site: _Site, rate: int) -> None:
    """A reader above the lowest rate is not evicted, however often evict() is called."""
    reader = site.connect(LARGE_ONE, room=100)
    reader.bytes_out = reader.pending = 1_000_000
    for _ in range(1000):
        assert not site.factory.evict()
        site.clock.advance(0.01)
        reader.pending -= rate // 100
    assert not reader.lost


def test_an_unread_response_is_aborted(site: _Site) -> None:
    """An idle connection whose client has not read the last response is aborted: a close would wait for it."""
    client = site.connect(HEAD + b"\r\n")
    client.writing = True  # type: ignore[attr-defined]
    site.wait(1)
    assert site.factory.evict()
    assert client.lost == "aborted"


def test_a_closing_connection_is_closed_cleanly(site: _Site) -> None:
    """A connection that waits for its client to close is closed; the kernel still delivers its data."""
    client = site.connect(HEAD + b"Connection: close\r\n\r\nmore")
    assert client.write_closed
    site.wait(1.5)
    assert site.factory.evict()
    assert client.lost == "done"


# Descriptors of files

FILE = b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n"


def test_the_first_response_has_a_descriptor() -> None:
    """A descriptor is counted from the accept on, until the first response is given or its file is sent."""
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


def test_later_responses_need_a_free_descriptor() -> None:
    """Later responses need a free descriptor: without one the response is 503, and the connection stays open."""
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
    """A file that another response has open needs no descriptor; the one reserved is released."""
    counter = _Counter(1)
    site = _Site(descriptors=counter)
    site.handler.shared = True
    clients = [site.connect(FILE, room=0) for _ in range(3)]
    assert counter.open == 1
    # A later response of a connection that was kept alive.
    other = site.connect(HEAD + b"\r\n")
    other.protocol.dataReceived(FILE)
    assert (counter.open, other.sent.count(b"HTTP/1.1 200 ")) == (1, 2)
    for client in clients:
        client.abortConnection()
    assert counter.open == 0


def test_the_connection_that_needs_a_descriptor_is_not_evicted() -> None:
    """A connection that needs a descriptor has another one evicted for it, even if it was idle itself before."""
    site = _Site()
    counter = _Counter(0)
    site.factory.context.descriptors = counter
    first, second = site.connect(HEAD + b"\r\n"), site.connect(HEAD + b"\r\n")
    counter.try_acquire = site.factory.evict  # type: ignore[method-assign]
    counter.open = 1
    site.wait(10)
    first.protocol.dataReceived(FILE)
    assert (first.lost, second.protocol.end_reason) == ("", "evicted")
    assert first.sent.count(b"HTTP/1.1 200 ") == 2


def test_a_disconnect_releases_the_descriptor() -> None:
    """The descriptor of a file is released when its client disconnects."""
    counter = _Counter(5)
    site = _Site(descriptors=counter)
    client = site.connect(FILE, room=0)
    client.abortConnection()
    assert (counter.open, site.handler.files[0].closed) == (0, True)
