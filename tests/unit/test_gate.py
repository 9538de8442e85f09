"""Every connection's way in and out: numbers, counts, lines."""

from __future__ import annotations

import itertools
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

from svcd.access.global_limit import GlobalLimit
from svcd.connections.admission_queue import Reception
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.factory import TrackingFactory
from svcd.connections.wrapper import ConnectionWrapper
from svcd.log.formats import JsonFormat, TextFormat
from svcd.log.writer import LogWriter
from tests.doubles import LOCAL_PEER, FakeFiles, FakeNames, FakeReactor, StreamDouble, keeping, service_of

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
        self.names = FakeNames()
        self.budget = DescriptorBudget(100, self.clock)
        self.factory = _Factory(kind)
        journal = LogWriter(keeping(self.lines), (JsonFormat if as_json else TextFormat)(stamped=False), short=short)
        service = service_of(line)
        self.entrance = Reception(self.clock, journal, files or FakeFiles(), self.budget, GlobalLimit()).entrance(
            service
        )
        self.keeper = TrackingFactory(
            service,
            self.factory,
            journal,
            self.names,
            self.budget.share(service.id),
            itertools.count(1),
            self.entrance,
            self.clock.seconds,
        )

    def connect(self, peer: IAddress = V4) -> tuple[Any, StreamDouble, Any]:
        """A connection: its gate, transport, protocol."""
        gate: Any = self.keeper.buildProtocol(peer)
        assert isinstance(gate, ConnectionWrapper)
        transport = StreamDouble(gate, peer=peer)
        gate.makeConnection(transport)
        return gate, transport, gate._protocol


def _lose(transport: StreamDouble, error: Exception | None = None) -> None:
    transport.lose(Failure(error or ConnectionDone()))


def test_a_connection_is_told_when_it_comes_and_when_it_goes() -> None:
    """The accept and end lines say who, how many, how much, how long and why."""
    gates = _Gates()
    _, first, _ = gates.connect()
    _, second, _ = gates.connect(V6)
    gates.clock.advance(1.5)
    first.bytes_in, first.bytes_out = 5, 6
    _lose(first)
    _lose(second, ConnectionLost())
    assert gates.lines == [
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
    gates = _Gates(as_json=as_json)
    _lose(gates.connect()[1], error)
    line = gates.lines[-1]
    assert (json.loads(line)["reason"] if as_json else line.partition("reason=")[2].split()[0]) == reason


def test_a_connection_that_is_cut_ends_by_its_cause() -> None:
    """The log says shutdown, not that it was aborted."""
    gates = _Gates()
    gate, transport, _ = gates.connect()
    gate.abort("shutdown")
    assert transport.lost == "aborted"
    assert " reason=shutdown " in gates.lines[-1]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_client_that_could_not_be_served(as_json: bool) -> None:
    """A protocol may say why, and the log tells it in a line before the end's."""
    gates = _Gates(as_json=as_json)
    _, transport, protocol = gates.connect()
    protocol.failure_text = "no server"
    _lose(transport)
    if as_json:
        assert [json.loads(line).get("reason") for line in gates.lines] == [None, "no server", "failed"]
        return
    assert gates.lines[1] == 'fail service=echo/tcp peer=192.0.2.1:40000 id=1 reason="no server"'
    assert " reason=failed " in gates.lines[2]


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
    gates = _Gates(f"echo 7/tcp log_on_success={words}")
    _lose(gates.connect()[1])
    found = [{word.partition("=")[0] for word in line.split()[1:]} for line in gates.lines]
    assert found == [set(fields.split()) for fields in (accept, end) if fields is not None]
    if "PID" in words:
        assert all(f" pid={os.getpid()}" in line for line in gates.lines)


def test_a_local_client_is_known_by_its_process() -> None:
    """A UNIX socket's peer is its process and user."""
    gates = _Gates("echo /run/e/unix")
    gates.connect(LOCAL_PEER)
    assert gates.lines == ["accept service=echo/unix peer=pid:17/uid:1000 id=1 count=1"]


def test_the_accept_line_waits_for_the_name_and_the_client_does_not() -> None:
    """With resolve=yes the protocol begins at once, and both lines carry the name when it is there."""
    gates = _Gates("echo 7/tcp resolve=yes")
    gate, transport, protocol = gates.connect()
    assert protocol.told == ["made"]
    gate.dataReceived(b"x")
    assert (protocol.received, gates.lines) == (b"x", [])
    gates.names.answer("host.example")
    _lose(transport)
    assert gates.lines[0] == "accept service=echo/tcp peer=192.0.2.1:40000 host=host.example id=1 count=1"
    assert " host=host.example " in gates.lines[1]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_name_cannot_forge_a_line(as_json: bool) -> None:
    """Whoever runs the client's name server can write one quoted word into the log."""
    gates = _Gates("echo 7/tcp resolve=yes", as_json=as_json)
    gates.connect()
    gates.names.answer('a\nend service=x %(y)s "')
    (line,) = gates.lines
    assert "\n" not in line
    word = json.loads(line)["host"] if as_json else json.loads(line.partition("host=")[2].rpartition(" id=")[0])
    assert word == 'a\nend service=x %(y)s "'


def test_a_nameless_client() -> None:
    """No name is a dash."""
    gates = _Gates("echo 7/tcp resolve=yes")
    gates.connect()
    gates.names.answer(None)
    assert " host=- " in gates.lines[0]


def test_a_connection_that_ends_before_its_name_is_known() -> None:
    """It has both lines, in order, and the late name adds no third."""
    gates = _Gates("echo 7/tcp resolve=yes")
    _, transport, _ = gates.connect()
    _lose(transport)
    gates.names.answer("host.example")
    assert [line.split()[0] for line in gates.lines] == ["accept", "end"]
    assert all(" host=- " in line for line in gates.lines)


def test_a_local_client_has_no_name_to_look_up() -> None:
    """With resolve=yes a UNIX socket's lines come at once."""
    gates = _Gates("echo /run/e/unix resolve=yes")
    gates.connect(LOCAL_PEER)
    assert not gates.names.asked
    assert len(gates.lines) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_a_service_may_refuse(as_json: bool) -> None:
    """A factory that builds nothing is told as a refusal; nothing is counted."""
    gates = _Gates(kind=None, as_json=as_json)
    assert gates.keeper.buildProtocol(V4) is None
    assert gates.budget.open == 0
    if as_json:
        assert json.loads(gates.lines[0])["reason"] == "service"
    else:
        assert gates.lines == ["refuse service=echo/tcp peer=192.0.2.1:40000 reason=service count=1 rule=-"]


def test_half_close_is_offered_only_where_it_is_answered() -> None:
    """The gate is half-closeable when its protocol is, and passes it on."""
    gate, _, protocol = _Gates(kind=_HalfCloseable).connect()
    assert IHalfCloseableProtocol.providedBy(gate)
    gate.readConnectionLost()
    gate.writeConnectionLost()
    assert protocol.told == ["made", "read lost", "write lost"]
    plain, _, _ = _Gates(kind=_Service).connect()
    assert isinstance(plain, ConnectionWrapper)
    assert not IHalfCloseableProtocol.providedBy(plain)


def test_a_descriptor_is_taken_and_given_back_once() -> None:
    """The budget counts each connection from its begin to its end."""
    gates = _Gates()
    transports = [gates.connect()[1] for _ in range(3)]
    assert gates.budget.open == 3
    for left, transport in zip((2, 1, 0), transports, strict=True):
        _lose(transport)
        assert gates.budget.open == left
        assert len(gates.keeper.sessions) == left


def test_a_protocol_that_fails_at_its_end_is_still_counted_and_told() -> None:
    """Its mistake is passed on, after the end line's words are known."""
    gates = _Gates(kind=_Service)
    _, transport, protocol = gates.connect()
    protocol.raises = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        _lose(transport)
    assert gates.lines[-1].startswith("end ")
    assert (gates.budget.open, gates.keeper.sessions) == (0, {})


def test_when_empty_fires_with_the_last_connection() -> None:
    """At once without any, else when the last is gone, for everyone who waits."""
    gates = _Gates()
    assert gates.keeper.when_empty().called
    transports = [gates.connect()[1] for _ in range(2)]
    waiting = [gates.keeper.when_empty(), gates.keeper.when_empty()]
    _lose(transports[0])
    assert not any(each.called for each in waiting)
    _lose(transports[1])
    assert all(each.called for each in waiting)


def test_draining_asks_a_protocol_that_can() -> None:
    """One that has no drain goes on until its client ends."""
    gate, _, protocol = _Gates(kind=_HalfCloseable).connect()
    gate.drain()
    assert "drain" in protocol.told
    gate, transport, _ = _Gates(kind=_Service).connect()
    gate.drain()
    assert not transport.lost


def test_a_protocols_own_way_for_data_is_used() -> None:
    """A dataReceived put in place when the connection is made is the one that gets the bytes."""

    class _Quick(_Service):
        def connectionMade(self) -> None:
            self.dataReceived = self.transport.write  # type: ignore[method-assign,union-attr]

    gate, transport, _ = _Gates(kind=_Quick).connect()
    gate.dataReceived(b"x")
    assert transport.sent == b"x"


@pytest.mark.parametrize("cause", ["idle", "first_byte", "session"])
def test_a_deadline_ends_a_connection_and_the_log_says_which(cause: str) -> None:
    """The connection is reset, and the end line has the deadline's name."""
    gates = _Gates(f"echo 7/tcp {cause}_timeout=8s")
    gates.keeper.start_timeouts(gates.clock.callLater)
    _, transport, _ = gates.connect()
    gates.clock.pump([0.25] * 31)
    assert "abortConnection" not in transport.calls
    gates.clock.pump([0.25] * 5)
    assert "abortConnection" in transport.calls
    assert f" reason={cause} count=0" in gates.lines[-1]


def test_a_full_queue_is_idle() -> None:
    """What was written and not taken has not moved."""
    gates = _Gates("echo 7/tcp idle_timeout=8s")
    gates.keeper.start_timeouts(gates.clock.callLater)
    (_, reads, _), (_, stalls, _) = gates.connect(), gates.connect()
    for _ in range(10):
        for transport in (reads, stalls):
            transport.write(b"more")
        reads.take()
        gates.clock.advance(1)
    assert not reads.lost
    assert stalls.lost == "aborted"


def test_without_deadlines_nothing_watches() -> None:
    """No timer, and nothing told."""
    gates = _Gates()
    gates.keeper.start_timeouts(gates.clock.callLater)
    gates.connect()
    assert gates.keeper.deadlines is None
    assert not gates.clock.getDelayedCalls()


def test_shortened_addresses_are_everywhere() -> None:
    """No line of a connection says more than its network: not when it comes, goes, fails or is refused."""
    gates = _Gates("echo 7/tcp resolve=yes", short=True)
    _, first, protocol = gates.connect()
    gates.names.answer("client.example")
    protocol.failure_text = "no"
    _lose(first)
    gates.factory.kind = None
    assert gates.keeper.buildProtocol(V6) is None
    assert [line.split(" seconds=")[0] for line in gates.lines] == [
        "accept service=echo/tcp peer=192.0.2.0 id=1 count=1",
        "fail service=echo/tcp peer=192.0.2.0 id=1 reason=no",
        "end service=echo/tcp peer=192.0.2.0 id=1 in=0 out=0",
        "refuse service=echo/tcp peer=2001:db8:: reason=service count=1 rule=-",
    ]
