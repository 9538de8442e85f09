"""Ports rest and go on without a client lost, whatever they listen on."""

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

    from tests.reactor.conftest import Bench

_ROOT = Path(__file__).parents[2]


def ask(family: int, name: Any) -> bytes:
    """One question to an echo, and its answer."""
    with socket.socket(family) as sock:
        sock.connect(name)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(5, socket.MSG_WAITALL) + sock.recv(1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@pytest.mark.parametrize("quiet", [False, True])
def test_adopted_socket(bench: Bench, tmp_path: Path, family: socket.AddressFamily, quiet: bool) -> None:
    """A listening socket of any family is served, and stays open for its owner when the port stops."""
    names: dict[int, Any] = {
        socket.AF_INET: ("127.0.0.1", 0),
        socket.AF_INET6: ("::1", 0),
        socket.AF_UNIX: os.fspath(tmp_path / "u"),
    }
    reactor: Any = bench.reactor
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
            answer = ask(family, name)
            reactor.callFromThread(port.stopListening)
            return answer

        assert bench.run(client, factory) == b"hello"
        assert factory.made[0].counted == (5, 5)
        assert sock.getsockname() == name


def test_pause(bench: Bench) -> None:
    """Clients that come while a port rests are served when it goes on."""
    reactor: Any = bench.reactor
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

    assert bench.run(client, factory) == [b"hello"] * 40


def test_pause_from_a_connection(bench: Bench) -> None:
    """A port that a new connection makes rest takes at most a batch more, and the others keep waiting."""
    reactor: Any = bench.reactor

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

    assert bench.run(client, factory) == 80


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
    """At the limit of descriptors a SocketPort leaves clients in the kernel's queue, and all are served in the end."""
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


class _Rest(Recorder):
    """Answers one piece, and looks at its end what else there was."""

    def connectionMade(self) -> None:
        """Begin."""
        super().connectionMade()
        self.handle = self.transport.getHandle()

    def dataReceived(self, data: bytes) -> None:
        """Answer, and read no more."""
        self.transport.write(data)
        self.transport.pauseProducing()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Look."""
        self.rest = self.handle.recv(100)
        super().connectionLost(reason)


@pytest.mark.parametrize("far", [socket.AF_INET, socket.AF_UNIX])
def test_a_connected_socket(bench: Bench, far: socket.AddressFamily) -> None:
    """A connection that no port of ours has accepted is served like one; what is left at its end can still be read."""
    reactor: Any = bench.reactor
    factory = Recorders(_Rest)
    if far == socket.AF_UNIX:
        near, client = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
    peer = near.getpeername()
    reactor.adoptStream(near.detach(), peer, far, factory.buildProtocol(None))

    def ask() -> bytes:
        with client:
            client.sendall(b"hello")
            answer = client.recv(5, socket.MSG_WAITALL)
            client.sendall(b"last")
            reactor.callFromThread(factory.made[0].transport.abortConnection)
            return answer

    assert bench.run(ask, factory) == b"hello"
    assert factory.made[0].rest == b"last"


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_a_port_is_closed_when_it_says_so(bench: Bench, tmp_path: Path, kind: str) -> None:
    """When stopListening() fires, the same address can be had again."""
    reactor: Any = bench.reactor
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

    assert bench.run(blocking(reactor, serve)) == 3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_address_is_free_in_connection_lost(bench: Bench, tmp_path: Path, kind: str) -> None:
    """A protocol whose connection is lost can listen at once where that was accepted."""
    reactor: Any = bench.reactor
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
        return [received, ask(family, name)]

    assert bench.run(client, factory) == [b"hello", b"hello"]
