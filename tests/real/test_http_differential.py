"""The shapes of tests/http_shapes, sent to svcd, nginx and lighttpd: each difference is known, with its reason."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.http_shapes import SHAPES, Ending, Shape
from tests.http_shapes.document_root import FILES, SENTINEL, SENTINEL_CONTENT, make_site
from tests.http_shapes.lighttpd_differences import LIGHTTPD
from tests.http_shapes.nginx_differences import NGINX
from tests.http_shapes.responses import HttpAnswer, read_answers
from tests.real.daemon import Daemon
from tests.real.web_servers import lighttpd, nginx, version_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.http_shapes.difference import Peer

#: The time after which a server that sends nothing waits for the rest of a request, in seconds.
_SILENCE = 2.0
_THREADS = 32
#: A server that waits for more would hold up the test.
_COMPLETE = [shape for shape in SHAPES if shape.ending is not Ending.WAITING]
_TAG = b"GET /file.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
_NAMES = {content: name for name, content in FILES.items() if content} | {b"": "no content"}
_PART = re.compile(rb"(?i)content-range: (.*)\r\n(?:.*\r\n)*?\r\n((?:.|\n)*?)\r\n--")


def outcome(port: int, data: bytes, shape: Shape) -> str:
    """Send a shape, and then a request that shows whether the connection is open; return what a client sees.

    Each response is its status, with its content or the name of its file if it is a success. The length is there if it
    is not that of the content, and the transfer coding. Pages of errors have contents of their own.
    """
    with socket.create_connection(("127.0.0.1", port), _SILENCE) as client:
        sender = threading.Thread(target=_send, args=(client, data))
        sender.start()
        received, ended = _receive(client, shape, len(shape.statuses))
        answers, _ = read_answers(received, shape.methods, ended=ended)
        waiting = not ended and len(answers) < len(shape.statuses)
        if not ended:
            _send(client, SENTINEL)
            more, _ = _receive(client, shape, 1000)
            answers, _ = read_answers(received + more, shape.methods, ended=True)
        sender.join()
    kept = bool(answers) and answers[-1].content == SENTINEL_CONTENT
    state = "waits" if waiting else "kept" if kept else "closed"
    return " ".join([*map(_text, answers[:-1] if kept else answers), state])


def _text(answer: HttpAnswer) -> str:
    kind = answer.fields.get("content-type", "")
    length = answer.fields.get("content-length", answer.fields.get("transfer-encoding", "no length"))
    if answer.status == 206 and kind.startswith("multipart/"):
        parts = [f"{span.decode()}: {content.decode()}" for span, content in _PART.findall(answer.content)]
        return f"{answer.status} ({', '.join(parts)})"
    if 200 <= answer.status < 300:
        what = _NAMES.get(answer.content, answer.content.decode("latin-1"))
        return (
            f"{answer.status} ({what})" if length == str(len(answer.content)) else f"{answer.status} ({length}, {what})"
        )
    return (
        str(answer.status) if length.isdecimal() or answer.status in (100, 101, 304) else f"{answer.status} ({length})"
    )


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(data)


def _receive(client: socket.socket, shape: Shape | None, count: int) -> tuple[bytes, bool]:
    """Receive a number of responses; return the bytes, and whether the connection has ended."""
    received = b""
    methods = [] if shape is None else shape.methods
    while len(read_answers(received, methods, ended=False)[0]) < count:
        try:
            piece = client.recv(1_000_000)
        except TimeoutError:
            return received, False
        except ConnectionResetError:
            piece = b""
        if not piece:
            return received, True
        received += piece
    return received, False


def _outcomes(port: int) -> dict[str, str]:
    """Return the outcome of each shape."""
    with socket.create_connection(("127.0.0.1", port), _SILENCE) as client:
        client.sendall(_TAG)
        [answer], _ = read_answers(_receive(client, None, 1)[0], [], ended=True)
    tag = answer.fields["etag"].encode()

    def one(shape: Shape) -> str:
        return outcome(port, shape.data.replace(b"{etag}", tag), shape)

    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(map(str, _COMPLETE), threads.map(one, _COMPLETE), strict=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that all servers serve."""
    root = tmp_path_factory.mktemp("www")
    make_site(root)
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, site: Path) -> dict[str, str]:
    """Return the outcome of each shape with svcd."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), f"http 0/tcp root={site} bind=127.0.0.1\n")
    try:
        return _outcomes(daemon.port("http/tcp"))
    finally:
        daemon.end()


def test_svcd(own: dict[str, str]) -> None:
    """Over sockets, svcd has the statuses of the shapes, and keeps or closes the connection as they say."""
    found = {name: re.sub(r" \((?:[^()]|\(.*?\))*\)", "", text, flags=re.DOTALL) for name, text in own.items()}
    assert found == {
        str(shape): " ".join([*map(str, shape.statuses), "kept" if shape.ending is Ending.KEPT else "closed"])
        for shape in _COMPLETE
    }


@pytest.mark.parametrize(("name", "serve", "peer"), [("nginx", nginx, NGINX), ("lighttpd", lighttpd, LIGHTTPD)])
def test_a_peer(
    own: dict[str, str],
    site: Path,
    tmp_path: Path,
    program: Callable[[str], str],
    name: str,
    serve: Callable[[str, Path, Path], contextlib.AbstractContextManager[int]],
    peer: Peer,
) -> None:
    """Status, framing, body and end of the connection are as with svcd, or as the table of differences says."""
    path = program(name)
    with serve(path, site, tmp_path) as port:
        found = _outcomes(port)
    differences = {shape: text for shape, text in found.items() if text != own[shape]}
    if version_of(path) == peer.version:
        assert differences == peer.outcomes
    else:
        # Another version may differ in another way, where a difference is known.
        assert differences.keys() <= peer.outcomes.keys()
