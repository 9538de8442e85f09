"""Datagram services as a supervisor runs them: host names in their rules, and addresses that are never answered."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import Deferred

from svcd.addresses import address_number
from svcd.config.endpoints import DesiredServices, check
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.metrics.registry import MetricsRegistry
from svcd.supervisor.supervisor import Supervisor
from tests.doubles import FakeFiles, FakeMachine, FakeReactor, ManagerDouble, config_of, list_sink, service_context

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Pool:
    """A LookupPool whose answers the test gives by hand."""

    def __init__(self) -> None:
        self.asked: dict[str, Deferred[Any]] = {}

    def deferred(self, _reactor: object, question: str, _run: object) -> Deferred[Any]:
        answer = self.asked[question] = Deferred()
        return answer


class _Daemon:
    """A supervisor of one datagram service on the loopback interface, and a client of it."""

    def __init__(self, options: str) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.pool = _Pool()
        budget = DescriptorBudget(100, self.reactor)
        log_writer, manager = LogWriter(list_sink(self.lines), TextFormat(stamped=False)), ManagerDouble()
        context = service_context(self.reactor, budget, log_writer, manager, MetricsRegistry())
        self.supervisor = Supervisor(context, self._desired(options), manager)
        context.connections.hosts._pool = self.pool  # type: ignore[assignment]
        self.supervisor.privilegedStartService()
        self.supervisor.startService()
        [listener] = self.supervisor.listeners_of()
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(listener.opened.socket.getsockname())
        self.client.setblocking(False)

    @staticmethod
    def _desired(options: str) -> DesiredServices:
        endpoints, problems = check(config_of(f"echo 0/udp4 bind=127.0.0.1 {options}\n"), FakeFiles(), FakeMachine())
        assert not problems
        return DesiredServices(tuple(endpoints))

    def reload(self, options: str) -> None:
        """Go over to other options."""
        self.supervisor.change_to(self._desired(options))

    def answer(self, name: str, *addresses: str) -> None:
        """Answer a lookup."""
        self.pool.asked.pop(name).callback(frozenset(map(address_number, addresses)))

    @property
    def reads(self) -> bool:
        """Whether datagrams are read."""
        return any(hasattr(reader, "datagrams") for reader in self.reactor.readers)

    def asks(self) -> bool:
        """Whether a datagram is answered."""
        self.client.send(b"x")
        for reader in list(self.reactor.readers):
            if hasattr(reader, "datagrams"):
                reader.doRead()
        try:
            return self.client.recv(10) == b"x"
        except BlockingIOError:
            return False

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.supervisor.stopService()
        self.reactor.advance(10)


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[_Daemon]:
    """With the options of the parameter."""
    made = _Daemon(request.param)
    yield made
    made.close()
    assert not made.reactor.getDelayedCalls()


@pytest.mark.parametrize("daemon", ["only_from=good.example no_access=bad.example"], indirect=True)
def test_datagrams_wait_for_the_first_lookup(daemon: _Daemon) -> None:
    """Those that came meanwhile are answered then, by the rules with their addresses; these may change later."""
    assert not daemon.reads
    daemon.client.send(b"early")
    daemon.answer("good.example", "127.0.0.1")
    assert not daemon.reads
    daemon.answer("bad.example")
    assert daemon.reads
    [port] = [reader for reader in daemon.reactor.readers if hasattr(reader, "datagrams")]
    port.doRead()
    assert daemon.client.recv(10) == b"early"
    assert daemon.asks()
    daemon.reactor.advance(300)
    daemon.answer("bad.example", "127.0.0.1")
    assert not daemon.asks()
    assert any(" reason=address " in line and "no_access=bad.example" in line for line in daemon.lines)


@pytest.mark.parametrize("daemon", ["only_from=127.0.0.1,good.example", "no_access=bad.example"], indirect=True)
def test_a_silent_name_server_is_waited_for_so_long_and_no_longer(daemon: _Daemon) -> None:
    """Afterwards addresses that the file names are answered; whom no_access means is not known, so nobody is."""
    daemon.reactor.advance(1.9)
    assert not daemon.reads
    daemon.reactor.advance(0.2)
    assert daemon.reads
    assert daemon.asks() is ("good.example" in daemon.pool.asked)
    for name in list(daemon.pool.asked):
        daemon.answer(name)
    assert daemon.asks()


@pytest.mark.parametrize("daemon", ["only_from=good.example"], indirect=True)
def test_a_reload_has_the_addresses_at_once(daemon: _Daemon) -> None:
    """A name that stays is not looked up again, one that goes is followed no more, and new ones are waited for."""
    daemon.answer("good.example", "127.0.0.1")
    daemon.reload("only_from=good.example amplify=yes")
    assert not daemon.pool.asked
    assert daemon.asks()
    daemon.reload("only_from=good.example,other.example")
    assert list(daemon.pool.asked) == ["other.example"]
    assert not daemon.reads
    daemon.answer("other.example")
    assert daemon.asks()
    daemon.reload("only_from=127.0.0.1")
    assert daemon.asks()
    assert not daemon.supervisor._context.connections.hosts._hosts


@pytest.mark.parametrize("daemon", [""], indirect=True)
def test_addresses_that_are_never_answered_are_read_again(daemon: _Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broadcast address of a network that the machine has joined since."""
    assert daemon.asks()
    monkeypatch.setattr("svcd.supervisor.datagram_service.broadcasts", lambda: frozenset({"127.0.0.1"}))
    assert daemon.asks()
    daemon.supervisor.refresh_addresses()
    assert not daemon.asks()
    monkeypatch.setattr("svcd.supervisor.datagram_service.broadcasts", frozenset)
    daemon.reload("")
    assert daemon.asks()
