"""The gate of a connection that speaks TLS: what the log tells of its handshake, and what happens after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svcd.connections.wrapper import HalfCloseableWrapper

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from svcd.access.admission import ConnectionSlot
    from svcd.connections.tracker import ConnectionTracker
    from svcd.tls.protocol import TlsProtocol

__all__ = ["TlsWrapper"]


class TlsWrapper(HalfCloseableWrapper):
    """As any gate. Its accept line waits for the handshake, to say who the client is.

    What the service will open for the client once the handshake is over is counted from the beginning: who has shaken
    hands is not to find none left.
    """

    __slots__ = ("_reserved", "_waits")

    _protocol: TlsProtocol

    def __init__(
        self, tracker: ConnectionTracker[Any], protocol: TlsProtocol, client: IAddress, ticket: ConnectionSlot
    ) -> None:
        super().__init__(tracker, protocol, client, ticket)
        # What the accept line waits for.
        self._waits = 0
        # Descriptors that are counted for what is not open yet.
        self._reserved = 0
        protocol.on_handshake = self._secured

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - as of any gate
        """The connection is there."""
        share = self._tracker.budget
        self._reserved = share.cost - 1
        for _ in range(self._reserved):
            share.acquire()
        super().makeConnection(transport)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._release_reserved()
        super().connectionLost(reason)

    def _release_reserved(self) -> None:
        count, self._reserved = self._reserved, 0
        for _ in range(count):
            self._tracker.budget.release()

    def traffic(self) -> tuple[int, int] | None:
        """As of any gate; but the first byte is the first that is no longer the handshake's."""
        found = super().traffic()
        return found if found is None or self._protocol.received_data else (0, found[1])

    def info(self) -> dict[str, object]:
        """What is known of the connection."""
        return super().info() | self._protocol.info(subject=self._tracker.tells_subject)

    def drain(self) -> None:
        """End the connection as soon as nothing is owed to the client: before the handshake is done, now."""
        if self._protocol.version:
            super().drain()
        else:
            self.abort("shutdown")

    def _came(self, values: dict[str, object]) -> None:
        tracker = self._tracker
        values |= {"tls": tracker.nameless, "subject": tracker.nameless}
        self._tell_later(values)
        self._waits = 1
        if tracker.resolves:
            self._waits = 2
            self._ask_name()

    def _named(self, host: str | None) -> None:
        if host:
            self._host = self._tracker.quoted(host)
        self._known()

    def _known(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._tell_accept()

    def _greet(self, transport: Any, welcome: bytes) -> None:  # noqa: ANN401 - as of any gate
        """Not now: in the clear it would end the handshake."""

    def _secured(self) -> None:
        # Whoever opens them now counts them.
        self._release_reserved()
        tracker, protocol = self._tracker, self._protocol
        if self._accept is not None:
            values = self._accept[1]
            values["tls"] = tracker.quoted(protocol.version)
            if tracker.tells_subject:
                values["subject"] = tracker.quoted(protocol.tls_identity.subject or "-")
            self._known()
        if tracker.service_admission.accept_banner:
            protocol.write(tracker.service_admission.accept_banner)

    def _failure_word(self) -> str:
        return "failed" if self._protocol.version else "handshake"

    def _reason(self, failure: Failure) -> str:
        if not self._protocol.version:
            return "handshake"
        # A UNIX socket's end may hide behind a closure alert: see there.
        self._heard_all = self._heard_all or self._protocol.input_ended
        return "error" if self._protocol.inner_raised else super()._reason(failure)
