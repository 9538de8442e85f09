"""The control socket's server in memory, and what svcctl makes of an answer."""

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
    """One whose hang-up can be seen as that of a real socket."""

    def __init__(self, protocol: Any, ends: list[socket.socket], **settings: Any) -> None:
        super().__init__(protocol, **settings)
        self.ours, self.client = socket.socketpair()
        ends += [self.ours, self.client]

    def fileno(self) -> int:
        """Its descriptor."""
        return self.ours.fileno()


class _Server:
    """A factory with commands that the test ends.

    Attributes:
        asked: how often status was asked for.
        slow: what `reload` waits for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reactor = FakeReactor()
        self.asked = 0
        self.slow: Deferred[object] = Deferred()
        self.ends: list[socket.socket] = []
        self.user = 0
        monkeypatch.setattr(control, "credentials", lambda _handle: (1, self.user, 1))
        commands = {"status": self._status, "reload": lambda: self.slow, "drain": self._refuse}
        self.factory = ControlFactory(commands, frozenset({0, 1000}), self.reactor)

    def _status(self) -> int:
        self.asked += 1
        return self.asked

    def _refuse(self) -> None:
        raise CommandError("not now")

    def connect(self, user: int = 0, **settings: Any) -> _Transport:
        """A client of this user."""
        self.user = user
        client: Any = self.factory.buildProtocol(UNIXAddress(None))
        transport = _Transport(client, self.ends, **settings)
        client.makeConnection(transport)
        return transport


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """A server whose clients are root's unless the test says otherwise."""
    made = _Server(monkeypatch)
    yield made
    for end in made.ends:
        end.close()


def _answers(transport: StreamDouble) -> list[dict[str, Any]]:
    return [json.loads(line) for line in transport.sent.splitlines()]


def test_many_requests_are_answered_in_turns(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, without recursion, one of each client at a time, and with a pause for other events."""
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
    """What is asked behind a command that takes a while waits for it, mistakes as well."""
    client = server.connect()
    client.protocol.dataReceived(b'{"id":1,"command":"reload"}\nx\n{"id":2,"command":"drain"}\n')
    assert (client.sent, client.reading) == (b"", False)
    server.slow.callback("done")
    assert [(answer["id"], answer["ok"]) for answer in _answers(client)] == [(1, True), (None, False), (2, False)]
    assert client.reading


def test_a_half_closed_client_has_its_answers(server: _Server) -> None:
    """The connection ends behind the last of them; a last line needs no end."""
    client = server.connect()
    client.protocol.dataReceived(b'{"id":1,"command":"reload"}\n{"id":2,"command":"status"}')
    client.protocol.readConnectionLost()
    assert "loseConnection" not in client.calls
    server.slow.callback(None)
    assert [answer["id"] for answer in _answers(client)] == [1, 2]
    assert client.lost == "done"
    assert server.factory.clients == []


def test_answers_that_are_not_read_stop_the_next(server: _Server) -> None:
    """A client that takes nothing has one answer more than there is room for, and goes on when it reads."""
    client = server.connect(room=1)
    client.protocol.dataReceived(STATUS * 3)
    assert (server.asked, client.reading) == (1, False)
    for asked in (2, 3):
        client.drain()
        assert server.asked == asked
    client.protocol.readConnectionLost()
    assert not client.lost
    client.drain()
    assert client.lost


def test_a_client_that_hangs_up_frees_its_place(server: _Server) -> None:
    """Also one that is not read from, because a command of it is under way: whoever comes next gets the place."""
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


def test_there_is_always_a_place_for_root(server: _Server) -> None:
    """Four more than others may have, and refused clients take none; but root's places end, too."""
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


def test_a_refused_client_does_not_stay(server: _Server) -> None:
    """It has a second to read why, and to close."""
    client, other = server.connect(1001), server.connect(1001)
    assert client.calls == ["loseWriteConnection"]
    client.protocol.dataReceived(STATUS)
    client.protocol.readConnectionLost()
    assert (client.lost, server.asked) == ("done", 0)
    server.reactor.advance(1)
    assert other.lost == "aborted"
    assert not server.reactor.getDelayedCalls()


def test_the_end_answers_what_was_asked(server: _Server) -> None:
    """Requests that wait, as for an upgrade, are to be asked again (svcctl exits by 75); each is answered, in order."""
    client = server.connect()
    client.protocol.dataReceived(b'{"id":1,"command":"reload"}\n{"id":"b","command":"status"}\nx\n')
    done = server.factory.finish()
    answers = _answers(client)
    assert [(answer["id"], answer["code"]) for answer in answers] == [(1, "busy"), ("b", "busy"), (None, "busy")]
    assert "ask again" in answers[0]["error"]
    assert (client.lost, done.called, server.asked) == ("done", True, 0)
    sent = client.sent
    server.slow.callback("done")
    assert client.sent == sent


def test_the_end_waits_for_last_answers(server: _Server) -> None:
    """It is over when every client is gone, whatever they have asked for."""
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
def test_what_is_no_answer_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, text: str
) -> None:
    """Svcctl says in a line what came instead, and exits by EX_UNAVAILABLE."""
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
    said = capsys.readouterr()
    assert said.out == ""
    assert text in said.err
    assert said.err.count("\n") == 1
