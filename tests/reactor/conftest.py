"""Fixtures of the tests of the uv reactor: a reactor for each test, a recording protocol, a client in a thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import ensureDeferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from svcd.reactor import UvReactor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from twisted.python.failure import Failure

#: The time limit of a test, in seconds.
LIMIT = 20.0


class Recorder(Protocol):
    """Protocol that records received data and events."""

    factory: Recorders
    # A native transport has more attributes than any of its interfaces.
    transport: Any

    def connectionMade(self) -> None:
        """Start to record."""
        self.received = bytearray()
        self.events: list[str] = []
        self.factory.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        """Record data."""
        self.received += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Record the reason and the byte counts."""
        assert reason is not None
        self.events.append(type(reason.value).__name__)
        transport = self.transport
        self.counted = getattr(transport, "bytes_in", None), getattr(transport, "bytes_out", None)
        self.factory.ended()


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Recorder):
    """Recorder that is notified of half-closes, and closes the connection at the peer's half-close."""

    def readConnectionLost(self) -> None:
        """Record the event, and close the connection."""
        self.events.append("read")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Record the event."""
        self.events.append("write")


class Recorders(Factory):
    """Factory of a kind of Recorder; it counts lost connections."""

    noisy = False

    def __init__(self, protocol: type[Protocol]) -> None:
        self.protocol = protocol
        self.made: list[Any] = []
        self.lost = 0
        self.on_end: Callable[[], None] = lambda: None

    def ended(self) -> None:
        """Count a lost connection."""
        self.lost += 1
        self.on_end()


class ReactorHarness:
    """Reactor for a test."""

    def __init__(self) -> None:
        self.reactor = UvReactor()
        self.timed_out = False

    def run(self, client: Callable[[], Any], factory: Recorders | None = None) -> Any:
        """Run the reactor while a client does its blocking work in a thread, and until all connections have ended.

        Args:
            client: its result is returned, or its exception raised.
            factory: the factory whose connections have to end; None to wait for the client only.
        """
        reactor: Any = self.reactor
        result: list[Any] = []
        raised: list[BaseException] = []

        def work() -> None:
            try:
                result.append(client())
            except BaseException as error:  # noqa: BLE001 - raised again below
                raised.append(error)
            reactor.callFromThread(check_ended)

        stopped = False

        def check_ended() -> None:
            nonlocal stopped
            if (result or raised) and not stopped and (factory is None or factory.lost == len(factory.made)):
                stopped = True
                reactor.stop()

        def time_out() -> None:
            self.timed_out = True
            reactor.crash()

        if factory is not None:
            factory.on_end = check_ended
        thread = threading.Thread(target=work, daemon=True)
        reactor.callWhenRunning(thread.start)
        guard = reactor.callLater(LIMIT, time_out)
        reactor.run(installSignalHandlers=False)
        if raised:
            raise raised[0]
        assert not self.timed_out, "the test did not end in time"
        guard.cancel()
        thread.join()
        return result[0]


def blocking(reactor: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Any]:
    """Return a client for ReactorHarness.run() that waits in its thread for a coroutine in the reactor's thread."""

    def start() -> Any:
        return ensureDeferred(work())

    def client() -> Any:
        return blockingCallFromThread(reactor, start)

    return client


@pytest.fixture
def harness() -> Iterator[ReactorHarness]:
    """Return a reactor for the test; it is closed afterwards."""
    made = ReactorHarness()
    yield made
    loop = made.reactor.loop
    # Another iteration closes the handles of connections that ended with the reactor.
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


@pytest.fixture
def failures() -> Iterator[list[Exception]]:
    """Return a list that gets the logged exceptions."""
    found: list[Exception] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        if "log_failure" in event:
            found.append(event["log_failure"].value)

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)
