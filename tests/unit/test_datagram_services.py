"""Datagram services in a supervisor: host names in their rules, and addresses that are never answered."""

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
    """LookupPool whose queries the test answers."""

    def __init__(self) -> None:
        self.queries: dict[str, Deferred[Any]] = {}

    def deferred(self, _reactor: object, name: str, _run: object) -> Deferred[Any]:
        answer = self.queries[name] = Deferred()
        return answer


class _Daemon:
    """Supervisor of one datagram service on the loopback interface, and a client of it."""

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
        """Change the options of the service."""
        self.supervisor.change_to(self._desired(options))

    def answer(self, name: str, *addresses: str) -> None:
        """Answer a lookup."""
        self.pool.queries.pop(name).callback(frozenset(map(address_number, addresses)))

    @property
    def is_reading(self) -> bool:
        """Whether the service is_reading datagrams."""
        return any(hasattr(reader, "datagrams") for reader in self.reactor.readers)

    def is_answered(self) -> bool:
        """Send a datagram; return whether it is answered."""
        self.client.send(b"x")
        for reader in list(self.reactor.readers):
            if hasattr(reader, "datagrams"):
                reader.doRead()
        try:
            return self.client.recv(10) == b"x"
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Stop the supervisor."""
        self.client.close()
        self.supervisor.stopService()
        self.reactor.advance(10)


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[_Daemon]:
    """Yield a daemon whose service has the options of the parameter."""
    made = _Daemon(request.param)
    yield made
    made.close()
    assert not made.reactor.getDelayedCalls()


@pytest.mark.parametrize("daemon", ["only_from=good.example no_access=bad.example"], indirect=True)
def test_datagrams_wait_for_the_first_lookup(daemon: _Daemon) -> None:
    """Datagrams are not read before the first lookups are answered; changed addresses apply later on."""
    assert not daemon.is_reading
    daemon.client.send(b"early")
    daemon.answer("good.example", "127.0.0.1")
    assert not daemon.is_reading
    daemon.answer("bad.example")
    assert daemon.is_reading
    [port] = [reader for reader in daemon.reactor.readers if hasattr(reader, "datagrams")]
    port.doRead()
    assert daemon.client.recv(10) == b"early"
    assert daemon.is_answered()
    daemon.reactor.advance(300)
    daemon.answer("bad.example", "127.0.0.1")
    assert not daemon.is_answered()
    assert any(" reason=address " in line and "no_access=bad.example" in line for line in daemon.lines)


@pytest.mark.parametrize("daemon", ["only_from=127.0.0.1,good.example", "no_access=bad.example"], indirect=True)
def test_lookups_without_an_answer_are_awaited_for_2_seconds(daemon: _Daemon) -> None:
    """After 2 s without an answer only_from admits its addresses; an unknown no_access admits no source."""
    daemon.reactor.advance(1.9)
    assert not daemon.is_reading
    daemon.reactor.advance(0.2)
    assert daemon.is_reading
    assert daemon.is_answered() is ("good.example" in daemon.pool.queries)
    for name in list(daemon.pool.queries):
        daemon.answer(name)
    assert daemon.is_answered()


@pytest.mark.parametrize("daemon", ["only_from=good.example"], indirect=True)
def test_a_reload_keeps_addresses_of_host_names(daemon: _Daemon) -> None:
    """A reload keeps the addresses of names that stay, drops names that are gone, and looks up new ones."""
    daemon.answer("good.example", "127.0.0.1")
    daemon.reload("only_from=good.example amplify=yes")
    assert not daemon.pool.queries
    assert daemon.is_answered()
    daemon.reload("only_from=good.example,other.example")
    assert list(daemon.pool.queries) == ["other.example"]
    assert not daemon.is_reading
    daemon.answer("other.example")
    assert daemon.is_answered()
    daemon.reload("only_from=127.0.0.1")
    assert daemon.is_answered()
    assert not daemon.supervisor._context.connections.hosts._hosts


@pytest.mark.parametrize("daemon", [""], indirect=True)
def test_addresses_that_are_never_answered_are_read_again(daemon: _Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """refresh_addresses() and a reload read the addresses that are never answered again, such as new broadcasts."""
    assert daemon.is_answered()
    monkeypatch.setattr("svcd.supervisor.datagram_service.broadcasts", lambda: frozenset({"127.0.0.1"}))
    assert daemon.is_answered()
    daemon.supervisor.refresh_addresses()
    assert not daemon.is_answered()
    monkeypatch.setattr("svcd.supervisor.datagram_service.broadcasts", frozenset)
    daemon.reload("")
    assert daemon.is_answered()
