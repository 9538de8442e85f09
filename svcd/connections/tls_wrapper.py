"""TlsWrapper: the wrapper of a TLS connection, whose accept line waits for the handshake."""

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
    """Wrapper of a TLS connection. Its accept line waits for the handshake, as it has the client certificate.

    Descriptors that the service opens after the handshake are reserved from the accept on, so that they are free when
    the handshake is complete.
    """

    __slots__ = ("_awaited", "_reserved")

    _protocol: TlsProtocol

    def __init__(
        self, tracker: ConnectionTracker[Any], protocol: TlsProtocol, client: IAddress, slot: ConnectionSlot
    ) -> None:
        super().__init__(tracker, protocol, client, slot)
        # The number of results that the accept line waits for: handshake and host name.
        self._awaited = 0
        # The number of descriptors counted in advance.
        self._reserved = 0
        protocol.on_handshake = self._handshake_done

    def makeConnection(self, transport: Any) -> None:  # noqa: ANN401 - as in ConnectionWrapper
        """Reserve descriptors, then count, log and connect as ConnectionWrapper."""
        share = self._tracker.budget
        self._reserved = share.cost - 1
        for _ in range(self._reserved):
            share.acquire()
        super().makeConnection(transport)

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the connection."""
        self._release_reserved()
        super().connectionLost(reason)

    def _release_reserved(self) -> None:
        count, self._reserved = self._reserved, 0
        for _ in range(count):
            self._tracker.budget.release()

    def traffic(self) -> tuple[int, int] | None:
        """Return the byte counts as ConnectionWrapper, with 0 received while only handshake bytes have arrived."""
        found = super().traffic()
        return found if found is None or self._protocol.received_data else (0, found[1])

    def info(self) -> dict[str, object]:
        """Return the fields of the connection in `svcctl connections`."""
        return super().info() | self._protocol.info(subject=self._tracker.logs_subject)

    def drain(self) -> None:
        """Close the connection as soon as the client has all output; during the handshake at once."""
        if self._protocol.version:
            super().drain()
        else:
            self.abort("shutdown")

    def _log_accept(self, values: dict[str, object]) -> None:
        tracker = self._tracker
        values |= {"tls": tracker.no_value, "subject": tracker.no_value}
        self._defer_accept(values)
        self._awaited = 1
        if tracker.resolves:
            self._awaited = 2
            self._look_up_name()

    def _host_name_found(self, host: str | None) -> None:
        if host:
            self._host = self._tracker.quoted(host)
        self._result_arrived()

    def _result_arrived(self) -> None:
        self._awaited -= 1
        if not self._awaited:
            self._log_pending_accept()

    def _send_banner(self, transport: Any, welcome: bytes) -> None:  # noqa: ANN401 - as in ConnectionWrapper
        """Do nothing: the banner is sent after the handshake."""

    def _handshake_done(self) -> None:
        # From now on descriptors are counted when they are opened.
        self._release_reserved()
        tracker, protocol = self._tracker, self._protocol
        if self._accept is not None:
            values = self._accept[1]
            values["tls"] = tracker.quoted(protocol.version)
            if tracker.logs_subject:
                values["subject"] = tracker.quoted(protocol.tls_identity.subject or "-")
            self._result_arrived()
        if tracker.service_admission.accept_banner:
            protocol.write(tracker.service_admission.accept_banner)

    def _failure_word(self) -> str:
        return "failed" if self._protocol.version else "handshake"

    def _reason(self, failure: Failure) -> str:
        if not self._protocol.version:
            return "handshake"
        # A UNIX socket may end after a closure alert: see ConnectionWrapper._reason.
        self._input_closed = self._input_closed or self._protocol.input_ended
        return "error" if self._protocol.inner_raised else super()._reason(failure)
