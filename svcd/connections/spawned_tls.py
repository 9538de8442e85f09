"""SpawnedTls: TLS handshakes of clients whose handler is a process; the daemon keeps their connections."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from svcd.connections.spawned_connection import SpawnedState

if TYPE_CHECKING:
    from svcd.connections.spawned_connection import SpawnedConnection, SpawnedOwner
    from svcd.interfaces import AdoptConnection
    from svcd.process.environment import ConnectionAddresses
    from svcd.tls.service_tls import ServiceTls

__all__ = ["SpawnedTls"]


class SpawnedTls:
    """TLS handshakes of one spawned service; the process of a client is started after its handshake.

    Args:
        owner: tracks the connections.
        tls: the TLS configuration of the service.
        adopt: connects a protocol to a descriptor.
    """

    def __init__(self, owner: SpawnedOwner, tls: ServiceTls, adopt: AdoptConnection) -> None:
        self._owner = owner
        self._tls = tls
        self._adopt = adopt

    def begin(self, connection: SpawnedConnection, fd: int, addresses: ConnectionAddresses, environment: bytes) -> None:
        """Start the handshake of a connection.

        Args:
            connection: the connection.
            fd: its descriptor. Takes ownership of it.
            addresses: its local and remote address.
            environment: environment variables of its process; those of TLS are added.
        """
        # Imported late: services without TLS do not need it.
        from svcd.tls.termination import TlsTerminator

        handshakes = self._tls.handshakes
        assert handshakes is not None  # noqa: S101 - the tracker has checked that the service uses TLS
        terminator = TlsTerminator(
            handshakes, self._adopt, self._owner.budget, partial(self._handshake_done, connection, environment),
            connection.client_closed,
        )  # fmt: skip
        connection.begin_handshake(terminator)
        try:
            self._adopt(fd, addresses.remote, addresses.family, terminator, addresses.proxy_header)
        except OSError:
            # The client has already closed the connection.
            terminator.connectionLost(Failure(ConnectionLost()))

    def _handshake_done(self, connection: SpawnedConnection, environment: bytes) -> None:
        """Connect the client to a new process."""
        owner, terminator = self._owner, connection.terminator
        if terminator is None or connection.state is not SpawnedState.HANDSHAKE:
            # The connection was aborted meanwhile.
            return
        identity = terminator.tls_identity
        connection.tls_fields = (
            owner.quoted_word(identity.protocol),
            (owner.quoted(identity.subject) if identity.subject else owner.no_value),
        )
        if owner.service_admission.accept_banner:
            terminator.write(owner.service_admission.accept_banner)
        try:
            fd = terminator.connect_handler()
        except OSError as error:
            connection.start_failed(error.errno or errno.EIO)
            return
        more = "".join(f"\0{name}={value}" for name, value in identity.environment().items())
        connection.start(fd, environment + more.encode(errors="surrogateescape"))
