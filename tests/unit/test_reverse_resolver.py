"""Host names from blocking lookups in threads, without waiting for any."""

from __future__ import annotations

import queue
import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.task import Clock

from svcd.host import reverse_resolver as names_module
from svcd.host.reverse_resolver import TIMEOUT_SECONDS, ReverseResolver, confirmed_system_host_of, system_host_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Resolver:
    """Blocking lookup answered by the test, and the reactor that gets the answer."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[str | None] = queue.Queue()
        self.calls: queue.Queue[tuple[Callable[..., object], tuple[object, ...]]] = queue.Queue()
        self.lookups = 0
        self.names = ReverseResolver(self.clock, self, self.host_of, self.confirmed_host_of)  # type: ignore[arg-type]

    def host_of(self, address: str) -> str | None:
        """Block until the test answers."""
        self.lookups += 1
        self.asked.put(address)
        answer = self.answers.get()
        if answer == "raise":
            raise ValueError(address)
        return answer

    def confirmed_host_of(self, address: str) -> str | None:
        """The same for a name that is to be confirmed."""
        return self.host_of(f"confirmed {address}")

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        """Keep the call for `run`."""
        self.calls.put((function, arguments))

    def ask(self, address: str) -> list[str | None]:
        """Ask; the list gets the answer."""
        found: list[str | None] = []
        self.names.host_of(address).addCallback(found.append)
        return found

    def answer(self, host: str | None) -> None:
        """Let one lookup end, and take its call as the reactor would."""
        self.answers.put(host)
        self.run()

    def run(self) -> None:
        """Take one call."""
        function, arguments = self.calls.get(timeout=10)
        function(*arguments)


@pytest.fixture
def resolver() -> Iterator[_Resolver]:
    """A resolver; whatever still blocks at the end is answered."""
    made = _Resolver()
    yield made
    for _ in range(made.lookups + 100):
        made.answers.put(None)


def test_a_name_comes_from_a_thread(resolver: _Resolver) -> None:
    """Asking returns at once; the answer comes when the lookup ends, and leaves no timer."""
    found = resolver.ask("192.0.2.1")
    assert resolver.asked.get(timeout=10) == "192.0.2.1"
    assert found == []
    resolver.answer("host.example")
    assert found == ["host.example"]
    assert not resolver.clock.getDelayedCalls()


def test_a_name_is_remembered_for_a_while(resolver: _Resolver) -> None:
    """Asked again it is there at once, later it is looked up anew; the lack of a name as well."""
    for host in ("host.example", None):
        resolver.clock.advance(301)
        resolver.ask("192.0.2.1")
        resolver.answer(host)
        lookups = resolver.lookups
        resolver.clock.advance(299)
        assert resolver.ask("192.0.2.1") == [host]
        assert resolver.lookups == lookups
        resolver.clock.advance(2)
        assert resolver.ask("192.0.2.1") == []
        resolver.answer(None)


def test_one_lookup_answers_all_who_ask_meanwhile(resolver: _Resolver) -> None:
    """A flood of connections from one address is one question."""
    found = [resolver.ask("192.0.2.1") for _ in range(50)]
    resolver.answer("host.example")
    for _ in range(49):
        resolver.run()
    assert found == [["host.example"]] * 50
    assert resolver.lookups == 1


def test_a_slow_lookup_is_answered_with_none_and_still_remembered(resolver: _Resolver) -> None:
    """No caller waits longer than the limit; the late name is cached for the next."""
    found = resolver.ask("192.0.2.1")
    resolver.clock.advance(TIMEOUT_SECONDS - 0.001)
    assert found == []
    late = resolver.ask("192.0.2.1")
    resolver.clock.advance(0.001)
    assert (found, late) == ([None], [])
    resolver.answer("host.example")
    assert (found, late) == ([None], ["host.example"])
    assert resolver.ask("192.0.2.1") == ["host.example"]


def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound an address has no name at once, and nothing is kept for it."""
    monkeypatch.setattr(names_module, "_ACTIVE", 1)
    monkeypatch.setattr(names_module, "_QUEUED", 2)
    resolver = _Resolver()
    waiting = [resolver.ask("192.0.2.0")]
    resolver.asked.get(timeout=10)
    waiting += [resolver.ask(f"192.0.2.{number}") for number in (1, 2)]
    assert resolver.ask("192.0.2.99") == [None]
    assert waiting == [[], [], []]
    for _ in range(3):
        resolver.answer("x")
    assert waiting == [["x"], ["x"], ["x"]]
    assert resolver.ask("192.0.2.99") == []


def test_only_so_many_are_remembered(resolver: _Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first."""
    monkeypatch.setattr(names_module, "_MAX_KEPT", 2)
    for number in range(3):
        resolver.ask(f"192.0.2.{number}")
        resolver.answer(f"host{number}")
    assert resolver.ask("192.0.2.2") == ["host2"]
    assert resolver.ask("192.0.2.1") == ["host1"]
    assert resolver.ask("192.0.2.0") == []


def test_slow_lookups_do_not_block_each_other_below_four(resolver: _Resolver) -> None:
    """Four addresses are looked up at the same time, a fifth waits for a thread."""
    for number in range(5):
        resolver.ask(f"192.0.2.{number}")
    started = {resolver.asked.get(timeout=10) for _ in range(4)}
    assert started == {f"192.0.2.{number}" for number in range(4)}
    assert resolver.asked.empty()
    resolver.answer("x")
    assert resolver.asked.get(timeout=10) == "192.0.2.4"


def test_a_lookup_that_fails_is_no_name(resolver: _Resolver) -> None:
    """A mistake of the resolver's ends neither the thread nor the question."""
    for _ in range(6):
        found = resolver.ask("192.0.2.1")
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
def test_the_systems_resolver(monkeypatch: pytest.MonkeyPatch, outcome: Any, host: str | None) -> None:
    """A name of bounded length, or None whatever goes wrong."""

    def getnameinfo(address: tuple[str, int], flags: int) -> tuple[str, str]:
        assert (address, flags) == (("192.0.2.1", 0), socket.NI_NAMEREQD)
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, tuple)
        return outcome

    monkeypatch.setattr(socket, "getnameinfo", getnameinfo)
    assert system_host_of("192.0.2.1") == host


def test_confirmed_names_are_looked_up_apart(resolver: _Resolver) -> None:
    """An unconfirmed name is never returned as a confirmed one."""
    plain = resolver.ask("192.0.2.1")
    confirmed: list[str | None] = []
    resolver.names.confirmed_host_of("192.0.2.1").addCallback(confirmed.append)
    asked = {resolver.asked.get(timeout=10) for _ in range(2)}
    assert asked == {"192.0.2.1", "confirmed 192.0.2.1"}
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
def test_the_systems_resolver_confirms(
    monkeypatch: pytest.MonkeyPatch, address: str, addresses: Any, confirmed: bool
) -> None:
    """A name counts if the address is among its own."""
    monkeypatch.setattr(names_module, "system_host_of", lambda _address: None if addresses is None else "a.example")

    def getaddrinfo(host: str, _port: None, **_kind: int) -> list[Any]:
        assert host == "a.example"
        if isinstance(addresses, Exception):
            raise addresses
        return [(0, 0, 0, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert confirmed_system_host_of(address) == ("a.example" if confirmed else None)
