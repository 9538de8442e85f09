"""Datagram ports over real sockets and a reactor that watches nothing."""

from __future__ import annotations

import errno
import os
import socket
from datetime import UTC
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import DatagramProtocol

from svcd.config.access_kinds import HOURS, RATE
from svcd.policy.answers import Reason
from svcd.policy.datagrams import Answering
from svcd.policy.rules import Rules
from svcd.transport.datagrams import DatagramPort
from svcd.transport.machine import broadcasts
from svcd.transport.rules import rules_of
from tests.doubles import FakeReactor, LogCatcher, service_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Answers(DatagramProtocol):
    """Answers by the question; `raise` is a mistake."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.stopped = 0

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.asked.append(datagram)
        if datagram == b"raise":
            raise ZeroDivisionError
        if datagram == b"more":
            datagram = bytes(100)
        assert self.transport is not None
        self.transport.write(datagram, addr)

    def stopProtocol(self) -> None:
        self.stopped += 1


class _Failing:
    """A datagram socket whose recvfrom or sendto fails first."""

    def __init__(self, inner: socket.socket, **codes: int) -> None:
        self._inner = inner
        self._codes = codes

    def _fail(self, name: str) -> None:
        code = self._codes.pop(name, None)
        if code is not None:
            raise OSError(code, os.strerror(code))

    def recvfrom(self, size: int) -> Any:
        """Fail, or receive."""
        self._fail("recvfrom")
        return self._inner.recvfrom(size)

    def sendto(self, data: bytes, address: Any) -> int:
        """Fail, or send."""
        self._fail("sendto")
        return self._inner.sendto(data, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Datagrams:
    """A datagram port on a real socket, and a client."""

    def __init__(self, family: int, server: Any, client: Any, rules: Rules | None = None) -> None:
        self.refused: list[tuple[Reason, str, int]] = []
        self.answering = Answering(rules or Rules(amplify=True), wall=lambda: 0.0, load=lambda: 0.0)
        self.reactor = FakeReactor()
        self.protocol = _Answers()
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(server)
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.client.settimeout(10)
        if client is not None:
            self.client.bind(client)
        self.port = DatagramPort(
            self.reactor,
            self.sock,
            self.protocol,
            self.answering,
            lambda refusal, *peer: self.refused.append((refusal.reason, *peer)),
            self.reactor.seconds,
        )
        self.port.startListening()

    def send(self, *datagrams: bytes) -> None:
        """Send to the port, which on this machine arrives at once."""
        for each in datagrams:
            self.client.sendto(each, self.sock.getsockname())

    def close(self) -> None:
        """Close both."""
        self.sock.close()
        self.client.close()


@pytest.fixture
def datagrams() -> Iterator[_Datagrams]:
    """A port on the loopback interface that listens."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0))
    yield made
    made.close()


def test_datagrams_are_answered_and_counted(datagrams: _Datagrams) -> None:
    """Everything that waits is read in one go; datagrams and bytes are counted both ways."""
    datagrams.send(b"one", b"", b"three")
    datagrams.port.doRead()
    assert [datagrams.client.recv(100) for _ in range(3)] == [b"one", b"", b"three"]
    port = datagrams.port
    assert (port.datagrams, port.bytes_in, port.bytes_out) == (3, 8, 8)
    assert port.getHost() == IPv4Address("UDP", *datagrams.sock.getsockname())


def test_a_datagram_port_stops_at_once(datagrams: _Datagrams) -> None:
    """The protocol is told once, nothing is read any more, and the socket stays open."""
    assert datagrams.port in datagrams.reactor.readers
    datagrams.send(b"late")
    datagrams.port.stopListening()
    datagrams.port.stopListening()
    datagrams.port.doRead()
    assert datagrams.port not in datagrams.reactor.readers
    assert (datagrams.protocol.asked, datagrams.protocol.stopped) == ([], 1)
    assert datagrams.sock.fileno() != -1


def test_an_answer_that_cannot_be_sent_is_lost(datagrams: _Datagrams) -> None:
    """As the network might lose it; the next is sent, and only that is counted."""
    datagrams.port.socket = _Failing(datagrams.sock, sendto=errno.ENOBUFS)  # type: ignore[assignment]
    datagrams.send(b"lost", b"sent")
    datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"sent"
    assert datagrams.port.bytes_out == 4


def test_an_answer_that_is_too_large_is_lost(datagrams: _Datagrams) -> None:
    """The kernel's refusal is no mistake of the service."""
    datagrams.send(b"x")
    datagrams.port.doRead()
    before = datagrams.port.bytes_out
    datagrams.port._most = 70_000
    datagrams.port.write(b"x" * 70_000, datagrams.client.getsockname())
    assert datagrams.port.bytes_out == before


def test_an_error_of_an_earlier_answer_is_not_the_next_ones_fault(datagrams: _Datagrams) -> None:
    """An ICMP error that recvfrom reports is skipped."""
    datagrams.port.socket = _Failing(datagrams.sock, recvfrom=errno.ECONNREFUSED)  # type: ignore[assignment]
    datagrams.send(b"x")
    datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"x"


def test_a_mistake_with_one_datagram_spares_the_next(datagrams: _Datagrams) -> None:
    """It is logged, and the port listens on."""
    datagrams.send(b"raise", b"x")
    with LogCatcher() as log:
        datagrams.port.doRead()
    assert datagrams.client.recv(100) == b"x"
    assert len(log.failures) == 1


def test_who_cannot_be_answered_is_counted_only(tmp_path: Path) -> None:
    """A UNIX socket without a name asks in vain; one with a name is answered."""
    for name, answered in ((None, []), (str(tmp_path / "client"), [b"x"])):
        server = str(tmp_path / f"server-{bool(answered)}")
        made = _Datagrams(socket.AF_UNIX, server, name)
        try:
            made.send(b"x")
            made.port.doRead()
            assert made.protocol.asked == answered
            assert made.port.datagrams == 1
            assert made.port.getHost() == UNIXAddress(server)
            if answered:
                assert made.client.recv(100) == b"x"
        finally:
            made.close()


def _port(made: _Datagrams) -> int:
    port: int = made.client.getsockname()[1]
    return port


def test_an_answer_is_no_longer_than_its_question_or_28_bytes() -> None:
    """Without amplify=yes a longer one is cut."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0), Rules())
    made.send(b"more", b"x" * 50)
    made.port.doRead()
    assert [len(made.client.recv(200)) for _ in range(2)] == [28, 50]
    assert made.port.bytes_out == 78
    made.close()


def test_whom_the_rules_refuse_gets_no_answer() -> None:
    """It is counted, and told to whoever wants to know; more is answered as soon as there are tokens."""
    rules = Rules(per_source_rate=RATE.read("2/s"))
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0), rules)
    made.send(b"1", b"2", b"3")
    made.port.doRead()
    assert made.protocol.asked == [b"1", b"2"]
    assert made.port.ignored == 1
    assert made.refused == [(Reason.PER_SOURCE_RATE, "127.0.0.1", _port(made))]
    made.reactor.advance(1)
    made.send(b"4")
    made.port.doRead()
    assert made.protocol.asked[-1] == b"4"
    made.close()


def test_the_daemons_own_datagram_services_ask_nothing() -> None:
    """Its ports may change while it runs."""
    made = _Datagrams(socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.1", 0))
    ports: set[int] = set()
    made.answering.surroundings(ports, ())
    made.send(b"1")
    made.port.doRead()
    ports.add(_port(made))
    made.send(b"2")
    made.port.doRead()
    assert made.protocol.asked == [b"1"]
    assert [reason for reason, *_ in made.refused] == [Reason.PORT]
    made.close()


def test_the_rules_of_the_file_hold_at_unix_sockets_as_far_as_they_mean_something(tmp_path: Path) -> None:
    """Nobody forges a sender there: an answer may be long, and as many as one likes; load and hours count."""
    rules = rules_of(service_of(f"echo {tmp_path}/s/unixgram"))
    assert (rules.amplify, rules.per_source_rate) == (True, None)
    assert rules_of(service_of("echo 7/udp")).per_source_rate == RATE.read("1000/s")
    made = _Datagrams(socket.AF_UNIX, str(tmp_path / "s"), str(tmp_path / "c"), rules)
    made.send(b"more")
    made.port.doRead()
    assert len(made.client.recv(200)) == 100
    made.answering.retune(Rules(access_times=HOURS.read("1:00-2:00"), zone=UTC))
    made.send(b"late")
    made.port.doRead()
    assert made.refused == [(Reason.TIME, "", 0)]
    made.close()


def test_broadcast_addresses_are_those_of_networks() -> None:
    """Of the loopback network as well, which every machine has."""
    assert "127.255.255.255" in broadcasts()
