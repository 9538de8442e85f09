"""Connections of spawned services that wait for room: of ports that do not rest for these services, as tcpmux."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svcd.connections.admission_queue import ServiceAdmission
    from svcd.connections.descriptor_budget import Share
    from svcd.connections.tracker import Numbered, UnadmittedConnection
    from svcd.wire.proxy_header import ProxyHeader

__all__ = ["QueuedClient"]


class _Keeper(Protocol):
    budget: Share
    clock: Callable[[], float]
    service_admission: ServiceAdmission
    connection_ids: Iterator[int]
    pending: dict[UnadmittedConnection, None]

    def client_of(self, descriptor: int, name: Any) -> tuple[str, str]:  # noqa: ANN401 - a socket address
        """The client as its entrance is asked for it, and as the log has it."""

    def facts(self, session: Numbered, peer: str, **more: object) -> dict[str, object]:
        """What is known of a connection."""

    def take(self, descriptor: int, name: Any, family: int, relay: ProxyHeader | None = None) -> None:  # noqa: ANN401
        """Serve a connection, or let it wait again."""

    def notify_if_empty(self) -> None:
        """A connection may have been the last."""


class QueuedClient:
    """A connection that waits until one of its service ends; it is not read meanwhile.

    Args:
        tracker: takes it when there is room.
        descriptor: of the connection.
        name: the client's socket address.
        family: of the socket.
        relay: the header by which a proxy has said whose connection it is.

    Attributes:
        started: by the keeper's clock, in seconds.
    """

    __slots__ = ("_descriptor", "_family", "_name", "_number", "_relay", "_tracker", "started")

    def __init__(self, tracker: _Keeper, descriptor: int, name: Any, family: int, relay: ProxyHeader | None) -> None:  # noqa: ANN401
        self._tracker = tracker
        self._descriptor = descriptor
        self._name = name
        self._family = family
        self._relay = relay
        self._number = 0
        self.started = tracker.clock()
        tracker.pending[self] = None
        tracker.budget.acquire()
        tracker.service_admission.enqueue(self._again)

    @property
    def number(self) -> int:
        """The connection's number, which it has from when it is listed first."""
        self._number = self._number or next(self._tracker.connection_ids)
        return self._number

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        _, peer = self._tracker.client_of(self._descriptor, self._name)
        return self._tracker.facts(self, peer, state="room")

    def drain(self) -> None:
        """Nothing is owed to it."""
        self.abort("")

    def abort(self, _cause: str) -> None:
        """End it."""
        self._tracker.service_admission.dequeue(self._again)
        os.close(self._descriptor)
        self._tracker.budget.release()
        del self._tracker.pending[self]
        self._tracker.notify_if_empty()

    def _again(self) -> None:
        self._tracker.budget.release()
        del self._tracker.pending[self]
        try:
            self._tracker.take(self._descriptor, self._name, self._family, self._relay)
        finally:
            self._tracker.notify_if_empty()
