"""The reactor in programs that drive it themselves: iterate(), crash() and run() again."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from tests.reactor.conftest import Recorder, Recorders
from tests.reactor.test_streams import Echo

if TYPE_CHECKING:
    import pytest

    from tests.reactor.conftest import Bench


def _no_timers(monkeypatch: pytest.MonkeyPatch, reactor: Any) -> None:
    """Let the loop take no timer: what needs one fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a timer was set")

    monkeypatch.setattr(type(reactor.loop), "call_later", refuse)
    monkeypatch.setattr(type(reactor.loop), "call_at", refuse)


def test_a_pass_waits_for_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """iterate() runs what is due, in order and in the loop, and needs no timer for it."""
    reactor: Any = bench.reactor
    told: list[Any] = []
    reactor.callLater(0, told.append, 1)
    reactor.callLater(0, lambda: told.append(reactor.loop.is_running()))
    late = reactor.callLater(1000, told.append, "late")
    _no_timers(monkeypatch, reactor)
    reactor.iterate()
    assert told == [1, True]
    reactor.iterate(0)
    assert told == [1, True]
    monkeypatch.undo()
    late.cancel()


def test_a_pass_serves_connections(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits is accepted in one pass, its input served in the next one, and its end in the one after."""
    reactor: Any = bench.reactor
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


def test_a_pass_that_waits(bench: Bench) -> None:
    """iterate(delay) serves what comes and is due meanwhile, and leaves nothing that ends a later run()."""
    reactor: Any = bench.reactor
    told: list[str] = []
    reactor.callLater(0.01, told.append, "due")
    while not told:
        reactor.iterate(0.005)
    reactor.callLater(0.02, told.append, "in the run")
    reactor.callLater(0.03, reactor.crash)
    reactor.run(installSignalHandlers=False)
    assert told == ["due", "in the run"]


def test_crash_of_a_reactor_that_does_not_run(bench: Bench) -> None:
    """What crash() says before the loop runs does not end a later run()."""
    reactor: Any = bench.reactor
    reactor.crash()
    reactor.fireSystemEvent("shutdown")
    told: list[str] = []
    reactor.callLater(0.01, told.append, "ran")
    reactor.callLater(0.02, reactor.crash)
    reactor.run(installSignalHandlers=False)
    assert told == ["ran"]


def test_crash_while_the_reactor_starts(bench: Bench) -> None:
    """A reactor that is crashed by what it calls at its start does not run."""
    reactor: Any = bench.reactor
    reactor.callWhenRunning(reactor.crash)
    reactor.run(installSignalHandlers=False)
    assert not reactor.running


def test_runs_one_after_another(bench: Bench) -> None:
    """crash() ends one run(); connections and timed calls go on in the next one."""
    reactor: Any = bench.reactor
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
