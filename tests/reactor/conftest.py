"""What the tests of the reactor share: a reactor of their own, a recording protocol, and a client in a thread."""

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

#: How long a test may take, in seconds.
LIMIT = 20.0


class Recorder(Protocol):
    """Keeps what it is told; subclasses do more."""

    factory: Recorders
    # A native transport has more than any one interface says.
    transport: Any

    def connectionMade(self) -> None:
        """Begin to record."""
        self.received = bytearray()
        self.told: list[str] = []
        self.factory.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.received += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Keep why, and what was counted."""
        assert reason is not None
        self.told.append(type(reason.value).__name__)
        transport = self.transport
        self.counted = getattr(transport, "bytes_in", None), getattr(transport, "bytes_out", None)
        self.factory.ended()


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Recorder):
    """The same, told of half-closes; answers one by closing."""

    def readConnectionLost(self) -> None:
        """Answer by closing."""
        self.told.append("read")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Keep it."""
        self.told.append("write")


class Recorders(Factory):
    """Makes one kind of protocol, and knows whether all connections have ended."""

    noisy = False

    def __init__(self, protocol: type[Protocol]) -> None:
        self.protocol = protocol
        self.made: list[Any] = []
        self.lost = 0
        self.on_end: Callable[[], None] = lambda: None

    def ended(self) -> None:
        """A connection is gone."""
        self.lost += 1
        self.on_end()


class Bench:
    """A reactor for one test."""

    def __init__(self) -> None:
        self.reactor = UvReactor()
        self.timed_out = False

    def run(self, client: Callable[[], Any], factory: Recorders | None = None) -> Any:
        """Run the reactor while a client does its blocking work in a thread, and until all connections have ended.

        Args:
            client: what it returns is returned; what it raises is raised.
            factory: whose connections have to end.
        """
        reactor: Any = self.reactor
        result: list[Any] = []
        raised: list[BaseException] = []

        def work() -> None:
            try:
                result.append(client())
            except BaseException as error:  # noqa: BLE001 - raised again below
                raised.append(error)
            reactor.callFromThread(look)

        stopped = False

        def look() -> None:
            nonlocal stopped
            if (result or raised) and not stopped and (factory is None or factory.lost == len(factory.made)):
                stopped = True
                reactor.stop()

        def give_up() -> None:
            self.timed_out = True
            reactor.crash()

        if factory is not None:
            factory.on_end = look
        thread = threading.Thread(target=work, daemon=True)
        reactor.callWhenRunning(thread.start)
        guard = reactor.callLater(LIMIT, give_up)
        reactor.run(installSignalHandlers=False)
        if raised:
            raise raised[0]
        assert not self.timed_out, "the test did not end in time"
        guard.cancel()
        thread.join()
        return result[0]


def blocking(reactor: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Any]:
    """A client for Bench.run() that waits in its thread for a coroutine in the reactor's."""

    def start() -> Any:
        return ensureDeferred(work())

    def client() -> Any:
        return blockingCallFromThread(reactor, start)

    return client


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A reactor of the test's own, which is closed after it."""
    made = Bench()
    yield made
    loop = made.reactor.loop
    # What ended with the reactor is closed in one more turn.
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


@pytest.fixture
def failures() -> Iterator[list[Exception]]:
    """The exceptions that were logged."""
    found: list[Exception] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        if "log_failure" in event:
            found.append(event["log_failure"].value)

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)
