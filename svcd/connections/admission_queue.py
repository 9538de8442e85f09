"""The entrance of a service: its door, and what becomes of those who are refused or have to wait."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from svcd.access.admission import Admission
from svcd.access.refusal_log import RefusalAggregator
from svcd.access.rules import RefusalReason
from svcd.config.access_checks import BANNERS, most_banner_bytes
from svcd.connections.access_rules import zone_of
from svcd.connections.descriptor_budget import SHORT
from svcd.log.events import REFUSE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.admission import ConnectionSlot
    from svcd.access.refusal_log import RefusalLine
    from svcd.access.rules import AccessRules, Refusal
    from svcd.config.service import Service
    from svcd.connections.context import ConnectionContext

__all__ = ["ServiceAdmission"]

#: Refusals that end when somebody leaves.
_LIMITS = (RefusalReason.INSTANCES, RefusalReason.GLOBAL)
#: How often to look for a connection that can be closed while others wait for room, in seconds.
_PRESS_SECONDS = 0.1


class ServiceAdmission:
    """Admission of the connections of one service; all its listeners share it.

    Args:
        context: shared by all services.
        service: the service.

    Attributes:
        admission: applies the access rules and limits.
        counters: counts the connections and refusals of the service.
        accept_banner: sent to admitted clients first.
        refuse_banner: sent to refused clients.
        counts: the refusals so far, by reason.

    Raises:
        OSError, KeyError: a banner can't be read any more, or the machine has lost a time zone.
    """

    def __init__(self, context: ConnectionContext, service: Service) -> None:
        self._context = context
        self.admission = Admission(
            context.rules(service), context.global_limit, wall=context.wall_clock, load=context.load
        )
        texts = self._read_banners(service)
        self.counters = context.registry.counters(service.id)
        self.lingering_closer = context.lingering_closer
        self._reactor = context.reactor
        self._share = context.budget.share(service.id)
        self._queue: dict[Callable[[], None], None] = {}
        self._ports: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._resting = False
        self._pressing: IDelayedCall | None = None
        self._log_writer = context.log_writer
        self._summary = RefusalAggregator(self.counters.refused)
        self._timer: IDelayedCall | None = None
        self.counts = self._summary.counts
        self._tune(service, texts)

    def _tune(self, service: Service, texts: Mapping[str, bytes]) -> None:
        banner = texts.get("banner", b"")
        self.accept_banner = banner + texts.get("banner_success", b"")
        # In the clear a TLS client can make nothing of it, and nobody who is refused gets a handshake.
        self.refuse_banner = b"" if service.tls else banner + texts.get("banner_fail", b"")
        self._queues = service.options.on_limit == "queue"
        self._service = service
        self.make_line()

    def make_line(self) -> None:
        """Make the line of refusals anew, or none, by the service's options and the log's level."""
        logged = self._service.options.log_on_failure
        variables = ("reason", "count", "rule", *(["peer"] if "HOST" in logged else []))
        self._line = self._log_writer.template(REFUSE, {"service": self._service.id}, variables) if logged else ""

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read what other options need; return a function that applies them. Open connections stay open.

        Raises:
            OSError, KeyError: a banner can't be read any more, or the machine has lost a time zone.
        """
        return partial(self._retune, service, self._context.rules(service), self._read_banners(service))

    def _read_banners(self, service: Service) -> dict[str, bytes]:
        return {
            option: self._context.files.read(path)[: most_banner_bytes(service)]
            for option in BANNERS
            if (path := getattr(service.options, option))
        }

    def _retune(self, service: Service, rules: AccessRules, texts: Mapping[str, bytes]) -> None:
        """Apply other options to new connections, and to those that wait for room."""
        self._tune(service, texts)
        self.admission.retune(rules)
        if self._resting and not self._queues:
            self.admission.when_room(None)
            self._resting = False
            waiting, self._queue = self._queue, {}
            for again in waiting:
                again()
            self._resume()

    def update_locations(self, service: Service) -> None:
        """The same options stand in other places of the file now."""
        self._service = service
        self.admission.retune(replace(self.admission.rules, places=service.places))

    def read_time_zone(self) -> None:
        """Read the time zone of access_times again."""
        if self._service.options.access_times:
            self.admission.retune(replace(self.admission.rules, zone=zone_of(self._service)))

    def admit(self, host: str, now: float) -> ConnectionSlot | Refusal:
        """Let a connection in, or not.

        Args:
            host: the client's address, without port; empty at a UNIX socket.
            now: seconds, monotonic.
        """
        if self._share.crowded:
            return SHORT
        return self.admission.admit(host, now)

    # Whom there is no room for.

    def listen(self, pause: Callable[[], None], resume: Callable[[], None]) -> Callable[[], None]:
        """Take a listener in, by what makes it rest and go on; returns what takes it out again."""
        self._ports.append((pause, resume))
        return lambda: self._ports.remove((pause, resume))

    def may_accept(self) -> bool:
        """Whether another connection may be accepted now; if not the listeners rest until one may."""
        if not self._queues or not (self._queue or self.admission.full):
            return True
        self._rest()
        self._press()
        return False

    def should_queue(self, refusal: Refusal) -> bool:
        """Whether somebody who is refused waits instead.

        With on_limit=queue that is who was accepted before the listeners could rest, else who gets the place of a
        connection that is idle or slow.
        """
        return refusal.reason in _LIMITS and (self._queues or self._share.evict_another())

    def enqueue(self, again: Callable[[], None]) -> None:
        """Call this once, behind those who came before, when there is room; it is to ask anew."""
        self._queue[again] = None
        self._rest()

    def dequeue(self, again: Callable[[], None]) -> None:
        """Don't."""
        self._queue.pop(again, None)

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            for pause, _ in self._ports:
                pause()
            self.admission.when_room(self._go_on)

    def _press(self) -> None:
        """Let a connection that is idle or slow leave, while others wait for room."""
        if self._resting and self._queues and self._share.evicts:
            self._share.evict(1)
            if self._pressing is None:
                self._pressing = self._reactor.callLater(_PRESS_SECONDS, self._press_again)

    def _press_again(self) -> None:
        self._pressing = None
        self._press()

    def _go_on(self) -> None:
        self._resting = False
        while self._queue and not self.admission.full:
            again = next(iter(self._queue))
            del self._queue[again]
            again()
        if self._queue:
            self._rest()
        else:
            self._resume()

    def _resume(self) -> None:
        for _, resume in list(self._ports):
            # It asks whether it may.
            resume()

    # Who is refused.

    def refused(self, refusal: Refusal, peer: str) -> None:
        """Count a refusal, and tell it now or within a second.

        Args:
            refusal: why.
            peer: who, as people write it.
        """
        now = self._reactor.seconds()
        line = self._summary.note(refusal, peer, now)
        if not self._line:
            return
        if line is not None:
            self._tell(line)
        elif self._timer is None:
            self._tell_later(now)

    def reject(self, descriptor: int, refusal: Refusal, peer: str) -> None:
        """The same for a client of whom there is the descriptor alone, which is ours to close."""
        self.refused(refusal, peer)
        self.lingering_closer.close(descriptor, self.refuse_banner)

    def flush(self) -> None:
        """Tell what has not been told; for the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line:
            for line in self._summary.pending(float("inf")):
                self._tell(line)

    def _tell_later(self, now: float) -> None:
        seconds = self._summary.due(now)
        if seconds is not None:
            self._timer = self._reactor.callLater(seconds, self._tell_pending)

    def _tell_pending(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        for line in self._summary.pending(now):
            self._tell(line)
        self._tell_later(now)

    def _tell(self, line: RefusalLine) -> None:
        log_writer = self._log_writer
        if not self._line:
            # The log's level has become another one meanwhile.
            return
        # A rule for one address or name says whose it is.
        hidden = log_writer.anonymize and line.refusal.reason in (RefusalReason.ADDRESS, RefusalReason.NAME)
        values = {
            "peer": log_writer.quoted(line.peer),
            "reason": log_writer.quoted(line.refusal.reason),
            "count": line.count,
            "rule": log_writer.quoted("-" if hidden else line.refusal.rule or "-"),
        }
        log_writer.write(self._line % values)
