"""Clients with TLS on their way to a process: they shake hands first, and the daemon keeps their connection."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Protocol

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from svcd.connections.spawned_connection import ExitResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.descriptor_budget import Share
    from svcd.connections.spawned_connection import ConnectionAddresses, SpawnedConnection
    from svcd.interfaces import AdoptConnection
    from svcd.metrics.counters import ServiceCounters
    from svcd.tls.service_tls import ServiceTls
    from svcd.tls.termination import TlsTerminator

__all__ = ["SpawnedTls"]


class _Keeper(Protocol):
    budget: Share
    service_admission: ServiceAdmission
    counters: ServiceCounters
    quoted: Callable[[object], str]

    def hand_over(self, session: SpawnedConnection, descriptor: int, environment: bytes) -> None:
        """Let a connection have its process."""

    def start_failed(self, number: int, errno: int) -> None:
        """A connection has no process and never will."""

    def tell_failure(self, session: SpawnedConnection, reason: str) -> None:
        """Say why a connection could not be served."""

    def close(self, session: SpawnedConnection, outcome: ExitResult) -> None:
        """A connection is over, and so is its process."""


class SpawnedTls:
    """Takes the clients of one service in hand until they have their process.

    Args:
        tracker: has the connections.
        tls: the service's.
        adopt: lets a protocol have a socket.
    """

    def __init__(self, tracker: _Keeper, tls: ServiceTls, adopt: AdoptConnection) -> None:
        self._tracker = tracker
        self._tls = tls
        self._adopt = adopt

    @property
    def wanted(self) -> bool:
        """Whether clients that come now are to speak TLS."""
        return self._tls.handshakes is not None

    def begin(self, session: SpawnedConnection, descriptor: int, ends: ConnectionAddresses, environment: bytes) -> None:
        """Let a client shake hands.

        Args:
            session: it.
            descriptor: its connection's; ours to close from now on.
            ends: of the connection.
            environment: what the process will be told besides of it.
        """
        # Services without TLS need not load this.
        from svcd.tls.termination import TlsTerminator

        handshakes = self._tls.handshakes
        assert handshakes is not None  # noqa: S101 - else nobody wants this
        session.pump = pump = TlsTerminator(
            handshakes, self._adopt, self._tracker.budget, partial(self._done, session, environment),
            partial(self._over, session),
        )  # fmt: skip
        try:
            self._adopt(descriptor, ends.far, ends.family, pump, ends.relay)
        except OSError:
            # The client is gone already.
            pump.connectionLost(Failure(ConnectionLost()))

    def _done(self, session: SpawnedConnection, environment: bytes) -> None:
        """The handshake is over."""
        tracker, pump = self._tracker, _pump_of(session)
        identity = pump.tls_identity
        session.secured = tracker.quoted(identity.protocol), tracker.quoted(identity.subject or "-")
        if tracker.service_admission.accept_banner:
            pump.write(tracker.service_admission.accept_banner)
        try:
            descriptor = pump.connect_handler()
        except OSError as error:
            tracker.start_failed(session.number, error.errno or errno.EIO)
            return
        more = "".join(f"\0{name}={value}" for name, value in identity.environment().items())
        tracker.hand_over(session, descriptor, environment + more.encode(errors="surrogateescape"))

    def _over(self, session: SpawnedConnection) -> None:
        """The connection is gone."""
        tracker, pump = self._tracker, _pump_of(session)
        if pump.failure_text:
            tracker.counters.failures += not session.cause
            tracker.tell_failure(session, pump.failure_text)
        if session.outcome is not None:
            tracker.close(session, session.outcome)
        elif not pump.version:
            # It was counted for a process that there will not be.
            tracker.budget.release()
            session.tell_accept()
            tracker.close(session, ExitResult("handshake"))


def _pump_of(session: SpawnedConnection) -> TlsTerminator:
    assert session.pump is not None  # noqa: S101 - it is what has called us
    return session.pump
