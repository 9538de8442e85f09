"""UDP ports keep what Twisted promises of them, count, and survive errors."""

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
    from tests.reactor.conftest import Bench


class EchoDatagrams(DatagramProtocol):
    """Echoes; `fail` raises, `huge` is too long an answer."""

    noisy = False
    transport: Any

    def __init__(self) -> None:
        self.peers: list[Any] = []
        self.stopped = False

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer, or not."""
        self.peers.append(addr)
        if datagram == b"fail":
            raise ValueError
        self.transport.write(b"x" * 70_000 if datagram == b"huge" else datagram, addr)

    def stopProtocol(self) -> None:
        """The port is closed."""
        self.stopped = True


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest.mark.parametrize("adopted", [False, True])
def test_answers(bench: Bench, family: socket.AddressFamily, host: str, adopted: bool) -> None:
    """Datagrams are answered and counted, also the empty one; peers are hosts and ports."""
    protocol = EchoDatagrams()
    reactor: Any = bench.reactor
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

    name = bench.run(client)
    assert protocol.peers == [name] * 3
    assert (port.datagrams, port.bytes_in, port.bytes_out) == (3, 5005, 5005)
    assert protocol.stopped


def test_errors_are_one_datagrams(bench: Bench, failures: list[Exception]) -> None:
    """An exception, an answer that is too long and a client that is gone are that datagram's trouble alone."""
    protocol = EchoDatagrams()
    reactor: Any = bench.reactor
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

    assert bench.run(client) == b"hello"
    assert [type(failure) for failure in failures] == [ValueError, MessageLengthError]
    assert port.datagrams == 4


def test_host_names_are_refused(bench: Bench) -> None:
    """write() takes addresses and no names, as it would have to wait for an answer of the name service."""
    reactor: Any = bench.reactor
    port = reactor.listenUDP(0, EchoDatagrams(), "127.0.0.1")
    with pytest.raises(InvalidAddressError):
        port.write(b"x", ("localhost", 9))
    bench.run(lambda: True)


def test_pause(bench: Bench) -> None:
    """Datagrams that come while a port rests are answered when it goes on."""
    reactor: Any = bench.reactor
    port = reactor.listenUDP(0, EchoDatagrams(), "127.0.0.1")

    def client() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(("127.0.0.1", port.getHost().port))
            sock.send(b"before")
            assert sock.recv(100) == b"before"
            blockingCallFromThread(reactor, port.pause)
            sock.send(b"hello")
            # The reactor has been at work since, and let it wait.
            assert blockingCallFromThread(reactor, deferLater, reactor, 0.05, lambda: port.datagrams) == 1
            reactor.callFromThread(port.resume)
            return sock.recv(100)

    assert bench.run(client) == b"hello"
    assert port.datagrams == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("when", ["served", "at once", "paused", "paused at once", "resumed"])
def test_a_port_is_closed_when_it_says_so(bench: Bench, host: str, when: str) -> None:
    """When stopListening() fires, the same port can be had again, whatever the port did before."""
    reactor: Any = bench.reactor
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

    bench.run(blocking(reactor, serve))
    assert again == [0, 0, 0]
