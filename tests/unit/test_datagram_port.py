"""Datagram ports over real sockets and a FakeReactor."""

from __future__ import annotations

import errno
import os
import socket
from datetime import UTC
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import DatagramProtocol

from svcd.access.datagrams import DatagramFilter
from svcd.access.rules import AccessRules, RefusalReason
from svcd.config.access_options import HOURS, RATE, SOURCES
from svcd.connections.access_rules import rules_of
from svcd.host.info import broadcasts
from svcd.sockets.datagram_port import BatchedDatagramPort, DatagramPort, datagram_port
from tests.doubles import FakeReactor, LogCatcher, service_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class _Answers(DatagramProtocol):
    """Datagram protocol that echoes; `more` is answered by 100 bytes, `raise` raises.

    Attributes:
        received: the datagrams received.
        stopped: how often stopProtocol() was called.
    """

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.stopped = 0

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.append(datagram)
        if datagram == b"raise":
            raise ZeroDivisionError
        if datagram == b"more":
            datagram = bytes(100)
        assert self.transport is not None
        self.transport.write(datagram, addr)

    def stopProtocol(self) -> None:
        self.stopped += 1


class _Failing:
    """Datagram socket whose first recvfrom or sendto fails."""

    def __init__(self, inner: socket.socket, **codes: int) -> None:
        self._inner = inner
        self._codes = codes

    def _fail(self, name: str) -> None:
        code = self._codes.pop(name, None)
        if code is not None:
            raise OSError(code, os.strerror(code))

    def recvfrom(self, size: int, flags: int) -> Any:
        """Fail, or receive a datagram."""
        self._fail("recvfrom")
        return self._inner.recvfrom(size, flags)

    def sendto(self, data: bytes, flags: int, address: Any) -> int:
        """Fail, or send a datagram."""
        self._fail("sendto")
        return self._inner.sendto(data, flags, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Datagrams:
    """Datagram port on a real socket, and a client socket."""

    def __init__(
        self,
        family: int,
        server: Any,
        client: Any,
        rules: AccessRules | None = None,
        make: Callable[..., DatagramPort] = datagram_port,
    ) -> None:
        self.refused: list[tuple[RefusalReason, str, int]] = []
        self.rule_filter = DatagramFilter(rules or AccessRules(amplify=True), wall_clock=lambda: 0.0, load=lambda: 0.0)
        self.reactor = FakeReactor()
        self.protocol = _Answers()
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(server)
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.client.settimeout(10)
        if client is not None:
            self.client.bind(client)
        self.port = make(
            self.reactor,
            self.sock,
            self.protocol,
            self.rule_filter,
            lambda refusal, *peer: self.refused.append((refusal.reason, *peer)),
        )
        self.port.clock = self.reactor.seconds
        self.port.startListening()

    def send(self, *datagrams: bytes) -> None:
        """Send datagrams from the client to the port; on the loopback interface they arrive at once."""
        for each in datagrams:
            self.client.sendto(each, self.sock.getsockname())

    def close(self) -> None:
        """Close both sockets."""
        self.sock.close()
        self.client.close()


@pytest.fixture(params=[DatagramPort, datagram_port])
def datagrams(request: pytest.FixtureRequest) -> Iterator[_Datagrams]:
    """Yield a listening port on the loopback interface, for each of the two classes."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0), make=request.param)
    yield made
    made.close()


@pytest.fixture
def single() -> Iterator[_Datagrams]:
    """Yield a listening port that reads one datagram at a time."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0), make=DatagramPort)
    yield made
    made.close()


def test_datagrams_are_answered_and_counted(datagrams: _Datagrams) -> None:
    """All waiting datagrams are read and answered; datagrams and bytes are counted in both directions."""
    datagrams.send(b"one", b"", b"three")
    datagrams.port.doRead()
    assert [datagrams.client.recv(100) for _ in range(3)] == [b"one", b"", b"three"]
    port = datagrams.port
    assert (port.datagrams, port.bytes_in, port.bytes_out) == (3, 8, 8)
    assert port.getHost() == IPv4Address("UDP", *datagrams.sock.getsockname())


def test_a_datagram_port_stops_at_once(datagrams: _Datagrams) -> None:
    """stopListening() stops the protocol once and the reading at once; the socket stays open."""
    assert datagrams.port in datagrams.reactor.readers
    datagrams.send(b"late")
    datagrams.port.stopListening()
    datagrams.port.stopListening()
    datagrams.port.doRead()
    assert datagrams.port not in datagrams.reactor.readers
    assert (datagrams.protocol.received, datagrams.protocol.stopped) == ([], 1)
    assert datagrams.sock.fileno() != -1


def test_an_answer_that_cannot_be_sent_is_lost(single: _Datagrams) -> None:
    """An answer that can't be sent is dropped and not counted; the next one is sent."""
    single.port.socket = _Failing(single.sock, sendto=errno.ENOBUFS)  # type: ignore[assignment]
    single.send(b"lost", b"sent")
    single.port.doRead()
    assert single.client.recv(100) == b"sent"
    assert single.port.bytes_out == 4


def test_an_answer_that_is_too_large_is_lost(datagrams: _Datagrams) -> None:
    """An answer above the kernel's limit is dropped, and is no failure of the service."""
    datagrams.send(b"x")
    datagrams.port.doRead()
    before = datagrams.port.bytes_out
    datagrams.port._max_answer = 70_000
    datagrams.port.write(b"x" * 70_000, datagrams.client.getsockname())
    assert datagrams.port.bytes_out == before


def test_an_icmp_error_of_an_earlier_answer_is_skipped(single: _Datagrams) -> None:
    """An ICMP error that recvfrom() reports is skipped."""
    single.port.socket = _Failing(single.sock, recvfrom=errno.ECONNREFUSED)  # type: ignore[assignment]
    single.send(b"x")
    single.port.doRead()
    assert single.client.recv(100) == b"x"


def test_an_exception_does_not_stop_the_port(datagrams: _Datagrams) -> None:
    """An exception of the protocol is logged, and the port goes on."""
    datagrams.send(b"raise", b"x")
    with LogCatcher() as log:
        datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"x"
    assert len(log.failures) == 1


def test_a_datagram_without_an_address_is_counted_only(tmp_path: Path) -> None:
    """A datagram of a UNIX socket without a name is counted, but not passed to the protocol."""
    for name, answered in ((None, []), (str(tmp_path / "client"), [b"x"])):
        server = str(tmp_path / f"server-{bool(answered)}")
        made = _Datagrams(socket.AF_UNIX, server, name)
        try:
            made.send(b"x")
            made.port.doRead()
            assert made.protocol.received == answered
            assert made.port.datagrams == 1
            assert made.port.getHost() == UNIXAddress(server)
            if answered:
                assert made.client.recv(100) == b"x"
        finally:
            made.close()


def _port(made: _Datagrams) -> int:
    port: int = made.client.getsockname()[1]
    return port


def test_an_answer_is_not_longer_than_its_query_or_28_bytes() -> None:
    """Without amplify=yes an answer is cut to the size of the query, or to 28 bytes if that is more."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0), AccessRules())
    made.send(b"more", b"x" * 50)
    made.port.doRead()
    assert [len(made.client.recv(200)) for _ in range(2)] == [28, 50]
    assert made.port.bytes_out == 78
    made.close()


def test_a_refused_datagram_has_no_answer() -> None:
    """A refused datagram has no answer, is counted and reported; with new tokens datagrams are answered again."""
    rules = AccessRules(per_source_rate=RATE.read("2/s"))
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0), rules)
    made.send(b"1", b"2", b"3")
    made.port.doRead()
    assert made.protocol.received == [b"1", b"2"]
    assert made.port.ignored == 1
    assert made.refused == [(RefusalReason.PER_SOURCE_RATE, "127.0.0.1", _port(made))]
    made.reactor.advance(1)
    made.send(b"4")
    made.port.doRead()
    assert made.protocol.received[-1] == b"4"
    made.close()


def test_datagrams_from_the_daemons_own_ports_are_refused() -> None:
    """Datagrams from the daemon's own ports are refused; the set of ports may change."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0))
    ports: set[int] = set()
    made.rule_filter.set_local_addresses(ports, ())
    made.send(b"1")
    made.port.doRead()
    ports.add(_port(made))
    made.send(b"2")
    made.port.doRead()
    assert made.protocol.received == [b"1"]
    assert [reason for reason, *_ in made.refused] == [RefusalReason.PORT]
    made.close()


def test_the_rules_of_unix_sockets(tmp_path: Path) -> None:
    """At a UNIX socket, whose peers can't be forged, there is no limit of size or rate; load and hours apply."""
    rules = rules_of(service_of(f"echo {tmp_path}/s/unixgram"))
    assert (rules.amplify, rules.per_source_rate) == (True, None)
    assert rules_of(service_of("echo 7/udp")).per_source_rate == RATE.read("1000/s")
    made = _Datagrams(socket.AF_UNIX, str(tmp_path / "s"), str(tmp_path / "c"), rules)
    made.send(b"more")
    made.port.doRead()
    assert len(made.client.recv(200)) == 100
    made.rule_filter.retune(AccessRules(access_times=HOURS.read("1:00-2:00"), zone=UTC))
    made.send(b"late")
    made.port.doRead()
    assert made.refused == [(RefusalReason.TIME, "", -1)]
    made.close()


def test_broadcast_addresses_are_those_of_networks() -> None:
    """broadcasts() returns the broadcast addresses of the machine's networks, such as the loopback network."""
    assert "127.255.255.255" in broadcasts()


def test_udp_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UDP is read in batches if the system supports it; UNIX sockets are read one datagram at a time."""
    for family, address, there, kind in (
        (socket.AF_INET, ("127.0.0.1", 0), True, BatchedDatagramPort),
        (socket.AF_INET, ("127.0.0.1", 0), False, DatagramPort),
        (socket.AF_UNIX, str(tmp_path / "s"), True, DatagramPort),
    ):
        monkeypatch.setattr("svcd.sockets.datagram_port.available", lambda there=there: there)
        made = _Datagrams(family, address, None)
        assert type(made.port) is kind
        made.close()


@pytest.mark.parametrize("make", [DatagramPort, datagram_port])
@pytest.mark.parametrize(
    ("family", "server", "v6only", "hosts"),
    [
        (socket.AF_INET, "0.0.0.0", None, ("127.0.0.5", "127.255.255.254", "127.0.0.1")),
        (socket.AF_INET6, "::", 1, ("::1",)),
        (socket.AF_INET6, "::", 0, ("::1", "127.0.0.5", "127.0.0.1")),
    ],
)
def test_the_answer_comes_from_the_destination_address(
    make: Callable[..., DatagramPort], family: int, server: str, v6only: int | None, hosts: tuple[str, ...]
) -> None:
    """At a wildcard address the answer comes from the address that the client sent the datagram to."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if v6only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        sock.bind((server, 0))
        protocol = _Answers()
        rule_filter = DatagramFilter(AccessRules(amplify=True), wall_clock=lambda: 0.0, load=lambda: 0.0)
        port = make(FakeReactor(), sock, protocol, rule_filter, lambda *_: None)
        port.startListening()
        clients = []
        for host in hosts * 3:
            client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(10)
            client.connect((host, sock.getsockname()[1]))
            client.send(host.encode())
            clients.append((client, host))
        port.doRead()
        for client, host in clients:
            assert client.recv(100) == host.encode()
            client.close()


def test_a_batch_in_which_some_datagrams_have_no_answer() -> None:
    """In a batch with refused, failing and long datagrams each client receives its own answer."""
    rules = AccessRules(no_access=SOURCES.read("127.0.0.9"), amplify=True)
    made = _Datagrams(socket.AF_INET, ("0.0.0.0", 0), ("127.0.0.1", 0), rules)
    clients = []
    for number in range(200):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(10)
        client.bind(("127.0.0.9" if number % 3 == 1 else "127.0.0.8", 0))
        client.connect((f"127.0.1.{number + 1}", made.sock.getsockname()[1]))
        data = b"raise" if number % 7 == 2 else b"more" if number % 5 == 3 else b"%d" % number
        client.send(data)
        clients.append((client, data, number % 3 != 1 and data != b"raise"))
    with LogCatcher() as log:
        for _ in range(5):
            made.port.doRead()
    assert len(log.failures) == sum(data == b"raise" and number % 3 != 1 for number, (_, data, _) in enumerate(clients))
    for client, data, answered in clients:
        client.setblocking(False)
        if answered:
            assert client.recv(200) == (bytes(100) if data == b"more" else data)
        else:
            with pytest.raises(BlockingIOError):
                client.recv(200)
        client.close()
    assert made.port.datagrams == 200
    assert made.port.ignored == sum(number % 3 == 1 for number in range(200))
    made.close()


def test_a_turn_reads_64_datagrams(datagrams: _Datagrams) -> None:
    """One turn reads 64 datagrams; the rest waits for the next turn."""
    datagrams.send(*[b"x"] * 100)
    datagrams.port.doRead()
    assert datagrams.port.datagrams == 64
    datagrams.port.doRead()
    assert datagrams.port.datagrams == 100
    datagrams.port.doRead()
    assert datagrams.port.datagrams == 100


@pytest.mark.parametrize("make", [DatagramPort, datagram_port])
def test_a_blocking_socket_does_not_block_the_port(make: Callable[..., DatagramPort]) -> None:
    """A socket that another process has set to blocking mode does not block the port."""
    for host in ("127.0.0.1", "0.0.0.0"):
        made = _Datagrams(socket.AF_INET, (host, 0), ("127.0.0.1", 0), make=make)
        made.sock.setblocking(True)
        made.port.doRead()
        made.close()


def test_the_largest_datagram_is_answered_whole(datagrams: _Datagrams) -> None:
    """A datagram of 65,507 bytes is answered whole."""
    data = os.urandom(65_507)
    datagrams.send(data)
    datagrams.port.doRead()
    assert datagrams.client.recv(70_000) == data


def test_a_datagram_that_is_cut_has_no_answer(tmp_path: Path) -> None:
    """A datagram above 65,535 bytes, which a UNIX socket may carry, has no answer; the next one is answered."""
    made = _Datagrams(socket.AF_UNIX, str(tmp_path / "s"), str(tmp_path / "c"))
    for size in (70_000, 65_535, 1):
        made.send(bytes(size))
        made.port.doRead()
    assert [len(made.client.recv(70_000)) for _ in range(2)] == [65_535, 1]
    assert (made.port.datagrams, made.port.ignored) == (3, 1)
    made.close()


def test_second_and_late_answers_are_sent_at_once(datagrams: _Datagrams) -> None:
    """A second write() for a datagram, and a write() outside doRead(), are sent at once."""

    def twice(datagram: bytes, addr: Any) -> None:
        datagrams.port.write(datagram, addr)
        datagrams.port._max_answer = 9
        datagrams.port.write(b"again", addr)

    datagrams.protocol.datagramReceived = twice  # type: ignore[method-assign]
    datagrams.send(b"x")
    datagrams.port.doRead()
    datagrams.port.write(b"late", datagrams.client.getsockname())
    assert {datagrams.client.recv(100) for _ in range(3)} == {b"x", b"again", b"late"}


def test_datagrams_of_unix_sockets_are_counted_by_user(tmp_path: Path) -> None:
    """With a rate per source, the datagrams of a UNIX socket are counted by uid (SO_PASSCRED); else it is not set."""
    made = _Datagrams(
        socket.AF_UNIX, str(tmp_path / "s"), str(tmp_path / "c"), AccessRules(per_source_rate=RATE.read("1/h"))
    )
    made.send(b"1", b"2")
    made.port.doRead()
    assert made.protocol.received == [b"1"]
    assert made.refused == [(RefusalReason.PER_SOURCE_RATE, f"uid:{os.getuid()}", -1)]
    assert made.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
    made.port.stopListening()
    other = DatagramFilter(AccessRules(), wall_clock=lambda: 0.0, load=lambda: 0.0)
    DatagramPort(made.reactor, made.sock, made.protocol, other).startListening()
    assert not made.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
    made.close()
