"""Bodies from files on transports that send files themselves, and on others."""

from __future__ import annotations

import os
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from svcd.protocols.http.outgoing_body import OutgoingBody
from svcd.protocols.http.response import GET_AND_HEAD, Response
from svcd.protocols.http.server import HttpFactory
from svcd.protocols.open_files import FileBody, OpenFiles
from tests.doubles import PEER, LogCatcher, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with the content."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def _body(path: Path, *pieces: bytes | tuple[int, int]) -> FileBody:
    descriptor = os.open(path, os.O_RDONLY)
    return OpenFiles().body(descriptor, os.fstat(descriptor), pieces)


class _Files:
    """Handler that responds with parts of a file."""

    methods = GET_AND_HEAD
    streams = False

    def __init__(self, path: Path, pieces: Sequence[bytes | tuple[int, int]], length: int) -> None:
        self._path = path
        self._pieces = pieces
        self._length = length

    def respond(self, *_: object) -> Response:
        """Return the response."""
        body = _body(self._path, *self._pieces)
        return Response(HTTPStatus.OK, {"Content-Length": str(self._length)}, body=body)


class _SendingTransport(StreamDouble):
    """Transport that sends parts of files when the test says so."""

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol)
        self.parts: list[tuple[tuple[int, int, int], Callable[[OSError], None]]] = []

    def send_file(self, part: tuple[int, int, int], failed: Callable[[OSError], None]) -> SimpleNamespace:
        """Note the part, and pause the producer."""
        self.parts.append((part, failed))
        self.producer.pauseProducing()
        self.sending = SimpleNamespace(remaining=part[2])
        return self.sending

    def send_next(self) -> None:
        """Send a part, and resume the producer."""
        (descriptor, offset, count), _ = self.parts.pop(0)
        self.sent += os.pread(descriptor, count, offset)
        self.sending.remaining = 0
        self.producer.resumeProducing()


def _connect(path: Path, *pieces: bytes | tuple[int, int], length: int) -> _SendingTransport:
    factory = HttpFactory(_Files(path, pieces, length), Clock())  # type: ignore[arg-type]
    protocol: Any = factory.buildProtocol(PEER)
    transport = _SendingTransport(protocol)
    transport.protocol.makeConnection(transport)
    protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    return transport


def test_parts_and_bytes(path: Path) -> None:
    """Large parts are taken by the transport, small ones and other bytes are read, in order."""
    body = _body(path, b"head", (0, 10), (100, 100_100), b"tail")
    assert body.take_part() is None
    assert body.read() == b"head"
    assert body.take_part() is None
    assert body.read() == CONTENT[:10]
    assert body.take_part() is None
    body.close()
    body = _body(path, (100, 500_000), b"tail")
    part = body.take_part()
    assert part is not None
    assert part[1:] == (100, 499_900)
    assert os.pread(part[0], part[2], part[1]) == CONTENT[100:500_000]
    assert body.take_part() is None
    assert (body.read(), body.read(), body.read()) == (b"tail", b"", b"")
    body.close()


def test_a_transport_that_sends_files(path: Path) -> None:
    """The transport sends the parts between head and tail, and the next response follows."""
    length = 4 + 500_000 + 5 + 200_000 + 4
    transport = _connect(path, b"head", (0, 500_000), b"\r\n--b", (600_000, 800_000), b"tail", length=length)
    for _ in range(4):
        transport.send_next()
    assert not transport.parts
    expected = b"head" + CONTENT[:500_000] + b"\r\n--b" + CONTENT[600_000:800_000] + b"tail"
    assert [each.partition(b"\r\n\r\n")[2] for each in transport.sent.split(b"HTTP/1.1 200 OK")[1:]] == [expected] * 2


def test_a_part_that_can_not_be_sent(path: Path) -> None:
    """If the transport can't send a part, the connection is aborted with a line in the log, and the file is closed."""
    transport = _connect(path, (0, 500_000), length=500_000)
    (descriptor, _, _), failed = transport.parts[0]
    with LogCatcher() as log:
        failed(OSError("it became shorter"))
    assert transport.lost == "aborted"
    assert len(log.events) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_client_that_goes_while_a_part_is_sent(path: Path) -> None:
    """The file is closed when the connection has ended, not before."""
    transport = _connect(path, (0, 500_000), length=500_000)
    (descriptor, _, _), _ = transport.parts[0]
    os.fstat(descriptor)
    transport.abortConnection()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_the_bytes_that_were_sent(path: Path) -> None:
    """If a part is not sent whole, the bytes that are missing are not counted."""
    sending = SimpleNamespace(remaining=0)
    for remaining, sent in ((0, 500_004), (499_999, 5)):
        outgoing = OutgoingBody(_body(path, b"head", (0, 500_000)), 500_004, chunked=False)
        assert outgoing.read(lambda: None) == b"head"
        assert outgoing.send_part(lambda *_: sending, lambda _: None)
        sending.remaining = remaining
        outgoing.close()
        assert outgoing.sent == sent
