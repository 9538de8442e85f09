"""Tests of programs that drive the reactor themselves: iterate(), crash() and repeated run()."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from tests.reactor.conftest import Recorder, Recorders
from tests.reactor.test_streams import Echo

if TYPE_CHECKING:
    import pytest

    from tests.reactor.conftest import ReactorHarness


def _no_timers(monkeypatch: pytest.MonkeyPatch, reactor: Any) -> None:
    """Make the loop raise an exception if a timer is set."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a timer was set")

    monkeypatch.setattr(type(reactor.loop), "call_later", refuse)
    monkeypatch.setattr(type(reactor.loop), "call_at", refuse)


def test_iterate_does_not_block(harness: ReactorHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """iterate() runs due calls, in order and in the loop, without a timer."""
    reactor: Any = harness.reactor
    events: list[Any] = []
    reactor.callLater(0, events.append, 1)
    reactor.callLater(0, lambda: events.append(reactor.loop.is_running()))
    late = reactor.callLater(1000, events.append, "late")
    _no_timers(monkeypatch, reactor)
    reactor.iterate()
    assert events == [1, True]
    reactor.iterate(0)
    assert events == [1, True]
    monkeypatch.undo()
    late.cancel()


def test_iterate_serves_connections(harness: ReactorHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting client is accepted in one call, its input is handled in the next, and its end in the one after that."""
    reactor: Any = harness.reactor
    factory = Recorders(Echo)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    _no_timers(monkeypatch, reactor)
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        reactor.iterate()
        assert len(factory.made) == 1
        client.settimeout(10)
        client.sendall(b"hello")
        reactor.iterate()
        assert client.recv(5) == b"hello"
    reactor.iterate()
    reactor.iterate()
    assert factory.lost == 1
    monkeypatch.undo()
    stopped = port.stopListening()
    reactor.iterate()
    assert stopped.called


def test_iterate_with_a_delay(harness: ReactorHarness) -> None:
    """iterate(delay) handles events and due calls within the delay, and leaves no timer that ends a later run()."""
    reactor: Any = harness.reactor
    events: list[str] = []
    reactor.callLater(0.01, events.append, "due")
    while not events:
        reactor.iterate(0.005)
    reactor.callLater(0.02, events.append, "in the run")
    reactor.callLater(0.03, reactor.crash)
    reactor.run(installSignalHandlers=False)
    assert events == ["due", "in the run"]


def test_crash_before_run(harness: ReactorHarness) -> None:
    """crash() before the loop runs does not end a later run()."""
    reactor: Any = harness.reactor
    reactor.crash()
    reactor.fireSystemEvent("shutdown")
    events: list[str] = []
    reactor.callLater(0.01, events.append, "ran")
    reactor.callLater(0.02, reactor.crash)
    reactor.run(installSignalHandlers=False)
    assert events == ["ran"]


def test_crash_at_the_start(harness: ReactorHarness) -> None:
    """A reactor that is crashed by a call at its start does not run."""
    reactor: Any = harness.reactor
    reactor.callWhenRunning(reactor.crash)
    reactor.run(installSignalHandlers=False)
    assert not reactor.running


def test_repeated_runs(harness: ReactorHarness) -> None:
    """crash() ends a run(); connections and delayed calls continue in the next run()."""
    reactor: Any = harness.reactor
    factory = Recorders(Recorder)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        for piece in (b"a", b"b", b"c"):
            client.sendall(piece)
            reactor.callLater(0.01, reactor.crash)
            reactor.run(installSignalHandlers=False)
        assert bytes(factory.made[0].received) == b"abc"
    port.stopListening()
    reactor.iterate()
