"""Addresses of host names in rules: looked up in advance, again by their age, and never because of a datagram."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import Deferred

from svcd.addresses import address_number
from svcd.host.host_addresses import (
    KEEP_SECONDS,
    MAX_ADDRESSES,
    RETRY_SECONDS,
    HostAddresses,
    system_numbers_of,
)
from tests.doubles import FakeReactor, LogCatcher

if TYPE_CHECKING:
    from collections.abc import Hashable


def _numbers(*addresses: str) -> frozenset[int]:
    return frozenset(map(address_number, addresses))


class _Pool:
    """LookupPool whose queries the test answers."""

    def __init__(self) -> None:
        self.queries: list[tuple[Hashable, Deferred[Any]]] = []
        self.cancelled: list[Hashable] = []

    def deferred(self, _reactor: object, name: Hashable, _run: object) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(lambda _deferred: self.cancelled.append(name))
        self.queries.append((name, answer))
        return answer


class _Hosts:
    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.hosts = HostAddresses(self.reactor)
        self.pool = _Pool()
        self.hosts._pool = self.pool  # type: ignore[assignment]
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1

    def answer(self, result: Any) -> None:
        """Answer the oldest query by a result or an error."""
        _, answer = self.pool.queries.pop(0)
        if isinstance(result, Exception):
            answer.errback(result)
        else:
            answer.callback(result)


@pytest.fixture
def made() -> _Hosts:
    """Return a HostAddresses whose pool the test answers."""
    return _Hosts()


def test_names_are_looked_up_when_they_are_followed(made: _Hosts) -> None:
    """One lookup of a name serves all followers, each of which is called; without followers it is cancelled."""
    leave = made.hosts.follow(["a.example", "b.example"], made.changed)
    leave_too = made.hosts.follow(["a.example"], made.changed)
    assert [name for name, _ in made.pool.queries] == ["a.example", "b.example"]
    assert not made.hosts.answered(["a.example"])
    made.answer(_numbers("192.0.2.1"))
    assert made.changes == 2
    assert made.hosts.known(["a.example", "b.example", "c.example"]) == {"a.example": _numbers("192.0.2.1")}
    assert made.hosts.answered(["a.example"])
    assert not made.hosts.answered(["a.example", "b.example"])
    leave()
    leave()
    assert made.pool.cancelled == ["b.example"]
    assert made.hosts.known(["a.example"])
    leave_too()
    assert not made.hosts.known(["a.example"])
    assert not made.reactor.getDelayedCalls()


def test_addresses_are_looked_up_again_by_their_age(made: _Hosts) -> None:
    """Names are looked up again by their age; old addresses stay in use, and followers are called for changes only."""
    made.hosts.follow(["a.example"], made.changed)
    made.answer(_numbers("192.0.2.1"))
    made.reactor.advance(KEEP_SECONDS - 1)
    assert not made.pool.queries
    made.reactor.advance(1)
    made.answer(_numbers("192.0.2.1"))
    assert made.changes == 1
    made.reactor.advance(KEEP_SECONDS)
    assert made.hosts.known(["a.example"]) == {"a.example": _numbers("192.0.2.1")}
    made.answer(_numbers("192.0.2.2", "2001:db8::1"))
    assert made.changes == 2
    assert made.hosts.known(["a.example"]) == {"a.example": _numbers("192.0.2.2", "2001:db8::1")}


def test_a_failed_lookup_keeps_the_known_addresses(made: _Hosts) -> None:
    """A failed lookup is logged once and retried soon; the known addresses stay."""
    made.hosts.follow(["a.example"], made.changed)
    with LogCatcher() as log:
        made.answer(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
        assert (made.changes, made.hosts.known(["a.example"]), made.hosts.answered(["a.example"])) == (1, {}, True)
        made.reactor.advance(RETRY_SECONDS)
        made.answer(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
        [event] = log.named("unresolved")
        assert (event["host"], event["reason"]) == ("a.example", "Temporary failure in name resolution")
        made.reactor.advance(RETRY_SECONDS)
        made.answer(_numbers("192.0.2.1"))
        made.reactor.advance(KEEP_SECONDS)
        made.answer(UnicodeError("label too long"))
        assert made.hosts.known(["a.example"]) == {"a.example": _numbers("192.0.2.1")}
        assert len(log.named("unresolved")) == 2


def test_a_lookup_without_an_answer_is_cancelled(made: _Hosts) -> None:
    """A lookup without an answer is cancelled after 20 s, and retried."""
    made.hosts.follow(["a.example"], made.changed)
    with LogCatcher() as log:
        made.reactor.advance(20)
        [event] = log.named("unresolved")
    assert event["reason"] == "no name server has answered within 20 s"
    assert made.pool.cancelled == ["a.example"]
    made.reactor.advance(RETRY_SECONDS)
    assert len(made.pool.queries) == 2


def test_a_full_pool_is_a_failed_lookup(made: _Hosts) -> None:
    """A lookup that the pool refuses fails, and is retried."""
    made.hosts._pool = HostAddresses(made.reactor)._pool
    made.hosts._pool._max_queued = 0
    with LogCatcher() as log:
        made.hosts.follow(["a.example"], made.changed)
        assert len(log.named("unresolved")) == 1
    assert made.changes == 1
    assert len(made.reactor.getDelayedCalls()) == 1


def test_addresses_of_the_system_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """system_numbers_of() returns addresses of both versions, IPv4-mapped ones as IPv4, and limits their number."""
    assert system_numbers_of("localhost") <= _numbers("127.0.0.1", "::1")
    assert system_numbers_of("localhost")
    rows = [(socket.AF_INET6, 0, 0, "", ("::ffff:192.0.2.1", 0, 0, 0)), (socket.AF_INET, 0, 0, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    assert system_numbers_of("a.example") == _numbers("192.0.2.1")
    many = [(socket.AF_INET, 0, 0, "", (f"10.0.{number >> 8}.{number & 255}", 0)) for number in range(1000)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)
    assert len(system_numbers_of("a.example")) == MAX_ADDRESSES
    for code in (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN):

        def fail(*_: object, code: int = code, **__: object) -> None:
            raise socket.gaierror(code, "?")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        if code == socket.EAI_AGAIN:
            with pytest.raises(socket.gaierror):
                system_numbers_of("a.example")
        else:
            assert system_numbers_of("a.example") == frozenset()
