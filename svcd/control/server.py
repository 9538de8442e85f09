"""The control socket: a UNIX socket for commands of the daemon's owner, as lines of JSON.

Its mode (0600) excludes other users, and the daemon checks the credentials of each peer as well (SO_PEERCRED, unix(7)):
only root and the daemon's own user are admitted. The memory for a client is bounded: a line, the data of a read, and an
answer. So is the number of clients; some places are reserved for root.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from zope.interface import implementer

from svcd.connections.tracker import cancelling
from svcd.errors import CommandError, ListenError, ListenErrors, StoppingError
from svcd.log.events import CONTROL, PROBLEM, log_event
from svcd.net.peer_credentials import credentials
from svcd.net.port_owner import socket_owner
from svcd.net.unix_socket import bind_local, file_of, has_file, remove_file
from svcd.sockets.activation import control_fd_name
from svcd.sockets.listening import REMEDIES
from svcd.sockets.ports import StreamPort
from svcd.wire.control_protocol import ControlRequest, Lines, RequestError, answer, mistake, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from svcd.interfaces import FdReactor
    from svcd.sockets.acquire import FdStore

__all__ = ["ControlFactory", "ControlService", "ControlSocket"]

#: The maximum number of clients, and the number of further places for root.
_MOST_CLIENTS = 16
_ROOT_RESERVE = 4
#: The time that a refused client has to close, and that all clients have to read answers when the daemon stops, in
#: seconds.
_CLOSE_SECONDS = 1.0
#: The longest time to answer requests before the reactor handles other events, in seconds.
_TURN_SECONDS = 0.005


@implementer(IHalfCloseableProtocol, IPushProducer)
class _ControlConnection(Protocol):
    """Connection of a client. Its requests are answered in order; reading pauses while one is waiting.

    Attributes:
        user: the uid of the client.
    """

    factory: ControlFactory
    transport: Any
    user = -1
    _log = Logger()

    def __init__(self) -> None:
        self._lines = Lines()
        self._requests: deque[bytes | None] = deque()
        self._request: ControlRequest | None = None
        # Whether a command is running; the write buffer is full; reading is paused; the client has half-closed.
        self._busy = self._full = self._paused = self._input_ended = False
        # Whether input is ignored: the client was not admitted, or the connection is about to be closed.
        self._closed = True
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Check the client's user and admit or refuse the client."""
        _, self.user, _ = credentials(self.transport.getHandle())
        refusal = self.factory.admit(self)
        if refusal is not None:
            self._refuse(*refusal)
            return
        self._closed = False
        # While the client does not read its answers, its requests are not read.
        self.transport.registerProducer(self, streaming=True)

    def _refuse(self, code: str, text: str) -> None:
        self.transport.write(mistake(None, code, text))
        if self.factory.crowded:
            self.transport.loseConnection()
            return
        # Closing a socket with unread input discards the answer (unix(7)), so the client must close first.
        self.transport.loseWriteConnection()
        self._timer = self.factory.reactor.callLater(_CLOSE_SECONDS, self.transport.abortConnection)

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 - Twisted's signature
        """Discard the requests; a running command continues."""
        self._forget()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.factory.remove(self)

    def _forget(self) -> None:
        self._closed = True
        self._requests.clear()

    def dataReceived(self, data: bytes) -> None:
        """Queue the requests in the data."""
        if not self._closed:
            self._requests.extend(self._lines.feed(data))
            self._continue()

    def readConnectionLost(self) -> None:
        """Handle the client's half-close: answer the remaining requests, then close the connection."""
        self._input_ended = True
        if self._closed:
            self.transport.loseConnection()
            return
        self._requests.extend(self._lines.end())
        self._continue()

    def writeConnectionLost(self) -> None:
        """Do nothing: a refused client closes its side after it has read the reason."""

    def _continue(self) -> None:
        """Queue the next request; pause or resume reading; close the connection after the last answer."""
        if self._requests and not (self._busy or self._full):
            self.factory.queue(self)
        if self._closed:
            return
        if self._input_ended:
            if not (self._requests or self._busy):
                self.end()
            return
        stop = bool(self._requests) or self._full
        if stop is not self._paused:
            self._paused = stop
            if stop:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def answer_next(self) -> None:
        """Answer the oldest request, unless a command is running or the write buffer is full."""
        if self._closed or self._busy or self._full or not self._requests:
            return
        line = self._requests.popleft()
        self._busy = True
        if line is None:
            self._answer(mistake(None, "usage", "the line is too long"))
            return
        try:
            received = request(line)
        except RequestError as error:
            self._answer(mistake(error.id, "usage", str(error)))
            return
        self._request = received
        done = maybeDeferred(self.factory.commands[received.command], **received.arguments)
        lines = done.addCallbacks(partial(answer, received.id), partial(self._mistake, received))
        lines.addCallback(self._answer)

    def _mistake(self, received: ControlRequest, failure: Failure) -> bytes:
        error = failure.value
        if isinstance(error, CommandError):
            return mistake(received.id, error.code, str(error), [each.document() for each in error.problems])
        self._log.failure("the command {command} failed", failure, command=received.command)
        return mistake(received.id, "error", "internal error; the log has details")

    def _answer(self, line: bytes) -> None:
        self._busy, self._request = False, None
        if not self._closed:
            self.transport.write(line)
            self._continue()

    def end(self) -> None:
        """Answer the remaining requests by a `busy` error, and close the connection after the buffered data."""
        if not self._closed:
            for number in self._unanswered():
                self.transport.write(mistake(number, "busy", str(StoppingError())))
        self._forget()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _unanswered(self) -> Iterator[int | str | None]:
        """Yield the ids of requests that have no answer, in their order."""
        if self._request is not None:
            yield self._request.id
        for line in self._requests:
            try:
                yield None if line is None else request(line).id
            except RequestError as error:
                yield error.id

    def abort(self) -> None:
        """Close the connection at once."""
        self._forget()
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Stop answering: the write buffer is full."""
        self._full = True
        self._continue()

    def resumeProducing(self) -> None:
        """Resume answering."""
        self._full = False
        self._continue()

    def stopProducing(self) -> None:
        """Discard the requests: the connection is lost."""
        self._forget()


class ControlFactory(Factory):
    """Factory of control connections. It answers one request of each client in turn, for _TURN_SECONDS at a time.

    Args:
        commands: the function of each command, called with keyword arguments.
        users: the uids of the users that are admitted.
        reactor: schedules the turns.

    Attributes:
        clients: the admitted clients.
    """

    protocol = _ControlConnection  # type: ignore[assignment]
    noisy = False

    def __init__(
        self, commands: Mapping[str, Callable[..., object]], users: frozenset[int], reactor: IReactorTime
    ) -> None:
        self.commands = commands
        self.users = users
        self.reactor = reactor
        self.clients: list[_ControlConnection] = []
        self._connected: set[_ControlConnection] = set()
        # The clients with a request as keys, in the order of their turns.
        self._queue: dict[_ControlConnection, None] = {}
        self._turning = False
        self._call: IDelayedCall | None = None
        self._empty: Deferred[None] | None = None

    def admit(self, client: _ControlConnection) -> tuple[str, str] | None:
        """Admit a client, if its user may control the daemon and a place is free.

        Returns:
            The code and the text of the refusal; None if the client is admitted.
        """
        self._connected.add(client)
        if client.user not in self.users:
            return "refused", f"user {client.user} may not control this daemon"
        limit = _MOST_CLIENTS + (_ROOT_RESERVE if client.user == 0 else 0)
        if len(self.clients) >= limit:
            self._remove_disconnected()
        if len(self.clients) >= limit:
            return "busy", "too many clients; try again"
        self.clients.append(client)
        return None

    @property
    def crowded(self) -> bool:
        """Whether there are too many refused clients to wait until each has read the reason."""
        return len(self._connected) - len(self.clients) > _MOST_CLIENTS

    def _remove_disconnected(self) -> None:
        """Remove clients that have closed while reading was paused, which causes no event."""
        hangups = select.poll()
        by_descriptor = {client.transport.fileno(): client for client in self.clients}
        for descriptor in by_descriptor:
            # POLLHUP is always reported (poll(2)).
            hangups.register(descriptor, 0)
        for descriptor, _ in hangups.poll(0):
            client = by_descriptor[descriptor]
            self.clients.remove(client)
            client.abort()

    def remove(self, client: _ControlConnection) -> None:
        """Remove a client whose connection is lost."""
        if client in self.clients:
            self.clients.remove(client)
        self._connected.discard(client)
        self._queue.pop(client, None)
        if self._empty is not None and not self._connected:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def queue(self, client: _ControlConnection) -> None:
        """Queue a client with a request; answer it now if the queue is empty."""
        self._queue[client] = None
        if not (self._turning or self._call is not None):
            self._turn()

    def _turn(self) -> None:
        self._call = None
        self._turning = True
        end = time.monotonic() + _TURN_SECONDS
        try:
            while self._queue:
                client = next(iter(self._queue))
                del self._queue[client]
                client.answer_next()
                if time.monotonic() >= end:
                    break
        finally:
            self._turning = False
            if self._queue:
                self._call = self.reactor.callLater(0, self._turn)

    def finish(self) -> Deferred[None]:
        """Close all connections after their last answers; the Deferred fires when all are closed."""
        if not self._connected:
            return succeed(None)
        done = self._empty = Deferred()
        for client in list(self._connected):
            client.end()
        return done

    def abort_all(self) -> None:
        """Abort all connections."""
        for client in list(self._connected):
            client.abort()


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """Settings of the control socket.

    Attributes:
        path: the path of the socket.
        needed: whether a failure to open it is fatal at the start.
        opened: the open socket of the old daemon; None if there is none.
        owner: the uid that owns the socket if root opens it; None for root.
        make_directory: makes the directory of a default path, which may have been removed.
    """

    path: str
    needed: bool
    opened: socket.socket | None = None
    owner: int | None = None
    make_directory: Callable[[], object] | None = None


class ControlService(Service):
    """Twisted service that listens on the control socket.

    Args:
        reactor: watches descriptors and time.
        settings: the settings of the socket.
        factory: the factory of its connections.
        store: has the flag whether another daemon shares the socket.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: FdReactor,
        settings: ControlSocket,
        factory: ControlFactory,
        store: FdStore,
    ) -> None:
        self._settings = settings
        self._path = settings.path
        self._reactor = reactor
        self._factory = factory
        self._store = store
        self._port: StreamPort | None = None
        self._socket = settings.opened
        self._file: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        """The path of the socket."""
        return self._path

    def privilegedStartService(self) -> None:
        """Open the socket.

        Raises:
            ListenErrors: it can't be opened, and the daemon must not start without it.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            self._socket = self._socket or self._open()
        except ListenErrors as error:
            if self._settings.needed:
                raise
            # Another daemon uses the default path, or it can't be used: the daemon serves without a control socket.
            self._log_unreachable(error)
            return
        self._file = file_of(self._path)

    def startService(self) -> None:
        """Start to accept connections."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._socket is not None:
            self._listen(self._socket)

    def _open(self) -> socket.socket:
        """Open the socket, with access for its owner alone.

        Raises:
            ListenErrors: it can't be opened.
        """
        opened = socket.socket(socket.AF_UNIX)
        opened.setblocking(False)
        try:
            if self._settings.make_directory is not None:
                self._settings.make_directory()
            bind_local(opened, self._path, 0o600)
            if self._settings.owner is not None and os.geteuid() == 0:
                os.chown(self._path, self._settings.owner, -1, follow_symlinks=False)
            opened.listen()
        except OSError as error:
            opened.close()
            raise ListenErrors([_listen_error(self._path, error)]) from error
        return opened

    def _log_unreachable(self, errors: ListenErrors) -> None:
        (error,) = errors.errors
        reason = f"{error.cause}; {error.remedy}" if isinstance(error, ListenError) else str(error)
        text = f"svcctl can't reach this daemon at {self._path}: {reason}"
        log_event(self._log, PROBLEM, text=text)

    def _listen(self, opened: socket.socket) -> None:
        self._port = StreamPort(self._reactor, opened, self._factory, lambda: True, lambda: None)
        self._port.startListening()

    def reopen(self) -> None:
        """Open the socket again if its file was removed or replaced, so that clients can't reach it."""
        if not self.running or (self._file is not None and has_file(self._path, self._file)):
            return
        try:
            opened = self._open()
        except ListenErrors as error:
            self._log_unreachable(error)
            return
        old_socket, port = self._socket, self._port
        self._socket, self._file = opened, file_of(self._path)
        self._listen(opened)
        if old_socket is not None and port is not None:
            # Connections in the old socket's queue are accepted before it is closed.
            port.doRead()
            port.stopListening()
            old_socket.close()
        log_event(self._log, CONTROL, path=self._path, state="reopened")

    def stopService(self) -> Deferred[None]:
        """Close the socket. Connected clients have _CLOSE_SECONDS to read their last answers.

        Returns:
            A Deferred that fires when all connections are closed.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.suspend()
        self.close_sockets()
        timeout = self._reactor.callLater(_CLOSE_SECONDS, self._factory.abort_all)
        return self._factory.finish().addCallback(cancelling(timeout))

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return the socket, if there is one, with its name for the new daemon."""
        return [] if self._socket is None or self._file is None else [(control_fd_name(self._file), self._socket)]

    def suspend(self) -> None:
        """Stop accepting connections; open connections continue."""
        if self._port is not None:
            self._port.stopListening()

    def resume(self) -> None:
        """Resume accepting connections."""
        if self._port is not None:
            self._port.startListening()

    def close_sockets(self) -> None:
        """Close the socket, and remove its file unless another daemon shares the socket."""
        if self._socket is not None:
            self._socket.close()
            if not self._store.shared:
                remove_file(self._path, self._file)
            self._socket = self._port = None


def _listen_error(path: str, error: OSError) -> ListenError:
    """Return the error of a control socket that can't be opened, with the process that listens there if it is known."""
    cause, number = error.strerror or str(error), error.errno or 0
    remedy = REMEDIES.get(number, "set another path with --control PATH")
    if number == errno.EADDRINUSE:
        owner = socket_owner(socket.SOCK_STREAM, "", 0, path)
        known = owner is not None and owner.pid != os.getpid()
        cause += f" by another daemon, {owner}" if known else " by another daemon"
        remedy = "stop that daemon, or set another path with --control PATH"
    return ListenError("control", path, cause, remedy, number)
