"""Reverse lookups of host names in threads."""

from __future__ import annotations

import queue
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from svcd.host import reverse_resolver as resolver_module
from svcd.host.reverse_resolver import TIMEOUT_SECONDS, ReverseResolver, confirmed_system_host_of, system_host_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Resolver:
    """Blocking lookup that the test answers, and a reactor that queues calls from threads.

    Attributes:
        queries: the addresses whose lookup has started.
        answers: the results of lookups.
        calls: the calls from threads.
        lookups: how many lookups have started.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.queries: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.calls: queue.Queue[tuple[Callable[..., object], tuple[object, ...]]] = queue.Queue()
        self.lookups = 0
        self.names = ReverseResolver(self.clock, self, self.host_of, self.confirmed_host_of)  # type: ignore[arg-type]

    def host_of(self, address: str) -> str | None:
        """Block until the test answers; raise an exception for the answer `raise`."""
        self.lookups += 1
        self.queries.put(address)
        answer = self.answers.get()
        if answer == "raise":
            raise ValueError(address)
        return answer

    def confirmed_host_of(self, address: str) -> str | None:
        """Block until the test answers the lookup of a confirmed name."""
        return self.host_of(f"confirmed {address}")

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        """Queue a call for run()."""
        self.calls.put((function, arguments))

    def query(self, address: str) -> list[str | None]:
        """Start a query; return the list that its result is added to."""
        found: list[str | None] = []
        self.names.host_of(address).addCallback(found.append)
        return found

    def answer(self, host: str | None) -> None:
        """Answer one lookup, and run its queued call."""
        self.answers.put(host)
        self.run()

    def run(self) -> None:
        """Run one queued call, within 10 s."""
        function, arguments = self.calls.get(timeout=10)
        function(*arguments)


@pytest.fixture
def resolver() -> Iterator[_Resolver]:
    """Yield a resolver; answer all blocked lookups after the test."""
    made = _Resolver()
    yield made
    for _ in range(made.lookups + 100):
        made.answers.put(None)


def test_lookups_run_in_threads(resolver: _Resolver) -> None:
    """host_of() returns at once; its Deferred fires when the lookup ends, and no timer is left."""
    found = resolver.query("192.0.2.1")
    assert resolver.queries.get(timeout=10) == "192.0.2.1"
    assert found == []
    resolver.answer("host.example")
    assert found == ["host.example"]
    assert not resolver.clock.getDelayedCalls()


def test_results_are_cached(resolver: _Resolver) -> None:
    """A result is cached for 300 s, also that there is no name; later the address is looked up again."""
    for host in ("host.example", None):
        resolver.clock.advance(301)
        resolver.query("192.0.2.1")
        resolver.answer(host)
        lookups = resolver.lookups
        resolver.clock.advance(299)
        assert resolver.query("192.0.2.1") == [host]
        assert resolver.lookups == lookups
        resolver.clock.advance(2)
        assert resolver.query("192.0.2.1") == []
        resolver.answer(None)


def test_queries_share_a_lookup(resolver: _Resolver) -> None:
    """Queries for one address share one lookup."""
    found = [resolver.query("192.0.2.1") for _ in range(50)]
    resolver.answer("host.example")
    for _ in range(49):
        resolver.run()
    assert found == [["host.example"]] * 50
    assert resolver.lookups == 1


def test_a_slow_lookup_is_answered_by_none(resolver: _Resolver) -> None:
    """A query without an answer after TIMEOUT_SECONDS has no name; the late name is cached."""
    found = resolver.query("192.0.2.1")
    resolver.clock.advance(TIMEOUT_SECONDS - 0.001)
    assert found == []
    late = resolver.query("192.0.2.1")
    resolver.clock.advance(0.001)
    assert (found, late) == ([None], [])
    resolver.answer("host.example")
    assert (found, late) == ([None], ["host.example"])
    assert resolver.query("192.0.2.1") == ["host.example"]


def test_the_limit_of_waiting_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of waiting queries an address has no name at once, and nothing is cached."""
    monkeypatch.setattr(resolver_module, "_ACTIVE", 1)
    monkeypatch.setattr(resolver_module, "_QUEUED", 2)
    resolver = _Resolver()
    waiting = [resolver.query("192.0.2.0")]
    resolver.queries.get(timeout=10)
    waiting += [resolver.query(f"192.0.2.{number}") for number in (1, 2)]
    assert resolver.query("192.0.2.99") == [None]
    assert waiting == [[], [], []]
    for _ in range(3):
        resolver.answer("x")
    assert waiting == [["x"], ["x"], ["x"]]
    assert resolver.query("192.0.2.99") == []


def test_the_limit_of_the_cache(resolver: _Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache drops the oldest result first."""
    monkeypatch.setattr(resolver_module, "_MAX_KEPT", 2)
    for number in range(3):
        resolver.query(f"192.0.2.{number}")
        resolver.answer(f"host{number}")
    assert resolver.query("192.0.2.2") == ["host2"]
    assert resolver.query("192.0.2.1") == ["host1"]
    assert resolver.query("192.0.2.0") == []


def test_four_lookups_at_the_same_time(resolver: _Resolver) -> None:
    """Four addresses are looked up at the same time; a fifth waits for a thread."""
    for number in range(5):
        resolver.query(f"192.0.2.{number}")
    started = {resolver.queries.get(timeout=10) for _ in range(4)}
    assert started == {f"192.0.2.{number}" for number in range(4)}
    assert resolver.queries.empty()
    resolver.answer("x")
    assert resolver.queries.get(timeout=10) == "192.0.2.4"


def test_a_lookup_that_raises(resolver: _Resolver) -> None:
    """An exception in a lookup is answered by None, and the thread goes on."""
    for _ in range(6):
        found = resolver.query("192.0.2.1")
        resolver.answer("raise")
        assert found == [None]
        resolver.clock.advance(400)


@pytest.mark.parametrize(
    ("outcome", "host"),
    [
        (("host.example", "0"), "host.example"),
        (("x" * 300, "0"), "x" * 255),
        (socket.gaierror(-2, "Name or service not known"), None),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), None),
    ],
)
def test_system_host_of(monkeypatch: pytest.MonkeyPatch, outcome: Any, host: str | None) -> None:
    """system_host_of() returns a name of at most 255 characters, or None after any error."""

    def getnameinfo(address: tuple[str, int], flags: int) -> tuple[str, str]:
        assert (address, flags) == (("192.0.2.1", 0), socket.NI_NAMEREQD)
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, tuple)
        return outcome

    monkeypatch.setattr(socket, "getnameinfo", getnameinfo)
    assert system_host_of("192.0.2.1") == host


def test_confirmed_names_are_looked_up_separately(resolver: _Resolver) -> None:
    """Confirmed and unconfirmed names are looked up and cached separately."""
    plain = resolver.query("192.0.2.1")
    confirmed: list[str | None] = []
    resolver.names.confirmed_host_of("192.0.2.1").addCallback(confirmed.append)
    queries = {resolver.queries.get(timeout=10) for _ in range(2)}
    assert queries == {"192.0.2.1", "confirmed 192.0.2.1"}
    for _ in range(2):
        resolver.answer("x")
    assert (plain, confirmed) == (["x"], ["x"])
    resolver.names.confirmed_host_of("192.0.2.1").addCallback(confirmed.append)
    assert confirmed == ["x", "x"]


@pytest.mark.parametrize(
    ("address", "addresses", "confirmed"),
    [
        ("192.0.2.1", ["192.0.2.9", "192.0.2.1"], True),
        ("192.0.2.1", ["192.0.2.9"], False),
        ("192.0.2.1", ["::ffff:192.0.2.1"], True),
        ("2001:db8::1", ["2001:0db8:0::1"], True),
        ("fe80::1%eth0", ["fe80::1"], True),
        ("192.0.2.1", socket.gaierror(-2, "Name or service not known"), False),
        ("192.0.2.1", UnicodeError("label too long"), False),
        ("192.0.2.1", None, False),
    ],
)
def test_confirmed_system_host_of(
    monkeypatch: pytest.MonkeyPatch, address: str, addresses: Any, confirmed: bool
) -> None:
    """confirmed_system_host_of() returns a name only if the address is among its addresses."""
    monkeypatch.setattr(resolver_module, "system_host_of", lambda _address: None if addresses is None else "a.example")

    def getaddrinfo(host: str, _port: None, **_kind: int) -> list[Any]:
        assert host == "a.example"
        if isinstance(addresses, Exception):
            raise addresses
        return [(0, 0, 0, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert confirmed_system_host_of(address) == ("a.example" if confirmed else None)
