"""The entrance of a service: who is refused and told so, who waits, and that every ticket comes back."""

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
    """Answers everything."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Nothing to do."""


class _Place:
    """A service's keeper, its listener, and everything around."""

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
        """The transport of a client that was accepted; None if it was closed at once."""
        address = _address(host) if host else LOCAL_PEER
        protocol = self.tracker.buildProtocol(address)
        if protocol is None:
            return None
        transport = StreamDouble(protocol, peer=address)
        protocol.makeConnection(transport)  # type: ignore[arg-type]
        return transport

    def reasons(self) -> list[str]:
        """The reasons of the refuse lines."""
        return [line.partition("reason=")[2].split()[0] for line in self.lines if line.startswith("refuse ")]

    def empty(self) -> bool:
        """Whether nothing at all is left."""
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
def test_who_may_not_come_in_is_closed_and_told(options: str, host: str, reason: str) -> None:
    """Before there is a protocol; the line has the rule and its place."""
    place = _Place(options)
    assert place.connect(host) is None
    (line,) = place.lines
    rule = options.partition("=")[0]
    peer = "local" if not host else "192.0.2.1:40000"
    assert line.startswith(f'refuse service=echo/tcp peer={peer} reason={reason} count=1 rule="{rule}')
    assert line.endswith(f' (s:1:{len("echo 7/tcp access_zone=UTC ") + len(rule) + 2})"')
    assert place.service_admission.refusals.counts == {reason: 1}
    assert place.empty()


def test_who_may_comes_in_and_its_ticket_comes_back() -> None:
    """At the end of the connection, once."""
    place = _Place("only_from=192.0.2.0/24 access_times=12:00-12:01 max_load=0.6 instances=1 per_source=1")
    transport = place.connect()
    assert place.service_admission.admission.open == place.global_limit.open == 1
    assert place.connect() is None
    _end(transport)
    assert place.empty()
    _end(place.connect("192.0.2.2"))
    assert place.reasons() == ["instances"]


@pytest.mark.parametrize("options", ["rate=1/s", "per_source_rate=1/s"])
def test_a_rate_never_closes_for_good(options: str) -> None:
    """Who comes too fast is refused, a second later the next is served."""
    place = _Place(options)
    _end(place.connect())
    assert place.connect() is None
    place.reactor.advance(1)
    _end(place.connect())
    assert set(place.reasons()) == {options.partition("=")[0]}


def test_the_daemons_limit() -> None:
    """--max-connections holds for all services together."""
    place = _Place(most=1)
    first = place.connect()
    assert place.connect() is None
    assert place.lines[-1].endswith('reason=global count=1 rule="--max-connections 1 (the command line)"')
    _end(first)
    assert place.empty()


def test_the_last_descriptors_are_not_given_away() -> None:
    """However many were accepted before the listeners could rest."""
    place = _Place(limit=2)
    transports = [place.connect() for _ in range(2 + SLACK)]
    assert all(transports)
    assert place.connect() is None
    assert place.reasons() == ["descriptors"]
    for transport in transports:
        _end(transport)
    place.reactor.pump([0.05] * 4)
    assert place.empty()


def test_a_service_that_fails_to_build_a_protocol_keeps_no_ticket() -> None:
    """Nor one that wants none."""
    place = _Place()

    def fail(_addr: object) -> None:
        raise ZeroDivisionError

    place.factory.buildProtocol = fail  # type: ignore[method-assign,assignment]
    assert place.connect() is None
    place.factory.buildProtocol = lambda _addr: None  # type: ignore[method-assign,assignment]
    assert place.connect() is None
    assert place.reasons() == ["service"]
    assert place.empty()


def test_a_protocol_that_fails_at_its_beginning_or_end_gives_its_ticket_back() -> None:
    """The mistake goes on to the transport."""
    place = _Place()
    for method in ("makeConnection", "connectionLost"):

        class _Broken(_Echo):
            pass

        def fail(_self: object, _argument: object) -> None:
            raise ZeroDivisionError

        setattr(_Broken, method, fail)
        place.factory.protocol = _Broken
        wrapper: Any = place.tracker.buildProtocol(_address())
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
        assert place.empty()


class TestLog:
    """What is said of refusals."""

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ("HOST", "refuse service=echo/tcp peer=192.0.2.1:40000 reason=address count=1 rule="),
            ("ATTEMPT", "refuse service=echo/tcp reason=address count=1 rule="),
            ("none", ""),
        ],
    )
    def test_log_on_failure_chooses(self, words: str, line: str) -> None:
        """The address, the attempt alone, or nothing; it is counted in any case, and costs no timer without lines."""
        place = _Place(f"only_from= log_on_failure={words}")
        for _ in range(3):
            place.connect()
        assert [each.startswith(line) for each in place.lines] == ([True] if line else [])
        assert place.service_admission.refusals.counts == {RefusalReason.ADDRESS: 3}
        assert bool(place.reactor.getDelayedCalls()) is bool(line)

    def test_a_flood_is_a_line_a_second(self) -> None:
        """The counts add up, the first of each second is named, and nothing ticks when it is over."""
        place = _Place("only_from=")
        for number in range(300):
            place.connect(f"192.0.2.{number % 250}")
            place.reactor.advance(1 / 128)
        place.reactor.advance(2)
        counts = [int(line.partition("count=")[2].split()[0]) for line in place.lines]
        assert counts == [1, 127, 128, 44]
        assert " peer=192.0.2.1:40000 " in place.lines[1]
        assert place.empty()

    def test_each_reason_has_its_line(self) -> None:
        """And all that waits is told at the end."""
        place = _Place("no_access=10.0.0.1 instances=1")
        kept = place.connect()
        for _ in range(2):
            place.connect("10.0.0.1")
            place.connect()
        assert place.reasons() == ["address", "instances"]
        place.service_admission.refusals.flush()
        assert place.reasons() == ["address", "instances"] * 2
        place.service_admission.refusals.flush()
        assert len(place.lines) == 5
        _end(kept)
        assert place.empty()


class TestBanners:
    """Texts for those who come."""

    def test_who_is_let_in_is_greeted_before_the_service_speaks(self) -> None:
        """By both texts."""
        transport = _Place(BANNERS).connect()
        transport.protocol.dataReceived(b"x")
        assert transport.sent == b"all\nin\nx"

    def test_who_is_refused_has_a_last_word(self) -> None:
        """Our side is closed behind it, what the client says is dropped, and its close ends it."""
        place = _Place(f"{BANNERS} only_from=")
        transport = place.connect()
        assert (transport.sent, transport.calls) == (b"all\nout\n", ["loseWriteConnection"])
        transport.protocol.dataReceived(b"x" * 1000)
        assert not transport.lost
        assert place.budget.open == 1
        transport.protocol.readConnectionLost()
        assert transport.lost == "done"
        assert place.empty()

    def test_who_does_not_close_is_closed(self) -> None:
        """After a while by a plain close, and if that does not end it, by a reset."""
        place = _Place("banner_fail=/out only_from=")
        transport = place.connect()
        place.reactor.advance(LINGER_SECONDS)
        assert transport.lost == "done"
        protocol: Any = place.tracker.buildProtocol(_address())
        stuck: Any = StreamDouble(protocol, room=1)
        protocol.makeConnection(stuck)
        place.reactor.advance(LINGER_SECONDS)
        assert not stuck.lost
        place.reactor.advance(1)
        assert stuck.lost == "aborted"
        assert place.empty()

    def test_who_sends_too_much_is_closed(self) -> None:
        """64 KiB are enough for a client that has not understood yet."""
        place = _Place("banner_fail=/out only_from=")
        transport = place.connect()
        for _ in range(2):
            transport.protocol.dataReceived(b"x" * 40_000)
        assert transport.lost == "done"
        assert place.empty()

    def test_refusals_use_up_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond a number the text is sent and the connection closed at once."""
        monkeypatch.setattr(lingering_close_module, "_MAX_LINGERING", 2)
        place = _Place("banner_fail=/out only_from=")
        transports = [place.connect() for _ in range(4)]
        assert [transport.lost for transport in transports] == ["", "", "done", "done"]
        assert all(transport.sent == b"out\n" for transport in transports)
        place.reactor.advance(LINGER_SECONDS)
        assert place.empty()


class TestNames:
    """A client whose name has the last word."""

    options = "only_from=10.0.0.0/8,.example no_access=bad.example"

    def test_it_waits_unread_and_is_served(self) -> None:
        """With what it has sent, and counted meanwhile."""
        place = _Place(f"{self.options} banner=/all")
        transport = place.connect()
        assert isinstance(transport.protocol, PendingConnection)
        assert not transport.reading
        assert (place.service_admission.admission.open, place.budget.open, transport.sent) == (1, 1, b"")
        transport.protocol.dataReceived(b"early")
        assert place.names.queries[0][0] == "192.0.2.1"
        place.names.answer("good.example")
        assert isinstance(transport.protocol, ConnectionWrapper)
        assert transport.reading
        assert transport.sent == b"all\nearly"
        assert (place.service_admission.admission.open, place.budget.open) == (1, 1)
        _end(transport)
        assert place.empty()

    @pytest.mark.parametrize(("name", "reason"), [("bad.example", "name"), (None, "name"), ("x.test", "address")])
    def test_it_is_refused_late(self, name: str | None, reason: str) -> None:
        """With a last word where there is one."""
        place = _Place(self.options)
        transport = place.connect()
        place.names.answer(name)
        assert (transport.lost, place.reasons()) == ("done", [reason])
        assert place.empty()
        place = _Place(f"{self.options} banner_fail=/out")
        transport = place.connect()
        place.names.answer(name)
        assert isinstance(transport.protocol, RejectProtocol)
        assert (transport.sent, transport.reading) == (b"out\n", True)
        transport.protocol.readConnectionLost()
        assert place.empty()

    def test_a_name_that_is_known_needs_no_waiting(self) -> None:
        """The gate is there at once, or the refusal."""
        for name, kind in (("good.example", ConnectionWrapper), ("bad.example", type(None))):
            place = _Place(self.options)
            answer = place.names.confirmed_host_of("192.0.2.1")
            place.names.answer(name)
            place.names.confirmed_host_of = lambda _address, answer=answer: answer  # type: ignore[method-assign,misc]
            assert isinstance(place.tracker.buildProtocol(_address()), kind)

    def test_a_client_that_goes_before_its_name_is_known(self) -> None:
        """Its ticket comes back, and the late name changes nothing."""
        place = _Place(self.options)
        _end(place.connect())
        assert (place.service_admission.admission.open, place.global_limit.open, place.budget.open) == (0, 0, 0)
        place.names.answer("good.example")
        assert place.empty()
        assert place.lines == []

    def test_a_stop_does_not_wait_for_names(self) -> None:
        """Nothing is owed to who was not let in."""
        place = _Place(self.options)
        transport = place.connect()
        emptied = place.tracker.when_empty()
        assert not emptied.called
        (pending,) = place.tracker.all_connections()
        facts = pending.info()
        assert (facts["id"], facts["peer"], facts["state"]) == (1, "192.0.2.1:40000", "host-name")
        assert pending.info()["id"] == pending.connection_id == 1
        pending.drain()
        assert transport.lost == "aborted"
        assert emptied.called

    def test_a_service_that_fails_or_wants_nobody_after_all(self) -> None:
        """The connection ends, and nothing is left."""
        for build in (lambda _addr: None, lambda _addr: _Broken()):
            place = _Place(self.options)
            place.factory.buildProtocol = build  # type: ignore[method-assign]
            transport = place.connect()
            with LogCatcher() as log:
                place.names.answer("good.example")
            for failure in log.failures:
                failure.trap(ZeroDivisionError)
            assert transport.lost
            assert place.empty()


class _Broken(_Echo):
    def connectionMade(self) -> None:
        raise ZeroDivisionError


class TestQueue:
    """on_limit=queue: who comes while there are too many waits."""

    def test_listeners_rest_until_one_leaves(self) -> None:
        """The others wait in the kernel, and nobody is refused."""
        place = _Place("instances=2 on_limit=queue")
        assert place.service_admission.may_accept()
        transports = [place.connect() for _ in range(2)]
        assert place.listening
        assert not place.service_admission.may_accept()
        assert not place.listening
        _end(transports[0])
        assert place.listening
        _end(transports[1])
        assert place.empty()

    def test_who_was_accepted_already_waits_in_order(self) -> None:
        """Unread, before those in the kernel."""
        place = _Place("instances=1 on_limit=queue")
        first, second, third = (place.connect() for _ in range(3))
        assert not place.listening
        assert [type(each.protocol).__name__ for each in (second, third)] == ["PendingConnection"] * 2
        assert (place.service_admission.admission.open, place.budget.open) == (1, 3)
        _end(first)
        assert (second.reading, third.reading, place.listening) == (True, False, False)
        _end(second)
        assert (third.reading, place.listening) == (True, False)
        _end(third)
        assert place.listening
        assert [line.split()[0] for line in place.lines] == ["accept", "end"] * 3
        assert place.empty()

    def test_whoever_leaves_the_queue_is_forgotten(self) -> None:
        """As when the daemon stops."""
        place = _Place("instances=1 on_limit=queue")
        first, second, third = (place.connect() for _ in range(3))
        second.protocol.abort("shutdown")
        _end(first)
        assert third.reading
        _end(third)
        assert place.empty()

    def test_the_daemons_limit_makes_it_wait_too(self) -> None:
        """Room anywhere is room for it."""
        place = _Place("on_limit=queue", most=1)
        elsewhere: Any = place.service_admission.admission.admit("192.0.2.9", 0.0)
        waiting = place.connect()
        assert not waiting.reading
        elsewhere.release()
        assert waiting.reading

    def test_other_rules_hold_for_who_waited(self) -> None:
        """They are asked when there is room."""
        place = _Place("instances=1 on_limit=queue access_times=12:00-12:30")
        first, second = place.connect(), place.connect()
        place.wall += 3600
        _end(first)
        assert second.lost == "done"
        assert place.reasons() == ["time"]
        assert place.empty()

    def test_a_name_is_asked_for_after_waiting(self) -> None:
        """Lookups are counted like connections."""
        place = _Place("instances=1 on_limit=queue only_from=10.0.0.1,.example")
        first, second = place.connect("10.0.0.1"), place.connect()
        assert not place.names.queries
        _end(first)
        assert not second.reading
        place.names.answer("good.example")
        assert second.reading
        _end(second)
        assert place.empty()


class TestReload:
    """Other options for a service that runs."""

    @staticmethod
    def reload(place: _Place, options: str) -> None:
        """As the supervisor does."""
        service = service_of(f"echo 7/tcp access_zone=UTC {options}")
        commit = place.service_admission.prepare(service)
        place.tracker.retune(service)
        commit()

    def test_they_hold_for_who_comes_then(self) -> None:
        """Whoever is in stays in, and is counted by the new rules."""
        place = _Place("instances=2 banner=/all")
        first = place.connect()
        self.reload(place, "instances=1 banner_fail=/out log_on_failure=ATTEMPT")
        refused = place.connect()
        assert (first.sent, first.lost, refused.sent) == (b"all\n", "", b"out\n")
        assert place.lines[-1].startswith("refuse service=echo/tcp reason=instances count=1 rule=")
        _end(first)
        assert place.connect().sent == b""

    def test_more_room_is_for_those_who_wait(self) -> None:
        """At once."""
        place = _Place("instances=1 on_limit=queue")
        place.connect()
        waiting = [place.connect() for _ in range(2)]
        self.reload(place, "instances=2 on_limit=queue")
        assert [each.reading for each in waiting] == [True, False]
        assert not place.listening
        self.reload(place, "on_limit=queue")
        assert waiting[1].reading
        assert place.listening

    def test_who_waited_is_refused_where_nobody_waits_any_more(self) -> None:
        """And the listeners go on, since refusing is their work now."""
        place = _Place("instances=1 on_limit=queue")
        first, second = place.connect(), place.connect()
        self.reload(place, "instances=1 banner_fail=/out")
        assert (first.lost, second.sent, second.reading) == ("", b"out\n", True)
        assert place.listening
        _end(first)
        second.protocol.readConnectionLost()
        assert place.empty()

    def test_a_file_that_is_gone_changes_nothing(self) -> None:
        """It is read before anything is done."""
        place = _Place("banner=/all")
        with pytest.raises(FileNotFoundError):
            self.reload(place, "banner=/gone")
        assert place.connect().sent == b"all\n"

    def test_a_line_may_move(self) -> None:
        """A refusal says where the rule stands now."""
        place = _Place("only_from=")
        (moved,) = config_of("\n\necho 7/tcp access_zone=UTC only_from=").services
        place.service_admission.update_locations(moved)
        place.connect()
        assert '(s:3:38)"' in place.lines[-1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    yield ours, theirs
    for each in (ours, theirs):
        each.close()


class TestEviction:
    """Connections of the service that can be closed for others."""

    def place(self, options: str, **more: Any) -> tuple[_Place, list[Any]]:
        """One whose connections may all be closed, the oldest first."""
        place = _Place(options, **more)
        open_ones: list[Any] = []

        def evict() -> bool:
            if not open_ones:
                return False
            place.reactor.callLater(0, open_ones.pop(0).abortConnection)
            return True

        place.tracker.budget.evict_by(evict)
        return place, open_ones

    @pytest.mark.parametrize(("options", "most"), [("instances=2", None), ("", 2)])
    def test_who_would_be_refused_gets_the_place_of_another(self, options: str, most: int | None) -> None:
        """At the limit of the service or of the daemon a connection leaves, and the new one is let in after it."""
        place, old = self.place(options, most=most)
        old += [place.connect(), place.connect()]
        before = list(old)
        new = [place.connect() for _ in range(2)]
        assert not place.listening
        place.reactor.advance(0)
        place.reactor.advance(0)
        assert [each.lost for each in before] == ["aborted", "aborted"]
        assert [type(each.protocol).__name__ for each in new] == ["HalfCloseableWrapper"] * 2
        assert place.listening
        assert (place.service_admission.admission.open, place.reasons()) == (2, [])

    def test_without_one_to_close_they_are_refused(self) -> None:
        """As ever."""
        place, _ = self.place("instances=1")
        place.connect()
        assert place.connect() is None
        assert place.reasons() == ["instances"]

    def test_a_source_does_not_get_the_place_of_another(self) -> None:
        """Who has too many connections itself is refused, and nobody leaves for it."""
        place, old = self.place("per_source=1")
        old.append(place.connect())
        assert place.connect() is None
        assert place.reasons() == ["per_source"]
        assert not old[0].lost

    def test_who_waits_in_the_kernels_queue_gets_places_as_they_can_be_given(self) -> None:
        """With on_limit=queue the listeners rest, and a connection leaves as soon as one can be closed."""
        place, old = self.place("instances=1 on_limit=queue")
        first = place.connect()
        assert not place.service_admission.may_accept()
        place.reactor.pump([0.1] * 5)
        assert not place.listening
        old.append(first)
        place.reactor.pump([0.1] * 2)
        assert first.lost == "aborted"
        assert place.listening
        place.reactor.pump([0.1] * 2)
        assert place.empty()


class TestDescriptors:
    """Who is refused where there is the descriptor alone."""

    def test_a_last_word(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """It arrives, with the end, and what the client says is dropped until it closes."""
        ours, theirs = pair
        place = _Place("banner_fail=/out")
        theirs.sendall(b"x" * 1000)
        place.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        assert theirs.recv(100) == b"out\n"
        assert theirs.recv(100) == b""
        (leaving,) = place.reactor.readers
        assert leaving.logPrefix() == "refused"
        leaving.doRead()
        leaving.doRead()
        assert leaving.fileno() >= 0
        theirs.close()
        leaving.doRead()
        assert place.empty()

    @pytest.mark.parametrize("end", ["time", "bytes", "reactor"])
    def test_it_is_bounded(self, pair: tuple[socket.socket, socket.socket], end: str) -> None:
        """In time and bytes; and it ends with the reactor."""
        ours, theirs = pair
        place = _Place()
        place.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        (leaving,) = place.reactor.readers
        if end == "time":
            place.reactor.advance(LINGER_SECONDS)
        elif end == "bytes":
            for _ in range(2):
                theirs.sendall(b"x" * 40_000)
                leaving.doRead()
        else:
            leaving.connectionLost(Failure(ConnectionLost()))
        assert place.empty()

    def test_without_a_text_or_a_client_it_is_closed(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """At once."""
        ours, theirs = pair
        place = _Place()
        place.service_admission.refusals.lingering_closer.close(ours.detach(), b"")
        assert theirs.recv(1) == b""
        ours, theirs = socket.socketpair()
        theirs.close()
        place.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        assert place.empty()

    def test_beyond_the_number_it_is_closed_at_once(
        self, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind its text."""
        monkeypatch.setattr(lingering_close_module, "_MAX_LINGERING", 0)
        ours, theirs = pair
        place = _Place()
        place.service_admission.refusals.lingering_closer.close(ours.detach(), b"out\n")
        assert theirs.recv(100) == b"out\n"
        assert place.empty()

    def test_a_greeting_never_waits(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Not even on a blocking socket whose client is gone, or reads nothing."""
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
def test_a_rule_must_not_say_what_the_address_does_not(options: str, rule: str) -> None:
    """Where addresses are shortened, a rule for an address or a name is not told; one for all clients is."""
    place = _Place(options, short=True)
    for _ in range(2):
        place.connect()
        if place.names.queries:
            place.names.answer("client.example.org")
    line = next(line for line in place.lines if line.startswith("refuse "))
    assert " peer=192.0.2.0 " in line
    assert line.partition(" rule=")[2].strip('"').startswith(rule)
    assert "192.0.2.1" not in "".join(place.lines)
