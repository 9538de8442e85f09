"""Tests of stream connections: Twisted's interfaces on uv."""

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
    from tests.reactor.conftest import ReactorHarness

_RESET = struct.pack("ii", 1, 0)


class Echo(HalfCloseable):
    """Echo whose transport is its own producer."""

    def connectionMade(self) -> None:
        """Connect the transport's input to its output."""
        super().connectionMade()
        self.transport.registerProducer(self.transport, True)
        self.dataReceived = self.transport.write  # type: ignore[method-assign]
        self.direct = self.transport.data_received is self.dataReceived

    def readConnectionLost(self) -> None:
        """Close the connection after all data is sent."""
        self.transport.unregisterProducer()
        super().readConnectionLost()


def listen(harness: ReactorHarness, factory: Recorders) -> tuple[str, int]:
    """Listen on a port that the kernel chooses; return the address."""
    address = harness.reactor.listenTCP(0, factory, interface="127.0.0.1").getHost()
    return address.host, address.port  # type: ignore[attr-defined]


def read_all(client: socket.socket) -> bytes:
    """Read until the end."""
    data = bytearray()
    while piece := client.recv(65536):
        data += piece
    return bytes(data)


def test_echo_after_half_close(harness: ReactorHarness) -> None:
    """All data is sent back to a client that has half-closed, and the byte counts are exact."""
    factory = Recorders(Echo)
    address = listen(harness, factory)
    question = bytes(range(256)) * 1024

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(question)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert harness.run(client, factory) == question
    assert factory.made[0].events == ["read", "ConnectionDone"]
    assert factory.made[0].counted == (len(question), len(question))


class _CountingEcho(HalfCloseable):
    """Echo that reads the byte counts before the end."""

    def dataReceived(self, data: bytes) -> None:
        """Record the counts, and answer."""
        self.early = self.transport.bytes_in, self.transport.bytes_out
        self.transport.write(data)


def test_byte_counts_before_and_after_the_end(harness: ReactorHarness) -> None:
    """Counts that were read before the end are current at the end, and can be read after it."""
    factory = Recorders(_CountingEcho)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"once")
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert harness.run(client, factory) == b"once"
    (made,) = factory.made
    assert (made.early, made.counted) == ((4, 0), (4, 4))
    assert (made.transport.bytes_in, made.transport.bytes_out) == (4, 4)


def test_echo_is_uvloops_own_write(harness: ReactorHarness) -> None:
    """If dataReceived is the transport's write, uvloop calls its own method, without Python code."""
    factory = Recorders(Echo)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"x")
            return sock.recv(1)

    assert harness.run(client, factory) == b"x"
    assert factory.made[0].direct


def test_transport_interfaces(harness: ReactorHarness) -> None:
    """The transport provides the interfaces of Twisted's, its options work, and its addresses are correct."""
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
    address = listen(harness, factory)

    def client() -> Any:
        with socket.create_connection(address) as sock:
            return sock.getsockname()

    name = harness.run(client, factory)
    assert seen["no delay"] is False
    assert seen["options"] == (True, True)
    assert (seen["host"].host, seen["host"].port) == address
    assert (seen["peer"].host, seen["peer"].port) == seen["name"] == name


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("adopted", [False, True])
def test_no_delay_is_inherited(harness: ReactorHarness, enabled: bool, adopted: bool) -> None:
    """TCP_NODELAY is that of the listening socket, or of the connected socket that was passed."""
    seen: list[bool] = []

    class Asking(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            seen.append(self.transport.getTcpNoDelay())

    reactor: Any = harness.reactor
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

        harness.run(client, factory)
    assert seen == [enabled]


def test_data_received_set_later(harness: ReactorHarness) -> None:
    """A protocol may replace dataReceived at any time; later data is passed to the new one."""
    later: list[bytes] = []

    class Changing(Recorder):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.dataReceived = later.append  # type: ignore[method-assign, assignment]
            self.transport.write(b"next")

    factory = Recorders(Changing)
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"one")
            assert sock.recv(4) == b"next"
            sock.sendall(b"two")

    harness.run(client, factory)
    assert (bytes(factory.made[0].received), later) == (b"one", [b"two"])


def test_protocol_set_later(harness: ReactorHarness) -> None:
    """The protocol of a transport may be replaced; the new one gets later data and the end."""
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
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"one")
            assert sock.recv(4) == b"next"
            sock.sendall(b"two")

    harness.run(client, factory)
    assert bytes(second[0].received) == b"two"
    assert second[0].events == ["ConnectionDone"]


@pytest.mark.parametrize("raised", [ValueError("mine"), OSError(errno.EPIPE, "mine")])
def test_exception_drops_its_connection_alone(
    harness: ReactorHarness, failures: list[Exception], raised: Exception
) -> None:
    """An exception in a protocol is logged and is the reason of the loss of its connection; others continue."""

    class Failing(Recorder):
        def dataReceived(self, data: bytes) -> None:
            if data == b"fail":
                raise raised
            self.transport.write(data)

    factory = Recorders(Failing)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as one, socket.create_connection(address) as two:
            one.sendall(b"fail")
            assert read_all(one) == b""
            two.sendall(b"go on")
            return two.recv(5)

    assert harness.run(client, factory) == b"go on"
    assert failures == [raised]
    assert [each.events for each in factory.made] == [[type(raised).__name__], ["ConnectionDone"]]


def test_exception_in_connection_made(harness: ReactorHarness, failures: list[Exception]) -> None:
    """An exception in connectionMade() is logged and ends the connection."""

    class Failing(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            raise ValueError

    factory = Recorders(Failing)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b""
    assert [type(failure) for failure in failures] == [ValueError]
    assert factory.made[0].events == ["ValueError"]


def test_no_protocol(harness: ReactorHarness) -> None:
    """If a factory builds no protocol, the connection is closed."""
    factory = Recorders(Recorder)
    factory.buildProtocol = lambda _address: None  # type: ignore[method-assign, assignment]
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b""


def test_lose_connection_sends_everything_first(harness: ReactorHarness) -> None:
    """Data written before loseConnection() is sent to a slow client; later writes are ignored."""
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
    address = listen(harness, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    assert harness.run(client, factory) == len(answer)
    assert factory.made[0].events == ["ConnectionDone"]
    assert factory.made[0].counted == (0, len(answer))


def test_abort(harness: ReactorHarness) -> None:
    """abortConnection() resets the connection, and connectionLost() is called once."""

    class Aborting(Recorder):
        def dataReceived(self, _data: bytes) -> None:
            self.transport.abortConnection()
            self.transport.abortConnection()
            self.transport.loseConnection()
            assert not self.events

    factory = Recorders(Aborting)
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)

    harness.run(client, factory)
    assert factory.made[0].events == ["ConnectionAborted"]


def test_reset_by_client(harness: ReactorHarness) -> None:
    """A connection that the client resets is lost, not closed in good order."""
    factory = Recorders(HalfCloseable)
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    harness.run(client, factory)
    assert factory.made[0].events == ["ConnectionLost"]


def test_lose_write_connection(harness: ReactorHarness) -> None:
    """After loseWriteConnection() the client has all data and the end of file, and may continue to send."""
    answer = b"x" * 4_000_000

    class Closing(HalfCloseable):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(answer)
            self.transport.loseWriteConnection()

    factory = Recorders(Closing)
    address = listen(harness, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            length = len(read_all(sock))
            sock.sendall(b"more")
            return length

    assert harness.run(client, factory) == len(answer)
    assert bytes(factory.made[0].received) == b"more"
    assert factory.made[0].events == ["write", "read", "ConnectionDone"]
    assert factory.made[0].counted == (4, len(answer))


def test_paused_from_the_beginning(harness: ReactorHarness) -> None:
    """A protocol that pauses in connectionMade() gets no data before it resumes, and all data then."""

    class Paused(HalfCloseable):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.pauseProducing()
            self.transport.reactor.callLater(0.05, self.resume)

        def resume(self) -> None:
            assert not self.received
            assert not self.events
            self.transport.resumeProducing()

    factory = Recorders(Paused)
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)

    harness.run(client, factory)
    assert bytes(factory.made[0].received) == b"hello"
    assert factory.made[0].events == ["read", "ConnectionDone"]


def test_log_prefix(harness: ReactorHarness) -> None:
    """Log lines of a protocol have its prefix, as on Twisted's reactors; those of timers do not."""
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
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            sock.sendall(b"x")
            return read_all(sock)

    harness.run(client, factory)
    assert seen == ["mine,0,127.0.0.1", "-"]


def test_reactor_stop_ends_connections(harness: ReactorHarness) -> None:
    """When the reactor stops, connectionLost() is called for open connections."""

    class Greeting(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(b"x")

    factory = Recorders(Greeting)
    address = listen(harness, factory)

    def client() -> socket.socket:
        sock = socket.create_connection(address)
        assert sock.recv(1) == b"x"
        return sock

    with harness.run(client):
        assert [each.events for each in factory.made] == [["ConnectionLost"]]


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

# All input is in the kernel's queues already, so it is handled before the timer.
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
    """KeyboardInterrupt in a protocol ends run(); another exception ends its connection."""
    words = [sys.executable, "-c", _INTERRUPTED, where, raised]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stdout == f"{end}\n", done.stderr
