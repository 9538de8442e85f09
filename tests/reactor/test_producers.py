"""Tests of producers: they are called while the client takes data, and not otherwise."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from tests.reactor.conftest import HalfCloseable, Recorder, Recorders
from tests.reactor.test_streams import Echo, listen, read_all

if TYPE_CHECKING:
    from tests.reactor.conftest import ReactorHarness

_BLOCK = b"x" * 200_000


class Pulled(Recorder):
    """Pull producer of fifty blocks."""

    def connectionMade(self) -> None:
        """Register the producer."""
        super().connectionMade()
        self.asked = 0
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Write a block; unregister and close after the last."""
        self.asked += 1
        self.transport.write(_BLOCK)
        if self.asked == 50:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        """Record the call."""
        self.events.append("stop")


def test_pull_producer(harness: ReactorHarness) -> None:
    """A pull producer is resumed each time all data is sent, until it unregisters."""
    factory = Recorders(Pulled)
    address = listen(harness, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    assert harness.run(client, factory) == 50 * len(_BLOCK)
    assert factory.made[0].events == ["ConnectionDone"]
    assert factory.made[0].counted == (0, 50 * len(_BLOCK))


def test_pull_producer_is_not_resumed_while_output_waits(harness: ReactorHarness) -> None:
    """A pull producer is not resumed while the client does not read, and it is stopped when the connection is lost."""
    factory = Recorders(Pulled)
    address = listen(harness, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            # The data in the kernel's buffers arrives in any case.
            assert sock.recv(1)

    harness.run(client, factory)
    made = factory.made[0]
    assert made.asked < 50
    assert made.events == ["stop", "ConnectionLost"]


def test_lose_connection_waits_for_the_producer(harness: ReactorHarness) -> None:
    """loseConnection() closes after the producer is unregistered, and the data that it writes is sent."""

    class Producing(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.registerProducer(self, True)
            self.transport.loseConnection()
            self.transport.reactor.callLater(0, self.finish)

        def finish(self) -> None:
            assert not self.events
            self.transport.write(b"the rest")
            self.transport.unregisterProducer()

    factory = Recorders(Producing)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert harness.run(client, factory) == b"the rest"
    assert factory.made[0].events == ["ConnectionDone"]


def test_push_producer(harness: ReactorHarness) -> None:
    """A push producer is paused when the write buffer is full, and resumed when it is empty."""

    class Producing(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.registerProducer(self, True)
            while not self.events:
                self.transport.write(_BLOCK)

        def pauseProducing(self) -> None:
            self.events.append("pause")

        def resumeProducing(self) -> None:
            self.events.append("resume")
            self.transport.unregisterProducer()
            self.transport.loseConnection()

        def stopProducing(self) -> None:
            self.events.append("stop")

    factory = Recorders(Producing)
    address = listen(harness, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    assert harness.run(client, factory) % len(_BLOCK) == 0
    assert factory.made[0].events == ["pause", "resume", "ConnectionDone"]


def test_client_that_never_reads_is_bounded(harness: ReactorHarness) -> None:
    """An echo whose transport is its own producer stops reading from a client that does not read."""
    factory = Recorders(Echo)
    address = listen(harness, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            sock.settimeout(0.5)
            sent = 0
            try:
                while sent < 100_000_000:
                    sent += sock.send(_BLOCK)
            except TimeoutError:
                waiting.append(factory.made[0].transport._uv.get_write_buffer_size())
            return sent

    waiting: list[int] = []
    assert harness.run(client, factory) < 100_000_000
    # The high-water mark, and the size of a read.
    assert waiting[0] < 65_536 + 262_144 + 1


def test_second_producer_is_refused(harness: ReactorHarness) -> None:
    """A second producer raises an exception, and a producer registered after the close is stopped."""

    class Twice(HalfCloseable):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.registerProducer(self, True)
            try:
                self.transport.registerProducer(self, True)
            except RuntimeError:
                self.events.append("refused")
            self.transport.unregisterProducer()
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            self.transport.registerProducer(self, True)
            super().connectionLost(reason)

        def stopProducing(self) -> None:
            self.events.append("stop")

    factory = Recorders(Twice)
    address = listen(harness, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    harness.run(client, factory)
    assert factory.made[0].events == ["refused", "stop", "ConnectionDone"]
