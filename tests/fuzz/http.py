"""`python -m tests.fuzz.http`: mutated requests to the HTTP server in memory, beside h11.

For each input the server must not fail, must end the connection at the end of the input, and must send responses with
valid framing. If it answers a request and goes on, h11 must have found the same request, which ends at the same byte:
the input is cut before and after the byte at which h11 ends each request. The server may refuse what h11 takes.
"""

from __future__ import annotations

import argparse
import re
import resource
import signal
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import h11
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.protocols.http.response import text_response
from svcd.protocols.http.server import HttpFactory
from svcd.protocols.http.static_files import StaticFiles
from tests.doubles import PEER, LogCatcher, StreamDouble
from tests.fuzz.mutation import Mutator
from tests.http_shapes import SHAPES, Ending
from tests.http_shapes.document_root import make_site
from tests.http_shapes.responses import read_answers

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from svcd.protocols.http.response import Reply, Response
    from svcd.wire.http_request import HttpRequest

__all__ = ["HttpFuzzer", "main"]

#: The longest shape that is a sample, in bytes.
_SAMPLE = 1000
#: The time that an input may take, in seconds.
_MOST_SECONDS = 10
#: Statuses of invalid requests, after which the connection is closed.
_REFUSALS = frozenset({400, 413, 414, 417, 431, 501, 505})
#: The time in the Date of responses, in seconds since 1970.
_NOW = 1_800_000_000.0
_REFUSAL = re.compile(rb"(?<=\r\n\r\n)[45]\d\d [A-Za-z ]+\n$")
_TOKENS = tuple(
    text.encode("latin-1")
    for text in (
        "\r\n", "\n", "\r", "\r\n\r\n", "\n\n", "\r\r\n", " ", "  ", "\t", "\x00", "\x0b", "\x7f", "\xa0", "ÿ", ":",
        ";", ",", '"', "/", "*", "%", "%00", "%2e", "..", "?", "#", "GET ", "HEAD ", "POST ", "CONNECT ", "OPTIONS ",
        "PRI ", " HTTP/1.1", " HTTP/1.0", " HTTP/2.0", "HTTP/1.1\r\n", "http://a", "Host: a\r\n", "Host",
        "Content-Length", "Content-Length: 5\r\n", "Content-Length: 0\r\n", "Content-Length: 3\r\n",
        "Transfer-Encoding", "Transfer-Encoding: chunked\r\n", "chunked", "identity", "gzip", "Connection: close\r\n",
        "Connection: keep-alive\r\n", "close", "keep-alive", "Upgrade: h2c\r\n", "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\n", "Expect: 100-continue\r\n", "Trailer: X\r\n", "X: y\r\n", "0\r\n\r\n", "0\r\n",
        "5\r\nhello\r\n", "hello", "0", "1", "5", "-", "+", "0x", "f", "ffffffffffffffff", "18446744073709551616",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    )
)  # fmt: skip


_Parts: TypeAlias = "tuple[str, bytes, dict[bytes, bytes], bytes]"


class _Expected(NamedTuple):
    """Request that h11 has found.

    Attributes:
        end: the position after its last byte.
        request: its method, target, fields and body.
    """

    end: int
    request: _Parts


class _Recorder:
    """Handler that records the requests and their bodies, and then responds with static files.

    Attributes:
        requests: each request, with the part of its body that has arrived.
    """

    streams: Literal[True] = True
    methods = None

    def __init__(self, files: StaticFiles) -> None:
        self._files = files
        self.requests: list[tuple[HttpRequest, bytearray]] = []

    def respond(self, request: HttpRequest, peer: IAddress, transport: object) -> Reply:  # noqa: ARG002
        """Record a request and its body, and respond."""
        content = bytearray()
        self.requests.append((request, content))
        if request.body is None:
            return self._files.respond(request, peer)
        reply: Deferred[Response] = Deferred()

        def ended(whole: bool) -> None:
            if whole:
                reply.callback(text_response(HTTPStatus.OK, "text/plain", f"{len(content)}"))

        request.body.start(content.extend, ended)
        return reply


class _Connection:
    """Connection to the server in memory."""

    def __init__(self, factory: HttpFactory) -> None:
        self.protocol: Any = factory.buildProtocol(PEER)
        self._transport = StreamDouble(self.protocol)
        self._transport.protocol.makeConnection(self._transport)

    def send(self, data: bytes) -> None:
        """Send bytes, as long as the server reads."""
        if data and not self._transport.lost:
            self.protocol.dataReceived(data)

    @property
    def sent(self) -> bytes:
        """Bytes that the server has sent."""
        return self._transport.sent

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection, or its side of it."""
        return self._transport.write_closed or bool(self._transport.lost)

    def end(self) -> None:
        """End the input, and then the connection."""
        if not self._transport.lost:
            self.protocol.readConnectionLost()
        if not self._transport.lost:
            self._transport.lose(Failure(ConnectionDone()))


class HttpFuzzer:
    """Inputs for the server, and their comparison with h11.

    Args:
        root: an empty directory for the files that the server has.
        seed: the seed of the random numbers.

    Attributes:
        answered: the number of requests that both have found.
    """

    def __init__(self, root: Path, seed: int) -> None:
        make_site(root)
        short = [shape for shape in SHAPES if len(shape.data) <= _SAMPLE]
        valid = [shape for shape in short if shape.ending is Ending.KEPT]
        samples = [shape.data.replace(b"{etag}", b'"etag"') for shape in (*short, *valid, *valid)]
        self._mutator = Mutator(samples, _TOKENS, Random(seed))
        # The files were changed long ago, so that their tags are strong.
        self._handler = _Recorder(StaticFiles(str(root), now=lambda: time.time_ns() + 10**10))
        self._factory = HttpFactory(self._handler, Clock(), now=lambda: _NOW)
        self._log = LogCatcher()
        self.answered = 0

    def run(self, count: int) -> None:
        """Send a number of inputs.

        Raises:
            AssertionError: the server has done anything wrong; the message has the input.
        """
        before = signal.signal(signal.SIGALRM, _time_out)
        try:
            with self._log:
                for _ in range(count):
                    data = self._mutator.next()
                    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
                    try:
                        self._try(data)
                    except Exception as error:
                        raise AssertionError(f"{error}: {data!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _try(self, data: bytes) -> None:
        expected, error = split_by_h11(data)
        self._handler.requests = []
        connection = _Connection(self._factory)
        position = answered = 0
        for number, each in enumerate(expected):
            for cut in sorted(place for place in self._mutator.cuts(len(data)) if position < place < each.end):
                connection.send(data[position:cut])
                position = cut
            connection.send(data[position : each.end - 1])
            assert connection.closed or self._answered(connection) == number, f"request {number} ends early"
            connection.send(data[each.end - 1 : each.end])
            position = each.end
            if connection.closed:
                break
            assert self._answered(connection) == number + 1, f"request {number} does not end"
        connection.send(data[position:])
        answered = self._answered(connection)
        assert connection.closed or answered == len(expected), f"a request where h11 has {error or 'none'}"
        self._compare([each.request for each in expected[:answered]])
        self._end(connection, [each.request[0] for each in expected[:answered]])
        self.answered += answered
        self._repeat(data, connection.sent)

    def _repeat(self, data: bytes, sent: bytes) -> None:
        """Send an input in one piece, twice: the second time the server may know the bytes of its requests."""
        if b"expect" in data.lower() or b"multipart/" in sent:
            # A body that comes with its head needs no 100 response; the boundaries of parts are random.
            return
        for _ in range(2):
            connection = _Connection(self._factory)
            connection.send(data)
            connection.end()
            # Whether an invalid request line has the method HEAD is not known in any case.
            same = _REFUSAL.sub(b"", connection.sent) == _REFUSAL.sub(b"", sent)
            assert same, f"in one piece {connection.sent!r}, in several {sent!r}"

    @staticmethod
    def _answered(connection: _Connection) -> int:
        """Return the number of responses to complete requests so far."""
        statuses = [int(each) for each in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", connection.sent)]
        return len(statuses) - (connection.closed and bool(statuses) and statuses[-1] in _REFUSALS)

    def _compare(self, expected: list[_Parts]) -> None:
        """Compare the requests that the handler got with those of h11."""
        found = [_parts(request, bytes(content)) for request, content in self._handler.requests]
        assert found[: len(expected)] == expected, f"{found} instead of {expected}"

    def _end(self, connection: _Connection, methods: list[str]) -> None:
        connection.end()
        assert connection.closed, "the connection is open"
        # The last response may be for an invalid request with the method HEAD.
        rests = [read_answers(connection.sent, [*methods, last], ended=True)[1] for last in ("GET", "HEAD")]
        assert b"" in rests, f"a part of a response: {rests[0]!r}"
        assert self._factory.connections.open == 0, "the connection is counted"
        assert not self._log.failures, self._log.failures[0].getTraceback()
        self._log.events.clear()


def _parts(request: HttpRequest, content: bytes) -> _Parts:
    fields = dict(request.fields)
    if b"transfer-encoding" in fields:
        # h11 has it in lower case.
        fields[b"transfer-encoding"] = fields[b"transfer-encoding"].lower()
    return request.method, request.target, fields, content


def _time_out(*_arguments: object) -> None:
    raise TimeoutError(f"it takes more than {_MOST_SECONDS} s")


def _without_lenience(data: bytes) -> bytes:
    """Return the bytes from the next request on, without what a server may ignore and h11 does not.

    Line ends before a request (RFC 9112, section 2.2), and more than one blank in a request line (section 3).
    """
    rest = data.lstrip(b"\r\n")
    line, end, fields = rest.partition(b"\r\n")
    return re.sub(b" +", b" ", line) + end + fields


def split_by_h11(data: bytes) -> tuple[list[_Expected], str]:
    """Return the complete requests of an input, and the error that follows them; an empty text for none."""
    found: list[_Expected] = []
    position = 0
    while True:
        rest = _without_lenience(data[position:])
        if not rest:
            return found, ""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(rest)
        try:
            request = event = connection.next_event()
            content = b""
            while not isinstance(event, h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    return found, ""
                event = connection.next_event()
                if isinstance(event, h11.Data):
                    content += event.data
        except h11.RemoteProtocolError as error:
            return found, str(error)
        assert isinstance(request, h11.Request)
        if request.http_version not in (b"1.0", b"1.1"):
            # For h11 any version is one of HTTP/1.
            return found, "another version"
        position = len(data) - len(connection.trailing_data[0])
        fields: dict[bytes, bytes] = {}
        for name, value in request.headers:
            fields[name] = fields[name] + b", " + value if name in fields else value
        found.append(_Expected(position, (request.method.decode(), request.target, fields, content)))


def main() -> None:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.http", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        fuzzer = HttpFuzzer(Path(name), chosen.seed)
        # The caches are full after the first part; a leak goes on.
        fuzzer.run(chosen.count // 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fuzzer.run(chosen.count - chosen.count // 2)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    took = time.monotonic() - started
    print(f"{chosen.count:,} inputs, {fuzzer.answered:,} requests, {took:.0f} s; memory grew by {grown:,} kB")
    sys.exit(grown > 10_000)


if __name__ == "__main__":
    main()
