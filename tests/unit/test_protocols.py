"""Each built-in against a transport in memory."""

from __future__ import annotations

import calendar
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from svcd.config.options import ServiceOptions
from svcd.metrics.registry import MetricsRegistry
from svcd.metrics.snapshot import ServiceInfo, ServiceState
from svcd.model import SocketType
from svcd.protocols.base import LINGER_BYTES, LINGER_SECONDS
from svcd.protocols.catalog import BUILTINS
from svcd.protocols.chargen import ChargenDatagrams, ChargenFactory
from svcd.protocols.daytime import DaytimeDatagrams, DaytimeFactory
from svcd.protocols.qotd import QotdDatagrams, QotdFactory
from svcd.protocols.services import ServicesFactory
from svcd.protocols.time import TimeDatagrams, TimeFactory
from svcd.wire import chargen
from svcd.wire.fortune import DEFAULT
from tests.doubles import FakeFiles, StreamDouble, dependencies

if TYPE_CHECKING:
    from twisted.internet.protocol import Factory

NOW = float(calendar.timegm((2026, 1, 21, 13, 5, 9)))
EVERY_BYTE = bytes(range(256)) * 5
ONE_SHOT = ["daytime", "time", "qotd"]


def _connect(factory: Factory, room: float = float("inf")) -> StreamDouble:
    protocol: Any = factory.buildProtocol(None)
    transport = StreamDouble(protocol, room=room)
    protocol.makeConnection(transport)
    return transport


def _builtin(name: str, room: float = float("inf"), clock: Clock | None = None) -> StreamDouble:
    deps = dependencies(clock or Clock())
    make = BUILTINS[name].stream
    assert make is not None
    return _connect(make(ServiceOptions(), deps), room)


class _Datagrams:
    """Datagram transport that records what is sent."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.sent: list[tuple[bytes, object]] = []
        protocol.makeConnection(self)

    def write(self, datagram: bytes, addr: object) -> None:
        """Record a datagram."""
        self.sent.append((datagram, addr))

    def exchange(self, *datagrams: bytes) -> list[bytes]:
        """Pass datagrams to the protocol; return its answers, which must all go to the sender."""
        self.sent.clear()
        for datagram in datagrams:
            self.protocol.datagramReceived(datagram, ("192.0.2.1", 9999))
        assert {peer for _, peer in self.sent} <= {("192.0.2.1", 9999)}
        return [answer for answer, _ in self.sent]


def _builtin_datagrams(name: str) -> _Datagrams:
    make = BUILTINS[name].datagram
    assert make is not None
    return _Datagrams(make(ServiceOptions(), dependencies(Clock())))


def test_echo_sends_back_every_byte() -> None:
    """echo sends back every byte, in order."""
    transport = _builtin("echo")
    for piece in (EVERY_BYTE[:1], EVERY_BYTE[1:300], EVERY_BYTE[300:]):
        transport.protocol.dataReceived(piece)
    assert transport.sent == EVERY_BYTE


def test_upper_changes_the_letters_a_to_z_alone() -> None:
    """upper changes the ASCII letters a to z, and no byte of UTF-8 or Latin-1 letters."""
    transport = _builtin("upper")
    transport.protocol.dataReceived(EVERY_BYTE)
    expected = bytes(byte - 32 if 0x61 <= byte <= 0x7A else byte for byte in EVERY_BYTE)
    assert transport.sent == expected
    transport.protocol.dataReceived("é".encode())
    assert transport.sent == expected + "é".encode()


@pytest.mark.parametrize("name", ["echo", "upper"])
def test_a_client_that_does_not_read_is_not_read_from(name: str) -> None:
    """Reading pauses while too much of the answer is unsent, and resumes when the client reads."""
    transport = _builtin(name, room=1000)
    transport.protocol.dataReceived(b"x" * 1000)
    assert transport.reading
    transport.protocol.dataReceived(b"x")
    assert not transport.reading
    transport.drain()
    assert transport.reading


@pytest.mark.parametrize("name", ["echo", "upper", "discard"])
def test_a_half_closed_client_is_answered(name: str) -> None:
    """After the client's FIN all data is sent before the connection is closed, even if it was paused."""
    transport = _builtin(name, room=10)
    assert IHalfCloseableProtocol.providedBy(_builtin(name).protocol)
    transport.protocol.dataReceived(b"A" * 100)
    transport.protocol.readConnectionLost()
    if name != "discard":
        assert not transport.lost
        transport.drain()
        assert transport.sent == b"A" * 100
    assert transport.lost == "done"


def test_discard_never_answers() -> None:
    """discard never answers."""
    transport = _builtin("discard")
    transport.protocol.dataReceived(EVERY_BYTE)
    assert (transport.sent, transport.lost) == (b"", "")
    assert _builtin_datagrams("discard").exchange(b"", b"x") == []


def test_chargen_sends_as_the_client_reads() -> None:
    """chargen writes one block, and another one each time the client has read it, without a gap in the pattern."""
    transport = _builtin("chargen")
    assert IPullProducer.providedBy(_builtin("chargen").protocol)
    assert (transport.streaming, transport.writes) == (False, 1)
    transport.protocol.dataReceived(EVERY_BYTE)
    assert transport.writes == 1
    transport.drain()
    transport.drain()
    assert transport.sent == chargen.BLOCK * 3
    assert transport.sent.startswith(chargen.PATTERN)


def test_chargen_goes_on_for_a_half_closed_client() -> None:
    """chargen goes on for a client that has shut down its write side."""
    transport = _builtin("chargen")
    transport.protocol.readConnectionLost()
    transport.drain()
    assert (transport.lost, transport.writes) == ("", 2)


def test_chargen_is_drained() -> None:
    """drain() stops the production, and closes when the client has read what was written."""
    transport = _builtin("chargen", room=0)
    transport.protocol.drain()
    assert not transport.lost
    transport.drain()
    assert (transport.lost, transport.writes) == ("done", 1)


def test_chargen_after_a_lost_connection() -> None:
    """stopProducing() of a lost connection is no error."""
    transport = _builtin("chargen")
    transport.protocol.stopProducing()
    transport.lose(Failure(ConnectionLost()))
    assert transport.writes == 1


@pytest.mark.parametrize(
    ("factory", "answer"),
    [
        (DaytimeFactory(Clock(), utc=True, now=lambda: NOW), b"Wed Jan 21 13:05:09 2026\r\n"),
        (DaytimeFactory(Clock(), utc=True, iso8601=True, now=lambda: NOW), b"2026-01-21T13:05:09Z\r\n"),
        (TimeFactory(Clock(), now=lambda: -2_208_988_800 + 258.0), b"\0\0\1\2"),
        (QotdFactory([b"a\r\n", b"b\r\n"], Clock(), pick=lambda quotes: quotes[1]), b"b\r\n"),
    ],
)
def test_a_one_shot_service_answers_once(factory: Factory, answer: bytes) -> None:
    """A one-shot service sends first, shuts down its write side, and ignores what the client sends."""
    transport = _connect(factory)
    assert transport.sent == answer
    assert transport.calls == ["loseWriteConnection"]
    transport.protocol.dataReceived(b"what?")
    assert (transport.sent, transport.lost) == (answer, "")


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_service_waits_for_its_client(name: str) -> None:
    """It closes when the client does, and leaves no timer."""
    clock = Clock()
    transport = _builtin(name, clock=clock)
    assert clock.getDelayedCalls()
    transport.protocol.readConnectionLost()
    assert transport.lost == "done"
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_service_waits_a_bounded_time(name: str) -> None:
    """A client that does not close is disconnected after LINGER_SECONDS."""
    clock = Clock()
    transport = _builtin(name, clock=clock)
    clock.advance(LINGER_SECONDS - 0.001)
    assert transport.calls == ["loseWriteConnection"]
    clock.advance(0.001)
    # By close(), not an abort, which would discard what the kernel has not delivered yet.
    assert transport.lost == "done"
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_service_discards_a_bounded_amount(name: str) -> None:
    """A client that sends more than LINGER_BYTES is disconnected."""
    clock = Clock()
    transport = _builtin(name, clock=clock)
    transport.protocol.dataReceived(b"x" * LINGER_BYTES)
    assert transport.calls == ["loseWriteConnection"]
    transport.protocol.dataReceived(b"x")
    assert transport.lost == "done"
    assert not clock.getDelayedCalls()


def test_datagrams_of_echo() -> None:
    """echo sends each datagram back to its sender, an empty one too."""
    assert _builtin_datagrams("echo").exchange(b"", EVERY_BYTE, b"x") == [b"", EVERY_BYTE, b"x"]


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [
        (DaytimeDatagrams(utc=True, now=lambda: NOW), b"Wed Jan 21 13:05:09 2026\r\n"),
        (DaytimeDatagrams(utc=True, iso8601=True, now=lambda: NOW), b"2026-01-21T13:05:09Z\r\n"),
        (TimeDatagrams(now=lambda: -2_208_988_800 + 258.0), b"\0\0\1\2"),
        (QotdDatagrams([b"a\r\n"], pick=lambda quotes: quotes[0]), b"a\r\n"),
    ],
)
def test_datagrams_of_one_shot_services(protocol: object, answer: bytes) -> None:
    """One-shot services send one answer for each datagram, whatever its content."""
    assert _Datagrams(protocol).exchange(b"", b"x") == [answer, answer]


def test_datagrams_of_chargen_rotate() -> None:
    """Each answer of chargen begins one line further in the pattern, for all clients together."""
    chargen_port = _Datagrams(ChargenDatagrams())
    assert chargen_port.exchange(b"", b"") == [chargen.datagram(0), chargen.datagram(1)]
    assert chargen_port.exchange(b"") == [chargen.datagram(2)]


def test_the_catalog() -> None:
    """Each built-in has a summary, is created for its shapes, and logs no lines of Twisted's factories."""
    deps = dependencies(Clock(), FakeFiles({"/q": "mine\n"}))
    for builtin in BUILTINS.values():
        assert builtin.summary
        if builtin.stream is None:
            assert builtin.multiplexer
        else:
            assert not builtin.stream(ServiceOptions(), deps).noisy
        assert builtin.shapes == ({SocketType.STREAM} if builtin.datagram is None else set(SocketType))
        if builtin.datagram is not None:
            assert not builtin.datagram(ServiceOptions(), deps).noisy


@pytest.mark.parametrize("imported", [False, True])
def test_the_catalog_imports_no_protocol(imported: bool) -> None:
    """Importing the catalog imports no protocol; import_rest() imports all, for a daemon that can't read them later."""
    code = (
        "import sys, svcd.protocols.catalog; from svcd.daemon.later_imports import import_rest\n"
        f"if {imported}: import_rest()\n"
        "print(*[name for name in ('svcd.protocols.echo', 'svcd.protocols.http.server', 'svcd.process.factories')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == (3 if imported else 0)


def test_qotd_reads_the_quotes_of_its_option() -> None:
    """With quotes= qotd sends a quotation of that file, without it a built-in one."""
    deps = dependencies(Clock(), FakeFiles({"/q": "mine\n"}))
    factory = BUILTINS["qotd"].stream
    assert factory is not None
    assert _connect(factory(ServiceOptions(quotes="/q"), deps)).sent == b"mine\r\n"
    assert _builtin("qotd").sent in DEFAULT
    make = BUILTINS["qotd"].datagram
    assert make is not None
    assert _Datagrams(make(ServiceOptions(quotes="/q"), deps)).exchange(b"") == [b"mine\r\n"]


def test_chargen_factories_are_quiet() -> None:
    """ChargenFactory does not log its start and stop."""
    assert not ChargenFactory().noisy


def test_services_lists_what_is_served() -> None:
    """A line per service and port: of all addresses once, of UNIX sockets the path, of broken services nothing."""
    registry = MetricsRegistry()
    registry.describe(
        [
            ServiceInfo("echo/tcp", "echo", addresses=("0.0.0.0:7", "[::]:7")),
            ServiceInfo("time/udp", "time", stream=False, addresses=("127.0.0.1:37", "127.0.0.2:38")),
            ServiceInfo("git/unix", "server", addresses=("/run/git.sock", "@git"), state=ServiceState.PAUSED),
            ServiceInfo("off/tcp", "echo", state=ServiceState.DISABLED),
            ServiceInfo("bad/tcp", "echo", addresses=("127.0.0.1:1",), problem="the port is in use"),
        ]
    )
    clock = Clock()
    transport = _connect(ServicesFactory(registry, clock))
    lines = ["echo tcp 7", "time udp 37", "time udp 38", "git unix /run/git.sock", "git unix @git"]
    assert transport.sent.decode().splitlines() == lines
