"""Protocols (PEP 544) of the objects that lower packages get from higher ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReadDescriptor, IWriteDescriptor

    from svcd.model import RunAs
    from svcd.wire.proxy_header import ProxyHeader

__all__ = [
    "STILL_IMPORTING",
    "AdoptConnection",
    "ConnectionHandler",
    "DatagramTransport",
    "DescriptorCounter",
    "DuplexReactor",
    "FdReactor",
    "FileReader",
    "HostInfo",
    "HostNameResolver",
    "StreamTransport",
]  # fmt: skip

#: The end of the reason that HostInfo.cannot_serve() returns while an import is in progress.
STILL_IMPORTING = "its module is still being imported"


class FileReader(Protocol):
    """Reader of files by path, for packages that do no I/O."""

    @property
    def user(self) -> str:
        """The user that reads the files now, by name, or by number if it has no name."""
        ...

    def read(self, path: str) -> bytes:
        """Return the content of a regular file.

        Raises:
            OSError: it can't be read, is no regular file, or is larger than 16 MiB.
        """
        ...

    def read_together(self, paths: Sequence[str]) -> Mapping[str, bytes | OSError]:
        """Return the contents of files that belong together, or for each file the reason why it can't be read.

        If access to a file is denied now, but all files could be read before, all have the content that they had then:
        for files that only root can read, after the daemon has given up root. So the files in use can still be checked,
        and old files are not mixed with new ones.
        """
        ...

    def entries(self, folder: str) -> Sequence[str]:
        """Return the paths in a directory, sorted; if access is denied now, those of the last successful call.

        Raises:
            OSError: it can't be listed, and no earlier call succeeded.
        """
        ...

    def file_stat(self, path: str) -> Hashable:
        """Return a value that differs after each change of a file or directory, without opening it.

        Raises:
            OSError: stat(2) fails.
        """
        ...

    def is_exposed(self, path: str) -> bool:
        """Return whether users other than a file's owner and group may read or write it.

        Raises:
            OSError: stat(2) fails.
        """
        ...

    def matches(self, pattern: str) -> Sequence[str]:
        """Return the paths that match a glob(7) pattern, sorted; empty if there are none."""
        ...

    def identity(self, path: str) -> str:
        """Return the canonical path of a file, the same for all its names."""
        ...

    def is_directory(self, path: str) -> bool:
        """Return whether the path is a directory that can be entered and listed."""
        ...


class HostInfo(Protocol):
    """Facts about the machine, for the check of a services file."""

    def has_user(self, name: str) -> bool:
        """Return whether a user exists; a number always does."""
        ...

    def has_group(self, name: str) -> bool:
        """Return whether a group exists; a number always does."""
        ...

    def now(self) -> float | None:
        """Return the time at which certificates must be valid, in seconds since 1970; None for any time."""
        ...

    def has_zone(self, name: str) -> bool:
        """Return whether the time zone database has a zone."""
        ...

    def has_module(self, name: str) -> bool:
        """Return whether a Python module of an optional package is installed."""
        ...

    def has_mptcp(self) -> bool:
        """Return whether the kernel supports Multipath TCP."""
        ...

    def versions(self) -> frozenset[int]:
        """Return the IP versions (4, 6) that sockets can be bound with."""
        ...

    def look_up(self, names: Iterable[str]) -> None:
        """Start the lookups of names for later calls of addresses()."""
        ...

    def addresses(self, name: str) -> Sequence[str]:
        """Return the addresses, as literals, of a literal, an interface or a host name.

        Raises:
            OSError: there are none.
        """
        ...

    def has_login_group(self, user: str) -> bool:
        """Return whether passwd(5) has the group of a user; a number may have no entry."""
        ...

    def cannot_execute(self, path: str, runner: RunAs) -> str:
        """Return why an account can't execute a file, resolved in its root; empty if it can, as far as is known."""
        ...

    def cannot_enter(self, path: str, runner: RunAs) -> str:
        """Return why an account can't enter a directory, resolved in its root; otherwise as `cannot_execute`."""
        ...

    def cannot_import(self, wanted: Sequence[tuple[str, Sequence[str], RunAs, float]]) -> Sequence[str]:
        """Return why each Python handler can't be imported; empty if it can, or while its import is in progress.

        Args:
            wanted: for each handler `module:name`, the directories that precede the daemon's own path, the account that
                imports it, and the time limit in seconds.
        """
        ...

    def cannot_serve(self, wanted: Sequence[tuple[str, object, float]]) -> Sequence[str]:
        """Return why each `module:name` gives no Twisted factory; empty if it does, or if that is not known.

        The modules are imported; at the time limit of an import the reason ends with STILL_IMPORTING.

        Args:
            wanted: for each factory `module:name`, the options of its service, and the time limit of the import in
                seconds.
        """
        ...

    def handlers_user(self) -> str:
        """Return the user that runs handlers without user=, if their permissions are to be checked; empty otherwise."""
        ...

    def can_read(self, path: str) -> bool:
        """Return whether the user of handlers_user() may read a file."""
        ...


class DescriptorCounter(Protocol):
    """Budget of descriptors, for services that open more descriptors than those of their clients' connections."""

    def acquire(self) -> None:
        """Count a descriptor that was opened."""
        ...

    def release(self) -> None:
        """Count a descriptor that was closed."""
        ...

    def try_acquire(self) -> bool:
        """Count a descriptor if the budget allows it; return whether it does."""
        ...


class HostNameResolver(Protocol):
    """Resolver of the host names of addresses that does not block."""

    def host_of(self, address: str) -> Deferred[str | None]:
        """Return a Deferred with the host name of an address, or None. It fires within bounded time, never fails."""
        ...

    def confirmed_host_of(self, address: str) -> Deferred[str | None]:
        """Return a Deferred like host_of(), with None unless the name has the address (forward-confirmed lookup).

        The owner of an address alone can choose any name for it.
        """
        ...


class StreamTransport(Protocol):
    """Transport of a stream protocol: parts of Twisted's ITCPTransport, IConsumer and IPushProducer."""

    def write(self, data: bytes) -> None:
        """Send data, now or when there is room."""
        ...

    def loseConnection(self) -> None:
        """Close the connection when all data is sent and no producer is registered."""
        ...

    def loseWriteConnection(self) -> None:
        """Shut down the write side when all data is sent."""
        ...

    def abortConnection(self) -> None:
        """Close the connection now."""
        ...

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Register the producer that is paused while too much data is buffered."""
        ...

    def unregisterProducer(self) -> None:
        """Unregister the producer."""
        ...

    def pauseProducing(self) -> None:
        """Stop reading."""
        ...

    def resumeProducing(self) -> None:
        """Resume reading."""
        ...

    def getPeer(self) -> IAddress:
        """Return the address of the peer."""
        ...

    def getHost(self) -> IAddress:
        """Return the local address."""
        ...


class DatagramTransport(Protocol):
    """Transport of a datagram protocol."""

    def write(self, datagram: bytes, addr: object) -> None:
        """Send a datagram, which may be lost, to an address in the form that datagramReceived() gets."""
        ...


class FdReactor(Protocol):
    """Reactor that watches descriptors and time: parts of Twisted's IReactorFDSet and IReactorTime."""

    def addReader(self, reader: IReadDescriptor, /) -> None:
        """Call the doRead() of a reader whenever its descriptor is readable."""
        ...

    def removeReader(self, reader: IReadDescriptor, /) -> None:
        """Stop watching a reader."""
        ...

    def seconds(self) -> float:
        """Return the time in seconds, from an arbitrary start."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object], *arguments: object) -> IDelayedCall:  # noqa: A002
        """Call a function after a delay in seconds."""
        ...


class DuplexReactor(FdReactor, Protocol):
    """Reactor that watches descriptors for output as well."""

    def addWriter(self, writer: IWriteDescriptor, /) -> None:
        """Call the doWrite() of a writer whenever its descriptor is writable."""
        ...

    def removeWriter(self, writer: IWriteDescriptor, /) -> None:
        """Stop watching a writer."""
        ...


class AdoptConnection(Protocol):
    """Function that connects a protocol to an open connection.

    It calls the protocol's makeConnection() at once or soon. It takes ownership of the descriptor, also if it fails.
    """

    def __call__(self, fd: int, sockaddr: Any, family: int, protocol: IProtocol, proxy_header: Any = None, /) -> None:  # noqa: ANN401
        """Connect a protocol.

        Args:
            fd: the connected socket. Takes ownership of it.
            sockaddr: the socket address of the peer.
            family: the address family of the socket.
            protocol: the protocol to connect.
            proxy_header: the PROXY header of the connection, if it has one.

        Raises:
            OSError: the connection is gone.
        """
        ...


class ConnectionHandler(Protocol):
    """Function that handles an accepted connection."""

    def __call__(self, fd: int, sockaddr: Any, family: int, proxy_header: ProxyHeader | None = None, /) -> object:  # noqa: ANN401
        """Handle a connection.

        Args:
            fd: the connected socket. Takes ownership of it.
            sockaddr: the socket address of the client.
            family: the address family of the socket.
            proxy_header: the PROXY header of the connection, if it has one.
        """
