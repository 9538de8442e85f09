"""Tests of listening ports: pausing, resuming, closing, without the loss of a client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.threads import blockingCallFromThread

from svcd.reactor import SocketPort
from tests.reactor.conftest import Recorder, Recorders, blocking
from tests.reactor.test_streams import Echo

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from tests.reactor.conftest import ReactorHarness

_ROOT = Path(__file__).parents[2]


def exchange(family: int, name: Any) -> bytes:
    """Send data to an echo service, and return the answer."""
    with socket.socket(family) as sock:
        sock.connect(name)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(5, socket.MSG_WAITALL) + sock.recv(1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@pytest.mark.parametrize("quiet", [False, True])
def test_adopted_socket(harness: ReactorHarness, tmp_path: Path, family: socket.AddressFamily, quiet: bool) -> None:
    """A port on a given listening socket of any family serves; the socket stays open when the port stops."""
    names: dict[int, Any] = {
        socket.AF_INET: ("127.0.0.1", 0),
        socket.AF_INET6: ("::1", 0),
        socket.AF_UNIX: os.fspath(tmp_path / "u"),
    }
    reactor: Any = harness.reactor
    with socket.socket(family) as sock:
        sock.bind(names[family])
        sock.listen()
        sock.setblocking(False)
        name = sock.getsockname()
        factory = Recorders(Echo)
        if quiet:
            port: Any = SocketPort(reactor, sock, factory, lambda: True, lambda: None)
            port.startListening()
        else:
            port = reactor.adoptStreamPort(sock.fileno(), family, factory)
        host = port.getHost()
        assert (host.name if family == socket.AF_UNIX else host.port) in (name, os.fsencode(str(name)), name[1])

        def client() -> bytes:
            answer = exchange(family, name)
            reactor.callFromThread(port.stopListening)
            return answer

        assert harness.run(client, factory) == b"hello"
        assert factory.made[0].counted == (5, 5)
        assert sock.getsockname() == name


def test_pause(harness: ReactorHarness) -> None:
    """Clients that connect while a port is paused are served when it resumes."""
    reactor: Any = harness.reactor
    factory = Recorders(Echo)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    name = "127.0.0.1", port.getHost().port
    port.pause()

    def client() -> list[bytes]:
        waiting = [socket.create_connection(name) for _ in range(40)]
        for sock in waiting:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
        assert not factory.made
        reactor.callFromThread(port.resume)
        answers = [sock.recv(5, socket.MSG_WAITALL) for sock in waiting]
        for sock in waiting:
            sock.close()
        return answers

    assert harness.run(client, factory) == [b"hello"] * 40


def test_pause_from_a_connection(harness: ReactorHarness) -> None:
    """A port that is paused by a new connection accepts at most the rest of a batch; the others wait in the queue."""
    reactor: Any = harness.reactor

    class Pausing(Echo):
        def connectionMade(self) -> None:
            super().connectionMade()
            port.pause()

    factory = Recorders(Pausing)
    port = reactor.listenTCP(0, factory, backlog=100, interface="127.0.0.1")
    name = "127.0.0.1", port.getHost().port

    def client() -> int:
        waiting = [socket.create_connection(name) for _ in range(80)]
        answered = 0
        for sock in waiting:
            sock.sendall(b"x")
        while answered < 80:
            reactor.callFromThread(port.resume)
            assert waiting[answered].recv(1) == b"x"
            answered += 1
        for sock in waiting:
            sock.close()
        return answered

    assert harness.run(client, factory) == 80


_AT_THE_LIMIT = """
import resource, socket, sys
from svcd.reactor import install
install()
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from svcd.reactor import SocketPort

class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)

sock = socket.create_server(("127.0.0.1", 0), backlog=200)
sock.setblocking(False)
rests = []

def short():
    rests.append(1)
    port.pause()
    reactor.callLater(0.01, port.resume)

# More at once than there are descriptors for.
port = SocketPort(reactor, sock, Factory.forProtocol(Echo), lambda: 16, short)
port.startListening()

def done():
    print(len(rests) > 0, flush=True)
    reactor.stop()

def ready():
    # So few that most clients have to wait for others to go.
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(__import__("os").listdir("/proc/self/fd")) + 10,) * 2)
    print(sock.getsockname()[1], flush=True)

Echo.connectionLost = lambda self, reason: counted()
lost = [0]

def counted():
    lost[0] += 1
    if lost[0] == 100:
        done()

reactor.callWhenRunning(ready)
reactor.run()
"""


def test_no_client_is_lost_when_descriptors_run_out() -> None:
    """Without free descriptors a SocketPort leaves clients in the kernel's queue, and serves all of them later."""
    command = [sys.executable, "-c", _AT_THE_LIMIT]
    with subprocess.Popen(command, cwd=_ROOT, env={**os.environ, "PYTHONPATH": str(_ROOT)}, stdout=subprocess.PIPE,
                          text=True) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            name = "127.0.0.1", int(server.stdout.readline())
            waiting = [socket.create_connection(name, timeout=20) for _ in range(100)]
            for sock in waiting:
                sock.sendall(b"x")
            for sock in waiting:
                assert sock.recv(1) == b"x"
                sock.close()
            assert server.stdout.readline() == "True\n"
            assert server.wait(20) == 0
        finally:
            server.kill()


class _UnreadData(Recorder):
    """Protocol that answers a piece and pauses, and reads the rest of the input at the end of the connection."""

    def connectionMade(self) -> None:
        """Keep the handle of the transport."""
        super().connectionMade()
        self.handle = self.transport.getHandle()

    def dataReceived(self, data: bytes) -> None:
        """Answer, and pause reading."""
        self.transport.write(data)
        self.transport.pauseProducing()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Read the rest of the input."""
        self.unread = self.handle.recv(100)
        super().connectionLost(reason)


@pytest.mark.parametrize("far", [socket.AF_INET, socket.AF_UNIX])
def test_adopted_connection(harness: ReactorHarness, far: socket.AddressFamily) -> None:
    """A connection that was accepted elsewhere is served, and unread data can be read at its end."""
    reactor: Any = harness.reactor
    factory = Recorders(_UnreadData)
    if far == socket.AF_UNIX:
        near, client = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
    peer = near.getpeername()
    reactor.adoptStream(near.detach(), peer, far, factory.buildProtocol(None))

    def exchange() -> bytes:
        with client:
            client.sendall(b"hello")
            answer = client.recv(5, socket.MSG_WAITALL)
            client.sendall(b"last")
            reactor.callFromThread(factory.made[0].transport.abortConnection)
            return answer

    assert harness.run(exchange, factory) == b"hello"
    assert factory.made[0].unread == b"last"


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_stop_listening_frees_the_address(harness: ReactorHarness, tmp_path: Path, kind: str) -> None:
    """When stopListening() fires, the address can be used again."""
    reactor: Any = harness.reactor
    path = os.fspath(tmp_path / "socket")
    host = "::1" if kind == "tcp6" else "127.0.0.1"

    def listen(number: int) -> Any:
        if kind == "unix":
            return reactor.listenUNIX(path, Recorders(Echo))
        return reactor.listenTCP(number, Recorders(Echo), interface=host)

    async def serve() -> int:
        port = listen(0)
        number = 0 if kind == "unix" else port.getHost().port
        for _ in range(3):
            await port.stopListening()
            port = listen(number)
        await port.stopListening()
        return 3

    assert harness.run(blocking(reactor, serve)) == 3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_address_is_free_in_connection_lost(harness: ReactorHarness, tmp_path: Path, kind: str) -> None:
    """connectionLost() can listen at once on the address on which the connection was accepted."""
    reactor: Any = harness.reactor
    path = os.fspath(tmp_path / "socket")
    ports: list[Any] = []

    def listen(number: int) -> None:
        if kind == "unix":
            ports.append(reactor.listenUNIX(path, factory))
        else:
            ports.append(reactor.listenTCP(number, factory, interface="127.0.0.1"))

    class Again(Echo):
        def connectionLost(self, reason: Failure | None = None) -> None:
            if len(ports) == 1:
                listen(number)
            super().connectionLost(reason)

    factory = Recorders(Again)
    listen(0)
    number = 0 if kind == "unix" else ports[0].getHost().port
    name: Any = path if kind == "unix" else ("127.0.0.1", number)
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET

    def client() -> list[bytes]:
        with socket.socket(family) as sock:
            sock.connect(name)
            sock.sendall(b"hello")
            received = sock.recv(5, socket.MSG_WAITALL)
            blockingCallFromThread(reactor, ports[0].stopListening)
        while len(ports) == 1:
            blockingCallFromThread(reactor, lambda: None)
        return [received, exchange(family, name)]

    assert harness.run(client, factory) == [b"hello", b"hello"]
