"""ServiceAdmission with TrackingFactory: refusals, banners, host names, queueing, eviction, and released slots."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.access.admission import GlobalLimit
from svcd.access.rules import RefusalReason
from svcd.connections import lingering_close as lingering_close_module
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import SLACK, DescriptorBudget
from svcd.connections.lingering_close import LINGER_SECONDS, RejectProtocol, send_banner
from svcd.connections.wrapper import ConnectionWrapper, PendingConnection, TrackingFactory
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from tests.doubles import (
    LOCAL_PEER,
    FakeFiles,
    FakeReactor,
    FakeResolver,
    LogCatcher,
    StreamDouble,
    config_of,
    list_sink,
    service_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = FakeFiles({"/all": "all\n", "/in": "in\n", "/out": "out\n"})
BANNERS = "banner=/all banner_success=/in banner_fail=/out"


def _address(host: str = "192.0.2.1", port: int = 40_000) -> IPv4Address:
    return IPv4Address("TCP", host, port)


@implementer(IHalfCloseableProtocol)
class _Echo(Protocol):
    """Echo protocol with half-close."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing."""


class _Service:
    """A TrackingFactory, a listener that can be paused, and the objects that they use."""

    def __init__(self, options: str = "", most: int | None = None, limit: int = 100, *, short: bool = False) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False), anonymize=short)
        self.names = FakeResolver()
        self.budget = DescriptorBudget(limit, self.reactor)
        self.global_limit = GlobalLimit(most)
        self.wall = 12 * 3600.0
        self.load = 0.5
        service = service_of(f"echo 7/tcp access_zone=UTC {options}")
        self.context = ConnectionContext(
            self.reactor,
            self.log_writer,
            FILES,
            self.names,
            self.budget,
            self.global_limit,
            clock=self.reactor.seconds,
            wall_clock=lambda: self.wall,
            load=lambda: self.load,
        )
        self.service_admission = ServiceAdmission(self.context, service)
        self.factory = Factory.forProtocol(_Echo)
        self.tracker = TrackingFactory(service, self.context, self.service_admission, self.factory)
        self.listening = True
        self.service_admission.listen(self._pause, self._resume)

    def _pause(self) -> None:
        self.listening = False

    def _resume(self) -> None:
        self.listening = self.service_admission.may_accept()

    def connect(self, host: str = "192.0.2.1") -> Any:
        """Return the transport of an accepted client; None if it was closed at once."""
        address = _address(host) if host else LOCAL_PEER
        protocol = self.tracker.buildProtocol(address)
        if protocol is None:
            return None
        transport = StreamDouble(protocol, peer=address)
        protocol.makeConnection(transport)  # type: ignore[arg-type]
        return transport

    def reasons(self) -> list[str]:
        """Return the reasons of the refuse lines."""
        return [line.partition("reason=")[2].split()[0] for line in self.lines if line.startswith("refuse ")]

    def empty(self) -> bool:
        """Return whether no slot, descriptor, connection, timer or reader is left."""
        counts = (self.service_admission.admission.open, self.global_limit.open, self.budget.open)
        left = self.tracker.all_connections() or self.reactor.getDelayedCalls() or self.reactor.readers
        return counts == (0, 0, 0) and not left


def _end(transport: StreamDouble) -> None:
    transport.lose(Failure(ConnectionLost()))


@pytest.mark.parametrize(
    ("options", "host", "reason"),
    [
        ("only_from=10.0.0.0/8", "192.0.2.1", "address"),
        ("only_from=10.0.0.0/8", "::ffff:192.0.2.1", "address"),
        ("no_access=192.0.2.1", "192.0.2.1", "address"),
        ("only_from=", "", "address"),
        ("access_times=13:00-14:00", "192.0.2.1", "time"),
        ("max_load=0.5", "192.0.2.1", "load"),
    ],
)
def test_refused_client_is_closed_and_logged(options: str, host: str, reason: str) -> None:
    """A refused client is closed before a protocol is built; the refuse line has the rule and its position."""
    service = _Service(options)
    assert service.connect(host) is None
    (line,) = service.lines
    rule = options.partition("=")[0]
    peer = "local" if not host else "192.0.2.1:40000"
    assert line.startswith(f'refuse service=echo/tcp peer={peer} reason={reason} count=1 rule="{rule}')
    assert line.endswith(f' (s:1:{len("echo 7/tcp access_zone=UTC ") + len(rule) + 2})"')
    assert service.service_admission.refusals.counts == {reason: 1}
    assert service.empty()


def test_slot_of_an_admitted_client_is_released() -> None:
    """The slot of an admitted client is released at the end of the connection."""
    service = _Service("only_from=192.0.2.0/24 access_times=12:00-12:01 max_load=0.6 instances=1 per_source=1")
    transport = service.connect()
    assert service.service_admission.admission.open == service.global_limit.open == 1
    assert service.connect() is None
    _end(transport)
    assert service.empty()
    _end(service.connect("192.0.2.2"))
    assert service.reasons() == ["instances"]


@pytest.mark.parametrize("options", ["rate=1/s", "per_source_rate=1/s"])
def test_rate_limits_recover(options: str) -> None:
    """Over the rate a client is refused; a second later the next one is served."""
    service = _Service(options)
    _end(service.connect())
    assert service.connect() is None
    service.reactor.advance(1)
    _end(service.connect())
    assert set(service.reasons()) == {options.partition("=")[0]}


def test_the_daemons_limit() -> None:
    """--max-connections applies to all services together."""
    service = _Service(most=1)
    first = service.connect()
    assert service.connect() is None
    assert service.lines[-1].endswith('reason=global count=1 rule="--max-connections 1 (the command line)"')
    _end(first)
    assert service.empty()


def test_descriptors_beyond_the_slack_are_refused() -> None:
    """Beyond SLACK connections that were accepted before the listeners were paused are refused."""
    service = _Service(limit=2)
    transports = [service.connect() for _ in range(2 + SLACK)]
    assert all(transports)
    assert service.connect() is None
    assert service.reasons() == ["descriptors"]
    for transport in transports:
        _end(transport)
    service.reactor.pump([0.05] * 4)
    assert service.empty()


def test_slot_is_released_without_a_protocol() -> None:
    """The slot is released if buildProtocol() raises an exception or returns None."""
    service = _Service()

    def fail(_addr: object) -> None:
        raise ZeroDivisionError

    service.factory.buildProtocol = fail  # type: ignore[method-assign,assignment]
    assert service.connect() is None
    service.factory.buildProtocol = lambda _addr: None  # type: ignore[method-assign,assignment]
    assert service.connect() is None
    assert service.reasons() == ["service"]
    assert service.empty()


def test_slot_is_released_after_an_exception_of_the_protocol() -> None:
    """An exception in makeConnection() or connectionLost() is passed on, and the slot is released."""
    service = _Service()
    for method in ("makeConnection", "connectionLost"):

        class _Broken(_Echo):
            pass

        def fail(_self: object, _argument: object) -> None:
            raise ZeroDivisionError

        setattr(_Broken, method, fail)
        service.factory.protocol = _Broken
        wrapper: Any = service.tracker.buildProtocol(_address())
        raised = 0
        for step, argument in (
            (wrapper.makeConnection, StreamDouble(wrapper)),
            (wrapper.connectionLost, Failure(ConnectionLost())),
        ):
            try:
                step(argument)
            except ZeroDivisionError:
                raised += 1
        assert raised == 1
        assert service.empty()


class TestLog:
    """Log lines of refusals."""

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ("HOST", "refuse service=echo/tcp peer=192.0.2.1:40000 reason=address count=1 rule="),
            ("ATTEMPT", "refuse service=echo/tcp reason=address count=1 rule="),
            ("none", ""),
        ],
    )
    def test_log_on_failure_chooses(self, words: str, line: str) -> None:
        """log_on_failure= selects the address, the attempt alone, or no line, without a timer; counts are kept."""
        service = _Service(f"only_from= log_on_failure={words}")
        for _ in range(3):
            service.connect()
        assert [each.startswith(line) for each in service.lines] == ([True] if line else [])
        assert service.service_admission.refusals.counts == {RefusalReason.ADDRESS: 3}
        assert bool(service.reactor.getDelayedCalls()) is bool(line)

    def test_one_line_a_second_for_many_refusals(self) -> None:
        """Refusals are summed up, with the first client of each second; no timer runs after the last line."""
        service = _Service("only_from=")
        for number in range(300):
            service.connect(f"192.0.2.{number % 250}")
            service.reactor.advance(1 / 128)
        service.reactor.advance(2)
        counts = [int(line.partition("count=")[2].split()[0]) for line in service.lines]
        assert counts == [1, 127, 128, 44]
        assert " peer=192.0.2.1:40000 " in service.lines[1]
        assert service.empty()

    def test_one_line_for_each_reason(self) -> None:
        """Each reason has its own line; flush() writes all that are due later."""
        service = _Service("no_access=10.0.0.1 instances=1")
        kept = service.connect()
        for _ in range(2):
            service.connect("10.0.0.1")
            service.connect()
        assert service.reasons() == ["address", "instances"]
        service.service_admission.refusals.flush()
        assert service.reasons() == ["address", "instances"] * 2
        service.service_admission.refusals.flush()
        assert len(service.lines) == 5
        _end(kept)
        assert service.empty()


class TestBanners:
    """Banners for clients."""

    def test_admitted_client_gets_its_banners_first(self) -> None:
        """An admitted client gets banner and banner_success before the output of the service."""
        transport = _Service(BANNERS).connect()
        transport.protocol.dataReceived(b"x")
        assert transport.sent == b"all\nin\nx"

    def test_refused_client_gets_its_banners(self) -> None:
        """After the banner the write side is shut down, input is discarded, and the client's close ends it."""
        service = _Service(f"{BANNERS} only_from=")
        transport = service.connect()
        assert (transport.sent, transport.calls) == (b"all\nout\n", ["loseWriteConnection"])
        transport.protocol.dataReceived(b"x" * 1000)
        assert not transport.lost
        assert service.budget.open == 1
        transport.protocol.readConnectionLost()
        assert transport.lost == "done"
        assert service.empty()

    def test_lingering_client_is_closed(self) -> None:
        """A client that does not close is closed after LINGER_SECONDS, and reset if that does not end it."""
        service = _Service("banner_fail=/out only_from=")
        transport = service.connect()
        service.reactor.advance(LINGER_SECONDS)
        assert transport.lost == "done"
        protocol: Any = service.tracker.buildProtocol(_address())
        stuck: Any = StreamDouble(protocol, room=1)
        protocol.makeConnection(stuck)
        service.reactor.advance(LINGER_SECONDS)
        assert not stuck.lost
        service.reactor.advance(1)
        assert stuck.lost == "aborted"
        assert service.empty()

    def test_lingering_client_with_much_input_is_closed(self) -> None:
        """A client that sends more than 64 KiB is closed."""
        service = _Service("banner_fail=/out only_from=")
        transport = service.connect()
        for _ in range(2):
            transport.protocol.dataReceived(b"x" * 40_000)
        assert transport.lost == "done"
        assert service.empty()

    def test_number_of_lingering_connections_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over the limit the banner is sent and the connection is closed at once."""
        monkeypatch.setattr(lingering_close_module, "_MAX_LINGERING", 2)
        service = _Service("banner_fail=/out only_from=")
        transports = [service.connect() for _ in range(4)]
        assert [transport.lost for transport in transports] == ["", "", "done", "done"]
        assert all(transport.sent == b"out\n" for transport in transports)
        service.reactor.advance(LINGER_SECONDS)
        assert service.empty()


class TestNames:
    """Clients that are admitted by their host name."""

    options = "only_from=10.0.0.0/8,.example no_access=bad.example"

    def test_client_waits_unread_and_is_served(self) -> None:
        """The client is counted while it waits, and served with the data that it has sent."""
        service = _Service(f"{self.options} banner=/all")
        transport = service.connect()
        assert isinstance(transport.protocol, PendingConnection)
        assert not transport.reading
        assert (service.service_admission.admission.open, service.budget.open, transport.sent) == (1, 1, b"")
        transport.protocol.dataReceived(b"early")
        assert service.names.queries[0][0] == "192.0.2.1"
        service.names.answer("good.example")
        assert isinstance(transport.protocol, ConnectionWrapper)
        assert transport.reading
        assert transport.sent == b"all\nearly"
        assert (service.service_admission.admission.open, service.budget.open) == (1, 1)
        _end(transport)
        assert service.empty()

    @pytest.mark.parametrize(("name", "reason"), [("bad.example", "name"), (None, "name"), ("x.test", "address")])
    def test_client_is_refused_after_the_lookup(self, name: str | None, reason: str) -> None:
        """The client is refused after the lookup, with a banner if there is one."""
        service = _Service(self.options)
        transport = service.connect()
        service.names.answer(name)
        assert (transport.lost, service.reasons()) == ("done", [reason])
        assert service.empty()
        service = _Service(f"{self.options} banner_fail=/out")
        transport = service.connect()
        service.names.answer(name)
        assert isinstance(transport.protocol, RejectProtocol)
        assert (transport.sent, transport.reading) == (b"out\n", True)
        transport.protocol.readConnectionLost()
        assert service.empty()

    def test_cached_host_name(self) -> None:
        """With a host name in the cache the client is admitted or refused at once."""
        for name, kind in (("good.example", ConnectionWrapper), ("bad.example", type(None))):
            service = _Service(self.options)
            answer = service.names.confirmed_host_of("192.0.2.1")
            service.names.answer(name)
            service.names.confirmed_host_of = lambda _address, answer=answer: answer  # type: ignore[method-assign,misc]
            assert isinstance(service.tracker.buildProtocol(_address()), kind)

    def test_client_closes_before_its_host_name_is_known(self) -> None:
        """The slot is released, and the late host name changes nothing."""
        service = _Service(self.options)
        _end(service.connect())
        assert (service.service_admission.admission.open, service.global_limit.open, service.budget.open) == (0, 0, 0)
        service.names.answer("good.example")
        assert service.empty()
        assert service.lines == []

    def test_drain_closes_clients_without_a_host_name(self) -> None:
        """A client that is not admitted yet is closed at the stop."""
        service = _Service(self.options)
        transport = service.connect()
        emptied = service.tracker.when_empty()
        assert not emptied.called
        (pending,) = service.tracker.all_connections()
        facts = pending.info()
        assert (facts["id"], facts["peer"], facts["state"]) == (1, "192.0.2.1:40000", "host-name")
        assert pending.info()["id"] == pending.connection_id == 1
        pending.drain()
        assert transport.lost == "aborted"
        assert emptied.called

    def test_no_protocol_after_the_lookup(self) -> None:
        """Without a protocol after the lookup, or if its start fails, the connection is closed and nothing is kept."""
        for build in (lambda _addr: None, lambda _addr: _Broken()):
            service = _Service(self.options)
            service.factory.buildProtocol = build  # type: ignore[method-assign]
            transport = service.connect()
            with LogCatcher() as log:
                service.names.answer("good.example")
            for failure in log.failures:
                failure.trap(ZeroDivisionError)
            assert transport.lost
            assert service.empty()


class _Broken(_Echo):
    def connectionMade(self) -> None:
        raise ZeroDivisionError


class TestQueue:
    """Queueing at a limit (on_limit=queue)."""

    def test_listeners_are_paused_until_a_connection_ends(self) -> None:
        """Other clients wait in the kernel, and none is refused."""
        service = _Service("instances=2 on_limit=queue")
        assert service.service_admission.may_accept()
        transports = [service.connect() for _ in range(2)]
        assert service.listening
        assert not service.service_admission.may_accept()
        assert not service.listening
        _end(transports[0])
        assert service.listening
        _end(transports[1])
        assert service.empty()

    def test_accepted_connections_are_queued_in_order(self) -> None:
        """Connections that are already accepted wait unread, and are served before those in the kernel's queue."""
        service = _Service("instances=1 on_limit=queue")
        first, second, third = (service.connect() for _ in range(3))
        assert not service.listening
        assert [type(each.protocol).__name__ for each in (second, third)] == ["PendingConnection"] * 2
        assert (service.service_admission.admission.open, service.budget.open) == (1, 3)
        _end(first)
        assert (second.reading, third.reading, service.listening) == (True, False, False)
        _end(second)
        assert (third.reading, service.listening) == (True, False)
        _end(third)
        assert service.listening
        assert [line.split()[0] for line in service.lines] == ["accept", "end"] * 3
        assert service.empty()

    def test_closed_connection_leaves_the_queue(self) -> None:
        """A queued connection that is closed is removed, as at the stop."""
        service = _Service("instances=1 on_limit=queue")
        first, second, third = (service.connect() for _ in range(3))
        second.protocol.abort("shutdown")
        _end(first)
        assert third.reading
        _end(third)
        assert service.empty()

    def test_queueing_at_the_global_limit(self) -> None:
        """A connection queued at the global limit is served when a connection of any service ends."""
        service = _Service("on_limit=queue", most=1)
        elsewhere: Any = service.service_admission.admission.admit("192.0.2.9", 0.0)
        waiting = service.connect()
        assert not waiting.reading
        elsewhere.release()
        assert waiting.reading

    def test_new_rules_apply_to_queued_connections(self) -> None:
        """The current rules are applied once there is room."""
        service = _Service("instances=1 on_limit=queue access_times=12:00-12:30")
        first, second = service.connect(), service.connect()
        service.wall += 3600
        _end(first)
        assert second.lost == "done"
        assert service.reasons() == ["time"]
        assert service.empty()

    def test_host_name_is_looked_up_after_queueing(self) -> None:
        """The lookup starts once there is room; the connection is counted during the lookup."""
        service = _Service("instances=1 on_limit=queue only_from=10.0.0.1,.example")
        first, second = service.connect("10.0.0.1"), service.connect()
        assert not service.names.queries
        _end(first)
        assert not second.reading
        service.names.answer("good.example")
        assert second.reading
        _end(second)
        assert service.empty()


class TestReload:
    """New options of a running service."""

    @staticmethod
    def reload(service: _Service, options: str) -> None:
        """Apply new options, as the supervisor does."""
        changed = service_of(f"echo 7/tcp access_zone=UTC {options}")
        commit = service.service_admission.prepare(changed)
        service.tracker.retune(changed)
        commit()

    def test_new_options_apply_to_new_connections(self) -> None:
        """Open connections stay open, and are counted by the new rules."""
        service = _Service("instances=2 banner=/all")
        first = service.connect()
        self.reload(service, "instances=1 banner_fail=/out log_on_failure=ATTEMPT")
        refused = service.connect()
        assert (first.sent, first.lost, refused.sent) == (b"all\n", "", b"out\n")
        assert service.lines[-1].startswith("refuse service=echo/tcp reason=instances count=1 rule=")
        _end(first)
        assert service.connect().sent == b""

    def test_higher_limit_admits_queued_connections(self) -> None:
        """Queued connections are admitted at once."""
        service = _Service("instances=1 on_limit=queue")
        service.connect()
        waiting = [service.connect() for _ in range(2)]
        self.reload(service, "instances=2 on_limit=queue")
        assert [each.reading for each in waiting] == [True, False]
        assert not service.listening
        self.reload(service, "on_limit=queue")
        assert waiting[1].reading
        assert service.listening

    def test_queued_connections_are_refused_without_queueing(self) -> None:
        """Without on_limit=queue queued connections are refused, and the listeners resume."""
        service = _Service("instances=1 on_limit=queue")
        first, second = service.connect(), service.connect()
        self.reload(service, "instances=1 banner_fail=/out")
        assert (first.lost, second.sent, second.reading) == ("", b"out\n", True)
        assert service.listening
        _end(first)
        second.protocol.readConnectionLost()
        assert service.empty()

    def test_missing_banner_file_changes_nothing(self) -> None:
        """Files are read before any change is made."""
        service = _Service("banner=/all")
        with pytest.raises(FileNotFoundError):
            self.reload(service, "banner=/gone")
        assert service.connect().sent == b"all\n"

    def test_position_of_a_rule_changes(self) -> None:
        """A refuse line has the new position of the rule."""
        service = _Service("only_from=")
        (moved,) = config_of("\n\necho 7/tcp access_zone=UTC only_from=").services
        service.service_admission.update_locations(moved)
        service.connect()
        assert '(s:3:38)"' in service.lines[-1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    yield ours, theirs
    for each in (ours, theirs):
        each.close()


class TestEviction:
    """Eviction of idle connections for new ones."""

    def with_evictable(self, options: str, **more: Any) -> tuple[_Service, list[Any]]:
        """Return a service whose connections can all be evicted, the oldest first."""
        service = _Service(options, **more)
        open_ones: list[Any] = []

        def evict() -> bool:
            if not open_ones:
                return False
            service.reactor.callLater(0, open_ones.pop(0).abortConnection)
            return True

        service.tracker.budget.evict_by(evict)
        return service, open_ones

    @pytest.mark.parametrize(("options", "most"), [("instances=2", None), ("", 2)])
    def test_connection_is_evicted_for_a_new_one(self, options: str, most: int | None) -> None:
        """At the limit of the service or the daemon a connection is evicted, and the new one is admitted after it."""
        service, old = self.with_evictable(options, most=most)
        old += [service.connect(), service.connect()]
        before = list(old)
        new = [service.connect() for _ in range(2)]
        assert not service.listening
        service.reactor.advance(0)
        service.reactor.advance(0)
        assert [each.lost for each in before] == ["aborted", "aborted"]
        assert [type(each.protocol).__name__ for each in new] == ["HalfCloseableWrapper"] * 2
        assert service.listening
        assert (service.service_admission.admission.open, service.reasons()) == (2, [])

    def test_refusal_without_a_connection_to_evict(self) -> None:
        """Without a connection to evict a client is refused."""
        service, _ = self.with_evictable("instances=1")
        service.connect()
        assert service.connect() is None
        assert service.reasons() == ["instances"]

    def test_no_eviction_at_the_limit_of_a_source(self) -> None:
        """A client over per_source is refused without an eviction."""
        service, old = self.with_evictable("per_source=1")
        old.append(service.connect())
        assert service.connect() is None
        assert service.reasons() == ["per_source"]
        assert not old[0].lost

    def test_eviction_with_queueing(self) -> None:
        """With on_limit=queue the listeners are paused, and a connection is evicted as soon as one can be."""
        service, old = self.with_evictable("instances=1 on_limit=queue")
        first = service.connect()
        assert not service.service_admission.may_accept()
        service.reactor.pump([0.1] * 5)
        assert not service.listening
        old.append(first)
        service.reactor.pump([0.1] * 2)
        assert first.lost == "aborted"
        assert service.listening
        service.reactor.pump([0.1] * 2)
        assert service.empty()


class TestDescriptors:
    """Refused clients without a transport."""

    def test_banner_arrives(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """The banner arrives with the end of output; input is discarded until the client closes."""
        ours, theirs = pair
        service = _Service("banner_fail=/out")
        theirs.sendall(b"x" * 1000)
        service.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        assert theirs.recv(100) == b"out\n"
        assert theirs.recv(100) == b""
        (leaving,) = service.reactor.readers
        assert leaving.logPrefix() == "refused"
        leaving.doRead()
        leaving.doRead()
        assert leaving.fileno() >= 0
        theirs.close()
        leaving.doRead()
        assert service.empty()

    @pytest.mark.parametrize("end", ["time", "bytes", "reactor"])
    def test_lingering_close_is_limited(self, pair: tuple[socket.socket, socket.socket], end: str) -> None:
        """A lingering close ends by its time, by its input, or with the reactor."""
        ours, theirs = pair
        service = _Service()
        service.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        (leaving,) = service.reactor.readers
        if end == "time":
            service.reactor.advance(LINGER_SECONDS)
        elif end == "bytes":
            for _ in range(2):
                theirs.sendall(b"x" * 40_000)
                leaving.doRead()
        else:
            leaving.connectionLost(Failure(ConnectionLost()))
        assert service.empty()

    def test_close_without_a_banner_or_a_client(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Without a banner, or after the client has closed, the connection is closed at once."""
        ours, theirs = pair
        service = _Service()
        service.service_admission.refusals.lingering_closer.close(ours.detach(), b"")
        assert theirs.recv(1) == b""
        ours, theirs = socket.socketpair()
        theirs.close()
        service.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        assert service.empty()

    def test_close_over_the_limit(
        self, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Over the limit of lingering connections it is closed after the banner."""
        monkeypatch.setattr(lingering_close_module, "_MAX_LINGERING", 0)
        ours, theirs = pair
        service = _Service()
        service.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        assert theirs.recv(100) == b"out\n"
        assert service.empty()

    def test_send_banner_does_not_block(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """send_banner() does not block on a blocking socket whose client has closed or does not read."""
        ours, theirs = pair
        send_banner(ours.fileno(), b"in\n")
        assert theirs.recv(100) == b"in\n"
        for _ in range(100):
            send_banner(ours.fileno(), b"x" * 65_536)
        theirs.close()
        send_banner(ours.fileno(), b"in\n")


@pytest.mark.parametrize(
    ("options", "rule"),
    [("no_access=192.0.2.1", "-"), ("only_from=.example.com", "-"), ("instances=1", "instances=1 ")],
)
def test_rule_is_anonymized(options: str, rule: str) -> None:
    """With anonymized addresses a refuse line has no rule with an address or a name, but one for all clients."""
    service = _Service(options, short=True)
    for _ in range(2):
        service.connect()
        if service.names.queries:
            service.names.answer("client.example.org")
    line = next(line for line in service.lines if line.startswith("refuse "))
    assert " peer=192.0.2.0 " in line
    assert line.partition(" rule=")[2].strip('"').startswith(rule)
    assert "192.0.2.1" not in "".join(service.lines)
