"""Every connection's way in and out: numbers, counts, lines."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from svcd.access.admission import GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.wrapper import ConnectionWrapper, TrackingFactory
from svcd.log.formats import JsonFormat, TextFormat
from svcd.log.writer import LogWriter
from tests.doubles import LOCAL_PEER, FakeFiles, FakeReactor, FakeResolver, StreamDouble, list_sink, service_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

V4 = IPv4Address("TCP", "192.0.2.1", 40_000)
V6 = IPv6Address("TCP", "2001:db8::1", 40_001)


class _Service(Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.received = b""
        self.raises: Exception | None = None

    def connectionMade(self) -> None:
        self.told.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: object = None) -> None:  # noqa: ARG002 - Twisted's signature
        self.told.append("lost")
        if self.raises is not None:
            raise self.raises


@implementer(IHalfCloseableProtocol)
class _HalfCloseable(_Service):
    def readConnectionLost(self) -> None:
        self.told.append("read lost")

    def writeConnectionLost(self) -> None:
        self.told.append("write lost")

    def drain(self) -> None:
        self.told.append("drain")


class _Factory(Factory):
    """Builds one kind of protocol, or none."""

    def __init__(self, kind: type[_Service] | None) -> None:
        self.kind = kind
        self.running = 0

    def doStart(self) -> None:
        self.running += 1

    def doStop(self) -> None:
        self.running -= 1

    def buildProtocol(self, addr: IAddress) -> _Service | None:  # type: ignore[override]  # noqa: ARG002
        return self.kind() if self.kind else None


class _Gates:
    """A gatekeeper with everything around it."""

    def __init__(
        self,
        line: str = "echo 7/tcp",
        kind: type[_Service] | None = _HalfCloseable,
        *,
        as_json: bool = False,
        short: bool = False,
        files: FakeFiles | None = None,
    ) -> None:
        self.clock = FakeReactor()
        self.lines: list[str] = []
        self.names = FakeResolver()
        self.budget = DescriptorBudget(100, self.clock)
        self.factory = _Factory(kind)
        log_writer = LogWriter(
            list_sink(self.lines), (JsonFormat if as_json else TextFormat)(stamped=False), anonymize=short
        )
        service = service_of(line)
        context = ConnectionContext(
            self.clock,
            log_writer,
            files or FakeFiles(),
            self.names,
            self.budget,
            GlobalLimit(),
            clock=self.clock.seconds,
        )
        self.service_admission = ServiceAdmission(context, service)
        self.tracker = TrackingFactory(service, context, self.service_admission, self.factory)

    def connect(self, peer: IAddress = V4) -> tuple[Any, StreamDouble, Any]:
        """A connection: its gate, transport, protocol."""
        wrapper: Any = self.tracker.buildProtocol(peer)
        assert isinstance(wrapper, ConnectionWrapper)
        transport = StreamDouble(wrapper, peer=peer)
        wrapper.makeConnection(transport)
        return wrapper, transport, wrapper._protocol


def _lose(transport: StreamDouble, error: Exception | None = None) -> None:
    transport.lose(Failure(error or ConnectionDone()))


def test_a_connection_is_told_when_it_comes_and_when_it_goes() -> None:
    """The accept and end lines say who, how many, how much, how long and why."""
    wrappers = _Gates()
    _, first, _ = wrappers.connect()
    _, second, _ = wrappers.connect(V6)
    wrappers.clock.advance(1.5)
    first.bytes_in, first.bytes_out = 5, 6
    _lose(first)
    _lose(second, ConnectionLost())
    assert wrappers.lines == [
        "accept service=echo/tcp peer=192.0.2.1:40000 id=1 count=1",
        "accept service=echo/tcp peer=[2001:db8::1]:40001 id=2 count=2",
        "end service=echo/tcp peer=192.0.2.1:40000 id=1 in=5 out=6 seconds=1.500 reason=done count=1",
        "end service=echo/tcp peer=[2001:db8::1]:40001 id=2 in=0 out=0 seconds=1.500 reason=lost count=0",
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionDone(), "done"),
        (ConnectionLost(), "lost"),
        # A transport says ConnectionLost; what else comes was raised by the service.
        (OSError(2, "no such file"), "error"),
        (ConnectionAborted(), "aborted"),
        (ZeroDivisionError(), "error"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_reason_of_an_end(error: Exception, reason: str, as_json: bool) -> None:
    """Each way to end has its word, in both kinds of log."""
    wrappers = _Gates(as_json=as_json)
    _lose(wrappers.connect()[1], error)
    line = wrappers.lines[-1]
    assert (json.loads(line)["reason"] if as_json else line.partition("reason=")[2].split()[0]) == reason


def test_a_connection_that_is_cut_ends_by_its_cause() -> None:
    """The log says shutdown, not that it was aborted."""
    wrappers = _Gates()
    wrapper, transport, _ = wrappers.connect()
    wrapper.abort("shutdown")
    assert transport.lost == "aborted"
    assert " reason=shutdown " in wrappers.lines[-1]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_client_that_could_not_be_served(as_json: bool) -> None:
    """A protocol may say why, and the log tells it in a line before the end's."""
    wrappers = _Gates(as_json=as_json)
    _, transport, protocol = wrappers.connect()
    protocol.failure_text = "no server"
    _lose(transport)
    if as_json:
        assert [json.loads(line).get("reason") for line in wrappers.lines] == [None, "no server", "failed"]
        return
    assert wrappers.lines[1] == 'fail service=echo/tcp peer=192.0.2.1:40000 id=1 reason="no server"'
    assert " reason=failed " in wrappers.lines[2]


@pytest.mark.parametrize(
    ("words", "accept", "end"),
    [
        ("none", None, None),
        ("PID", "service pid id count", "service pid id count"),
        ("HOST", "service peer id count", "service peer id count"),
        ("EXIT", "service id count", "service id reason count"),
        ("DURATION", "service id count", "service id seconds count"),
        ("TRAFFIC", "service id count", "service id in out count"),
        ("PID,EXIT", "service id count pid", "service id reason count pid"),
    ],
)
def test_log_on_success_chooses_the_fields(words: str, accept: str | None, end: str | None) -> None:
    """Each word stands for its fields; without any word there are no lines."""
    wrappers = _Gates(f"echo 7/tcp log_on_success={words}")
    _lose(wrappers.connect()[1])
    found = [{word.partition("=")[0] for word in line.split()[1:]} for line in wrappers.lines]
    assert found == [set(fields.split()) for fields in (accept, end) if fields is not None]
    if "PID" in words:
        assert all(f" pid={os.getpid()}" in line for line in wrappers.lines)


def test_a_local_client_is_known_by_its_process() -> None:
    """A UNIX socket's peer is its process and user."""
    wrappers = _Gates("echo /run/e/unix")
    wrappers.connect(LOCAL_PEER)
    assert wrappers.lines == ["accept service=echo/unix peer=pid:17/uid:1000 id=1 count=1"]


def test_the_accept_line_waits_for_the_name_and_the_client_does_not() -> None:
    """With resolve=yes the protocol begins at once, and both lines carry the name when it is there."""
    wrappers = _Gates("echo 7/tcp resolve=yes")
    wrapper, transport, protocol = wrappers.connect()
    assert protocol.told == ["made"]
    wrapper.dataReceived(b"x")
    assert (protocol.received, wrappers.lines) == (b"x", [])
    wrappers.names.answer("host.example")
    _lose(transport)
    assert wrappers.lines[0] == "accept service=echo/tcp peer=192.0.2.1:40000 host=host.example id=1 count=1"
    assert " host=host.example " in wrappers.lines[1]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_name_cannot_forge_a_line(as_json: bool) -> None:
    """Whoever runs the client's name server can write one quoted word into the log."""
    wrappers = _Gates("echo 7/tcp resolve=yes", as_json=as_json)
    wrappers.connect()
    wrappers.names.answer('a\nend service=x %(y)s "')
    (line,) = wrappers.lines
    assert "\n" not in line
    word = json.loads(line)["host"] if as_json else json.loads(line.partition("host=")[2].rpartition(" id=")[0])
    assert word == 'a\nend service=x %(y)s "'


def test_a_client_without_a_host_name() -> None:
    """No name is a dash."""
    wrappers = _Gates("echo 7/tcp resolve=yes")
    wrappers.connect()
    wrappers.names.answer(None)
    assert " host=- " in wrappers.lines[0]


def test_a_connection_that_ends_before_its_name_is_known() -> None:
    """It has both lines, in order, and the late name adds no third."""
    wrappers = _Gates("echo 7/tcp resolve=yes")
    _, transport, _ = wrappers.connect()
    _lose(transport)
    wrappers.names.answer("host.example")
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "end"]
    assert all(" host=- " in line for line in wrappers.lines)


def test_a_local_client_has_no_name_to_look_up() -> None:
    """With resolve=yes a UNIX socket's lines come at once."""
    wrappers = _Gates("echo /run/e/unix resolve=yes")
    wrappers.connect(LOCAL_PEER)
    assert not wrappers.names.queries
    assert len(wrappers.lines) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_a_service_may_refuse(as_json: bool) -> None:
    """A factory that builds nothing is told as a refusal; nothing is counted."""
    wrappers = _Gates(kind=None, as_json=as_json)
    assert wrappers.tracker.buildProtocol(V4) is None
    assert wrappers.budget.open == 0
    if as_json:
        assert json.loads(wrappers.lines[0])["reason"] == "service"
    else:
        assert wrappers.lines == ["refuse service=echo/tcp peer=192.0.2.1:40000 reason=service count=1 rule=-"]


def test_half_close_is_offered_only_where_it_is_answered() -> None:
    """The gate is half-closeable when its protocol is, and passes it on."""
    wrapper, _, protocol = _Gates(kind=_HalfCloseable).connect()
    assert IHalfCloseableProtocol.providedBy(wrapper)
    wrapper.readConnectionLost()
    wrapper.writeConnectionLost()
    assert protocol.told == ["made", "read lost", "write lost"]
    plain, _, _ = _Gates(kind=_Service).connect()
    assert isinstance(plain, ConnectionWrapper)
    assert not IHalfCloseableProtocol.providedBy(plain)


def test_a_descriptor_is_taken_and_given_back_once() -> None:
    """The budget counts each connection from its begin to its end."""
    wrappers = _Gates()
    transports = [wrappers.connect()[1] for _ in range(3)]
    assert wrappers.budget.open == 3
    for left, transport in zip((2, 1, 0), transports, strict=True):
        _lose(transport)
        assert wrappers.budget.open == left
        assert len(wrappers.tracker.connections) == left


def test_a_protocol_that_fails_at_its_end_is_still_counted_and_told() -> None:
    """Its mistake is passed on, after the end line's words are known."""
    wrappers = _Gates(kind=_Service)
    _, transport, protocol = wrappers.connect()
    protocol.raises = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        _lose(transport)
    assert wrappers.lines[-1].startswith("end ")
    assert (wrappers.budget.open, wrappers.tracker.connections) == (0, {})


def test_when_empty_fires_with_the_last_connection() -> None:
    """At once without any, else when the last is gone, for everyone who waits."""
    wrappers = _Gates()
    assert wrappers.tracker.when_empty().called
    transports = [wrappers.connect()[1] for _ in range(2)]
    waiting = [wrappers.tracker.when_empty(), wrappers.tracker.when_empty()]
    _lose(transports[0])
    assert not any(each.called for each in waiting)
    _lose(transports[1])
    assert all(each.called for each in waiting)


def test_draining_asks_a_protocol_that_can() -> None:
    """One that has no drain goes on until its client ends."""
    wrapper, _, protocol = _Gates(kind=_HalfCloseable).connect()
    wrapper.drain()
    assert "drain" in protocol.told
    wrapper, transport, _ = _Gates(kind=_Service).connect()
    wrapper.drain()
    assert not transport.lost


def test_a_protocols_own_way_for_data_is_used() -> None:
    """A dataReceived put in place when the connection is made is the one that gets the bytes."""

    class _Quick(_Service):
        def connectionMade(self) -> None:
            self.dataReceived = self.transport.write  # type: ignore[method-assign,union-attr]

    wrapper, transport, _ = _Gates(kind=_Quick).connect()
    wrapper.dataReceived(b"x")
    assert transport.sent == b"x"


@pytest.mark.parametrize("cause", ["idle", "first_byte", "session"])
def test_a_deadline_ends_a_connection_and_the_log_says_which(cause: str) -> None:
    """The connection is reset, and the end line has the deadline's name."""
    wrappers = _Gates(f"echo 7/tcp {cause}_timeout=8s")
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    _, transport, _ = wrappers.connect()
    wrappers.clock.pump([0.25] * 31)
    assert "abortConnection" not in transport.calls
    wrappers.clock.pump([0.25] * 5)
    assert "abortConnection" in transport.calls
    assert f" reason={cause} count=0" in wrappers.lines[-1]


def test_a_full_queue_is_idle() -> None:
    """What was written and not taken has not moved."""
    wrappers = _Gates("echo 7/tcp idle_timeout=8s")
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    (_, reads, _), (_, stalls, _) = wrappers.connect(), wrappers.connect()
    for _ in range(10):
        for transport in (reads, stalls):
            transport.write(b"more")
        reads.drain()
        wrappers.clock.advance(1)
    assert not reads.lost
    assert stalls.lost == "aborted"


def test_without_deadlines_nothing_watches() -> None:
    """No timer, and nothing told."""
    wrappers = _Gates()
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    wrappers.connect()
    assert wrappers.tracker.timeout_sweeper is None
    assert not wrappers.clock.getDelayedCalls()


def test_shortened_addresses_are_everywhere() -> None:
    """No line of a connection says more than its network: not when it comes, goes, fails or is refused."""
    wrappers = _Gates("echo 7/tcp resolve=yes", short=True)
    _, first, protocol = wrappers.connect()
    wrappers.names.answer("client.example")
    protocol.failure_text = "no"
    _lose(first)
    wrappers.factory.kind = None
    assert wrappers.tracker.buildProtocol(V6) is None
    assert [line.split(" seconds=")[0] for line in wrappers.lines] == [
        "accept service=echo/tcp peer=192.0.2.0 id=1 count=1",
        "fail service=echo/tcp peer=192.0.2.0 id=1 reason=no",
        "end service=echo/tcp peer=192.0.2.0 id=1 in=0 out=0",
        "refuse service=echo/tcp peer=2001:db8:: reason=service count=1 rule=-",
    ]
