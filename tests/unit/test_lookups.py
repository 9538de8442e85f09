"""Blocking lookups in daemon threads: shared, limited in number, and cancelled."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from svcd.addresses import HostPort
from svcd.errors import UnavailableError
from svcd.host import info as machine_module
from svcd.host.info import Host
from svcd.net.lookups import LookupPool
from svcd.net.resolver import system_addresses, twisted_address
from svcd.protocols import outgoing as outgoing_module
from svcd.protocols.outgoing import NameEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0


class _Server:
    """Lookups that block until the test answers them, and a reactor that queues calls from threads.

    Attributes:
        started: the queries whose lookup has started.
        calls: the calls from threads.
    """

    def __init__(self) -> None:
        self.started: queue.Queue[str] = queue.Queue()
        self.calls: queue.Queue[tuple[Callable[..., object], tuple[object, ...]]] = queue.Queue()
        self._answers: dict[str, queue.Queue[Any]] = {}

    def lookup(self, query: str) -> Callable[[], str]:
        """Return a function that blocks until the query is answered."""

        def run() -> str:
            answers = self._answers.setdefault(query, queue.Queue())
            self.started.put(query)
            found = answers.get()
            if isinstance(found, Exception):
                raise found
            return str(found)

        return run

    def answer(self, query: str, found: Any) -> None:
        """Answer a query whose lookup has started: by a result or an exception."""
        self._answers[query].put(found)

    def end(self) -> None:
        """Answer all queries."""
        for answers in self._answers.values():
            answers.put("end")

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        """Queue a call for run()."""
        self.calls.put((function, arguments))

    def run(self) -> None:
        """Run one queued call, within PATIENCE seconds."""
        function, arguments = self.calls.get(timeout=PATIENCE)
        function(*arguments)


@pytest.fixture
def server() -> Iterator[_Server]:
    """Yield a server; answer all queries after the test."""
    made = _Server()
    yield made
    made.end()


def _pool(active: int = 2, threads: int = 3, queued: int = 2) -> LookupPool[str]:
    return LookupPool("test-lookups", active=active, threads=threads, queued=queued)


def _start(pool: LookupPool[str], server: _Server, query: str) -> tuple[list[Any], Callable[[], None]]:
    found: list[Any] = []
    return found, pool.ask(query, server.lookup(query), found.append)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_query_is_one_lookup(server: _Server) -> None:
    """All waiters for a query receive the result of one lookup."""
    pool = _pool()
    waiters = [_start(pool, server, "a")[0] for _ in range(10)]
    assert server.started.get(timeout=PATIENCE) == "a"
    server.answer("a", "1")
    _wait(lambda: waiters == [["1"]] * 10)
    assert server.started.empty()


def test_an_exception_is_the_result(server: _Server) -> None:
    """Each waiter receives the exception of a lookup; the same query is looked up again later."""
    pool = _pool()
    found, _ = _start(pool, server, "a")
    server.started.get(timeout=PATIENCE)
    error = OSError("none")
    server.answer("a", error)
    _wait(lambda: found == [error])
    second, _ = _start(pool, server, "a")
    server.started.get(timeout=PATIENCE)
    server.answer("a", "2")
    _wait(lambda: second == ["2"])


def test_a_cancelled_waiter_frees_its_place(server: _Server) -> None:
    """A lookup without waiters does not delay others up to the limit of threads; then queries wait, and then fail."""
    pool = _pool(active=1, threads=3, queued=2)
    for name in ("a", "b"):
        found, cancel = _start(pool, server, name)
        assert server.started.get(timeout=PATIENCE) == name
        cancel()
        cancel()
    third, _ = _start(pool, server, "c")
    assert server.started.get(timeout=PATIENCE) == "c"
    waiting = [_start(pool, server, name) for name in ("d", "e")]
    with pytest.raises(BlockingIOError, match="3 name lookups run and 2 wait"):
        _start(pool, server, "f")
    # Cancelling a waiting query frees its place in the queue.
    waiting[1][1]()
    _start(pool, server, "g")
    assert server.started.empty()
    server.answer("c", "3")
    assert server.started.get(timeout=PATIENCE) == "d"
    _wait(lambda: third == ["3"])
    server.answer("d", "4")
    assert server.started.get(timeout=PATIENCE) == "g"
    assert (found, waiting[0][0], waiting[1][0]) == ([], ["4"], [])


def test_a_new_waiter_joins_a_running_lookup(server: _Server) -> None:
    """A new waiter joins a lookup that runs already, even if all others have cancelled."""
    pool = _pool()
    first, cancel = _start(pool, server, "a")
    server.started.get(timeout=PATIENCE)
    cancel()
    second, _ = _start(pool, server, "a")
    server.answer("a", "1")
    _wait(lambda: second == ["1"])
    assert first == []
    assert server.started.empty()


def test_threads_end_without_queries(server: _Server) -> None:
    """A pool without queries has no threads; its threads are daemon threads."""
    pool = _pool()
    found, _ = _start(pool, server, "a")
    server.started.get(timeout=PATIENCE)
    threads = [thread for thread in threading.enumerate() if thread.name == "test-lookups"]
    assert all(thread.daemon for thread in threads)
    server.answer("a", "1")
    _wait(lambda: not any(thread.is_alive() for thread in threads))
    assert found == ["1"]


def test_a_pool_in_a_forked_child(server: _Server) -> None:
    """A forked child, which has none of its parent's threads, starts lookups of its own."""
    pool = _pool()
    _start(pool, server, "a")
    server.started.get(timeout=PATIENCE)
    with warnings.catch_warnings():
        # Other threads may hold locks that the child needs; those of the pool are new in it.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        try:
            os._exit(0 if pool.begin("a", lambda: "1").wait(PATIENCE) == "1" else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_system_without_threads(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query for which no thread can be started fails at once with the reason; the next one is looked up."""
    pool = _pool()

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(BlockingIOError, match="gives no thread"):
            _start(pool, server, "a")
    _start(pool, server, "a")
    assert server.started.get(timeout=PATIENCE) == "a"


def test_waiting_for_a_result(server: _Server) -> None:
    """wait() returns the result, raises the lookup's exception, or raises TimeoutError with the reason."""
    pool: LookupPool[str] = _pool()
    assert pool.begin("now", lambda: "1").wait(PATIENCE) == "1"
    with pytest.raises(UnicodeError):
        pool.begin("bad", lambda: "\udc80".encode().decode()).wait(PATIENCE)
    with pytest.raises(TimeoutError, match="no name server has answered in time"):
        pool.begin("late", server.lookup("late")).wait(0.01)
    assert server.started.get(timeout=PATIENCE) == "late"


def test_a_deferred_that_is_cancelled(server: _Server) -> None:
    """After cancel() the result is dropped, and the place is free."""
    pool = _pool(active=1)
    reactor: Any = server
    results: list[Any] = []
    answer = pool.deferred(reactor, "a", server.lookup("a"))
    answer.addBoth(results.append)
    server.started.get(timeout=PATIENCE)
    answer.cancel()
    assert results[0].check(CancelledError)
    other = pool.deferred(reactor, "b", server.lookup("b")).addBoth(results.append)
    assert server.started.get(timeout=PATIENCE) == "b"
    server.answer("a", "1")
    server.answer("b", "2")
    server.run()
    assert other.called
    assert results[1:] == ["2"]


class _Reactor(MemoryReactorClock):
    """Reactor for connections in memory that queues calls from threads, and counts connection attempts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.thread_calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.attempts = 0

    # svcd.interfaces.DescriptorCounter.

    def acquire(self) -> None:
        """Count a connection attempt."""
        self.attempts += 1

    def release(self) -> None:
        """Count the end of a connection attempt."""
        self.attempts -= 1

    def try_acquire(self) -> bool:
        """Fail: connection attempts do not call it."""
        raise NotImplementedError

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        """Queue a call for run()."""
        self.thread_calls.put((function, *arguments))

    def run(self) -> None:
        """Run one queued call, within PATIENCE seconds."""
        function, *arguments = self.thread_calls.get(timeout=PATIENCE)
        function(*arguments)


def _endpoint(monkeypatch: pytest.MonkeyPatch, run: Callable[[str], Any], pool: Any = None) -> tuple[_Reactor, Any]:
    monkeypatch.setattr(outgoing_module, "system_addresses", run)
    reactor = _Reactor()
    host = "localhost" if pool is not None else "web.example"
    pool = pool or LookupPool("test-lookups", active=1, threads=1, queued=1)
    return reactor, NameEndpoint(reactor, pool, HostPort(host, 80), 3.0, reactor)


def test_a_name_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses of a name are tried in order."""
    reactor, endpoint = _endpoint(monkeypatch, lambda _host: [(10, ("2001:db8::1", 0, 0, 0)), (2, ("192.0.2.1", 0))])
    endpoint.connect(None).addErrback(lambda _failure: None)
    reactor.run()
    reactor.advance(1)
    assert [client[:2] for client in reactor.tcpClients] == [("2001:db8::1", 80), ("192.0.2.1", 80)]


def test_attempts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection attempt counts as a descriptor until it succeeds, fails or is cancelled."""
    names = [(2, (f"192.0.2.{number}", 0)) for number in (1, 2, 3)]
    reactor, endpoint = _endpoint(monkeypatch, lambda _host: names)
    made: list[Any] = []
    endpoint.connect(Factory.forProtocol(Protocol)).addCallback(made.append)
    reactor.run()
    assert reactor.attempts == 1
    reactor.advance(0.3)
    assert reactor.attempts == 2
    attempts: Any = [client[2] for client in reactor.tcpClients]
    first, second = attempts
    first.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
    assert reactor.attempts == 1
    second.buildProtocol(None).makeConnection(StringTransport())
    assert reactor.attempts == 0
    assert made


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), DNSLookupError, "not known"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), UnavailableError,
         "its name can't be looked up: Temporary failure in name resolution"),
        (UnicodeError("label too long"), UnavailableError, "its name can't be looked up: label too long"),
    ],
)  # fmt: skip
def test_a_name_that_can_not_be_looked_up(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], text: str
) -> None:
    """An unknown name and a failing name server have different errors."""

    def run(_host: str) -> Any:
        raise error

    reactor, endpoint = _endpoint(monkeypatch, run)
    results: list[Any] = []
    endpoint.connect(None).addErrback(results.append)
    reactor.run()
    assert results[0].check(kind)
    assert text in str(results[0].value)


def test_localhost_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread is free, localhost is the loopback addresses; another name fails with the reason."""

    class _Full(LookupPool[Any]):
        def ask(self, *_arguments: Any) -> Any:
            raise BlockingIOError(11, "64 name lookups run")

    pool = _Full("test", active=0, threads=0, queued=0)
    reactor, endpoint = _endpoint(monkeypatch, lambda _host: [], pool)
    endpoint.connect(None).addErrback(lambda _failure: None)
    reactor.advance(1)
    assert [client[:2] for client in reactor.tcpClients] == [("::1", 80), ("127.0.0.1", 80)]
    results: list[Any] = []
    NameEndpoint(reactor, pool, HostPort("web.example", 80), 3.0, reactor).connect(None).addErrback(results.append)  # type: ignore[arg-type]
    assert str(results[0].value) == "its name can't be looked up: 64 name lookups run"


def test_the_systems_addresses() -> None:
    """localhost has loopback addresses on every system, and the given port."""
    found = [twisted_address(name, 80, "UDP") for name in system_addresses("localhost")]
    assert found
    assert {(each.host, each.port, each.type) for each in found} <= {("127.0.0.1", 80, "UDP"), ("::1", 80, "UDP")}


def test_addresses_of_bind_have_a_deadline(monkeypatch: pytest.MonkeyPatch, server: _Server) -> None:
    """A host name of bind= without an answer in time is a TimeoutError with the reason."""
    monkeypatch.setattr(machine_module, "_LOOKUP_SECONDS", 0.01)
    monkeypatch.setattr(machine_module, "system_addresses", lambda name: server.lookup(name)())
    with pytest.raises(TimeoutError, match=r"no name server has answered within 0\.01 s"):
        Host().addresses("silent.example")


def test_names_that_had_no_answer_before_an_upgrade(monkeypatch: pytest.MonkeyPatch, server: _Server) -> None:
    """A new daemon waits only briefly for a name that the old daemon has waited for in vain (upgrade)."""
    monkeypatch.setattr(machine_module, "_LOOKUP_SECONDS", 60.0)
    monkeypatch.setattr(machine_module, "_UNANSWERED_SECONDS", 0.01)
    monkeypatch.setattr(machine_module, "system_addresses", lambda name: server.lookup(name)())
    machine = Host(unanswered=frozenset({"silent.example", "lo"}))
    with pytest.raises(TimeoutError, match=r"no name server has answered within 0\.01 s"):
        machine.addresses("silent.example")
    assert "127.0.0.1" in machine.addresses("lo")


def test_names_of_bind_are_looked_up_together(monkeypatch: pytest.MonkeyPatch, server: _Server) -> None:
    """Host names of bind= are looked up at the same time: many without an answer take as long as one."""
    monkeypatch.setattr(machine_module, "_LOOKUP_SECONDS", 0.3)
    lookups: list[str] = []

    def lookup(name: str) -> object:
        lookups.append(name)
        return [(2, ("192.0.2.1", 0))] if name == "good.example" else server.lookup(name)()

    monkeypatch.setattr(machine_module, "system_addresses", lookup)
    machine = Host()
    names = [*(f"silent{number}.example" for number in range(5)), "good.example"]
    machine.look_up([*names, "127.0.0.1", "lo"])
    for name in names[:-1]:
        with pytest.raises(TimeoutError):
            machine.addresses(name)
    assert list(machine.addresses("good.example")) == ["192.0.2.1"]
    # Two services may have the same name: it is looked up once.
    with pytest.raises(TimeoutError):
        machine.addresses(names[0])
    assert list(machine.addresses("good.example")) == ["192.0.2.1"]
    # All names were looked up, although the first ones have no answer.
    assert sorted(lookups) == sorted(names)
