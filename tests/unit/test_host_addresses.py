"""Addresses of host names in rules: looked up beforehand, again by their age, and never because a datagram comes."""

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
    """LookupPool answered by the test."""

    def __init__(self) -> None:
        self.asked: list[tuple[Hashable, Deferred[Any]]] = []
        self.cancelled: list[Hashable] = []

    def deferred(self, _reactor: object, question: Hashable, _run: object) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(lambda _deferred: self.cancelled.append(question))
        self.asked.append((question, answer))
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
        """The oldest question's."""
        _, answer = self.pool.asked.pop(0)
        if isinstance(result, Exception):
            answer.errback(result)
        else:
            answer.callback(result)


@pytest.fixture
def made() -> _Hosts:
    """With a pool by hand."""
    return _Hosts()


def test_names_are_looked_up_when_they_are_followed(made: _Hosts) -> None:
    """One lookup serves all followers, and each is called."""
    leave = made.hosts.follow(["a.example", "b.example"], made.changed)
    leave_too = made.hosts.follow(["a.example"], made.changed)
    assert [question for question, _ in made.pool.asked] == ["a.example", "b.example"]
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
    """Followers are called for changed addresses only; the old ones are in use meanwhile."""
    made.hosts.follow(["a.example"], made.changed)
    made.answer(_numbers("192.0.2.1"))
    made.reactor.advance(KEEP_SECONDS - 1)
    assert not made.pool.asked
    made.reactor.advance(1)
    made.answer(_numbers("192.0.2.1"))
    assert made.changes == 1
    made.reactor.advance(KEEP_SECONDS)
    assert made.hosts.known(["a.example"]) == {"a.example": _numbers("192.0.2.1")}
    made.answer(_numbers("192.0.2.2", "2001:db8::1"))
    assert made.changes == 2
    assert made.hosts.known(["a.example"]) == {"a.example": _numbers("192.0.2.2", "2001:db8::1")}


def test_a_lookup_that_fails_leaves_what_is_known(made: _Hosts) -> None:
    """A failure is logged once and retried soon; a name that was never known stays unknown."""
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


def test_a_silent_name_server_is_not_waited_for(made: _Hosts) -> None:
    """The lookup is given up after some seconds, and tried again."""
    made.hosts.follow(["a.example"], made.changed)
    with LogCatcher() as log:
        made.reactor.advance(20)
        [event] = log.named("unresolved")
    assert event["reason"] == "no name server has answered within 20 s"
    assert made.pool.cancelled == ["a.example"]
    made.reactor.advance(RETRY_SECONDS)
    assert len(made.pool.asked) == 2


def test_a_pool_without_room_is_a_lookup_that_fails(made: _Hosts) -> None:
    """It is tried again as any other."""
    made.hosts._pool = HostAddresses(made.reactor)._pool
    made.hosts._pool._max_queued = 0
    with LogCatcher() as log:
        made.hosts.follow(["a.example"], made.changed)
        assert len(log.named("unresolved")) == 1
    assert made.changes == 1
    assert len(made.reactor.getDelayedCalls()) == 1


def test_the_system_says_which_addresses_a_name_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both versions, IPv4-mapped ones as IPv4, so many at most; a name that does not exist has none."""
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
