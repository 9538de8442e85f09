"""The one place that knows which services run: it opens them, starts them, and lets them end."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.application.service import Service as TwistedService
from twisted.internet.defer import DeferredList
from twisted.logger import Logger

from svcd.catalog import MUX, datagram_protocol, stream_factory
from svcd.errors import ListenError, ListenErrors
from svcd.events import CLOSE, LISTEN, READY, STOP, tell
from svcd.handlers.nurse import Nurse
from svcd.model import Shape
from svcd.transport.gate import GateKeeper
from svcd.transport.handoff import HandOffPort
from svcd.transport.mux import MuxKeeper
from svcd.transport.ports import DatagramPort, StreamPort
from svcd.transport.sockets import OpenSocket, open_socket
from svcd.transport.spawned import SpawnKeeper
from svcd.transport.specs import Account, spec_of
from svcd.transport.waiting import WaitPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from twisted.internet.defer import Deferred

    from svcd.catalog import Surroundings
    from svcd.config.check import Endpoint
    from svcd.config.service import Service
    from svcd.interfaces import Watcher
    from svcd.journal import Journal
    from svcd.transport.descriptors import DescriptorBudget
    from svcd.transport.keeper import Keeper

__all__ = ["Supervisor", "open_all"]

_Port: TypeAlias = StreamPort | DatagramPort | HandOffPort | WaitPort


def open_all(endpoints: Iterable[Endpoint]) -> list[OpenSocket]:
    """Open the sockets of all endpoints, or none.

    Raises:
        ListenErrors: some can't be had.
    """
    opened: list[OpenSocket] = []
    errors: list[ListenError] = []
    for endpoint in endpoints:
        try:
            opened.append(open_socket(endpoint))
        except ListenError as error:
            errors.append(error)
    if errors:
        for each in opened:
            each.close()
        raise ListenErrors(errors)
    return opened


class Supervisor(TwistedService):
    """Runs the services of a Config, as a Twisted service.

    Args:
        reactor: watches descriptors and time.
        endpoints: where the services listen.
        around: what built-ins may need.
        journal: where connections are logged; it is flushed when the last has ended.
        budget: how many connections there may be.
        account: as whom handlers run that name no user.
        said: told when the daemon is ready and when it stops, as sd_notify(3) states.
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
        said: Callable[[str], None] = lambda _state: None,
    ) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self._around = around
        self._journal = journal
        self._budget = budget
        self._account = account
        self._nurse = Nurse(reactor)
        self._said = said
        self._numbers = itertools.count(1)
        self._ports: list[tuple[OpenSocket, _Port, Callable[[], None]]] = []
        self.keepers: dict[str, Keeper[Any]] = {}

    def privilegedStartService(self) -> None:
        """Open every socket, and read what needs the privilege. Clients may connect; they wait until we are ready.

        Raises:
            ListenErrors: a socket can't be had.
            ConfigError: a service can't be made.
            OSError: a file that a service needs can't be read any more.

        After any of them no socket is open.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        sockets = open_all(self._endpoints)
        own_ports = frozenset(
            opened.socket.getsockname()[1]
            for opened in sockets
            if opened.endpoint.version and opened.endpoint.service.net.shape is Shape.DATAGRAM
        )
        try:
            self._ports = [(opened, *self._port(opened, opened.endpoint.service, own_ports)) for opened in sockets]
            self._nurse.start()
        except BaseException:
            for opened in sockets:
                opened.close()
            raise

    def startService(self) -> None:
        """Begin to serve."""
        super().startService()  # type: ignore[no-untyped-call]
        for opened, port, _ in self._ports:
            service = opened.endpoint.service
            port.startListening()
            tell(self._log, LISTEN, service=service.id, address=opened.address, runs=service.handler_text)
        for keeper in self.keepers.values():
            if isinstance(keeper, SpawnKeeper):
                keeper.begin()
        services = len({opened.endpoint.service.id for opened, _, _ in self._ports})
        tell(self._log, READY, services=services, listeners=len(self._ports), reactor=type(self._reactor).__name__)
        self._said("READY=1")

    def _port(
        self, opened: OpenSocket, service: Service, own_ports: frozenset[int]
    ) -> tuple[_Port, Callable[[], None]]:
        """A port for an open socket, and what takes it out of the budget's care."""
        if service.spawned:
            return self._spawning_port(opened, service)
        if service.runs == MUX:
            return self._mux_port(opened, service)
        if service.net.shape is Shape.DATAGRAM:
            protocol = datagram_protocol(service, self._around)
            return DatagramPort(self._reactor, opened.socket, protocol, own_ports), lambda: None
        keeper = self.keepers.get(service.id)
        if not isinstance(keeper, GateKeeper):
            factory = stream_factory(service, self._around)
            keeper = GateKeeper(service, factory, self._journal, self._around.names, self._budget, self._numbers)
            self.keepers[service.id] = keeper
        budget = self._budget
        # A reactor may have a better port than the one that works on all of them.
        adopt = getattr(self._reactor, "adoptStreamSocket", None) or partial(StreamPort, self._reactor)
        port: StreamPort = adopt(opened.socket, keeper, lambda: not budget.exhausted, budget.rest)
        return port, budget.listen(port.pause, port.resume)

    def _spawning_port(self, opened: OpenSocket, service: Service) -> tuple[_Port, Callable[[], None]]:
        """The same for a service whose connections have processes of their own."""
        keeper = self.keepers.get(service.id)
        if not isinstance(keeper, SpawnKeeper):
            spec = spec_of(service, self._account)
            keeper = SpawnKeeper(
                self._reactor,
                partial(self._nurse.link, spec),
                service,
                self._journal,
                self._around.names,
                self._budget,
                self._numbers,
            )
            self.keepers[service.id] = keeper
        port: _Port
        if service.options.wait:
            port = WaitPort(self._reactor, opened.socket, keeper)
        else:
            port = HandOffPort(self._reactor, opened.socket, keeper.take, keeper.may_accept, self._budget.rest)
        keeper.when_room(port.resume)
        return port, self._budget.listen(port.pause, port.resume)

    def _mux_port(self, opened: OpenSocket, service: Service) -> tuple[_Port, Callable[[], None]]:
        """The same for tcpmux, whose connections become those of other services."""
        keeper = self.keepers.get(service.id)
        if not isinstance(keeper, MuxKeeper):
            around = self._around
            keeper = MuxKeeper(
                self._reactor, self._muxed, service, self._journal, around.names, self._budget, self._numbers
            )
            self.keepers[service.id] = keeper
        port = HandOffPort(self._reactor, opened.socket, keeper.take, keeper.may_accept, self._budget.rest)
        return port, self._budget.listen(port.pause, port.resume)

    def _muxed(self) -> dict[str, Callable[[int, Any, int], None]]:
        """What tcpmux offers, by name in small letters."""
        offered: dict[str, Callable[[int, Any, int], None]] = {}
        for opened, port, _ in self._ports:
            service = opened.endpoint.service
            if service.options.mux and not isinstance(port, DatagramPort | WaitPort):
                offered.setdefault(service.name.lower(), port.adopt)
        return offered

    def stopService(self) -> Deferred[object]:
        """Stop listening at once; let each connection end in its service's shutdown_timeout, then end it.

        Returns:
            A Deferred that fires when no connection is open.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._said("STOPPING=1")
        open_connections = sum(len(keeper.sessions) for keeper in self.keepers.values())
        tell(self._log, STOP, connections=open_connections)
        for opened, port, leave in self._ports:
            leave()
            port.stopListening()
            values: dict[str, object] = {"service": opened.endpoint.service.id, "address": opened.address}
            if isinstance(port, DatagramPort):
                values |= {"datagrams": port.datagrams, "ignored": port.ignored}
                values |= {"in": port.bytes_in, "out": port.bytes_out}
            opened.close()
            tell(self._log, CLOSE, **values)
        self._ports.clear()
        ended = DeferredList([self._drained(keeper) for keeper in self.keepers.values()])
        ended.addCallback(lambda _results: self._nurse.stop())
        return ended.addCallback(lambda _result: self._journal.flush())

    def _drained(self, keeper: Keeper[Any]) -> Deferred[None]:
        for gate in list(keeper.sessions.values()):
            gate.drain()
        patience = self._around.clock.callLater(keeper.service.options.shutdown_timeout, self._cut, keeper)
        empty = keeper.when_empty()

        def ended(_result: None) -> None:
            if patience.active():
                patience.cancel()

        return empty.addCallback(ended)

    def hurry(self) -> None:
        """End every connection now; for whoever asks a second time to stop."""
        for keeper in self.keepers.values():
            self._cut(keeper)

    def _cut(self, keeper: Keeper[Any]) -> None:
        for gate in list(keeper.sessions.values()):
            gate.cut("shutdown")
