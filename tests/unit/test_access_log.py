"""Access log of HTTP: formats, fields, and the requests that have lines."""

from __future__ import annotations

import json
import os
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.log.files import LogFiles
from svcd.log.formats import JsonFormat, TextFormat
from svcd.log.writer import LogWriter
from svcd.protocols.catalog import stream_factory
from svcd.protocols.http.access_log import AccessLog, EventFormat
from svcd.protocols.http.context import HttpSettings
from svcd.protocols.http.response import Response, Upgrade, text_response
from svcd.protocols.http.server import HttpFactory
from svcd.wire.access_line import CombinedFormat, JsonLineFormat, printable
from svcd.wire.http_request import HttpRequest
from tests.doubles import PEER, LogCatcher, StreamDouble, dependencies, list_sink, service_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from twisted.internet.interfaces import IAddress

#: 6 November 1994, 08:49:37.25 UTC.
NOW = 784_111_777.25
FACTS = ("GET", b"/a?b=%41", "1.1", b"http://c/", b"agent/1")


@pytest.fixture(autouse=True)
def _zone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set a time zone with an offset."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_combined_format() -> None:
    """A line has the client, the local time, the request, status and bytes, Referer and User-Agent."""
    line_format = CombinedFormat()
    expected = '192.0.2.1 - - [06/Nov/1994:14:19:37 +0530] "GET /a?b=%41 HTTP/1.1" 200 5 "http://c/" "agent/1"'
    assert line_format.line(line_format.request(FACTS), "192.0.2.1", NOW, (200, 5, 0.1)) == expected
    none = line_format.request(("-", b"-", "-", b"-", b"-"))
    assert line_format.line(none, "local", NOW + 1, (400, 0, 0.0)) == (
        'local - - [06/Nov/1994:14:19:38 +0530] "-" 400 0 "-" "-"'
    )


def test_the_json_format() -> None:
    """A line is an object with the same values, the service and the duration."""
    line_format = JsonLineFormat('a"b')
    assert json.loads(line_format.line(line_format.request(FACTS), "::1", NOW, (304, 0, 0.00125))) == {
        "time": "1994-11-06T14:19:37.250+05:30", "service": 'a"b', "peer": "::1", "status": 304, "bytes": 0,
        "seconds": 0.00125, "method": "GET", "target": "/a?b=%41", "version": "1.1", "referer": "http://c/",
        "agent": "agent/1",
    }  # fmt: skip


def test_escapes() -> None:
    """Control characters, quotes, backslashes and bytes beyond ASCII are escaped; what can end a line is not left."""
    assert printable(b'a b"c\\d\n\x7f\x1b[0m\xc3\xa9') == "a b\\x22c\\x5cd\\x0a\\x7f\\x1b[0m\\xc3\\xa9"
    assert printable(bytes(range(256))).isprintable()


@pytest.mark.parametrize(
    ("peer", "anonymize", "text"),
    [
        (IPv4Address("TCP", "192.0.2.77", 5), False, "192.0.2.77"),
        (IPv4Address("TCP", "192.0.2.77", 5), True, "192.0.2.0"),
        (IPv6Address("TCP", "::ffff:192.0.2.77", 5), False, "192.0.2.77"),
        (IPv6Address("TCP", "2001:db8:1:2::3", 5), True, "2001:db8:1::"),
        (UNIXAddress(None), False, "local"),
    ],
)
def test_the_client(peer: IAddress, anonymize: bool, text: str) -> None:
    """A client is an address without a port, shortened on request; a local one has no address."""
    lines: list[str] = []
    log = AccessLog(LogWriter(list_sink(lines), TextFormat(stamped=False)), CombinedFormat(), anonymize=anonymize)
    log.write(None, peer, (400, 0, 0.0))
    assert lines[0].startswith(f"{text} - - [")


@pytest.mark.parametrize(("line_format", "as_json"), [(TextFormat(stamped=False), False), (JsonFormat(), True)])
def test_lines_of_the_log_of_the_daemon(line_format: Any, as_json: bool) -> None:
    """Without a file the line is the event `request` in the format of the log."""
    lines: list[str] = []
    writer = LogWriter(list_sink(lines), line_format, clock=lambda: NOW)
    log = AccessLog(writer, EventFormat(writer, "80/tcp"))
    fields = {b"user-agent": b'x "y" %s'}
    log.write(HttpRequest("GET", b"/%61\x01", fields, "1.1", keep_alive=True), PEER, (200, 5, 0.25))
    if as_json:
        found = json.loads(lines[0])
        assert {name: found[name] for name in ("event", "status", "bytes", "seconds", "target", "agent")} == {
            "event": "request", "status": 200, "bytes": 5, "seconds": 0.25, "target": "/%61\\x01",
            "agent": "x \\x22y\\x22 %s",
        }  # fmt: skip
    else:
        (line,) = lines
        assert line == (
            'request service=80/tcp peer=192.0.2.1 method=GET target="/%61\\\\x01" version=1.1 status=200 bytes=5 '
            'seconds=0.250 referer=- agent="x \\\\x22y\\\\x22 %s"'
        )


def test_the_level_of_the_log() -> None:
    """Lines of the log have level info: they stop and start again with the level of the log."""
    lines: list[str] = []
    writer = LogWriter(list_sink(lines), TextFormat(stamped=False))
    log = AccessLog(writer, EventFormat(writer, "80/tcp"))
    for level, count in (("warn", 0), ("info", 1), ("notice", 1), ("debug", 2)):
        writer.set_level(level)
        log.write(None, PEER, (400, 0, 0.0))
        assert len(lines) == count


def test_the_number_of_kept_texts_is_limited() -> None:
    """Many different requests do not take more and more memory."""
    lines: list[str] = []
    log = AccessLog(LogWriter(list_sink(lines), TextFormat(stamped=False)), CombinedFormat())
    for number in range(2000):
        log.write(HttpRequest("GET", b"/%d" % number, {}, "1.1", keep_alive=True), PEER, (200, 5, 0.25))
    assert len(lines) == 2000
    assert len(log._texts) == 512


class _Body:
    """Response body of some pieces."""

    uncounted = False

    def __init__(self, *pieces: bytes | OSError) -> None:
        self.pieces = list(pieces)

    def count(self, budget: object) -> None:
        """Do nothing."""

    def read(self) -> bytes:
        """Return the next piece, or raise it."""
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, OSError):
            raise piece
        return piece

    def close(self) -> None:
        """Do nothing."""


class _Handler:
    """Handler whose replies the test sets."""

    methods = frozenset({"GET", "HEAD", "POST"})
    streams: Literal[False] = False

    def __init__(self, reply: Any) -> None:
        self.reply = reply

    def respond(self, request: HttpRequest, peer: object) -> Any:
        """Return the reply."""
        del request, peer
        return self.reply


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class _Site:
    """A connection of a service with an access log.

    Attributes:
        lines: the lines: status, bytes, seconds and request.
    """

    def __init__(self, reply: Any, room: float = float("inf")) -> None:
        self.lines: list[str] = []
        self.clock = Clock()
        log = AccessLog(LogWriter(list_sink(self.lines), TextFormat(stamped=False)), JsonLineFormat("s"), lambda: NOW)
        protocol: Any = HttpFactory(_Handler(reply), self.clock, HttpSettings(access_log=log)).buildProtocol(PEER)
        self.protocol = protocol
        self.transport = StreamDouble(protocol, room=room)
        protocol.makeConnection(self.transport)

    def results(self) -> list[tuple[int, int, float, str]]:
        """Return status, bytes, seconds and method of each line."""
        return [
            (each["status"], each["bytes"], each["seconds"], each["method"]) for each in map(json.loads, self.lines)
        ]


def _text() -> Response:
    return text_response(HTTPStatus.OK, "text/plain", "hello")


@pytest.mark.parametrize(
    ("data", "reply", "results"),
    [
        (GET, _text(), [(200, 5, 0, "GET")]),
        (GET * 2, _text(), [(200, 5, 0, "GET")] * 2),
        (GET.replace(b"GET", b"HEAD"), _text(), [(200, 0, 0, "HEAD")]),
        (GET.replace(b"GET", b"PUT"), _text(), [(405, 23, 0, "PUT")]),
        (b"nonsense\r\n\r\n", _text(), [(400, 16, 0, "-")]),
        (GET, Response(HTTPStatus.NOT_MODIFIED), [(304, 0, 0, "GET")]),
        (GET, Response(HTTPStatus.OK, {"Content-Length": "9"}, b"one", _Body(b"two", b"six")), [(200, 9, 0, "GET")]),
        (GET, Response(HTTPStatus.OK, {}, b"one", _Body(b"three")), [(200, 8, 0, "GET")]),
        (GET, Response(HTTPStatus.OK, {"Content-Length": "9"}, b"", _Body(b"two", OSError())), [(200, 3, 0, "GET")]),
    ],
)
def test_each_request_has_a_line(data: bytes, reply: Response, results: list[tuple[int, int, float, str]]) -> None:
    """A request has one line, with its status and the bytes of content that were sent, without framing."""
    site = _Site(reply)
    with LogCatcher():
        site.protocol.dataReceived(data)
    assert site.results() == results
    site.transport.lose(Failure(ConnectionLost()))
    assert site.results() == results


def test_the_duration() -> None:
    """The duration is that from the request to the end of the response."""
    later: Deferred[Response] = Deferred()
    site = _Site(later)
    site.protocol.dataReceived(GET)
    site.clock.advance(1.5)
    assert site.lines == []
    later.callback(_text())
    assert site.results() == [(200, 5, 1.5, "GET")]


class _Repeating(_Handler):
    """Handler that knows its response to each request."""

    def respond_again(self, request: HttpRequest) -> Response:
        """Return the response."""
        del request
        assert isinstance(self.reply, Response)
        return self.reply


def test_a_repeated_request() -> None:
    """A request whose response is known has a line with its own duration, and counts for keepalive_requests."""
    lines: list[str] = []
    log = AccessLog(LogWriter(list_sink(lines), TextFormat(stamped=False)), JsonLineFormat("s"), lambda: NOW)
    clock = Clock()
    protocol: Any = HttpFactory(_Repeating(_text()), clock, HttpSettings(requests=3, access_log=log)).buildProtocol(
        PEER
    )
    transport = StreamDouble(protocol)
    protocol.makeConnection(transport)
    for _ in range(4):
        protocol.dataReceived(GET)
        clock.advance(1)
    assert [json.loads(line)["seconds"] for line in lines] == [0, 0, 0]
    assert transport.sent.count(b"Connection: keep-alive") == 2
    assert transport.sent.count(b"Connection: close") == 1


def test_a_client_that_disconnects() -> None:
    """A client that disconnects before the response has a line with 499, one within it with what it was sent."""
    site = _Site(Deferred())
    site.protocol.dataReceived(GET)
    site.clock.advance(2)
    site.transport.lose(Failure(ConnectionLost()))
    assert site.results() == [(499, 0, 2.0, "GET")]
    site = _Site(Response(HTTPStatus.OK, {"Content-Length": "4000"}, b"", _Body(*[b"p" * 1000] * 4)), room=1500)
    site.protocol.dataReceived(GET)
    site.transport.lose(Failure(ConnectionLost()))
    assert site.results() == [(200, 2000, 0, "GET")]


def test_an_upgrade_has_a_line() -> None:
    """A request for an upgrade has a line at the upgrade, with 101."""

    class Other:
        """Protocol after the upgrade."""

        makeConnection = connectionLost = lambda *_: None

    protocol: Any = Other()
    site = _Site(Upgrade({"Upgrade": "x"}, protocol))
    site.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    assert site.results() == [(101, 0, 0, "GET")]
    site.transport.lose(Failure(ConnectionLost()))
    assert len(site.lines) == 1


# Files


def _files(opened: Callable[[], None] = lambda: None) -> LogFiles:
    return LogFiles((-1, -1), opened)


def test_a_file_is_shared_and_closed_with_its_last_user(tmp_path: Path) -> None:
    """Services that name the same file share a writer; its descriptor is closed when none uses it."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the number only
    files, path = _files(), str(tmp_path / "log")
    writers: list[LogWriter] = [files.open(path), files.open(path)]
    assert writers[0] is writers[1]
    writers[0].write("one")
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    writers.clear()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_renamed_file(tmp_path: Path) -> None:
    """After reopen() lines are in the file with the path; if that can't be opened, in the file that is open."""
    path = tmp_path / "log"
    files = _files()
    writer = files.open(str(path))
    writer.write("one")
    path.rename(tmp_path / "old")
    files.reopen()
    writer.write("two")
    path.unlink()
    path.mkdir()
    files.reopen()
    writer.write("three")
    assert (tmp_path / "old").read_text() == "one\n"
    assert not list(path.iterdir())


def test_lines_are_buffered(tmp_path: Path) -> None:
    """Once the reactor runs, lines are buffered for a short time; flush() writes them."""
    files, clock = _files(), Clock()
    first = files.open(str(tmp_path / "first"))
    files.start_buffering(clock.callLater)
    second = files.open(str(tmp_path / "second"))
    for writer in (first, second):
        writer.write("line")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["", ""]
    clock.advance(1)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["line\n"] * 2
    second.write("line")
    files.flush()
    assert (tmp_path / "second").read_text() == "line\n" * 2


def test_a_file_that_can_not_be_opened(tmp_path: Path) -> None:
    """It is an error of the service that names it, and leaves no descriptor open."""
    service = service_of(f"http 80/tcp access_log=json access_log_file={tmp_path}/none/log")
    deps = dependencies(Clock())
    object.__setattr__(deps, "open_log", _files().open)
    with pytest.raises(OSError, match=r"can't open access_log_file .*/none/log: No such file or directory; create"):
        stream_factory(service, deps)
