"""RefusalReporter: counts the refusals of a service, writes its refuse lines and closes refused connections."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from svcd.access.refusal_log import RefusalAggregator
from svcd.access.rules import RefusalReason
from svcd.log.events import REFUSE

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.refusal_log import RefusalLine
    from svcd.access.rules import Refusal
    from svcd.config.service import Service
    from svcd.connections.context import ConnectionContext
    from svcd.metrics.counters import ServiceCounters

__all__ = ["RefusalReporter"]

#: Reasons of refusals that do not end soon: HTTP has 403 for them, and 503 for others.
_FORBIDDEN = (RefusalReason.ADDRESS, RefusalReason.NAME, RefusalReason.SERVICE)


class RefusalReporter:
    """The refusals of one service: their counts, their log lines and the banner for refused clients.

    Args:
        context: shared by all services.
        counters: the counters of the service.

    Attributes:
        counts: the refusals so far, by reason.
        lingering_closer: closes the connections of refused clients.
        answers_http: whether refused clients get an HTTP response, after their request.
    """

    def __init__(self, context: ConnectionContext, counters: ServiceCounters) -> None:
        self.lingering_closer = context.lingering_closer
        self._banner = b""
        self.answers_http = False
        self._reactor = context.reactor
        self._log_writer = context.log_writer
        self._aggregator = RefusalAggregator(counters.refused)
        self._timer: IDelayedCall | None = None
        self.counts = self._aggregator.counts
        self._line = ""

    def make_line(self, service: Service) -> None:
        """Create the template of refuse lines from the options of the service and the log level."""
        logged = service.options.log_on_failure
        variables = ("reason", "count", "rule", *(["peer"] if "HOST" in logged else []))
        self._line = self._log_writer.template(REFUSE, {"service": service.id}, variables) if logged else ""

    def set_banner(self, banner: bytes, *, http: bool) -> None:
        """Set what is sent to refused clients.

        Args:
            banner: the text; empty for none.
            http: whether to send it as the content of an HTTP response, which WebSocket clients expect.
        """
        self._banner = banner
        self.answers_http = http

    def answer(self, refusal: Refusal) -> bytes:
        """Return what is sent to a refused client; empty for nothing."""
        if not self.answers_http:
            return self._banner
        # Imported late: few services have WebSocket.
        from svcd.wire.websocket_handshake import http_response

        forbidden = refusal.reason in _FORBIDDEN
        status = HTTPStatus.FORBIDDEN if forbidden else HTTPStatus.SERVICE_UNAVAILABLE
        return http_response(status, self._banner)

    def report(self, refusal: Refusal, peer: str) -> None:
        """Count a refusal, and log it now or within a second.

        Args:
            refusal: the refusal.
            peer: the client's address as text, not quoted.
        """
        now = self._reactor.seconds()
        line = self._aggregator.add(refusal, peer, now)
        if not self._line:
            return
        if line is not None:
            self._write(line)
        elif self._timer is None:
            self._schedule(now)

    def reject(self, fd: int, refusal: Refusal, peer: str) -> None:
        """Report the refusal of a client that has no transport, and close its connection with the banner.

        Args:
            fd: the descriptor of the connection. Takes ownership of it.
            refusal: the refusal.
            peer: the client's address as text, not quoted.
        """
        self.report(refusal, peer)
        self.lingering_closer.close(fd, self.answer(refusal), answers=self.answers_http)

    def flush(self) -> None:
        """Write the lines of refusals that are not logged yet, at the end of the service."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line:
            for line in self._aggregator.pending(float("inf")):
                self._write(line)

    def _schedule(self, now: float) -> None:
        seconds = self._aggregator.due(now)
        if seconds is not None:
            self._timer = self._reactor.callLater(seconds, self._write_due)

    def _write_due(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        for line in self._aggregator.pending(now):
            self._write(line)
        self._schedule(now)

    def _write(self, line: RefusalLine) -> None:
        log_writer = self._log_writer
        if not self._line:
            # The log level has changed meanwhile.
            return
        # A rule for a single address or name identifies the client.
        hidden = log_writer.anonymize and line.refusal.reason in (RefusalReason.ADDRESS, RefusalReason.NAME)
        values = {
            "peer": log_writer.quoted(line.peer),
            "reason": log_writer.quoted(line.refusal.reason),
            "count": line.count,
            "rule": log_writer.quoted("-" if hidden else line.refusal.rule or "-"),
        }
        log_writer.write(self._line % values)
