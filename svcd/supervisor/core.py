"""The supervisor: starts the services of a Config, goes over to another one, and lets them end."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service as TwistedService
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from svcd.config.plan import plan, socket_key
from svcd.errors import CommandError
from svcd.events import READY, RELOAD, STOP, tell
from svcd.handlers.nurse import Nurse
from svcd.supervisor.change import Change
from svcd.supervisor.describing import described, muxed
from svcd.supervisor.ending import cut, drained
from svcd.supervisor.kinds import run
from svcd.supervisor.listeners import Listener, number_of_port
from svcd.supervisor.running import Running, Shared
from svcd.transport.entrance import Reception
from svcd.transport.notify import Manager, Pulse
from svcd.transport.opening import Store, open_all
from svcd.transport.tls.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from svcd.catalog import Surroundings
    from svcd.config.check import Endpoint
    from svcd.config.plan import Plan
    from svcd.interfaces import Watcher
    from svcd.journal import Journal
    from svcd.ledger import Ledger
    from svcd.policy.limits import Hall
    from svcd.transport.descriptors import DescriptorBudget
    from svcd.transport.keeper import Keeper
    from svcd.transport.specs import Account
    from svcd.transport.stock import Stock
    from svcd.transport.tls.server import TlsServer

__all__ = ["Supervisor"]


class Supervisor(TwistedService):
    """Runs the services of a Config, as a Twisted service.

    Args:
        reactor: watches descriptors and time.
        endpoints: where the services listen.
        around: what built-ins may need.
        journal: where connections are logged; it is flushed when the last has ended.
        budget: how many connections there may be.
        account: as whom handlers run that name no user.
        hall: all connections, and how many there may be.
        ledger: where everything is counted.
        manager: told how we are, and keeps the sockets while the daemon is restarted.
        stock: sockets that are open already.

    Attributes:
        pulse: what the manager is told.
        endpoints: where the services listen now.
        hosted: the services, by name.
        retired: services that are no more, with connections that still are.
        store: keeps the sockets open when this daemon ends.
        ledger: as given.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Watcher,
        endpoints: Sequence[Endpoint],
        around: Surroundings,
        journal: Journal,
        budget: DescriptorBudget,
        account: Account,
        hall: Hall,
        ledger: Ledger,
        manager: Manager | None = None,
        stock: Stock | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._reactor = reactor
        self._journal = journal
        self._budget = budget
        self._hall = hall
        self._stock = stock
        self.ledger = ledger
        ledger.descriptors = lambda: (budget.open, budget.limit)
        manager = manager or Manager()
        self.store = Store(manager)
        self.pulse = Pulse(around.clock, manager, self._status)
        reception = Reception(reactor, journal, around.files, budget, hall, ledger=ledger)
        numbers, offered = itertools.count(1), lambda: muxed(self._listeners.values())
        self._shared = Shared(reactor, around, journal, budget, account, numbers, reception, self.store, offered)
        self._nurses: list[Nurse] = []
        self._listeners: dict[Hashable, Listener] = {}
        self.hosted: dict[str, Running] = {}
        self._watch = Watch(around.clock, self._all_tls, self._describe)
        self.retired: list[Running] = []

    @property
    def keepers(self) -> dict[str, Keeper[Any]]:
        """Who has the connections of the services, by the service's name."""
        return {name: running.keeper for name, running in self.hosted.items() if running.keeper is not None}

    def privilegedStartService(self) -> None:
        """Open every socket, and read what needs the privilege. Clients may connect; they wait until we are ready.

        Raises:
            ListenErrors: a socket can't be had.
            ConfigError: a service can't be made.
            OSError: a file that a service needs can't be read any more.

        After any of them no socket is open.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        sockets = open_all(self.endpoints, self._stock, self.store)
        self._listeners = {
            socket_key(opened.endpoint): Listener(opened, self._budget, self.store) for opened in sockets
        }
        self._know_own_ports()
        nurse = Nurse(self._reactor)
        try:
            for listener in self._listeners.values():
                service = listener.endpoint.service
                if service.id not in self.hosted:
                    self.hosted[service.id] = run(self._shared, service, nurse)
                running = self.hosted[service.id]
                listener.serve(running.port(listener.opened, service), running.join)
            nurse.start()
        except BaseException:
            for opened in sockets:
                self.store.leave(opened)
            self._listeners.clear()
            raise
        self._nurses.append(nurse)

    def startService(self) -> None:
        """Begin to serve."""
        super().startService()  # type: ignore[no-untyped-call]
        for listener in self._listeners.values():
            listener.start()
        for running in self.hosted.values():
            running.begin()
        counts = {"services": len(self.hosted), "listeners": len(self._listeners)}
        tell(self._log, READY, **counts, reactor=type(self._reactor).__name__)
        self._describe()
        self._watch.start()
        self.ledger.state = "ready"
        self.pulse.start()

    def _status(self) -> str:
        """How we are, for `systemctl status`."""
        return f"services: {len(self.hosted)}, listeners: {len(self._listeners)}, connections: {self.connections}"

    @property
    def connections(self) -> int:
        """How many there are, with those that wait to be let in."""
        return sum(len(each.keeper.everybody()) for each in self._all_running() if each.keeper is not None)

    def _all_running(self) -> list[Running]:
        return [*self.hosted.values(), *self.retired]

    def _all_tls(self) -> list[TlsServer]:
        return [running.tls for running in self.hosted.values() if running.tls is not None]

    def change_to(self, endpoints: Sequence[Endpoint], *, now: bool = False) -> Plan:
        """Go over to other services, or change nothing. Connections of a service that is no more may go on.

        Args:
            endpoints: where the services are to listen.
            now: end the connections of services that are no more.

        Raises:
            ListenErrors: a socket can't be had.
            ConfigError: a service can't be made, or asks for what only root can give.
            OSError: a file that a service needs can't be read, or there can't be another process.
            CommandError: the daemon listens no more.
        """
        if self.ledger.state == "stopping":
            raise CommandError("the daemon is about to stop")
        began = self._reactor.seconds()
        made = plan(self.endpoints, endpoints)
        change = Change(made, self._shared, self.hosted, self._listeners)
        change.prepare()
        gone = change.commit()
        self._nurses.append(change.nurse)
        self.endpoints = tuple(endpoints)
        self._know_own_ports()
        for running in gone:
            self._retire(running, now=now and running.service in made.removed)
        # Certificates that are not named otherwise than before may be others.
        self._watch.look_now()
        self._describe()
        self.ledger.reloads_done += 1
        counts = {"opened": len(made.opened), "closed": len(made.closed), "changed": len(made.changed)}
        counts |= {"added": len(made.added), "removed": len(made.removed)}
        tell(self._log, RELOAD, **counts, seconds=round(self._reactor.seconds() - began, 6))
        return made

    def listeners_of(self, name: str = "") -> list[Listener]:
        """The sockets of a service, or of all."""
        found = self._listeners.values()
        return [listener for listener in found if not name or listener.endpoint.service.id == name]

    @property
    def descriptors(self) -> dict[str, int]:
        """How many connections there are, and how many descriptors there are for those that the daemon has itself."""
        return {"open": self._hall.open, "limit": self._budget.limit}

    def log_from(self, level: str) -> None:
        """Log events of this level and above.

        Raises:
            ValueError: there is no such level.
        """
        self._journal.log_from(level)
        for keeper in self.keepers.values():
            # Their lines are made anew, or not at all.
            keeper.retune(keeper.service)

    def _know_own_ports(self) -> None:
        ports = {number_of_port(listener.opened) for listener in self._listeners.values()} - {0}
        self._shared.own_ports.clear()
        self._shared.own_ports.update(ports)

    def _describe(self) -> None:
        """Let the ledger know what there is to show; services that are no more are, until their last connection."""
        self.ledger.describe(described([*self.retired, *self.hosted.values()], self._listeners.values()))

    def _retire(self, running: Running, *, now: bool) -> None:
        """Let a service go that is no more, when its last connection has ended."""
        keeper = running.keeper
        if keeper is None:
            running.end()
            return
        self.retired.append(running)
        if now:
            cut(running)

        def ended(_result: None) -> None:
            self.retired.remove(running)
            running.end()
            keeper.entrance.finish()
            self._describe()
            self._dismiss()

        keeper.when_empty().addCallback(ended)

    def _dismiss(self) -> None:
        """Let nurseries end that have no launcher to keep."""
        for nurse in [nurse for nurse in self._nurses if nurse.idle]:
            self._nurses.remove(nurse)
            nurse.stop()

    def stopService(self) -> Deferred[object]:
        """Stop listening at once; let each connection end in its service's shutdown_timeout, then end it.

        Returns:
            A Deferred that fires when no connection is open.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self.pulse.stopping()
        self._watch.stop()
        tell(self._log, STOP, connections=self.connections)
        self.stop_listening()
        ended = DeferredList([drained(running, self._reactor) for running in self._all_running()])
        ended.addCallback(lambda _results: DeferredList([nurse.stop() for nurse in self._nurses]))
        ended.addCallback(lambda _results: self.pulse.stop())
        return ended.addCallback(lambda _results: self._journal.flush())

    @property
    def shutdown_seconds(self) -> float:
        """The longest shutdown_timeout of the services that have connections, those of before a reload included."""
        timeouts = [each.service.options.shutdown_timeout for each in self._all_running() if each.keeper is not None]
        return max(timeouts, default=0.0)

    def stop_listening(self) -> None:
        """Close every socket, but for what the manager keeps of them; connections go on."""
        self.ledger.state = "stopping"
        # Before the listeners: tcpmux keeps what they offer for the clients that it has.
        for running in self._all_running():
            running.close()
        for listener in self._listeners.values():
            listener.close(for_good=False)
        self._listeners.clear()

    def when_empty(self, call: Callable[[], None]) -> None:
        """Call this when no service has a connection."""
        everybody = [each.keeper for each in self._all_running() if each.keeper is not None]
        empty = DeferredList([keeper.when_empty() for keeper in everybody])
        empty.addCallback(lambda _results: call())

    def hurry(self) -> None:
        """End every connection now; for whoever asks a second time to stop."""
        for running in self._all_running():
            cut(running)
