"""The entrance of a service: its door, and what becomes of those who are refused or have to wait."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from svcd.access.admission import Admission
from svcd.access.datagrams import DatagramFilter
from svcd.access.refusal_log import RefusalAggregator
from svcd.access.rules import RefusalReason
from svcd.config.access_checks import BANNERS, most_banner_bytes
from svcd.connections.access_rules import rules_of, zone_of
from svcd.connections.descriptor_budget import SHORT
from svcd.connections.header_queue import HeaderQueue
from svcd.connections.lingering_close import LingeringCloser
from svcd.host.host_addresses import HostAddresses
from svcd.host.info import LoadAverage
from svcd.log.events import REFUSE
from svcd.metrics.registry import MetricsRegistry
from svcd.model import SocketType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IDelayedCall

    from svcd.access.admission import ConnectionSlot, GlobalLimit
    from svcd.access.refusal_log import RefusalLine
    from svcd.access.rules import AccessRules, Refusal
    from svcd.config.service import Service
    from svcd.connections.descriptor_budget import DescriptorBudget
    from svcd.interfaces import FdReactor, FileReader
    from svcd.log.writer import LogWriter
    from svcd.metrics.counters import ServiceCounters

__all__ = ["Reception", "ServiceAdmission"]

#: Refusals that end when somebody leaves.
_LIMITS = (RefusalReason.INSTANCES, RefusalReason.GLOBAL)
#: How often to look for a connection that can be closed while others wait for room, in seconds.
_PRESS_SECONDS = 0.1


class Reception:
    """What the entrances of all services share.

    Args:
        reactor: watches descriptors and time.
        log_writer: where refusals are told.
        files: reads banners.
        budget: how many descriptors there are.
        global_limit: all connections of the daemon.
        registry: where connections and refusals are counted; by default for nobody to see.
        wall: the time of day, in seconds since 1970, for access_times.
        load: the load average, for max_load.

    Attributes:
        hosts: the addresses of host names in the rules of datagram services.
    """

    def __init__(
        self,
        reactor: FdReactor,
        log_writer: LogWriter,
        files: FileReader,
        budget: DescriptorBudget,
        global_limit: GlobalLimit,
        *,
        registry: MetricsRegistry | None = None,
        wall: Callable[[], float] = time.time,
        load: Callable[[], float] | None = None,
    ) -> None:
        self.reactor = reactor
        self.log_writer = log_writer
        self.budget = budget
        self.global_limit = global_limit
        self.lingering_closer = LingeringCloser(reactor, budget)
        self.header_queue = HeaderQueue(reactor, budget)
        self._files = files
        self._registry = registry or MetricsRegistry()
        self._wall = wall
        self._load = load or LoadAverage()
        self.hosts = HostAddresses(reactor)

    def rules(self, service: Service) -> AccessRules:
        """The rules of a service, with the addresses of the host names in them, as far as these are known.

        Raises:
            OSError, KeyError: the machine has lost a time zone.
        """
        rules, names = rules_of(service), self.host_names(service)
        return replace(rules, resolved=self.hosts.known(names)) if names else rules

    @staticmethod
    def host_names(service: Service) -> frozenset[str]:
        """The host names in the rules of a service whose addresses have to be known beforehand: for UDP."""
        names = service.net.shape is SocketType.DATAGRAM and not service.net.local
        return rules_of(service).host_names if names else frozenset()

    def service_admission(self, service: Service) -> ServiceAdmission:
        """The entrance of a service.

        Raises:
            OSError, KeyError: a banner can't be read any more, or the machine has lost a time zone.
        """
        admission = Admission(self.rules(service), self.global_limit, wall=self._wall, load=self._load)
        return ServiceAdmission(self, service, admission, self._texts(service), self._registry.counters(service.id))

    def answering(self, service: Service) -> DatagramFilter:
        """What decides which questions of a datagram service are answered.

        Raises:
            OSError, KeyError: the machine has lost a time zone.
        """
        return DatagramFilter(self.rules(service), wall=self._wall, load=self._load)

    def prepare(self, service_admission: ServiceAdmission, service: Service) -> Callable[[], None]:
        """Read what an entrance needs for other options; returns what lets them hold. Who is in stays in.

        Raises:
            OSError, KeyError: as for a new one.
        """
        return partial(service_admission.retune, service, self.rules(service), self._texts(service))

    def _texts(self, service: Service) -> dict[str, bytes]:
        return {
            option: self._files.read(path)[: most_banner_bytes(service)]
            for option in BANNERS
            if (path := getattr(service.options, option))
        }


class ServiceAdmission:
    """One service's; all its listeners share it.

    Args:
        reception: what it shares with others.
        service: whose it is.
        admission: decides.
        texts: of the banners, by option.
        counters: counts those who are refused, and for the keeper of the others those.

    Attributes:
        admission, counters: as given.
        welcome: what those who are let in get first.
        farewell: what those who are refused get.
        counts: the refusals so far, by reason.
    """

    def __init__(
        self,
        reception: Reception,
        service: Service,
        admission: Admission,
        texts: Mapping[str, bytes],
        counters: ServiceCounters,
    ) -> None:
        self.admission = admission
        self.counters = counters
        self.lingering_closer = reception.lingering_closer
        self._reactor = reception.reactor
        self._share = reception.budget.share(service.id)
        self._queue: dict[Callable[[], None], None] = {}
        self._ports: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._resting = False
        self._pressing: IDelayedCall | None = None
        self._log_writer = reception.log_writer
        self._summary = RefusalAggregator(counters.refused)
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

    def retune(self, service: Service, rules: AccessRules, texts: Mapping[str, bytes]) -> None:
        """Let other options hold for who comes from now on, and for those who wait for room."""
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
