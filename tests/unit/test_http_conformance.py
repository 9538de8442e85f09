"""Conformance of the HTTP server with RFC 9110 and 9112: the shapes of tests/http_shapes.py, in memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from svcd.protocols.http.server import HttpFactory
from svcd.protocols.http.static_files import StaticFiles
from tests.doubles import PEER, StreamDouble
from tests.http_shapes import SHAPES, Ending, Shape
from tests.http_shapes.document_root import SENTINEL, SENTINEL_CONTENT, make_site
from tests.http_shapes.responses import HttpAnswer, read_answers

if TYPE_CHECKING:
    from pathlib import Path

#: The shapes that are also sent byte by byte.
_SHORT = 4000


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> StaticFiles:
    """Return the handler of the files that the shapes ask for."""
    root: Path = tmp_path_factory.mktemp("www")
    make_site(root)
    # The files were changed long ago, so that their tags are strong.
    return StaticFiles(str(root), now=lambda: time.time_ns() + 10**10)


class _Connection:
    """Connection to the server in memory."""

    def __init__(self, handler: StaticFiles) -> None:
        factory = HttpFactory(handler, Clock(), now=lambda: 1_800_000_000.0)
        self.protocol: Any = factory.buildProtocol(PEER)
        self.transport = StreamDouble(self.protocol)
        self.transport.protocol.makeConnection(self.transport)

    def send(self, data: bytes, step: int) -> None:
        """Send bytes in pieces, as long as the connection is open."""
        for start in range(0, len(data), step):
            if not self.transport.lost:
                self.protocol.dataReceived(data[start : start + step])

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection, or its side of it."""
        return self.transport.write_closed or bool(self.transport.lost)

    def answers(self, shape: Shape) -> list[HttpAnswer]:
        """Return the responses so far.

        Raises:
            ValueError: the server has sent anything else.
        """
        answers, rest = read_answers(self.transport.sent, shape.methods, ended=self.closed)
        if rest:
            raise ValueError(f"a part of a response: {rest!r}")
        return answers


def _tag(handler: StaticFiles) -> bytes:
    """Return the entity tag of /file.txt."""
    connection = _Connection(handler)
    connection.send(b"GET /file.txt HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
    [answer], _ = read_answers(connection.transport.sent, [], ended=False)
    return answer.fields["etag"].encode()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shape(shape: Shape, handler: StaticFiles) -> None:
    """A shape has its statuses, fields and content, and its ending, sent at once and byte by byte."""
    data = shape.data
    if b"{etag}" in data:
        data = data.replace(b"{etag}", _tag(handler))
    for step in (len(data), 1) if len(data) < _SHORT else (len(data),):
        connection = _Connection(handler)
        connection.send(data, step)
        answers = connection.answers(shape)
        assert tuple(answer.status for answer in answers) == shape.statuses
        assert connection.closed == (shape.ending is Ending.CLOSED)
        if answers:
            _check(shape, answers[-1])
        if shape.ending is Ending.KEPT:
            connection.send(SENTINEL, len(SENTINEL))
            assert connection.answers(shape)[-1].content == SENTINEL_CONTENT


def _check(shape: Shape, last: HttpAnswer) -> None:
    """Check what a shape says of its last response, and what holds for every response."""
    for name, value in shape.fields.items():
        assert last.fields.get(name.lower()) == value, name
    assert shape.content is None or last.content == shape.content
    assert last.version == "HTTP/1.1"
    # RFC 9110, section 6.6.1; RFC 9112, section 9.6.
    assert last.fields["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert (last.fields.get("connection") == "close") == (shape.ending is Ending.CLOSED)
