"""Test doubles for the host, the file system, the reactor, transports and the service manager."""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import select
import socket
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
from svcd.log.writer import LogWriter
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
    """Return a log sink that appends all lines to a list."""

    def sink(more: Sequence[str]) -> int:
        lines.extend(more)
        return len(more)

    return sink


class FakeFiles:
    """svcd.interfaces.FileReader over a dict: path to content, or to the OSError that reading it raises.

    Attributes:
        exposed: the paths that others than owner and group may read or write.
        user: the user that reads.
    """

    def __init__(
        self, contents: Mapping[str, bytes | str | OSError] | None = None, folders: Sequence[str] = ()
    ) -> None:
        self._contents = dict(contents or {})
        self._folders = frozenset(folders)
        self.exposed: set[str] = set()
        self.user = "svcd"

    def put(self, path: str, content: bytes | str | OSError) -> None:
        """Create or replace a file."""
        self._contents[path] = content

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        found = self._contents.get(posixpath.normpath(path))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if isinstance(found, OSError):
            raise found
        return found.encode() if isinstance(found, str) else found

    def read_together(self, paths: Sequence[str]) -> dict[str, bytes | OSError]:
        """Return the content of each file, or the error that reading it raises."""

        def content(path: str) -> bytes | OSError:
            try:
                return self.read(path)
            except OSError as error:
                return error

        return {path: content(path) for path in paths}

    def entries(self, folder: str) -> list[str]:
        """Return the sorted paths of the files in a directory."""
        if folder not in self._folders:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self.matches(f"{folder}/*")

    def file_stat(self, path: str) -> Hashable:
        """Return the content as the identity of the file; the path for a directory."""
        return path if path in self._folders else self.read(path)

    def is_exposed(self, path: str) -> bool:
        """Return whether the path is in `exposed`."""
        return path in self.exposed

    def matches(self, pattern: str) -> list[str]:
        """Return the sorted paths that match a glob(7) pattern, in which `*` does not match a slash."""
        folder, name = posixpath.split(pattern)
        return sorted(
            path
            for path in self._contents
            if posixpath.dirname(path) == posixpath.normpath(folder)
            and fnmatch.fnmatchcase(posixpath.basename(path), name)
        )

    def identity(self, path: str) -> str:
        """Return the normalized path."""
        return posixpath.normpath(path)

    def is_directory(self, path: str) -> bool:
        """Return whether the path is one of `folders`."""
        return path in self._folders


@dataclass
class FakeMachine:
    """svcd.interfaces.HostInfo with fixed answers.

    Attributes:
        users: names of the users.
        groups: names of the groups.
        zones: names of the time zones.
        families: the IP versions that sockets can be bound with.
        names: addresses of each host name and interface.
        time: the time of day, in seconds since 1970; None for any time.
        reasons: why a path (with its root in front) or a Python reference cannot be used.
        imported: for each call of cannot_import(), the Python handlers.
        mptcp: whether the kernel has Multipath TCP.
        modules: the optional Python modules that are installed.
        handlers: the user that runs handlers without user=; empty for none that matters.
    """

    users: frozenset[str] = frozenset({"root"})
    groups: frozenset[str] = frozenset({"adm"})
    zones: frozenset[str] = frozenset({"UTC", "Europe/Berlin"})
    families: frozenset[int] = frozenset({4, 6})
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    time: float | None = 1_800_000_000.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    imported: list[list[str]] = field(default_factory=list)
    mptcp: bool = True
    modules: frozenset[str] = frozenset({"wsproto"})
    handlers: str = ""

    def has_user(self, name: str) -> bool:
        """Return whether the user is in `users`; a number always is."""
        return name in self.users or name.isdecimal()

    def has_group(self, name: str) -> bool:
        """Return whether the group is in `groups`."""
        return name in self.groups

    def now(self) -> float | None:
        """Return `time`."""
        return self.time

    def has_zone(self, name: str) -> bool:
        """Return whether the time zone is in `zones`."""
        return name in self.zones

    def has_module(self, name: str) -> bool:
        """Return whether the module is in `modules`."""
        return name in self.modules

    def has_mptcp(self) -> bool:
        """Return `mptcp`."""
        return self.mptcp

    def versions(self) -> frozenset[int]:
        """Return `families`."""
        return self.families

    def has_login_group(self, user: str) -> bool:
        """Return whether the user is a name: passwd(5) has no group for a mere number."""
        return not user.isdecimal()

    def cannot_execute(self, path: str, runner: RunAs) -> str:
        """Return the reason for the path, or an empty text."""
        return self.reasons.get(runner.root + path, "")

    def cannot_enter(self, path: str, runner: RunAs) -> str:
        """Return the reason for the path, or an empty text."""
        return self.reasons.get(runner.root + path, "")

    def cannot_import(self, wanted: Sequence[tuple[str, Sequence[str], RunAs, float]]) -> list[str]:
        """Record the references and return the reason for each, or an empty text."""
        self.imported.append([reference for reference, *_ in wanted])
        return [self.reasons.get(reference, "") for reference, *_ in wanted]

    def cannot_serve(self, wanted: Sequence[tuple[str, object, float]]) -> list[str]:
        """Return the reason for each reference, or an empty text."""
        return [self.reasons.get(reference, "") for reference, *_ in wanted]

    def handlers_user(self) -> str:
        """Return `handlers`."""
        return self.handlers

    def can_read(self, path: str) -> bool:
        """Return whether there is no reason for the path."""
        return path not in self.reasons

    def look_up(self, names: Iterable[str]) -> None:
        """Do nothing: addresses() answers at once."""

    def addresses(self, name: str) -> Sequence[str]:
        """Return the addresses of a name, or an address literal itself."""
        if name in self.names:
            return self.names[name]
        if ip_literal(name):
            return [name]
        raise OSError(errno.EADDRNOTAVAIL, "Name or service not known")


class FakeResolver:
    """svcd.interfaces.HostNameResolver whose queries the test answers.

    Attributes:
        queries: the open queries, oldest first: address and Deferred.
    """

    def __init__(self) -> None:
        self.queries: list[tuple[str, Deferred[str | None]]] = []

    def host_of(self, address: str) -> Deferred[str | None]:
        """Record a query."""
        answer: Deferred[str | None] = Deferred()
        self.queries.append((address, answer))
        return answer

    confirmed_host_of = host_of

    def answer(self, host: str | None) -> None:
        """Answer the oldest query."""
        self.queries.pop(0)[1].callback(host)


class FakeEndpoint:
    """IStreamClientEndpoint whose connections succeed or fail when the test says.

    Attributes:
        attempts: the open connection attempts, oldest first: factory and Deferred.
        cancelled: how many attempts were cancelled.
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        """Record a connection attempt."""

        def cancel(_attempt: object) -> None:
            self.cancelled += 1

        attempt: Deferred[Any] = Deferred(cancel)
        self.attempts.append((factory, attempt))
        return attempt

    def accept(self, room: float = float("inf")) -> StreamDouble:
        """Let the oldest attempt succeed; return the transport of the client side."""
        factory, attempt = self.attempts.pop(0)
        protocol = factory.buildProtocol(None)
        transport = StreamDouble(protocol, room=room)
        protocol.makeConnection(transport)
        attempt.callback(protocol)
        return transport

    def refuse(self, error: Exception) -> None:
        """Let the oldest attempt fail."""
        self.attempts.pop(0)[1].errback(error)


class _UnlimitedDescriptors:
    """svcd.interfaces.DescriptorCounter without a limit."""

    def try_acquire(self) -> bool:
        """Return True."""
        return True

    def acquire(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


def dependencies(
    clock: IReactorTime,
    files: FakeFiles | None = None,
    descriptors: DescriptorCounter | None = None,
    endpoint: FakeEndpoint | None = None,
    registry: MetricsRegistry | None = None,
) -> ServiceDependencies:
    """Return the dependencies of a built-in service, with doubles for those that are not given."""
    return ServiceDependencies(
        clock,
        FakeResolver(),
        files or FakeFiles(),
        descriptors or _UnlimitedDescriptors(),
        registry or MetricsRegistry(),
        lambda _server, _timeout, _descriptors: endpoint or FakeEndpoint(),  # type: ignore[arg-type,return-value]
        LogWriter(list_sink([])),
        lambda _path: LogWriter(list_sink([])),
    )


def service_context(
    reactor: FakeReactor,
    budget: DescriptorBudget,
    log_writer: LogWriter,
    manager: ServiceManager,
    registry: MetricsRegistry,
) -> ServiceContext:
    """Return the context that the services of a supervisor share."""
    deps = dependencies(reactor, descriptors=budget)
    connections = ConnectionContext(
        reactor, log_writer, deps.files, deps.resolver, budget, GlobalLimit(), registry=registry
    )
    return ServiceContext(connections, deps, DaemonAccount((1024, 4096)), FdStore(manager))


def add_counters(registry: MetricsRegistry, about: ServiceInfo) -> ServiceCounters:
    """Describe one more service to a registry, and return its counters."""
    described = [each.about for each in registry.snapshot().services]
    registry.describe([*described, about])
    return registry.counters(about.id)


class FakeReactor(Clock):
    """Reactor whose clock the test advances; it records readers and writers, and polls nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        """Record a reader."""
        self.readers.add(reader)

    def removeReader(self, reader: Any) -> None:
        """Forget a reader."""
        self.readers.discard(reader)

    def addWriter(self, writer: Any) -> None:
        """Record a writer."""
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        """Forget a writer."""
        self.writers.discard(writer)

    def wait_for(self, kind: type[ReaderT]) -> ReaderT:
        """Return the only reader of a class once its descriptor is readable, within 60 s."""
        (reader,) = [each for each in self.readers if isinstance(each, kind)]
        poll = select.poll()
        poll.register(reader.fileno(), select.POLLIN)  # type: ignore[attr-defined]
        assert poll.poll(60_000)
        return reader


class _FakeSocket:
    """Socket with fixed peer credentials."""

    def getsockopt(self, *_arguments: int) -> bytes:
        """Return SO_PEERCRED of process 17, user 1000, group 1000."""
        return b"".join(number.to_bytes(4, "little") for number in (17, 1000, 1000))


class StreamDouble:
    """Stream transport in memory that closes, aborts and pauses producers as Twisted's transports do.

    Args:
        protocol: the protocol on the transport.
        peer: the address of the client.
        room: bytes that the write buffer takes before the producer is paused; infinite: the client reads at once.

    Attributes:
        sent: everything that was written.
        pending: bytes that were written and that the client has not read.
        writes: how many calls of write() were accepted.
        calls: names of the other methods that were called, in order.
        reading: whether the transport reads from the client.
        write_closed: whether the write side was shut down.
        lost: how the connection ended, `done`, `aborted` or `lost`; empty while it is open.
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
        """Bytes received, and bytes that the client has read."""
        return self.bytes_in, self.bytes_out - self.pending

    def write(self, data: bytes) -> None:
        """Append data to what was sent; pause the producer when the buffer is above `room`."""
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
        """Let the client read all pending bytes."""
        self.pending = 0
        if self.producer is not None and (self._producer_paused or not self.streaming):
            self._producer_paused = False
            self.producer.resumeProducing()
        elif self._closing:
            self.lose(Failure(ConnectionDone()), "done")
        elif self.write_closed:
            self.protocol.writeConnectionLost()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register a producer; a pull producer is resumed at once."""
        assert self.producer is None, "two producers"
        self.calls.append("registerProducer")
        self.producer, self.streaming = producer, streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Unregister the producer; a connection that waits to be closed is closed."""
        self.producer = None
        if self._closing and not self.pending:
            self.lose(Failure(ConnectionDone()), "done")

    def pauseProducing(self) -> None:
        """Stop reading from the client."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read from the client again."""
        self.reading = True

    def stopProducing(self) -> None:
        """Close the connection, as the producer of another transport."""
        self.loseConnection()

    def loseWriteConnection(self) -> None:
        """Shut down the write side."""
        self.calls.append("loseWriteConnection")
        self.write_closed = True
        if not self.pending or self.room == float("inf"):
            self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        """Close the connection when everything is sent and no producer is registered."""
        self.calls.append("loseConnection")
        self._closing = True
        if not self.lost and self.producer is None and (not self.pending or self.room == float("inf")):
            self.lose(Failure(ConnectionDone()), "done")

    def abortConnection(self) -> None:
        """Close the connection at once."""
        self.calls.append("abortConnection")
        if not self.lost:
            self.lose(Failure(ConnectionAborted()), "aborted")

    def lose(self, reason: Failure, word: str = "lost") -> None:
        """End the connection.

        Args:
            reason: passed to connectionLost().
            word: the value of `lost`.
        """
        self.lost = word
        self.protocol.connectionLost(reason)

    def getPeer(self) -> IAddress:
        """Return the address of the client."""
        return self.peer

    def getHost(self) -> IAddress:
        """Return the address of the server."""
        return IPv4Address("TCP", "127.0.0.1", 7)

    def getHandle(self) -> _FakeSocket:
        """Return a socket with fixed peer credentials."""
        return _FakeSocket()


LOCAL_PEER = UNIXAddress(None)


@implementer(ILogObserver)
class LogCatcher:
    """Context manager that records the events of twisted.logger.

    Attributes:
        events: the recorded events.
    """

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __enter__(self) -> LogCatcher:
        globalLogPublisher.addObserver(self)
        return self

    def __exit__(self, *_arguments: object) -> None:
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: LogEvent) -> None:
        """Record an event."""
        self.events.append(event)

    @property
    def failures(self) -> list[Failure]:
        """The failures of the recorded events."""
        return [event["log_failure"] for event in self.events if "log_failure" in event]

    def named(self, name: str) -> list[LogEvent]:
        """Return the recorded events of svcd with a name."""
        return [event for event in self.events if getattr(event.get("svcd_event"), "name", "") == name]


def config_of(text: str, files: FakeFiles | None = None) -> Config:
    """Return the Config of a services file that has no problems."""
    config, problems = parse_text(text, "s", files or FakeFiles(), BUILTINS)
    assert not problems, problems
    return config


def service_of(line: str) -> Service:
    """Return the only service of a services file with one line."""
    (service,) = config_of(line).services
    return service


def problems_of(text: str, files: FakeFiles | None = None) -> list[str]:
    """Return the problems of a services file named `s`."""
    return [str(problem) for problem in parse_text(text, "s", files or FakeFiles(), BUILTINS)[1]]


def read_files(
    contents: Mapping[str, bytes | str | OSError], path: str = "/etc/svcd/services"
) -> tuple[Config, list[str]]:
    """Return the Config of a services file, and its problems; `contents` has all files."""
    config, problems = parse(path, FakeFiles(contents), BUILTINS)
    return config, list(map(str, problems))


class ManagerDouble(ServiceManager):
    """Service manager that records the messages sent to it.

    Args:
        keeps: whether it stores descriptors.
        watchdog: as of ServiceManager.

    Attributes:
        messages: each message, its assignments joined by blanks.
        barriers: how many barriers were sent.
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
    """Open the sockets of endpoints: all of them, or none.

    Raises:
        ListenErrors: a socket cannot be opened.
    """
    opened, errors = acquire_sockets(endpoints, socket_pool, store)
    if errors:
        for each in opened:
            (store or FdStore(ServiceManager())).close_on_exit(each)
        raise ListenErrors(errors)
    return opened


def unused_port() -> int:
    """Return a TCP port that is free on all addresses."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])
