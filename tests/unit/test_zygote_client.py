"""ZygoteClient, with the test in place of the zygote."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING
from unittest.mock import create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.process.launcher_client import LauncherEvents
from svcd.process.messages import (
    FD_STRUCT,
    MAX_PACKET,
    ChildExited,
    Kill,
    LauncherStarted,
    Ready,
    Signal,
    StartLauncher,
    pack,
    parse,
)
from svcd.process.spec import LaunchSpec, ProcessCredentials
from svcd.process.zygote_client import ZygoteClient
from tests.doubles import FakeReactor, LogCatcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.process.launcher_client import LauncherClient

SPEC = LaunchSpec("cat/tcp", ProcessCredentials(), {}, program="/bin/cat", argv=("cat",))


class _Zygote:
    """A zygote client of two services, and the zygote's end of its socket."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.zygote_client = ZygoteClient(self.reactor)
        reports = create_autospec(LauncherEvents)
        self.launcher_clients: list[LauncherClient] = [
            self.zygote_client.launcher_client(SPEC, reports),
            self.zygote_client.launcher_client(SPEC, reports),
        ]
        self.connect()

    def connect(self) -> None:
        """Connect the client as start() does, without a process."""
        daemon_end, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        daemon_end.setblocking(False)
        self.zygote_client.connected(daemon_end, 2**30)

    def order(self) -> object:
        """Return the next message to the zygote."""
        return parse(self.socket.recv(MAX_PACKET))

    def report(self, packet: bytes, *descriptors: int) -> None:
        """Send a report of the zygote."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, FD_STRUCT.pack(each)) for each in descriptors]
        self.socket.sendmsg([packet], rights)
        self.zygote_client.doRead()

    def close(self) -> None:
        """Stop the client, and close the socket."""
        self.zygote_client.stop()
        self.socket.close()


@pytest.fixture
def zygote() -> Iterator[_Zygote]:
    """A zygote client with the test in place of the zygote."""
    made = _Zygote()
    yield made
    made.close()


def _pair(kind: int = socket.SOCK_SEQPACKET) -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, kind)


def test_launcher_is_requested_and_attached(zygote: _Zygote) -> None:
    """The launcher client gets the socket in the answer."""
    zygote.launcher_clients[1].ensure_launcher()
    assert zygote.order() == StartLauncher(1)
    ours, theirs = _pair()
    with ours, theirs:
        zygote.report(pack(LauncherStarted(1, 77)), theirs.fileno())
        ours.send(pack(Ready()))
        connection = zygote.launcher_clients[1]._connection
        assert connection is not None
        connection.doRead()
        assert (zygote.launcher_clients[1].ready, zygote.launcher_clients[1].pid) == (True, 77)


def test_requests_of_a_lost_zygote_go_to_the_next(zygote: _Zygote) -> None:
    """Unanswered requests are sent again in their order, without those of stopped clients; the pauses grow."""
    pauses = []
    zygote.launcher_clients[1].ensure_launcher()
    zygote.launcher_clients[0].ensure_launcher()
    assert [zygote.order(), zygote.order()] == [StartLauncher(1), StartLauncher(0)]
    for _ in range(3):
        zygote.socket.close()
        with LogCatcher() as log:
            zygote.zygote_client._zygote_exited(9)
        assert [line["reason"] for line in log.named("zygote")] == ["signal 9"]
        assert not log.named("launcher")
        (call,) = zygote.reactor.getDelayedCalls()
        pauses.append(round(call.getTime() - zygote.reactor.seconds(), 3))
        call.cancel()
        zygote.zygote_client._restart_call = None
        zygote.connect()
        assert [zygote.order(), zygote.order()] == [StartLauncher(1), StartLauncher(0)]
    assert pauses == [0.1, 0.2, 0.4]
    zygote.launcher_clients[1].stop()
    zygote.socket.close()
    zygote.zygote_client._zygote_exited(9)
    for call in zygote.reactor.getDelayedCalls():
        call.cancel()
    zygote.zygote_client._restart_call = None
    zygote.connect()
    assert zygote.order() == StartLauncher(0)
    with pytest.raises(BlockingIOError):
        zygote.order()


def test_stopped_client_does_not_restart_the_zygote(zygote: _Zygote) -> None:
    """stop() also cancels the restart of a zygote that was lost just before."""
    zygote.zygote_client._zygote_exited(9)
    assert zygote.zygote_client.stop().called
    assert not zygote.reactor.getDelayedCalls()


def test_requests_wait_for_room_in_the_socket(zygote: _Zygote) -> None:
    """A busy zygote gets all requests later."""
    launcher_clients = [
        zygote.zygote_client.new_launcher_client(0, None, zygote.zygote_client._specs[0])  # type: ignore[arg-type]
        for _ in range(1000)
    ]
    for launcher_client in launcher_clients:
        launcher_client.ensure_launcher()
    count = 0
    while zygote.reactor.getDelayedCalls() or count == 0:
        try:
            while True:
                assert zygote.order() == StartLauncher(0)
                count += 1
        except BlockingIOError:
            zygote.reactor.advance(0.1)
    zygote.zygote_client.send(Kill(5), "kill 5")
    zygote.zygote_client.send(Signal(1, 2, 15), 1)
    while not isinstance(found := zygote.order(), Kill):
        count += 1
    assert (found, zygote.order(), count) == (Kill(5), Signal(1, 2, 15), 1000)


WRONG = {
    "nonsense": (b"junk", ""),
    "too long": (b"T" + b"x" * MAX_PACKET, ""),
    "a launcher's": (pack(Ready()), ""),
    "not requested": (pack(LauncherStarted(1, 77)), "x"),
    "no such row": (pack(LauncherStarted(7, 77)), "x"),
    "without a socket": (pack(LauncherStarted(0, 77)), ""),
    "with an errno and a socket": (pack(LauncherStarted(0, 0, 11)), "x"),
    "without a pid": (pack(LauncherStarted(0, 0)), "x"),
    "with a stream": (pack(LauncherStarted(0, 77)), "s"),
    "a socket without a use": (pack(ChildExited(5, 0)), "x"),
    "no pid": (pack(ChildExited(-1, 0)), ""),
    "no status": (pack(ChildExited(5, -1)), ""),
}


@pytest.mark.parametrize(("packet", "kind"), WRONG.values(), ids=WRONG.keys())
def test_a_zygote_that_breaks_the_protocol(
    zygote: _Zygote, monkeypatch: pytest.MonkeyPatch, packet: bytes, kind: str
) -> None:
    """It is killed, with one log line; the descriptor in the report is closed."""
    killed = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    zygote.launcher_clients[0].ensure_launcher()
    ours, theirs = _pair(socket.SOCK_STREAM if kind == "s" else socket.SOCK_SEQPACKET)
    with ours, theirs:
        zygote.report(packet, *([theirs.fileno()] if kind else []))
        theirs.close()
        ours.settimeout(10)
        assert ours.recv(1) == b""
    assert killed == [(2**30, 9)]
    with LogCatcher() as log:
        zygote.zygote_client._zygote_exited(9)
    (lost,) = log.named("zygote")
    assert str(lost["reason"]).startswith("protocol error: ")


@given(st.lists(st.binary(max_size=20), max_size=4))
def test_any_packets_are_reports_or_the_end(packets: list[bytes]) -> None:
    """Random packets raise no exception."""
    made = _Zygote()
    for packet in packets:
        if made.zygote_client.fileno() >= 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "kill", lambda *_arguments: None)
                made.report(packet)
    made.close()
