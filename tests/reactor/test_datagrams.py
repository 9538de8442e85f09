"""Tests of UDP ports: Twisted's interfaces, counts, and errors."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.error import InvalidAddressError, MessageLengthError
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread

from tests.reactor.conftest import blocking

if TYPE_CHECKING:
    from tests.reactor.conftest import ReactorHarness


class EchoDatagrams(DatagramProtocol):
    """Echo protocol; `fail` raises an exception, `huge` gets an answer that is too large."""

    noisy = False
    transport: Any

    def __init__(self) -> None:
        self.peers: list[Any] = []
        self.stopped = False

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer the datagram."""
        self.peers.append(addr)
        if datagram == b"fail":
            raise ValueError
        self.transport.write(b"x" * 70_000 if datagram == b"huge" else datagram, addr)

    def stopProtocol(self) -> None:
        """Record the close of the port."""
        self.stopped = True


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest.mark.parametrize("adopted", [False, True])
def test_answers(harness: ReactorHarness, family: socket.AddressFamily, host: str, adopted: bool) -> None:
    """Datagrams are answered and counted, including an empty one; peers are hosts and ports."""
    protocol = EchoDatagrams()
    reactor: Any = harness.reactor
    if adopted:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            sock.setblocking(False)
            port = reactor.adoptDatagramPort(sock.fileno(), family, protocol)
    else:
        port = reactor.listenUDP(0, protocol, host)

    def client() -> Any:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect((host, port.getHost().port))
            for question in (b"hello", b"", b"x" * 5000):
                sock.send(question)
                assert sock.recv(65536) == question
            return sock.getsockname()[:2]

    name = harness.run(client)
    assert protocol.peers == [name] * 3
    assert (port.datagrams, port.bytes_in, port.bytes_out) == (3, 5005, 5005)
    assert protocol.stopped


def test_errors_affect_a_single_datagram(harness: ReactorHarness, failures: list[Exception]) -> None:
    """An exception, an answer that is too large and a closed client affect no other datagram."""
    protocol = EchoDatagrams()
    reactor: Any = harness.reactor
    port = reactor.listenUDP(0, protocol, "127.0.0.1")

    def client() -> bytes:
        name = "127.0.0.1", port.getHost().port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.sendto(b"nobody hears the answer", name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            for question in (b"fail", b"huge", b"hello"):
                sock.sendto(question, name)
            return sock.recv(100)

    assert harness.run(client) == b"hello"
    assert [type(failure) for failure in failures] == [ValueError, MessageLengthError]
    assert port.datagrams == 4


def test_host_names_are_refused(harness: ReactorHarness) -> None:
    """write() accepts addresses only, since the lookup of a name would block."""
    reactor: Any = harness.reactor
    port = reactor.listenUDP(0, EchoDatagrams(), "127.0.0.1")
    with pytest.raises(InvalidAddressError):
        port.write(b"x", ("localhost", 9))
    harness.run(lambda: True)


def test_pause(harness: ReactorHarness) -> None:
    """Datagrams that arrive while a port is paused are answered when it resumes."""
    reactor: Any = harness.reactor
    port = reactor.listenUDP(0, EchoDatagrams(), "127.0.0.1")

    def client() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(("127.0.0.1", port.getHost().port))
            sock.send(b"before")
            assert sock.recv(100) == b"before"
            blockingCallFromThread(reactor, port.pause)
            sock.send(b"hello")
            # The reactor has run meanwhile, and the datagram still waits.
            assert blockingCallFromThread(reactor, deferLater, reactor, 0.05, lambda: port.datagrams) == 1
            reactor.callFromThread(port.resume)
            return sock.recv(100)

    assert harness.run(client) == b"hello"
    assert port.datagrams == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("when", ["served", "at once", "paused", "paused at once", "resumed"])
def test_stop_listening_frees_the_address(harness: ReactorHarness, host: str, when: str) -> None:
    """When stopListening() fires, the address can be used again, in any state of the port."""
    reactor: Any = harness.reactor
    again: list[int] = []

    def listen(number: int) -> Any:
        return reactor.listenUDP(number, EchoDatagrams(), host)

    async def serve() -> None:
        port = listen(0)
        number = port.getHost().port
        if when in ("served", "paused", "resumed"):
            await deferLater(reactor, 0.01)
        if when in ("paused", "paused at once", "resumed"):
            port.pause()
        if when == "resumed":
            port.resume()
        for _ in range(3):
            await port.stopListening()
            port = listen(number)
            again.append(port.getHost().port - number)
        await port.stopListening()

    harness.run(blocking(reactor, serve))
    assert again == [0, 0, 0]
