"""The control socket: a UNIX socket at which the owner of the daemon asks and orders, in lines of JSON.

The file's permissions keep others out (0600), and whoever gets in all the same is looked at (SO_PEERCRED, unix(7)):
only root and the daemon's own user are answered. What a client can make the daemon keep is bounded: its line, its
unanswered requests, and how many clients there are.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from zope.interface import implementer

from svcd.errors import CommandError, ListenError, ListenErrors
from svcd.events import PROBLEM, tell
from svcd.transport.inherited import control_name, file_of
from svcd.transport.keeper import calling_off
from svcd.transport.local import bind_local, credentials, remove_file
from svcd.transport.ports import StreamPort
from svcd.transport.sockets import REMEDIES
from svcd.wire.control import Lines, Request, RequestError, answer, mistake, request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.python.failure import Failure

    from svcd.interfaces import Watcher
    from svcd.transport.opening import Store

__all__ = ["ControlFactory", "ControlService"]

#: So many clients at most are listened to.
_MOST_CLIENTS = 16
#: A client with so many unanswered requests is not listened to meanwhile.
_MOST_PENDING = 32
#: So long the daemon waits at its end for clients that read their answers, in seconds.
_LAST_WORDS = 1.0


@implementer(IPushProducer)
class _Client(Protocol):
    """One client."""

    factory: ControlFactory
    transport: Any
    _log = Logger()

    def connectionMade(self) -> None:
        """Listen to it, if it may ask."""
        self._lines = Lines()
        self._waiting: list[bytes | None] = []
        self._pending = 0
        self._full = False
        self._open = True
        self.factory.clients.append(self)
        _, user, _ = credentials(self.transport.getHandle())
        if user not in self.factory.users:
            self._refuse("refused", f"user {user} may not control this daemon")
        elif len(self.factory.clients) > _MOST_CLIENTS:
            self._refuse("busy", "too many clients; try again")
        else:
            # While it does not read its answers it is not read from.
            self.transport.registerProducer(self, streaming=True)

    def _refuse(self, code: str, text: str) -> None:
        self._open = False
        self.transport.write(mistake(None, code, text))
        if len(self.factory.clients) > 2 * _MOST_CLIENTS:
            self.transport.loseConnection()
        else:
            # Closing with its question unread would take the answer from it (unix(7)); it closes when it has that.
            self.transport.loseWriteConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002 - Twisted's signature
        """It is gone; what it has asked for is done all the same."""
        self._open = False
        self._waiting.clear()
        self.factory.gone(self)

    def dataReceived(self, data: bytes) -> None:
        """It asks."""
        if self._open:
            self._waiting += self._lines.feed(data)
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._open and not self._full and self._pending < _MOST_PENDING:
            self._obey(self._waiting.pop(0))
        if self._waiting and self._open:
            self.transport.pauseProducing()

    def _obey(self, line: bytes | None) -> None:
        if line is None:
            self.transport.write(mistake(None, "usage", "the line is too long"))
            return
        try:
            asked = request(line)
        except RequestError as error:
            self.transport.write(mistake(error.id, "usage", str(error)))
            return
        self._pending += 1
        done = maybeDeferred(self.factory.commands[asked.command], **asked.arguments)
        done.addCallbacks(partial(self._succeed, asked), partial(self._fail, asked))

    def _succeed(self, asked: Request, result: object) -> None:
        self._answer(answer(asked.id, result))

    def _fail(self, asked: Request, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, CommandError):
            self._answer(mistake(asked.id, error.code, str(error)))
            return
        self._log.failure("the command {command} failed", failure, command=asked.command)
        self._answer(mistake(asked.id, "error", "a mistake in svcd; its log has more"))

    def _answer(self, line: bytes) -> None:
        self._pending -= 1
        if self._open:
            self.transport.write(line)
            self._resume()

    def _resume(self) -> None:
        self._go_on()
        if not self._waiting and not self._full:
            self.transport.resumeProducing()

    def pauseProducing(self) -> None:
        """Its answers are not read."""
        self._full = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """They are."""
        self._full = False
        if self._open:
            self._resume()

    def stopProducing(self) -> None:
        """The connection is over."""
        self._open = False


class ControlFactory(Factory):
    """Answers the clients of the control socket.

    Args:
        commands: what answers each command, with its arguments by name.
        users: who may ask, by number.

    Attributes:
        clients: those that are connected.
    """

    protocol = _Client  # type: ignore[assignment]
    noisy = False

    def __init__(self, commands: Mapping[str, Callable[..., object]], users: frozenset[int]) -> None:
        self.commands = commands
        self.users = users
        self.clients: list[_Client] = []
        self._empty: Deferred[None] | None = None

    def gone(self, client: _Client) -> None:
        """A client has left."""
        self.clients.remove(client)
        if self._empty is not None and not self.clients:
            self._empty.callback(None)

    def finish(self) -> Deferred[None]:
        """Let every client have its last answers; fires when they are gone."""
        if not self.clients:
            return succeed(None)
        self._empty = Deferred()
        for client in list(self.clients):
            client.transport.unregisterProducer()
            client.transport.loseConnection()
        return self._empty

    def cut(self) -> None:
        """Let nobody have anything any more."""
        for client in list(self.clients):
            client.transport.abortConnection()


class ControlService(Service):
    """Listens at the control socket, as a Twisted service.

    Args:
        reactor: watches descriptors and time.
        path: of the socket.
        factory: answers.
        store: says whether another daemon has the socket, too.
        needed: whether the daemon is not to start without it.
        opened: the socket, if the daemon before this one had it.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Watcher,
        path: str,
        factory: ControlFactory,
        store: Store,
        *,
        needed: bool,
        opened: socket.socket | None = None,
    ) -> None:
        self._needed = needed
        self._reactor = reactor
        self._path = path
        self._factory = factory
        self._store = store
        self._port: StreamPort | None = None
        self._socket = opened
        self._file: tuple[int, int] | None = None

    def privilegedStartService(self) -> None:
        """Open the socket.

        Raises:
            ListenErrors: it can't be had, and is needed.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        try:
            self._socket = self._socket or _open(self._path)
        except ListenErrors as error:
            if self._needed:
                raise
            # Another daemon has the usual place.
            tell(self._log, PROBLEM, text=f"svcctl can't reach this daemon at {self._path}: {error.errors[0].cause}")
            return
        self._file = file_of(self._path)

    def startService(self) -> None:
        """Listen."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._socket is not None:
            self._port = StreamPort(self._reactor, self._socket, self._factory, lambda: True, lambda: None)
            self._port.startListening()

    def stopService(self) -> Deferred[None]:
        """Close it. Clients that are there may read their last answers, for a while.

        Returns:
            A Deferred that fires when they are gone.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.rest()
        self.leave()
        patience = self._reactor.callLater(_LAST_WORDS, self._factory.cut)
        return self._factory.finish().addCallback(calling_off(patience))

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """The socket, by its name for the daemon after this one."""
        return [] if self._socket is None or self._file is None else [(control_name(self._file), self._socket)]

    def rest(self) -> None:
        """Accept nobody any more; who is there may go on."""
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


def _open(path: str) -> socket.socket:
    """Open the socket, for its owner alone.

    Raises:
        ListenErrors: it can't be had.
    """
    opened = socket.socket(socket.AF_UNIX)
    opened.setblocking(False)
    try:
        bind_local(opened, path, 0o600)
        opened.listen()
    except OSError as error:
        opened.close()
        remedy = REMEDIES.get(error.errno or 0, "choose another path")
        raise ListenErrors([ListenError("control", path, error.strerror or str(error), remedy)]) from error
    return opened
