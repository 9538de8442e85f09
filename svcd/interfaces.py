"""Protocols between packages: what lower packages ask of the objects that they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReadDescriptor

    from svcd.model import RunAs
    from svcd.wire.proxy_header import ProxyHeader

__all__ = [
    "STILL_IMPORTING",
    "AdoptConnection",
    "ConnectionHandler",
    "DatagramTransport",
    "DescriptorCounter",
    "FdReactor",
    "FileReader",
    "HostInfo",
    "HostNameResolver",
    "StreamTransport",
]  # fmt: skip

#: How the reason of Machine.cannot_serve() ends while an import goes on.
STILL_IMPORTING = "its module is still being imported"


class FileReader(Protocol):
    """Reading files by name, for the floors that open none themselves."""

    def read(self, path: str) -> bytes:
        """The whole content of a regular file.

        Raises:
            OSError: it can't be read, is no regular file, or is larger than 16 MiB.
        """
        ...

    def read_together(self, paths: Sequence[str]) -> Mapping[str, bytes | OSError]:
        """As read, of files that belong together: the content of each, or why it can't be read.

        Who is denied one of them now, but could read all before, gets all as they were then: for files that root alone
        can read, once root is given up. So what is in use can still be checked, and nothing new is mixed with it.
        """
        ...

    def entries(self, folder: str) -> Sequence[str]:
        """The paths of what is in a directory, sorted; who is denied that now gets what it was before.

        Raises:
            OSError: it can't be listed, and never could.
        """
        ...

    def file_stat(self, path: str) -> Hashable:
        """What changes whenever the file or directory behind a name does, and nothing is opened for.

        Raises:
            OSError: nothing can be known of it.
        """
        ...

    def is_exposed(self, path: str) -> bool:
        """Whether others than a file's owner and group may read or write it.

        Raises:
            OSError: nothing can be known of it.
        """
        ...

    def matches(self, pattern: str) -> Sequence[str]:
        """The paths that match a glob(7) pattern, sorted; empty when there is none."""
        ...

    def identity(self, path: str) -> str:
        """One spelling for all the names of a file."""
        ...

    def is_directory(self, path: str) -> bool:
        """Whether this is a directory that can be entered and listed."""
        ...


class HostInfo(Protocol):
    """What a check wants to know of the machine that it runs on."""

    def has_user(self, name: str) -> bool:
        """Whether passwd(5) knows the name or number."""
        ...

    def has_group(self, name: str) -> bool:
        """Whether group(5) knows the name or number."""
        ...

    def now(self) -> float | None:
        """The time of day, in seconds since 1970, by which certificates are to be valid; None for any time."""
        ...

    def has_zone(self, name: str) -> bool:
        """Whether the time zone database knows the name."""
        ...

    def has_mptcp(self) -> bool:
        """Whether the kernel has Multipath TCP."""
        ...

    def versions(self) -> frozenset[int]:
        """The versions of IP that sockets can be bound with here: 4, 6."""
        ...

    def look_up(self, names: Iterable[str]) -> None:
        """Begin to look up names whose addresses will be asked for."""
        ...

    def addresses(self, name: str) -> Sequence[str]:
        """The addresses, as literals, of a literal, an interface or a host name.

        Raises:
            OSError: nothing has that name.
        """
        ...

    def has_login_group(self, user: str) -> bool:
        """Whether passwd(5) says the group of a user; it does not of a mere number."""
        ...

    def cannot_execute(self, path: str, runner: RunAs) -> str:
        """Why somebody can't execute a file, looked up inside their root; empty if they can, as far as is known."""
        ...

    def cannot_enter(self, path: str, runner: RunAs) -> str:
        """Why somebody can't enter a directory, looked up inside their root; else as `cannot_execute`."""
        ...

    def cannot_import(self, wanted: Sequence[tuple[str, Sequence[str], RunAs, float]]) -> Sequence[str]:
        """Why Python handlers can't be imported; an empty text for each that can, or is not known to be late yet.

        Args:
            wanted: of each `module:name`, where it is looked for before the daemon's own path, who imports it, and how
                many seconds that may take.
        """
        ...

    def cannot_serve(self, wanted: Sequence[tuple[str, object, float]]) -> Sequence[str]:
        """Why each `module:name` gives no Twisted factory; empty if it does or may.

        The modules are imported; of one that takes long the reason ends with STILL_IMPORTING.

        Args:
            wanted: each `module:name`, with the options of its service, and how many seconds its import may take.
        """
        ...

    def handlers_user(self) -> str:
        """Who runs handlers that name no user, if what they may reach matters; else empty."""
        ...

    def can_read(self, path: str) -> bool:
        """Whether that user may read a file."""
        ...


class DescriptorCounter(Protocol):
    """The budget of descriptors, for services that open more than their clients' connections."""

    def acquire(self) -> None:
        """Count a descriptor that was opened."""
        ...

    def release(self) -> None:
        """Count a descriptor that was closed."""
        ...

    def try_acquire(self) -> bool:
        """Count one more descriptor if the budget allows it; return whether it does."""
        ...


class HostNameResolver(Protocol):
    """Host names of addresses, looked up without blocking."""

    def host_of(self, address: str) -> Deferred[str | None]:
        """The host name of an address, or None. Fires within a bounded time and never fails."""
        ...

    def confirmed_host_of(self, address: str) -> Deferred[str | None]:
        """Return the host name only if the name has that address: the owner of an address can't choose any name."""
        ...


class StreamTransport(Protocol):
    """What a stream protocol may ask of its transport: of Twisted's ITCPTransport, IConsumer and IPushProducer."""

    def write(self, data: bytes) -> None:
        """Send, now or when there is room."""
        ...

    def loseConnection(self) -> None:
        """Close when all is sent and no producer is registered."""
        ...

    def loseWriteConnection(self) -> None:
        """Shut down the write side when all is sent."""
        ...

    def abortConnection(self) -> None:
        """Close now."""
        ...

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Register the producer that is paused while too much waits to be sent."""
        ...

    def unregisterProducer(self) -> None:
        """Unregister the producer."""
        ...

    def pauseProducing(self) -> None:
        """Stop reading."""
        ...

    def resumeProducing(self) -> None:
        """Read again."""
        ...

    def getPeer(self) -> IAddress:
        """Return the address of the peer."""
        ...

    def getHost(self) -> IAddress:
        """Return the local address."""
        ...


class DatagramTransport(Protocol):
    """What a datagram protocol may ask of its transport."""

    def write(self, datagram: bytes, addr: object) -> None:
        """Send a datagram to an address as it came; it may be lost."""
        ...


class FdReactor(Protocol):
    """A reactor that watches descriptors and time: parts of Twisted's IReactorFDSet and IReactorTime."""

    def addReader(self, reader: IReadDescriptor, /) -> None:
        """Call its doRead() whenever there is something to read."""
        ...

    def removeReader(self, reader: IReadDescriptor, /) -> None:
        """Stop watching it."""
        ...

    def seconds(self) -> float:
        """The time, from some beginning."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object], *arguments: object) -> IDelayedCall:  # noqa: A002
        """Call something after so many seconds."""
        ...


class AdoptConnection(Protocol):
    """Lets a protocol have a connected socket: its descriptor, the peer's socket address, the socket's family.

    The protocol is told of its transport at once or soon. In any case the descriptor is somebody else's to close.
    """

    def __call__(self, descriptor: int, name: Any, family: int, protocol: IProtocol, relay: Any = None, /) -> None:  # noqa: ANN401
        """The last is what a proxy has said of the connection, if one has. Raises OSError if it is of no use."""
        ...


class ConnectionHandler(Protocol):
    """Takes a connection in: its descriptor, the client's socket address, the socket's family, the header."""

    def __call__(self, descriptor: int, name: Any, family: int, relay: ProxyHeader | None = None, /) -> object:  # noqa: ANN401
        """Take ownership of the descriptor."""
