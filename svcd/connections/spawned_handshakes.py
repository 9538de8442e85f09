"""SpawnedHandshakes: TLS and WebSocket handshakes of clients whose handler is a process."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from svcd.connections.spawned_connection import SpawnedState

if TYPE_CHECKING:
    from svcd.connections.service_websocket import ServiceWebSocket
    from svcd.connections.spawned_connection import SpawnedConnection, SpawnedOwner
    from svcd.interfaces import AdoptConnection
    from svcd.process.environment import ConnectionAddresses
    from svcd.tls.service_tls import ServiceTls

__all__ = ["SpawnedHandshakes"]


class SpawnedHandshakes:
    """Handshakes of one spawned service; the process of a client is started after its last handshake.

    Args:
        owner: tracks the connections.
        tls: the TLS configuration of the service; None without TLS.
        websocket: the options of WebSocket of the service; None without WebSocket.
        adopt: connects a protocol to a descriptor.
    """

    def __init__(
        self,
        owner: SpawnedOwner,
        tls: ServiceTls | None,
        websocket: ServiceWebSocket | None,
        adopt: AdoptConnection,
    ) -> None:
        self._owner = owner
        self._tls = tls
        self._websocket = websocket
        self._adopt = adopt

    @property
    def required(self) -> bool:
        """Whether new connections have a handshake."""
        tls, websocket = self._tls, self._websocket
        return (tls is not None and tls.handshakes is not None) or (
            websocket is not None and websocket.settings is not None
        )

    def begin(self, connection: SpawnedConnection, fd: int, addresses: ConnectionAddresses, environment: bytes) -> None:
        """Start the first handshake of a connection.

        Args:
            connection: the connection.
            fd: its descriptor. Takes ownership of it.
            addresses: its local and remote address.
            environment: environment variables of its process; those of the handshakes are added.
        """
        done = partial(self._handshake_done, connection, addresses, environment)
        terminator = self._terminator(connection, done)
        connection.begin_handshake(terminator)
        try:
            self._adopt(fd, addresses.remote, addresses.family, terminator, addresses.proxy_header)
        except OSError:
            # The client has already closed the connection.
            terminator.connectionLost(Failure(ConnectionLost()))

    def _terminator(self, connection: SpawnedConnection, done: partial[None]) -> Any:  # noqa: ANN401 - a protocol
        """Return the protocol of a client's connection."""
        budget, closed = self._owner.budget, connection.client_closed
        settings = None if self._websocket is None else self._websocket.settings
        handshakes = None if self._tls is None else self._tls.handshakes
        # Imported late: services without TLS or WebSocket do not need them.
        if handshakes is not None:
            from svcd.tls.termination import TlsTerminator

            return TlsTerminator(handshakes, self._adopt, budget, done, closed, settings)
        from svcd.protocols.websocket.terminator import WebSocketTerminator

        assert settings is not None  # noqa: S101 - the tracker has checked that there is a handshake
        return WebSocketTerminator(settings, self._adopt, budget, done, closed)

    def _handshake_done(
        self, connection: SpawnedConnection, addresses: ConnectionAddresses, environment: bytes
    ) -> None:
        """Connect the client to a new process."""
        owner = self._owner
        terminator: Any = connection.terminator
        if terminator is None or connection.state is not SpawnedState.HANDSHAKE:
            # The connection was aborted meanwhile.
            return
        identity: Any = getattr(terminator, "tls_identity", None)
        variables = None if identity is None else identity.environment()
        if identity is not None:
            connection.tls_fields = (
                owner.quoted_word(identity.protocol),
                (owner.quoted(identity.subject) if identity.subject else owner.no_value),
            )
        websocket = terminator.websocket
        if websocket is not None:
            from svcd.process.websocket_environment import websocket_environment

            environment += websocket_environment(websocket.agreement, addresses, variables)
        elif variables is not None:
            more = "".join(f"\0{name}={value}" for name, value in variables.items())
            environment += more.encode(errors="surrogateescape")
        if owner.service_admission.accept_banner:
            terminator.write(owner.service_admission.accept_banner)
        try:
            fd = terminator.connect_handler()
        except OSError as error:
            connection.start_failed(error.errno or errno.EIO)
            return
        connection.start(fd, environment)
