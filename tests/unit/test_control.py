"""The control socket's server in memory, and how svcctl treats its answers."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred

from svcd.cli import main
from svcd.control import server as control
from svcd.control.server import ControlFactory
from svcd.errors import CommandError
from tests.doubles import FakeReactor, StreamDouble

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATUS = b'{"command":"status"}\n'


class _Transport(StreamDouble):
    """Stream transport with a real descriptor, on which a hang-up can be seen."""

    def __init__(self, protocol: Any, ends: list[socket.socket], **settings: Any) -> None:
        super().__init__(protocol, **settings)
        self.server_end, self.client = socket.socketpair()
        ends += [self.server_end, self.client]

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.server_end.fileno()


class _Server:
    """ControlFactory with commands that the test completes.

    Attributes:
        status_requests: how often `status` was run.
        slow: the result that `reload` waits for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reactor = FakeReactor()
        self.status_requests = 0
        self.slow: Deferred[object] = Deferred()
        self.ends: list[socket.socket] = []
        self.user = 0
        monkeypatch.setattr(control, "credentials", lambda _handle: (1, self.user, 1))
        commands = {"status": self._status, "reload": lambda: self.slow, "drain": self._refuse}
        self.factory = ControlFactory(commands, frozenset({0, 1000}), self.reactor)

    def _status(self) -> int:
        self.status_requests += 1
        return self.status_requests

    def _refuse(self) -> None:
        raise CommandError("not now")

    def connect(self, user: int = 0, **settings: Any) -> _Transport:
        """Connect a client of a user."""
        self.user = user
        client: Any = self.factory.buildProtocol(UNIXAddress(None))
        transport = _Transport(client, self.ends, **settings)
        client.makeConnection(transport)
        return transport


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """Yield a server whose clients are root by default."""
    made = _Server(monkeypatch)
    yield made
    for end in made.ends:
        end.close()


def _answers(transport: StreamDouble) -> list[dict[str, Any]]:
    return [json.loads(line) for line in transport.sent.splitlines()]


def test_requests_are_answered_in_turns(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered in order, one per client and turn, and without recursion."""
    monkeypatch.setattr(control, "_TURN_SECONDS", 0)
    first, second = server.connect(), server.connect()
    first.protocol.dataReceived(b"".join(b'{"id":%d,"command":"status"}\n' % number for number in range(5000)))
    assert not first.reading
    second.protocol.dataReceived(STATUS)
    assert (len(_answers(first)), len(_answers(second))) == (1, 0)
    server.reactor.pump([0] * 3)
    assert len(_answers(second)) == 1
    server.reactor.pump([0] * 5000)
    assert [answer["id"] for answer in _answers(first)] == list(range(5000))
    assert first.reading
    assert not server.reactor.getDelayedCalls()


def test_answers_keep_the_order_of_the_requests(server: _Server) -> None:
    """Requests after a slow command wait for its answer; so do error messages."""
    client = server.connect()
    client.protocol.dataReceived(b'{"id":1,"command":"reload"}\nx\n{"id":2,"command":"drain"}\n')
    assert (client.sent, client.reading) == (b"", False)
    server.slow.callback("done")
    assert [(answer["id"], answer["ok"]) for answer in _answers(client)] == [(1, True), (None, False), (2, False)]
    assert client.reading


def test_a_half_closed_client_receives_its_answers(server: _Server) -> None:
    """A client that has half-closed receives all answers; a last line needs no line end."""
    client = server.connect()
    client.protocol.dataReceived(b'{"id":1,"command":"reload"}\n{"id":2,"command":"status"}')
    client.protocol.readConnectionLost()
    assert "loseConnection" not in client.calls
    server.slow.callback(None)
    assert [answer["id"] for answer in _answers(client)] == [1, 2]
    assert client.lost == "done"
    assert server.factory.clients == []


def test_unread_answers_delay_requests(server: _Server) -> None:
    """Requests of a client that does not read are not run until it reads."""
    client = server.connect(room=1)
    client.protocol.dataReceived(STATUS * 3)
    assert (server.status_requests, client.reading) == (1, False)
    for status_requests in (2, 3):
        client.drain()
        assert server.status_requests == status_requests
    client.protocol.readConnectionLost()
    assert not client.lost
    client.drain()
    assert client.lost


def test_a_client_that_hangs_up_frees_its_place(server: _Server) -> None:
    """A client that hangs up frees its place, also while a command of it runs and it is not read from."""
    clients = [server.connect(1000) for _ in range(16)]
    for client in clients:
        client.protocol.dataReceived(b'{"command":"reload"}\n' + STATUS)
    assert b"busy" in server.connect(1000).sent
    clients[3].client.close()
    after = server.connect(1000)
    after.protocol.dataReceived(STATUS)
    assert _answers(after) == [{"id": None, "ok": True, "result": 1}]
    assert [client.lost for client in clients if client.lost] == ["aborted"]
    assert b"busy" in server.connect(1000).sent
    server.slow.callback(None)
    assert clients[3].sent == b""


def test_places_are_reserved_for_root(server: _Server) -> None:
    """Four places are reserved for root; refused clients take no place."""
    for _ in range(40):
        assert b"refused" in server.connect(1001).sent
    for _ in range(16):
        assert server.connect(1000).sent == b""
    assert b"busy" in server.connect(1000).sent
    for _ in range(4):
        client = server.connect()
        client.protocol.dataReceived(STATUS)
        assert _answers(client)[0]["ok"]
    assert b"busy" in server.connect().sent


def test_a_refused_client_is_disconnected(server: _Server) -> None:
    """A refused client is disconnected after 1 s at the latest."""
    client, other = server.connect(1001), server.connect(1001)
    assert client.calls == ["loseWriteConnection"]
    client.protocol.dataReceived(STATUS)
    client.protocol.readConnectionLost()
    assert (client.lost, server.status_requests) == ("done", 0)
    server.reactor.advance(1)
    assert other.lost == "aborted"
    assert not server.reactor.getDelayedCalls()


def test_finish_answers_waiting_requests(server: _Server) -> None:
    """finish() answers each waiting request with code `busy`, for which svcctl exits with 75, in order."""
    client = server.connect()
    client.protocol.dataReceived(b'{"id":1,"command":"reload"}\n{"id":"b","command":"status"}\nx\n')
    done = server.factory.finish()
    answers = _answers(client)
    assert [(answer["id"], answer["code"]) for answer in answers] == [(1, "busy"), ("b", "busy"), (None, "busy")]
    assert "try again" in answers[0]["error"]
    assert (client.lost, done.called, server.status_requests) == ("done", True, 0)
    sent = client.sent
    server.slow.callback("done")
    assert client.sent == sent


def test_finish_waits_for_the_clients(server: _Server) -> None:
    """finish() fires when every client is gone; cut() aborts those that are left."""
    assert server.factory.finish().called
    client, refused = server.connect(room=1), server.connect(1001)
    client.protocol.dataReceived(STATUS * 3)
    done = server.factory.finish()
    assert not done.called
    client.drain()
    assert (client.lost, refused.lost) == ("done", "done")
    assert done.called
    left = server.connect(room=1)
    left.protocol.dataReceived(STATUS)
    done = server.factory.finish()
    server.factory.abort_all()
    assert left.lost == "aborted"
    assert done.called


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "has closed the connection before its answer"),
        (b'{"id":1,"ok":true,"resu', "in the middle of its answer, after 23 bytes"),
        (b'{"id":1,"ok":true,"result":{}}', "in the middle of its answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is not svcd"),
        (b"[" * 100_000 + b"\n", "is not svcd"),
        (b'{"id":1,"ok":true}\n', "is not svcd"),
        (b'{"id":1,"ok":false,"error":"x"}\n', "is not svcd"),
        (b"[]\n", "is not svcd"),
    ],
)
def test_malformed_answers_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, text: str
) -> None:
    """A malformed answer is reported in one line, and svcctl exits with EX_UNAVAILABLE."""
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        assert main(["--control", path, "status"]) == os.EX_UNAVAILABLE
        server.join()
    output = capsys.readouterr()
    assert output.out == ""
    assert text in output.err
    assert output.err.count("\n") == 1
