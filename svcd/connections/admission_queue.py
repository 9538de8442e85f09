"""ServiceAdmission: admits the connections of a service, queues them (on_limit=queue), or refuses them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from svcd.access.admission import Admission
from svcd.access.rules import RefusalReason
from svcd.config.checks import BANNERS, max_banner_bytes
from svcd.connections.access_rules import zone_of
from svcd.connections.descriptor_budget import DESCRIPTORS_EXHAUSTED
from svcd.connections.refusals import RefusalReporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.admission import ConnectionSlot
    from svcd.access.rules import AccessRules, Refusal
    from svcd.config.service import Service
    from svcd.connections.context import ConnectionContext

__all__ = ["ServiceAdmission"]

#: Reasons of refusals that end when a connection ends.
_LIMITS = (RefusalReason.INSTANCES, RefusalReason.GLOBAL)
#: Interval of evictions of idle or slow connections while others are queued, in seconds.
_EVICT_SECONDS = 0.1


class ServiceAdmission:
    """Admission of the connections of one service; all its listeners share it.

    Args:
        context: shared by all services.
        service: the service.

    Attributes:
        admission: applies the access rules and limits.
        counters: counts the connections and refusals of the service.
        accept_banner: sent to admitted clients first; empty for none.
        first_output: the same for clients of WebSocket, which get it after the handshake, as output of the handler.
        refusals: reports refusals and closes refused connections.

    Raises:
        OSError, KeyError: a banner can't be read, or the machine no longer has a time zone.
    """

    def __init__(self, context: ConnectionContext, service: Service) -> None:
        self._context = context
        self.admission = Admission(
            context.rules(service), context.global_limit, wall_clock=context.wall_clock, load=context.load
        )
        banners = self._read_banners(service)
        self.counters = context.registry.counters(service.id)
        self.refusals = RefusalReporter(context, self.counters)
        self._reactor = context.reactor
        self._share = context.budget.share(service.id)
        self._queue: dict[Callable[[], None], None] = {}
        self._ports: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._paused = False
        self._evict_timer: IDelayedCall | None = None
        self._apply(service, banners)

    def _read_banners(self, service: Service) -> dict[str, bytes]:
        return {
            option: self._context.files.read(path)[: max_banner_bytes(service)]
            for option in BANNERS
            if (path := getattr(service.options, option))
        }

    def _apply(self, service: Service, banners: Mapping[str, bytes]) -> None:
        banner = banners.get("banner", b"")
        welcome, refusal = banner + banners.get("banner_success", b""), banner + banners.get("banner_fail", b"")
        speaks_websocket = service.options.websocket is not None
        self.accept_banner, self.first_output = (b"", welcome) if speaks_websocket else (welcome, b"")
        # A refused TLS client gets no handshake, and without one it can't read a banner.
        self.refusals.set_banner(b"" if service.tls else refusal, http=speaks_websocket and not service.tls)
        self._queues = service.options.on_limit == "queue"
        self._service = service
        self.make_line()

    def prepare(self, service: Service) -> Callable[[], None]:
        """Read the files that new options need; return a function that applies them. Open connections stay open.

        Raises:
            OSError, KeyError: a banner can't be read, or the machine no longer has a time zone.
        """
        return partial(self._retune, service, self._context.rules(service), self._read_banners(service))

    def _retune(self, service: Service, rules: AccessRules, banners: Mapping[str, bytes]) -> None:
        """Apply new options to new and queued connections."""
        self._apply(service, banners)
        self.admission.retune(rules)
        if self._paused and not self._queues:
            self.admission.call_when_not_full(None)
            self._paused = False
            waiting, self._queue = self._queue, {}
            for callback in waiting:
                callback()
            self._resume_ports()

    def make_line(self) -> None:
        """Make the template of refuse lines again, after a change of the log level."""
        self.refusals.make_line(self._service)

    def update_locations(self, service: Service) -> None:
        """Use the new positions of the options in the services file; the values are the same."""
        self._service = service
        self.admission.retune(replace(self.admission.rules, locations=service.locations))

    def read_time_zone(self) -> None:
        """Read the time zone of access_times again."""
        if self._service.options.access_times:
            self.admission.retune(replace(self.admission.rules, zone=zone_of(self._service)))

    def admit(self, host: str, now: float) -> ConnectionSlot | Refusal:
        """Admit or refuse a connection.

        Args:
            host: the client's address, without port; empty at a UNIX socket.
            now: seconds, monotonic.
        """
        if self._share.crowded:
            return DESCRIPTORS_EXHAUSTED
        return self.admission.admit(host, now)

    # Queueing, for on_limit=queue

    def listen(self, pause: Callable[[], None], resume: Callable[[], None]) -> Callable[[], None]:
        """Register the functions that pause and resume a listener; return a function that removes them."""
        self._ports.append((pause, resume))
        return lambda: self._ports.remove((pause, resume))

    def may_accept(self) -> bool:
        """Return whether another connection may be accepted now; if not, pause the listeners until one may."""
        if not self._queues or not (self._queue or self.admission.full):
            return True
        self._pause_ports()
        self._evict()
        return False

    def should_queue(self, refusal: Refusal) -> bool:
        """Return whether to queue a refused connection instead.

        With on_limit=queue this is so for a connection that was accepted before the listeners could be paused; without
        it, for a connection for which an idle or slow one is evicted.
        """
        return refusal.reason in _LIMITS and (self._queues or self._share.evict_another())

    def enqueue(self, callback: Callable[[], None]) -> None:
        """Queue a function, which is called once when there is room; it must call admit() again."""
        self._queue[callback] = None
        self._pause_ports()

    def dequeue(self, callback: Callable[[], None]) -> None:
        """Remove a queued function; do nothing if it is not queued."""
        self._queue.pop(callback, None)

    def _pause_ports(self) -> None:
        if not self._paused:
            self._paused = True
            for pause, _ in self._ports:
                pause()
            self.admission.call_when_not_full(self._not_full)

    def _evict(self) -> None:
        """Close a connection that is idle or slow while others are queued."""
        if self._paused and self._queues and self._share.evicts:
            self._share.evict(1)
            if self._evict_timer is None:
                self._evict_timer = self._reactor.callLater(_EVICT_SECONDS, self._evict_again)

    def _evict_again(self) -> None:
        self._evict_timer = None
        self._evict()

    def _not_full(self) -> None:
        self._paused = False
        while self._queue and not self.admission.full:
            callback = next(iter(self._queue))
            del self._queue[callback]
            callback()
        if self._queue:
            self._pause_ports()
        else:
            self._resume_ports()

    def _resume_ports(self) -> None:
        for _, resume in list(self._ports):
            # The port itself calls may_accept() before it accepts.
            resume()
