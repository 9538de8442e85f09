"""Stand-ins for the machine, the file system, the reactor and the transports, shared by the tests."""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import select
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.access.admission import GlobalLimit
from svcd.config.parser import parse, parse_text
from svcd.connections.context import ConnectionContext
from svcd.errors import ListenErrors
from svcd.host.systemd import ServiceManager
from svcd.metrics.registry import MetricsRegistry
from svcd.model import ip_literal
from svcd.protocols.catalog import BUILTINS, ServiceDependencies
from svcd.sockets.acquire import FdStore, acquire_sockets
from svcd.supervisor.daemon_account import DaemonAccount
from svcd.supervisor.running_service import ServiceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from twisted.internet.interfaces import IAddress, IReactorTime
    from twisted.logger import LogEvent

    from svcd.config.endpoints import Endpoint
    from svcd.config.service import Config, Service
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.interfaces import DescriptorCounter
    from svcd.log.writer import LogWriter
    from svcd.metrics.counters import ServiceCounters
    from svcd.metrics.snapshot import ServiceInfo
    from svcd.model import RunAs
    from svcd.sockets.acquire import SocketPool
    from svcd.sockets.listening import ListeningSocket

__all__ = [
    "LOCAL_PEER",
    "PEER",
    "FakeEndpoint",
    "FakeFiles",
    "FakeMachine",
    "FakeReactor",
    "FakeResolver",
    "LogCatcher",
    "ManagerDouble",
    "StreamDouble",
    "add_counters",
    "config_of",
    "dependencies",
    "list_sink",
    "problems_of",
    "read_files",
    "service_of",
]

ReaderT = TypeVar("ReaderT")

PEER = IPv4Address("TCP", "192.0.2.1", 40_000)


def list_sink(lines: list[str]) -> Callable[[Sequence[str]], int]:
    """A journal's sink that keeps everything in a list."""

    def sink(more: Sequence[str]) -> int:
        lines.extend(more)
        return len(more)

    return sink


class FakeFiles:
    """svcd.interfaces.FileReader over a dict; a value that is an OSError is raised."""

    def __init__(
        self, contents: Mapping[str, bytes | str | OSError] | None = None, folders: Sequence[str] = ()
    ) -> None:
        self._contents = dict(contents or {})
        self._folders = frozenset(folders)
        self.exposed: set[str] = set()

    def put(self, path: str, content: bytes | str | OSError) -> None:
        """Write a file anew."""
        self._contents[path] = content

    def read(self, path: str) -> bytes:
        """The content."""
        found = self._contents.get(posixpath.normpath(path))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if isinstance(found, OSError):
            raise found
        return found.encode() if isinstance(found, str) else found

    def read_together(self, paths: Sequence[str]) -> dict[str, bytes | OSError]:
        """The same, of each."""

        def content(path: str) -> bytes | OSError:
            try:
                return self.read(path)
            except OSError as error:
                return error

        return {path: content(path) for path in paths}

    def entries(self, folder: str) -> list[str]:
        """As a directory lists them."""
        if folder not in self._folders:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self.matches(f"{folder}/*")

    def file_stat(self, path: str) -> Hashable:
        """The content stands for the file."""
        return path if path in self._folders else self.read(path)

    def is_exposed(self, path: str) -> bool:
        """Whether the test says so."""
        return path in self.exposed

    def matches(self, pattern: str) -> list[str]:
        """As glob(7), where a star crosses no slash."""
        folder, name = posixpath.split(pattern)
        return sorted(
            path
            for path in self._contents
            if posixpath.dirname(path) == posixpath.normpath(folder)
            and fnmatch.fnmatchcase(posixpath.basename(path), name)
        )

    def identity(self, path: str) -> str:
        """One name for all its spellings."""
        return posixpath.normpath(path)

    def is_directory(self, path: str) -> bool:
        """Whether it was given as one."""
        return path in self._folders


@dataclass
class FakeMachine:
    """svcd.interfaces.HostInfo made of what the test says."""

    users: frozenset[str] = frozenset({"root"})
    groups: frozenset[str] = frozenset({"adm"})
    zones: frozenset[str] = frozenset({"UTC", "Europe/Berlin"})
    families: frozenset[int] = frozenset({4, 6})
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    time: float | None = 1_800_000_000.0
    #: Why a path, below its root, or a Python reference can't be used.
    reasons: Mapping[str, str] = field(default_factory=dict)
    #: The Python handlers whose import was tried, in each of the calls.
    imported: list[list[str]] = field(default_factory=list)
    mptcp: bool = True
    #: Who runs handlers without user=.
    handlers: str = ""

    def has_user(self, name: str) -> bool:
        """Whether the test named the user, or it is a number."""
        return name in self.users or name.isdecimal()

    def has_group(self, name: str) -> bool:
        """Whether the test named the group."""
        return name in self.groups

    def now(self) -> float | None:
        """The test's own."""
        return self.time

    def has_zone(self, name: str) -> bool:
        """Whether it is one of the test's."""
        return name in self.zones

    def has_mptcp(self) -> bool:
        """Whether the test says so."""
        return self.mptcp

    def versions(self) -> frozenset[int]:
        """The families of the test."""
        return self.families

    def has_login_group(self, user: str) -> bool:
        """A number has none."""
        return not user.isdecimal()

    def cannot_execute(self, path: str, runner: RunAs) -> str:
        """The test's reason."""
        return self.reasons.get(runner.root + path, "")

    def cannot_enter(self, path: str, runner: RunAs) -> str:
        """The test's reason."""
        return self.reasons.get(runner.root + path, "")

    def cannot_import(self, wanted: Sequence[tuple[str, Sequence[str], RunAs, float]]) -> list[str]:
        """The test's reasons."""
        self.imported.append([reference for reference, *_ in wanted])
        return [self.reasons.get(reference, "") for reference, *_ in wanted]

    def cannot_serve(self, wanted: Sequence[tuple[str, object, float]]) -> list[str]:
        """The test's reasons."""
        return [self.reasons.get(reference, "") for reference, *_ in wanted]

    def handlers_user(self) -> str:
        """The test's."""
        return self.handlers

    def can_read(self, path: str) -> bool:
        """Whatever has no reason against it."""
        return path not in self.reasons

    def look_up(self, names: Iterable[str]) -> None:
        """Nothing takes time."""

    def addresses(self, name: str) -> Sequence[str]:
        """The name's addresses, or a literal itself."""
        if name in self.names:
            return self.names[name]
        if ip_literal(name):
            return [name]
        raise OSError(errno.EADDRNOTAVAIL, "Name or service not known")


class FakeResolver:
    """svcd.interfaces.HostNameResolver whose answers the test gives by hand."""

    def __init__(self) -> None:
        self.queries: list[tuple[str, Deferred[str | None]]] = []

    def host_of(self, address: str) -> Deferred[str | None]:
        """Ask."""
        answer: Deferred[str | None] = Deferred()
        self.queries.append((address, answer))
        return answer

    confirmed_host_of = host_of

    def answer(self, host: str | None) -> None:
        """Answer the oldest question."""
        self.queries.pop(0)[1].callback(host)


class FakeEndpoint:
    """IStreamClientEndpoint whose connections the test makes by hand.

    Attributes:
        attempts: the factory and the Deferred of each connection that was asked for.
        cancelled: how many were given up.
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        """Ask for one."""

        def cancel(_attempt: object) -> None:
            self.cancelled += 1

        attempt: Deferred[Any] = Deferred(cancel)
        self.attempts.append((factory, attempt))
        return attempt

    def accept(self, room: float = float("inf")) -> StreamDouble:
        """The oldest one stands; the transport to the server."""
        factory, attempt = self.attempts.pop(0)
        protocol = factory.buildProtocol(None)
        transport = StreamDouble(protocol, room=room)
        protocol.makeConnection(transport)
        attempt.callback(protocol)
        return transport

    def refuse(self, error: Exception) -> None:
        """The oldest one fails."""
        self.attempts.pop(0)[1].errback(error)


class _Descriptors:
    """svcd.interfaces.DescriptorCounter that counts nothing."""

    def try_acquire(self) -> bool:
        """There always is one."""
        return True

    def acquire(self) -> None:
        """One more."""

    def release(self) -> None:
        """One less."""


def dependencies(
    clock: IReactorTime,
    files: FakeFiles | None = None,
    descriptors: DescriptorCounter | None = None,
    endpoint: FakeEndpoint | None = None,
    registry: MetricsRegistry | None = None,
) -> ServiceDependencies:
    """Surroundings of a service under test."""
    return ServiceDependencies(
        clock,
        FakeResolver(),
        files or FakeFiles(),
        descriptors or _Descriptors(),
        registry or MetricsRegistry(),
        lambda _server, _timeout, _descriptors: endpoint or FakeEndpoint(),  # type: ignore[arg-type,return-value]
    )


def service_context(
    reactor: FakeReactor,
    budget: DescriptorBudget,
    log_writer: LogWriter,
    manager: ServiceManager,
    registry: MetricsRegistry,
) -> ServiceContext:
    """What the services of a supervisor under test share."""
    deps = dependencies(reactor, descriptors=budget)
    connections = ConnectionContext(
        reactor, log_writer, deps.files, deps.resolver, budget, GlobalLimit(), registry=registry
    )
    return ServiceContext(connections, deps, DaemonAccount((1024, 4096)), FdStore(manager))


def add_counters(registry: MetricsRegistry, about: ServiceInfo) -> ServiceCounters:
    """The tally of one more service, which is described to the ledger."""
    known = [each.about for each in registry.snapshot().services]
    registry.describe([*known, about])
    return registry.counters(about.id)


class FakeReactor(Clock):
    """Time and descriptors by hand: knows who is watched, watches nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        """Watch for input."""
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        """Don't."""
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        """Watch for room."""
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        """Don't."""
        self.writers.discard(writer)

    def wait_for(self, kind: type[ReaderT]) -> ReaderT:
        """The one reader of a kind, when there is something for it to read."""
        (found,) = [reader for reader in self.readers if isinstance(reader, kind)]
        poll = select.poll()
        poll.register(found.fileno(), select.POLLIN)  # type: ignore[attr-defined]
        assert poll.poll(60_000)
        return found


class _Handle:
    """A socket that knows its peer's process."""

    def getsockopt(self, *_arguments: int) -> bytes:
        """SO_PEERCRED of process 17, user 1000."""
        return b"".join(number.to_bytes(4, "little") for number in (17, 1000, 1000))


class StreamDouble:
    """A stream transport in memory that closes, aborts and holds back as Twisted's do.

    Attributes:
        sent: everything written.
        pending: of it, how many bytes the client has not taken.
        calls: the calls that are no writes, in order.
        reading: whether it reads from the client.
    """

    def __init__(self, protocol: Any, *, peer: IAddress = PEER, room: float = float("inf")) -> None:
        self.protocol = protocol
        self.peer = peer
        self.room = room
        self.sent = b""
        self.pending = 0
        self.writes = 0
        self.calls: list[str] = []
        self.reading = True
        self.producer: Any = None
        self.streaming = False
        self.write_closed = False
        self.lost = ""
        self.bytes_in = self.bytes_out = 0
        self._closing = False
        self._producer_paused = False

    @property
    def traffic(self) -> tuple[int, int]:
        """What came, and what the client has taken."""
        return self.bytes_in, self.bytes_out - self.pending

    def write(self, data: bytes) -> None:
        """Send."""
        assert isinstance(data, bytes)
        if self.lost or self.write_closed:
            return
        self.sent += data
        self.writes += 1
        self.pending += len(data)
        self.bytes_out += len(data)
        if self.producer is not None and self.streaming and self.pending > self.room and not self._producer_paused:
            self._producer_paused = True
            self.producer.pauseProducing()

    def drain(self) -> None:
        """The client takes everything."""
        self.pending = 0
        if self.producer is not None and (self._producer_paused or not self.streaming):
            self._producer_paused = False
            self.producer.resumeProducing()
        elif self._closing:
            self.lose(Failure(ConnectionDone()), "done")
        elif self.write_closed:
            self.protocol.writeConnectionLost()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take a producer."""
        assert self.producer is None, "two producers"
        self.calls.append("registerProducer")
        self.producer, self.streaming = producer, streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Let it go."""
        self.producer = None
        if self._closing and not self.pending:
            self.lose(Failure(ConnectionDone()), "done")

    def pauseProducing(self) -> None:
        """Stop reading."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read again."""
        self.reading = True

    def stopProducing(self) -> None:
        """As a producer of its own."""
        self.loseConnection()

    def loseWriteConnection(self) -> None:
        """Close our side."""
        self.calls.append("loseWriteConnection")
        self.write_closed = True
        if not self.pending or self.room == float("inf"):
            self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        """Close when all is sent and nobody produces."""
        self.calls.append("loseConnection")
        self._closing = True
        if not self.lost and self.producer is None and (not self.pending or self.room == float("inf")):
            self.lose(Failure(ConnectionDone()), "done")

    def abortConnection(self) -> None:
        """Close now."""
        self.calls.append("abortConnection")
        if not self.lost:
            self.lose(Failure(ConnectionAborted()), "aborted")

    def lose(self, reason: Failure, word: str = "lost") -> None:
        """The connection ends."""
        self.lost = word
        self.protocol.connectionLost(reason)

    def getPeer(self) -> IAddress:
        """The client."""
        return self.peer

    def getHost(self) -> IAddress:
        """The server."""
        return IPv4Address("TCP", "127.0.0.1", 7)

    def getHandle(self) -> _Handle:
        """The socket."""
        return _Handle()


LOCAL_PEER = UNIXAddress(None)


@implementer(ILogObserver)
class LogCatcher:
    """A context that keeps what goes through twisted.logger meanwhile."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __enter__(self) -> LogCatcher:
        globalLogPublisher.addObserver(self)
        return self

    def __exit__(self, *_arguments: object) -> None:
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """Keep an event."""
        self.events.append(event)

    @property
    def failures(self) -> list[Failure]:
        """The failures among them."""
        return [event["log_failure"] for event in self.events if "log_failure" in event]

    def named(self, name: str) -> list[LogEvent]:
        """Svcd's own events of a name."""
        return [event for event in self.events if getattr(event.get("svcd_event"), "name", "") == name]


def config_of(text: str, files: FakeFiles | None = None) -> Config:
    """The Config of a text that has no Problems."""
    config, problems = parse_text(text, "s", files or FakeFiles(), BUILTINS)
    assert not problems, problems
    return config


def service_of(line: str) -> Service:
    """The one service of a line."""
    (service,) = config_of(line).services
    return service


def problems_of(text: str, files: FakeFiles | None = None) -> list[str]:
    """The Problems of a text, which is called `s`."""
    return [str(problem) for problem in parse_text(text, "s", files or FakeFiles(), BUILTINS)[1]]


def read_files(
    contents: Mapping[str, bytes | str | OSError], path: str = "/etc/svcd/services"
) -> tuple[Config, list[str]]:
    """The Config and the Problems of a file among files."""
    config, problems = parse(path, FakeFiles(contents), BUILTINS)
    return config, list(map(str, problems))


class ManagerDouble(ServiceManager):
    """A service manager that remembers what it was told.

    Args:
        keeps: whether it takes descriptors.
        watchdog: as of Manager.

    Attributes:
        messages: each message, its assignments joined by blanks.
        barriers: how often somebody waited for it.
    """

    def __init__(self, *, keeps: bool = False, watchdog: float | None = None) -> None:
        super().__init__("nowhere", watchdog)
        self.messages: list[str] = []
        self.barriers = 0
        self._keeps = keeps

    def send(self, *states: str, fd: int | None = None, wait: bool = True) -> bool:
        """Record a message."""
        del wait
        self.messages.append(" ".join(states))
        return fd is None or self._keeps

    def barrier(self, seconds: float = 0.0) -> bool:
        """Record a barrier."""
        del seconds
        self.barriers += 1
        return True


def open_all(
    endpoints: Iterable[Endpoint], socket_pool: SocketPool | None = None, store: FdStore | None = None
) -> list[ListeningSocket]:
    """Open the sockets of endpoints; without one of them there are none.

    Raises:
        ListenErrors: one can't be had.
    """
    opened, errors = acquire_sockets(endpoints, socket_pool, store)
    if errors:
        for each in opened:
            (store or FdStore(ServiceManager())).close_on_exit(each)
        raise ListenErrors(errors)
    return opened
