"""Stream connections keep what Twisted promises of them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport
from twisted.internet.threads import blockingCallFromThread
from twisted.python import context, log
from zope.interface.verify import verifyObject

from tests.reactor.conftest import LIMIT, HalfCloseable, Recorder, Recorders

if TYPE_CHECKING:
    from tests.reactor.conftest import Bench

_RESET = struct.pack("ii", 1, 0)


class Echo(HalfCloseable):
    """Echoes by the shortest way."""

    def connectionMade(self) -> None:
        """Tie reading to writing."""
        super().connectionMade()
        self.transport.registerProducer(self.transport, True)
        self.dataReceived = self.transport.write  # type: ignore[method-assign]
        self.direct = self.transport.data_received is self.dataReceived

    def readConnectionLost(self) -> None:
        """Close; there is nothing more to echo."""
        self.transport.unregisterProducer()
        super().readConnectionLost()


def listen(bench: Bench, factory: Recorders) -> tuple[str, int]:
    """Listen on a port of the kernel's choice; where."""
    address = bench.reactor.listenTCP(0, factory, interface="127.0.0.1").getHost()
    return address.host, address.port  # type: ignore[attr-defined]


def read_all(client: socket.socket) -> bytes:
    """What comes until the end."""
    data = bytearray()
    while piece := client.recv(65536):
        data += piece
    return bytes(data)


def test_echo_after_half_close(bench: Bench) -> None:
    """A client that half-closes gets everything back, and the bytes are counted exactly."""
    factory = Recorders(Echo)
    address = listen(bench, factory)
    question = bytes(range(256)) * 1024

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(question)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert bench.run(client, factory) == question
    assert factory.made[0].told == ["read", "ConnectionDone"]
    assert factory.made[0].counted == (len(question), len(question))


class _Asked(HalfCloseable):
    """Asks for its counts in between."""

    def dataReceived(self, data: bytes) -> None:
        """Answer, and ask."""
        self.early = self.transport.bytes_in, self.transport.bytes_out
        self.transport.write(data)


def test_counts_that_were_asked_for_before_the_end(bench: Bench) -> None:
    """At the end they are what they are then, and can be asked for after it."""
    factory = Recorders(_Asked)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"once")
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert bench.run(client, factory) == b"once"
    (made,) = factory.made
    assert (made.early, made.counted) == ((4, 0), (4, 4))
    assert (made.transport.bytes_in, made.transport.bytes_out) == (4, 4)


def test_echo_is_uvloops_own_write(bench: Bench) -> None:
    """A protocol that sets dataReceived to the transport's write has uvloop call its own method, no Python."""
    factory = Recorders(Echo)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"x")
            return sock.recv(1)

    assert bench.run(client, factory) == b"x"
    assert factory.made[0].direct


def test_transport_interfaces(bench: Bench) -> None:
    """The transport provides what Twisted's has, its options work, and its addresses are right."""
    seen: dict[str, Any] = {}

    class Asking(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            transport: Any = self.transport
            for interface in (ITCPTransport, IConsumer, IPushProducer):
                verifyObject(interface, transport)
            transport.setTcpKeepAlive(True)
            seen["no delay"] = transport.getTcpNoDelay()
            transport.setTcpNoDelay(True)
            seen["options"] = transport.getTcpKeepAlive(), transport.getTcpNoDelay()
            seen["host"], seen["peer"] = transport.getHost(), transport.getPeer()
            seen["name"] = transport.getHandle().getpeername()

    factory = Recorders(Asking)
    address = listen(bench, factory)

    def client() -> Any:
        with socket.create_connection(address) as sock:
            return sock.getsockname()

    name = bench.run(client, factory)
    assert seen["no delay"] is False
    assert seen["options"] == (True, True)
    assert (seen["host"].host, seen["host"].port) == address
    assert (seen["peer"].host, seen["peer"].port) == seen["name"] == name


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("adopted", [False, True])
def test_no_delay_is_inherited(bench: Bench, enabled: bool, adopted: bool) -> None:
    """TCP_NODELAY is as the listening socket has it, or as the connected socket that is handed over."""
    seen: list[bool] = []

    class Asking(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            seen.append(self.transport.getTcpNoDelay())

    reactor: Any = bench.reactor
    factory = Recorders(Asking)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)
        if not adopted:
            reactor.adoptStreamPort(listening.fileno(), socket.AF_INET, factory)

        def client() -> None:
            with socket.create_connection(listening.getsockname()) as sock:
                if adopted:
                    listening.setblocking(True)
                    accepted, name = listening.accept()
                    protocol = factory.buildProtocol(None)
                    connected = accepted.detach()
                    blockingCallFromThread(reactor, reactor.adoptStream, connected, name, socket.AF_INET, protocol)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""

        bench.run(client, factory)
    assert seen == [enabled]


def test_data_received_set_later(bench: Bench) -> None:
    """A protocol may set another dataReceived at any time, and what comes then goes there."""
    later: list[bytes] = []

    class Changing(Recorder):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.dataReceived = later.append  # type: ignore[method-assign, assignment]
            self.transport.write(b"next")

    factory = Recorders(Changing)
    address = listen(bench, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"one")
            assert sock.recv(4) == b"next"
            sock.sendall(b"two")

    bench.run(client, factory)
    assert (bytes(factory.made[0].received), later) == (b"one", [b"two"])


def test_protocol_set_later(bench: Bench) -> None:
    """Another protocol may be set on the transport, and takes what comes then, with the end."""
    second: list[Recorder] = []

    class First(Recorder):
        def dataReceived(self, _data: bytes) -> None:
            other = Recorder()
            other.factory = self.factory
            self.factory.made.pop()
            second.append(other)
            self.transport.protocol = other
            other.makeConnection(self.transport)  # type: ignore[no-untyped-call]
            self.transport.write(b"next")

    factory = Recorders(First)
    address = listen(bench, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"one")
            assert sock.recv(4) == b"next"
            sock.sendall(b"two")

    bench.run(client, factory)
    assert bytes(second[0].received) == b"two"
    assert second[0].told == ["ConnectionDone"]


@pytest.mark.parametrize("raised", [ValueError("mine"), OSError(errno.EPIPE, "mine")])
def test_exception_drops_its_connection_alone(bench: Bench, failures: list[Exception], raised: Exception) -> None:
    """An exception in a protocol is logged and ends that connection with it as the reason; others go on."""

    class Failing(Recorder):
        def dataReceived(self, data: bytes) -> None:
            if data == b"fail":
                raise raised
            self.transport.write(data)

    factory = Recorders(Failing)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as one, socket.create_connection(address) as two:
            one.sendall(b"fail")
            assert read_all(one) == b""
            two.sendall(b"go on")
            return two.recv(5)

    assert bench.run(client, factory) == b"go on"
    assert failures == [raised]
    assert [each.told for each in factory.made] == [[type(raised).__name__], ["ConnectionDone"]]


def test_exception_in_connection_made(bench: Bench, failures: list[Exception]) -> None:
    """An exception in connectionMade() is logged and ends the connection."""

    class Failing(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            raise ValueError

    factory = Recorders(Failing)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert bench.run(client, factory) == b""
    assert [type(failure) for failure in failures] == [ValueError]
    assert factory.made[0].told == ["ValueError"]


def test_no_protocol(bench: Bench) -> None:
    """A factory that builds no protocol has the client's connection closed."""
    factory = Recorders(Recorder)
    factory.buildProtocol = lambda _address: None  # type: ignore[method-assign, assignment]
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert bench.run(client, factory) == b""


def test_lose_connection_sends_everything_first(bench: Bench) -> None:
    """What was written before loseConnection() arrives, however slowly the client reads; later writes are harmless."""
    answer = b"x" * 8_000_000

    class AnsweringRecorder(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(answer)
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            super().connectionLost(reason)
            self.transport.write(b"late")
            self.transport.writeSequence([b"late"])
            self.transport.loseConnection()
            self.transport.abortConnection()
            self.transport.resumeProducing()

    factory = Recorders(AnsweringRecorder)
    address = listen(bench, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    assert bench.run(client, factory) == len(answer)
    assert factory.made[0].told == ["ConnectionDone"]
    assert factory.made[0].counted == (0, len(answer))


def test_abort(bench: Bench) -> None:
    """abortConnection() resets the connection, and the protocol is told once."""

    class Aborting(Recorder):
        def dataReceived(self, _data: bytes) -> None:
            self.transport.abortConnection()
            self.transport.abortConnection()
            self.transport.loseConnection()
            assert not self.told

    factory = Recorders(Aborting)
    address = listen(bench, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)

    bench.run(client, factory)
    assert factory.made[0].told == ["ConnectionAborted"]


def test_reset_by_client(bench: Bench) -> None:
    """A connection that the client resets is lost, not done."""
    factory = Recorders(HalfCloseable)
    address = listen(bench, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    bench.run(client, factory)
    assert factory.made[0].told == ["ConnectionLost"]


def test_lose_write_connection(bench: Bench) -> None:
    """After loseWriteConnection() the client has everything and the end, and may go on sending."""
    answer = b"x" * 4_000_000

    class Closing(HalfCloseable):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(answer)
            self.transport.loseWriteConnection()

    factory = Recorders(Closing)
    address = listen(bench, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            length = len(read_all(sock))
            sock.sendall(b"more")
            return length

    assert bench.run(client, factory) == len(answer)
    assert bytes(factory.made[0].received) == b"more"
    assert factory.made[0].told == ["write", "read", "ConnectionDone"]
    assert factory.made[0].counted == (4, len(answer))


def test_paused_from_the_beginning(bench: Bench) -> None:
    """A protocol that pauses in connectionMade() gets nothing before it resumes, and then everything."""

    class Paused(HalfCloseable):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.pauseProducing()
            self.transport.reactor.callLater(0.05, self.go_on)

        def go_on(self) -> None:
            assert not self.received
            assert not self.told
            self.transport.resumeProducing()

    factory = Recorders(Paused)
    address = listen(bench, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)

    bench.run(client, factory)
    assert bytes(factory.made[0].received) == b"hello"
    assert factory.made[0].told == ["read", "ConnectionDone"]


def test_log_prefix(bench: Bench) -> None:
    """Lines that a protocol logs carry its prefix, as on Twisted's reactors; those of timers don't."""
    seen: list[str] = []

    class Logging(Recorder):
        def logPrefix(self) -> str:
            return "mine"

        def dataReceived(self, _data: bytes) -> None:
            seen.append(context.get(log.ILogContext)["system"])
            self.transport.reactor.callLater(0, self.later)

        def later(self) -> None:
            seen.append(context.get(log.ILogContext)["system"])
            self.transport.loseConnection()

    factory = Recorders(Logging)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"x")
            return read_all(sock)

    bench.run(client, factory)
    assert seen == ["mine,0,127.0.0.1", "-"]


def test_reactor_stop_ends_connections(bench: Bench) -> None:
    """When the reactor stops, open connections are told."""

    class Greeting(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(b"x")

    factory = Recorders(Greeting)
    address = listen(bench, factory)

    def client() -> socket.socket:
        sock = socket.create_connection(address)
        assert sock.recv(1) == b"x"
        return sock

    with bench.run(client):
        assert [each.told for each in factory.made] == [["ConnectionLost"]]


_INTERRUPTED = """
import socket, sys
import svcd.reactor
svcd.reactor.install()
from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol

where, raised = sys.argv[1], {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[sys.argv[2]]

def raising(*_arguments):
    raise raised

class Udp(DatagramProtocol):
    pass

class Tcp(Protocol):
    def dataReceived(self, data):
        self.transport.loseConnection()

class Made(Factory):
    noisy = False
    protocol = Tcp

setattr({"buildProtocol": Made, "datagramReceived": Udp}.get(where, Tcp), where, raising)
tcp = reactor.listenTCP(0, Made(), interface="127.0.0.1").getHost().port
udp = reactor.listenUDP(0, Udp(), interface="127.0.0.1").getHost().port
client = socket.create_connection(("127.0.0.1", tcp))
client.sendall(b"a")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"a", ("127.0.0.1", udp))

# It is all in the kernel's queues already, so the reactor meets it first.
reactor.callLater(0.2, reactor.stop)
try:
    reactor.run()
except KeyboardInterrupt:
    print("interrupted")
else:
    print("stopped")
"""


@pytest.mark.parametrize(
    "where", ["buildProtocol", "makeConnection", "dataReceived", "connectionLost", "datagramReceived"]
)
@pytest.mark.parametrize(("raised", "end"), [("KeyboardInterrupt", "interrupted"), ("SystemExit", "stopped")])
def test_ctrl_c_ends_the_program(where: str, raised: str, end: str) -> None:
    """KeyboardInterrupt gets through protocols to the caller of run(); what else they raise ends one connection."""
    words = [sys.executable, "-c", _INTERRUPTED, where, raised]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stdout == f"{end}\n", done.stderr
