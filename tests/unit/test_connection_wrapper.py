"""ConnectionWrapper: ids, counts and log lines of connections in the daemon."""

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
    """Protocol that records its input."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.received = b""
        self.raises: Exception | None = None

    def connectionMade(self) -> None:
        self.calls.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: object = None) -> None:  # noqa: ARG002 - Twisted's signature
        self.calls.append("lost")
        if self.raises is not None:
            raise self.raises


@implementer(IHalfCloseableProtocol)
class _HalfCloseable(_Service):
    def readConnectionLost(self) -> None:
        self.calls.append("read lost")

    def writeConnectionLost(self) -> None:
        self.calls.append("write lost")

    def drain(self) -> None:
        self.calls.append("drain")


class _Factory(Factory):
    """Factory of one class of protocols, or of none."""

    def __init__(self, kind: type[_Service] | None) -> None:
        self.kind = kind
        self.running = 0

    def doStart(self) -> None:
        self.running += 1

    def doStop(self) -> None:
        self.running -= 1

    def buildProtocol(self, addr: IAddress) -> _Service | None:  # type: ignore[override]  # noqa: ARG002
        return self.kind() if self.kind else None


class _Wrappers:
    """A TrackingFactory and the objects that it uses."""

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
        """Return a new connection: its wrapper, transport and protocol."""
        wrapper: Any = self.tracker.buildProtocol(peer)
        assert isinstance(wrapper, ConnectionWrapper)
        transport = StreamDouble(wrapper, peer=peer)
        wrapper.makeConnection(transport)
        return wrapper, transport, wrapper._protocol


def _lose(transport: StreamDouble, error: Exception | None = None) -> None:
    transport.lose(Failure(error or ConnectionDone()))


def test_accept_and_end_lines() -> None:
    """The accept and end lines have the client, the number of connections, the traffic, the time and the reason."""
    wrappers = _Wrappers()
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
        # A transport reports ConnectionLost; another exception was raised by the service.
        (OSError(2, "no such file"), "error"),
        (ConnectionAborted(), "aborted"),
        (ZeroDivisionError(), "error"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_reason_of_an_end(error: Exception, reason: str, as_json: bool) -> None:
    """Each kind of end has its reason, in both log formats."""
    wrappers = _Wrappers(as_json=as_json)
    _lose(wrappers.connect()[1], error)
    line = wrappers.lines[-1]
    assert (json.loads(line)["reason"] if as_json else line.partition("reason=")[2].split()[0]) == reason
    assert wrappers.tracker.counters.failures == (reason == "error")


def test_an_exception_of_a_protocol_is_counted_once() -> None:
    """A connection that an exception of its protocol has ended is a failed one, also if it has a failure_text."""
    wrappers = _Wrappers()
    for text in ("", "no server"):
        _, transport, protocol = wrappers.connect()
        protocol.failure_text = text
        _lose(transport, ZeroDivisionError())
    assert wrappers.tracker.counters.failures == 2


def test_reason_of_an_aborted_connection() -> None:
    """The reason is the cause of the abort, such as shutdown."""
    wrappers = _Wrappers()
    wrapper, transport, _ = wrappers.connect()
    wrapper.abort("shutdown")
    assert transport.lost == "aborted"
    assert " reason=shutdown " in wrappers.lines[-1]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_client_that_could_not_be_served(as_json: bool) -> None:
    """The failure_text of a protocol is logged in a fail line before the end line."""
    wrappers = _Wrappers(as_json=as_json)
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
    """Each word of log_on_success selects its fields; without a word there are no lines."""
    wrappers = _Wrappers(f"echo 7/tcp log_on_success={words}")
    _lose(wrappers.connect()[1])
    found = [{word.partition("=")[0] for word in line.split()[1:]} for line in wrappers.lines]
    assert found == [set(fields.split()) for fields in (accept, end) if fields is not None]
    if "PID" in words:
        assert all(f" pid={os.getpid()}" in line for line in wrappers.lines)


def test_peer_at_a_unix_socket() -> None:
    """The peer of a UNIX socket is logged with its pid and uid."""
    wrappers = _Wrappers("echo /run/e/unix")
    wrappers.connect(LOCAL_PEER)
    assert wrappers.lines == ["accept service=echo/unix peer=pid:17/uid:1000 id=1 count=1"]


def test_accept_line_waits_for_the_host_name() -> None:
    """With resolve=yes the protocol starts at once, and both lines have the host name."""
    wrappers = _Wrappers("echo 7/tcp resolve=yes")
    wrapper, transport, protocol = wrappers.connect()
    assert protocol.calls == ["made"]
    wrapper.dataReceived(b"x")
    assert (protocol.received, wrappers.lines) == (b"x", [])
    wrappers.names.answer("host.example")
    _lose(transport)
    assert wrappers.lines[0] == "accept service=echo/tcp peer=192.0.2.1:40000 host=host.example id=1 count=1"
    assert " host=host.example " in wrappers.lines[1]


@pytest.mark.parametrize("as_json", [False, True])
def test_host_name_is_quoted(as_json: bool) -> None:
    """A host name with special characters is one quoted word in the log."""
    wrappers = _Wrappers("echo 7/tcp resolve=yes", as_json=as_json)
    wrappers.connect()
    wrappers.names.answer('a\nend service=x %(y)s "')
    (line,) = wrappers.lines
    assert "\n" not in line
    word = json.loads(line)["host"] if as_json else json.loads(line.partition("host=")[2].rpartition(" id=")[0])
    assert word == 'a\nend service=x %(y)s "'


def test_a_client_without_a_host_name() -> None:
    """Without a host name the field is a dash."""
    wrappers = _Wrappers("echo 7/tcp resolve=yes")
    wrappers.connect()
    wrappers.names.answer(None)
    assert " host=- " in wrappers.lines[0]


def test_end_before_the_host_name_is_known() -> None:
    """Both lines are written in order, and the late host name adds no line."""
    wrappers = _Wrappers("echo 7/tcp resolve=yes")
    _, transport, _ = wrappers.connect()
    _lose(transport)
    wrappers.names.answer("host.example")
    assert [line.split()[0] for line in wrappers.lines] == ["accept", "end"]
    assert all(" host=- " in line for line in wrappers.lines)


def test_no_lookup_at_a_unix_socket() -> None:
    """With resolve=yes the accept line of a UNIX socket is written at once."""
    wrappers = _Wrappers("echo /run/e/unix resolve=yes")
    wrappers.connect(LOCAL_PEER)
    assert not wrappers.names.queries
    assert len(wrappers.lines) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_factory_without_a_protocol(as_json: bool) -> None:
    """If the factory returns None, a refusal is logged, and no connection is counted."""
    wrappers = _Wrappers(kind=None, as_json=as_json)
    assert wrappers.tracker.buildProtocol(V4) is None
    assert wrappers.budget.open == 0
    if as_json:
        assert json.loads(wrappers.lines[0])["reason"] == "service"
    else:
        assert wrappers.lines == ["refuse service=echo/tcp peer=192.0.2.1:40000 reason=service count=1 rule=-"]


def test_half_close() -> None:
    """The wrapper handles half-close if its protocol does, and passes it on."""
    wrapper, _, protocol = _Wrappers(kind=_HalfCloseable).connect()
    assert IHalfCloseableProtocol.providedBy(wrapper)
    wrapper.readConnectionLost()
    wrapper.writeConnectionLost()
    assert protocol.calls == ["made", "read lost", "write lost"]
    plain, _, _ = _Wrappers(kind=_Service).connect()
    assert isinstance(plain, ConnectionWrapper)
    assert not IHalfCloseableProtocol.providedBy(plain)


def test_descriptor_is_counted() -> None:
    """The budget counts each connection from its start to its end."""
    wrappers = _Wrappers()
    transports = [wrappers.connect()[1] for _ in range(3)]
    assert wrappers.budget.open == 3
    for left, transport in zip((2, 1, 0), transports, strict=True):
        _lose(transport)
        assert wrappers.budget.open == left
        assert len(wrappers.tracker.connections) == left


def test_exception_in_connection_lost() -> None:
    """An exception in connectionLost() is passed on, and the end is counted and logged."""
    wrappers = _Wrappers(kind=_Service)
    _, transport, protocol = wrappers.connect()
    protocol.raises = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        _lose(transport)
    assert wrappers.lines[-1].startswith("end ")
    assert (wrappers.budget.open, wrappers.tracker.connections) == (0, {})


def test_when_empty_fires_with_the_last_connection() -> None:
    """All Deferreds of when_empty() fire after the last connection, at once without one."""
    wrappers = _Wrappers()
    assert wrappers.tracker.when_empty().called
    transports = [wrappers.connect()[1] for _ in range(2)]
    waiting = [wrappers.tracker.when_empty(), wrappers.tracker.when_empty()]
    _lose(transports[0])
    assert not any(each.called for each in waiting)
    _lose(transports[1])
    assert all(each.called for each in waiting)


def test_drain_calls_the_protocol() -> None:
    """A protocol without drain() continues until its client closes."""
    wrapper, _, protocol = _Wrappers(kind=_HalfCloseable).connect()
    wrapper.drain()
    assert "drain" in protocol.calls
    wrapper, transport, _ = _Wrappers(kind=_Service).connect()
    wrapper.drain()
    assert not transport.lost


def test_replaced_data_received_is_used() -> None:
    """A dataReceived that the protocol sets in connectionMade() gets the data."""

    class _Quick(_Service):
        def connectionMade(self) -> None:
            self.dataReceived = self.transport.write  # type: ignore[method-assign,union-attr]

    wrapper, transport, _ = _Wrappers(kind=_Quick).connect()
    wrapper.dataReceived(b"x")
    assert transport.sent == b"x"


@pytest.mark.parametrize("cause", ["idle", "first_byte", "session"])
def test_timeout_closes_the_connection(cause: str) -> None:
    """The connection is reset, and the end line has the name of the timeout."""
    wrappers = _Wrappers(f"echo 7/tcp {cause}_timeout=8s")
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    _, transport, _ = wrappers.connect()
    wrappers.clock.pump([0.25] * 31)
    assert "abortConnection" not in transport.calls
    wrappers.clock.pump([0.25] * 5)
    assert "abortConnection" in transport.calls
    assert f" reason={cause} count=0" in wrappers.lines[-1]


def test_unsent_data_is_idle() -> None:
    """Data that was written and not acknowledged does not count as traffic."""
    wrappers = _Wrappers("echo 7/tcp idle_timeout=8s")
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    (_, reads, _), (_, stalls, _) = wrappers.connect(), wrappers.connect()
    for _ in range(10):
        for transport in (reads, stalls):
            transport.write(b"more")
        reads.drain()
        wrappers.clock.advance(1)
    assert not reads.lost
    assert stalls.lost == "aborted"


def test_no_sweeps_without_timeouts() -> None:
    """Without timeouts no timer runs, and no sweeper exists."""
    wrappers = _Wrappers()
    wrappers.tracker.start_timeouts(wrappers.clock.callLater)
    wrappers.connect()
    assert wrappers.tracker.timeout_sweeper is None
    assert not wrappers.clock.getDelayedCalls()


def test_anonymized_addresses_in_all_lines() -> None:
    """The accept, end, fail and refuse lines have only the network of the client."""
    wrappers = _Wrappers("echo 7/tcp resolve=yes", short=True)
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
