"""The control socket: a UNIX socket at which the owner of the daemon asks and orders, in lines of JSON.

The file's permissions keep others out (0600), and whoever gets in all the same is looked at (SO_PEERCRED, unix(7)):
only root and the daemon's own user are answered. What a client can make the daemon keep is bounded: its line, what was
read of it at once, one answer, and how many clients there are; some places are root's alone.
"""

from __future__ import annotations

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

#: The most clients that are connected, and how many more places only root has.
_MOST_CLIENTS = 16
_ROOT_RESERVE = 4
#: How long a refused client may take to close, and the daemon waits at its end for clients to read answers, in seconds.
_LAST_WORDS = 1.0
#: How long the requests of all clients may be answered before other events have their turn, in seconds.
_TURN_SECONDS = 0.005


@implementer(IHalfCloseableProtocol, IPushProducer)
class _ControlConnection(Protocol):
    """One client. Its requests are answered one after the other, and it is not read from while one waits.

    Attributes:
        user: the number of the user at the other end.
    """

    factory: ControlFactory
    transport: Any
    user = -1
    _log = Logger()

    def __init__(self) -> None:
        self._lines = Lines()
        self._requests: deque[bytes | None] = deque()
        self._asked: ControlRequest | None = None
        # Whether a command is under way, its answers are not read, it is not read from, it has sent everything.
        self._busy = self._full = self._paused = self._heard_all = False
        # Whether nothing of it is obeyed: it was not let in, or it is about to be gone.
        self._over = True
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Listen to it, if it may ask and there is room."""
        _, self.user, _ = credentials(self.transport.getHandle())
        refusal = self.factory.enter(self)
        if refusal is not None:
            self._refuse(*refusal)
            return
        self._over = False
        # While it does not read its answers it is not read from.
        self.transport.registerProducer(self, streaming=True)

    def _refuse(self, code: str, text: str) -> None:
        self.transport.write(mistake(None, code, text))
        if self.factory.crowded:
            self.transport.loseConnection()
            return
        # Closing with its question unread would take the answer from it (unix(7)); it closes when it has that.
        self.transport.loseWriteConnection()
        self._timer = self.factory.reactor.callLater(_LAST_WORDS, self.transport.abortConnection)

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 - Twisted's signature
        """It is gone; a command that is under way is done all the same."""
        self._forget()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.factory.gone(self)

    def _forget(self) -> None:
        self._over = True
        self._requests.clear()

    def dataReceived(self, data: bytes) -> None:
        """Take its requests."""
        if not self._over:
            self._requests.extend(self._lines.feed(data))
            self._go_on()

    def readConnectionLost(self) -> None:
        """It asks for no more; it has its answers, then the connection ends."""
        self._heard_all = True
        if self._over:
            self.transport.loseConnection()
            return
        self._requests.extend(self._lines.end())
        self._go_on()

    def writeConnectionLost(self) -> None:
        """Wait for a refused client to close its side after it has read the reason."""

    def _go_on(self) -> None:
        """Have the next request answered in its turn, read on if there is none, or end."""
        if self._requests and not (self._busy or self._full):
            self.factory.queue(self)
        if self._over:
            return
        if self._heard_all:
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
        """Answer its oldest request, if it can be now."""
        if self._over or self._busy or self._full or not self._requests:
            return
        line = self._requests.popleft()
        self._busy = True
        if line is None:
            self._answer(mistake(None, "usage", "the line is too long"))
            return
        try:
            asked = request(line)
        except RequestError as error:
            self._answer(mistake(error.id, "usage", str(error)))
            return
        self._asked = asked
        done = maybeDeferred(self.factory.commands[asked.command], **asked.arguments)
        lines = done.addCallbacks(partial(answer, asked.id), partial(self._mistake, asked))
        lines.addCallback(self._answer)

    def _mistake(self, asked: ControlRequest, failure: Failure) -> bytes:
        error = failure.value
        if isinstance(error, CommandError):
            return mistake(asked.id, error.code, str(error))
        self._log.failure("the command {command} failed", failure, command=asked.command)
        return mistake(asked.id, "error", "a mistake in svcd; its log has more")

    def _answer(self, line: bytes) -> None:
        self._busy, self._asked = False, None
        if not self._over:
            self.transport.write(line)
            self._go_on()

    def end(self) -> None:
        """Let it have what was written, and close; its requests without an answer are to be asked again."""
        if not self._over:
            for number in self._unanswered():
                self.transport.write(mistake(number, "busy", str(StoppingError())))
        self._forget()
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _unanswered(self) -> Iterator[int | str | None]:
        """Yield the ids of requests that have no answer, in their order."""
        if self._asked is not None:
            yield self._asked.id
        for line in self._requests:
            try:
                yield None if line is None else request(line).id
            except RequestError as error:
                yield error.id

    def abort(self) -> None:
        """Close at once."""
        self._forget()
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Its answers are not read."""
        self._full = True
        self._go_on()

    def resumeProducing(self) -> None:
        """They are."""
        self._full = False
        self._go_on()

    def stopProducing(self) -> None:
        """The connection is over."""
        self._forget()


class ControlFactory(Factory):
    """Answers the clients of the control socket, in turns: one request of each, and no more at once than is felt.

    Args:
        commands: what answers each command, with its arguments by name.
        users: the users that may ask, by number.
        reactor: makes a pause between two turns.

    Attributes:
        clients: those that were let in.
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
        # As keys: those that have something to ask, in the order of their turns.
        self._queue: dict[_ControlConnection, None] = {}
        self._turning = False
        self._call: IDelayedCall | None = None
        self._empty: Deferred[None] | None = None

    def enter(self, client: _ControlConnection) -> tuple[str, str] | None:
        """Let a client in.

        Returns:
            None, or the code and the text that refuse it.
        """
        self._connected.add(client)
        if client.user not in self.users:
            return "refused", f"user {client.user} may not control this daemon"
        most = _MOST_CLIENTS + (_ROOT_RESERVE if client.user == 0 else 0)
        if len(self.clients) >= most:
            self._drop_gone()
        if len(self.clients) >= most:
            return "busy", "too many clients; try again"
        self.clients.append(client)
        return None

    @property
    def crowded(self) -> bool:
        """Whether there are too many refused clients to wait until each has read why."""
        return len(self._connected) - len(self.clients) > _MOST_CLIENTS

    def _drop_gone(self) -> None:
        """Drop clients that hung up while they were not read from, which causes no event."""
        hangups = select.poll()
        by_descriptor = {client.transport.fileno(): client for client in self.clients}
        for descriptor in by_descriptor:
            # Hangups are told without being asked for (poll(2)).
            hangups.register(descriptor, 0)
        for descriptor, _ in hangups.poll(0):
            client = by_descriptor[descriptor]
            self.clients.remove(client)
            client.abort()

    def gone(self, client: _ControlConnection) -> None:
        """Forget a client that has left."""
        if client in self.clients:
            self.clients.remove(client)
        self._connected.discard(client)
        self._queue.pop(client, None)
        if self._empty is not None and not self._connected:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def queue(self, client: _ControlConnection) -> None:
        """Answer a client's next request as soon as it is its turn: now, if there is no other."""
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
        """Let every client have its last answers; fires when they are gone."""
        if not self._connected:
            return succeed(None)
        done = self._empty = Deferred()
        for client in list(self._connected):
            client.end()
        return done

    def cut(self) -> None:
        """Close all connections at once."""
        for client in list(self._connected):
            client.abort()


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """Where and how the control socket is opened.

    Attributes:
        path: the path of the socket.
        needed: whether the daemon does not start without it.
        opened: the open socket of the old daemon, if there is one.
        owner: the user that gets the socket if root opens it.
        make_directory: makes the directory of a usual place, which may have been removed.
    """

    path: str
    needed: bool
    opened: socket.socket | None = None
    owner: int | None = None
    make_directory: Callable[[], object] | None = None


class ControlService(Service):
    """Listens at the control socket, as a Twisted service.

    Args:
        reactor: watches descriptors and time.
        listens: the socket.
        factory: makes the protocols of its connections.
        store: has a flag whether another daemon has the socket, too.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: FdReactor,
        listens: ControlSocket,
        factory: ControlFactory,
        store: FdStore,
    ) -> None:
        self._listens = listens
        self._path = listens.path
        self._reactor = reactor
        self._factory = factory
        self._store = store
        self._port: StreamPort | None = None
        self._socket = listens.opened
        self._file: tuple[int, int] | None = None

    def privilegedStartService(self) -> None:
        """Open the socket.

        Raises:
            ListenErrors: it can't be had, and is needed.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            self._socket = self._socket or self._open()
        except ListenErrors as error:
            if self._listens.needed:
                raise
            # Another daemon has the usual place.
            self._tell_unreachable(error)
            return
        self._file = file_of(self._path)

    def startService(self) -> None:
        """Listen."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._socket is not None:
            self._listen(self._socket)

    def _open(self) -> socket.socket:
        """Open the socket, for its owner alone.

        Raises:
            ListenErrors: it can't be had.
        """
        opened = socket.socket(socket.AF_UNIX)
        opened.setblocking(False)
        try:
            if self._listens.make_directory is not None:
                self._listens.make_directory()
            bind_local(opened, self._path, 0o600)
            if self._listens.owner is not None and os.geteuid() == 0:
                os.chown(self._path, self._listens.owner, -1, follow_symlinks=False)
            opened.listen()
        except OSError as error:
            opened.close()
            remedy = REMEDIES.get(error.errno or 0, "choose another path")
            raise ListenErrors([ListenError("control", self._path, error.strerror or str(error), remedy)]) from error
        return opened

    def _tell_unreachable(self, error: ListenErrors) -> None:
        text = f"svcctl can't reach this daemon at {self._path}: {error.errors[0].cause}; {error.errors[0].remedy}"
        log_event(self._log, PROBLEM, text=text)

    def _listen(self, opened: socket.socket) -> None:
        self._port = StreamPort(self._reactor, opened, self._factory, lambda: True, lambda: None)
        self._port.startListening()

    def reopen(self) -> None:
        """Open the socket anew if clients don't find it any more, since its file was removed or replaced."""
        if not self.running or (self._file is not None and has_file(self._path, self._file)):
            return
        try:
            opened = self._open()
        except ListenErrors as error:
            self._tell_unreachable(error)
            return
        before, port = self._socket, self._port
        self._socket, self._file = opened, file_of(self._path)
        self._listen(opened)
        if before is not None and port is not None:
            # Clients that are connected already are let in before it goes.
            port.doRead()
            port.stopListening()
            before.close()
        log_event(self._log, CONTROL, path=self._path, state="reopened")

    def stopService(self) -> Deferred[None]:
        """Close it. Clients that are there may read their last answers, for a while.

        Returns:
            A Deferred that fires when they are gone.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.rest()
        self.leave()
        patience = self._reactor.callLater(_LAST_WORDS, self._factory.cut)
        return self._factory.finish().addCallback(cancelling(patience))

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return the socket with its name for the new daemon."""
        return [] if self._socket is None or self._file is None else [(control_fd_name(self._file), self._socket)]

    def rest(self) -> None:
        """Accept no more clients; open connections go on."""
        if self._port is not None:
            self._port.stopListening()

    def go_on(self) -> None:
        """Accept again."""
        if self._port is not None:
            self._port.startListening()

    def leave(self) -> None:
        """Close the socket, and remove its file unless another daemon has it."""
        if self._socket is not None:
            self._socket.close()
            if not self._store.shared:
                remove_file(self._path, self._file)
            self._socket = self._port = None
