"""Producers are asked for as much as the client takes, and no more."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from tests.reactor.conftest import HalfCloseable, Recorder, Recorders
from tests.reactor.test_streams import Echo, listen, read_all

if TYPE_CHECKING:
    from tests.reactor.conftest import Bench

_BLOCK = b"x" * 200_000


class Pulled(Recorder):
    """A pull producer of fifty blocks."""

    def connectionMade(self) -> None:
        """Register."""
        super().connectionMade()
        self.asked = 0
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Write a block, and end after the last."""
        self.asked += 1
        self.transport.write(_BLOCK)
        if self.asked == 50:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        """Keep it."""
        self.told.append("stop")


def test_pull_producer(bench: Bench) -> None:
    """A pull producer is asked each time everything is sent, until it unregisters."""
    factory = Recorders(Pulled)
    address = listen(bench, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    assert bench.run(client, factory) == 50 * len(_BLOCK)
    assert factory.made[0].told == ["ConnectionDone"]
    assert factory.made[0].counted == (0, 50 * len(_BLOCK))


def test_pull_producer_is_not_asked_while_output_waits(bench: Bench) -> None:
    """A client that does not read leaves a pull producer alone, and it is stopped when the client goes."""
    factory = Recorders(Pulled)
    address = listen(bench, factory)

    def client() -> None:
        with socket.create_connection(address) as sock:
            # What the kernel's buffers hold arrives in any case.
            assert sock.recv(1)

    bench.run(client, factory)
    made = factory.made[0]
    assert made.asked < 50
    assert made.told == ["stop", "ConnectionLost"]


def test_lose_connection_waits_for_the_producer(bench: Bench) -> None:
    """loseConnection() with a producer registered closes when that is unregistered, and what it writes arrives."""

    class Producing(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.registerProducer(self, True)
            self.transport.loseConnection()
            self.transport.reactor.callLater(0, self.finish)

        def finish(self) -> None:
            assert not self.told
            self.transport.write(b"the rest")
            self.transport.unregisterProducer()

    factory = Recorders(Producing)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    assert bench.run(client, factory) == b"the rest"
    assert factory.made[0].told == ["ConnectionDone"]


def test_push_producer(bench: Bench) -> None:
    """A push producer is paused when too much waits, and resumed when it is gone."""

    class Producing(Recorder):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.registerProducer(self, True)
            while not self.told:
                self.transport.write(_BLOCK)

        def pauseProducing(self) -> None:
            self.told.append("pause")

        def resumeProducing(self) -> None:
            self.told.append("resume")
            self.transport.unregisterProducer()
            self.transport.loseConnection()

        def stopProducing(self) -> None:
            self.told.append("stop")

    factory = Recorders(Producing)
    address = listen(bench, factory)

    def client() -> int:
        with socket.create_connection(address) as sock:
            return len(read_all(sock))

    assert bench.run(client, factory) % len(_BLOCK) == 0
    assert factory.made[0].told == ["pause", "resume", "ConnectionDone"]


def test_client_that_never_reads_is_bounded(bench: Bench) -> None:
    """An echo whose transport is its own producer stops reading from a client that does not read."""
    factory = Recorders(Echo)
    address = listen(bench, factory)

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
    assert bench.run(client, factory) < 100_000_000
    # The upper limit, and what one read brings.
    assert waiting[0] < 65_536 + 262_144 + 1


def test_second_producer_is_refused(bench: Bench) -> None:
    """Only one producer can be registered at a time, and one that comes too late is stopped."""

    class Twice(HalfCloseable):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.registerProducer(self, True)
            try:
                self.transport.registerProducer(self, True)
            except RuntimeError:
                self.told.append("refused")
            self.transport.unregisterProducer()
            self.transport.loseConnection()

        def connectionLost(self, reason: Any = None) -> None:
            self.transport.registerProducer(self, True)
            super().connectionLost(reason)

        def stopProducing(self) -> None:
            self.told.append("stop")

    factory = Recorders(Twice)
    address = listen(bench, factory)

    def client() -> bytes:
        with socket.create_connection(address) as sock:
            return read_all(sock)

    bench.run(client, factory)
    assert factory.made[0].told == ["refused", "stop", "ConnectionDone"]
