"""The supervisor: services from the start to the stop, with a clock that the tests advance."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from twisted.internet.protocol import Factory

from svcd.config.endpoints import DesiredServices, check
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.errors import ConfigError, ListenErrors
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.metrics.registry import MetricsRegistry
from svcd.sockets.acquire import SocketPool
from svcd.sockets.activation import InheritedSocket
from svcd.sockets.ports import StreamPort
from svcd.supervisor.supervisor import Supervisor
from tests.doubles import (
    FakeFiles,
    FakeMachine,
    FakeReactor,
    LogCatcher,
    ManagerDouble,
    config_of,
    list_sink,
    service_context,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from twisted.internet.defer import Deferred

    from svcd.connections.tracker import ConnectionTracker


class _Daemon:
    """Supervisor of the services in a text."""

    def __init__(
        self,
        text: str,
        manager: ManagerDouble | None = None,
        socket_pool: SocketPool | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.manager = manager or ManagerDouble()
        self.clients: list[socket.socket] = []
        endpoints, problems = check(config_of(text), FakeFiles(), FakeMachine())
        assert not problems
        # Enough for two connections and the listeners.
        self.budget = DescriptorBudget(2 + len(endpoints), self.reactor)
        self.registry = MetricsRegistry()
        log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False))
        self.supervisor = Supervisor(
            service_context(self.reactor, self.budget, log_writer, self.manager, self.registry),
            DesiredServices(tuple(endpoints)),
            self.manager,
            socket_pool,
            strict=strict,
        )

    def start(self) -> None:
        """Start the supervisor, as twistd does."""
        self.supervisor.privilegedStartService()
        self.supervisor.startService()
        self.reactor.advance(0)

    @property
    def ports(self) -> list[Any]:
        """The ports that the reactor watches."""
        return [reader for reader in self.reactor.readers if hasattr(reader, "startListening")]

    def connect(self, path: Path) -> socket.socket:
        """Return a connected client whose connection was accepted."""
        client = socket.socket(socket.AF_UNIX)
        self.clients.append(client)
        client.settimeout(10)
        client.connect(str(path))
        for port in self.ports:
            if isinstance(port, StreamPort):
                port.doRead()
        return client

    def tracker(self, name: str) -> ConnectionTracker[Any]:
        """Return the tracker of a stream service."""
        tracker = self.supervisor.hosted[name].tracker
        assert tracker is not None
        return tracker

    def stop(self) -> Deferred[object]:
        """Begin to stop."""
        return self.supervisor.stopService()

    def close(self) -> None:
        """Stop the supervisor, and close the clients."""
        self.supervisor.abort_connections()
        self.reactor.advance(0)
        if self.supervisor.running:
            self.stop()
        for client in self.clients:
            client.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[_Daemon]:
    """Two stream services and a datagram service, on UNIX sockets."""
    made = _Daemon(
        f"echo {tmp_path}/echo/unix shutdown_timeout=3s\nchargen {tmp_path}/chargen/unix\n"
        f"discard {tmp_path}/discard/unixgram\n"
    )
    yield made
    made.close()


def test_start_is_logged_and_reported(daemon: _Daemon, tmp_path: Path) -> None:
    """A start logs a line for each listener and a ready line, and sends READY=1 to the service manager."""
    with LogCatcher() as log:
        daemon.start()
    assert [(event["service"], event["address"], event["runs"]) for event in log.named("listen")] == [
        ("echo/unix", str(tmp_path / "echo"), "echo"),
        ("chargen/unix", str(tmp_path / "chargen"), "chargen"),
        ("discard/unixgram", str(tmp_path / "discard"), "discard"),
    ]
    (ready,) = log.named("ready")
    assert (ready["services"], ready["listeners"]) == (3, 3)
    assert (
        daemon.manager.messages[-1] == f"READY=1 MAINPID={os.getpid()} STATUS=services: 3, listeners: 3, connections: 0"
    )
    assert len(daemon.ports) == 3


def test_a_start_that_fails_opens_nothing(tmp_path: Path) -> None:
    """With --strict a socket that can't be opened fails the start: nothing is watched, reported or left behind."""
    (tmp_path / "discard").write_text("in the way")
    daemon = _Daemon(f"echo {tmp_path}/echo/unix\ndiscard {tmp_path}/discard/unixgram\n", strict=True)
    with pytest.raises(ListenErrors):
        daemon.supervisor.privilegedStartService()
    assert daemon.manager.messages == []
    assert {path.name for path in tmp_path.iterdir()} == {"discard"}


def test_a_start_without_any_service_fails(tmp_path: Path) -> None:
    """If no service can be served, the error has all reasons."""
    (tmp_path / "a").write_text("in the way")
    daemon = _Daemon(f"echo {tmp_path}/a/unix\nx {tmp_path}/x/unix factory=no_such_module:f\n")
    with pytest.raises(ListenErrors) as caught:
        daemon.supervisor.privilegedStartService()
    assert "echo/unix: can't listen on" in str(caught.value)
    assert "No module named 'no_such_module'" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_factory_that_can_not_be_created_fails_a_strict_start(tmp_path: Path) -> None:
    """With --strict the start raises a ConfigError with the fault, and leaves no socket of any service."""
    daemon = _Daemon(f"echo {tmp_path}/echo/unix\nx {tmp_path}/x/unix factory=no_such_module:f\n", strict=True)
    with pytest.raises(ConfigError) as caught:
        daemon.supervisor.privilegedStartService()
    assert "No module named 'no_such_module'" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_connection_is_served_and_logged(daemon: _Daemon, tmp_path: Path) -> None:
    """Data goes from the socket through the wrapper to the protocol and back."""
    daemon.start()
    client = daemon.connect(tmp_path / "echo")
    client.sendall(b"hello")
    (wrapper,) = daemon.tracker("echo/unix").connections.values()
    wrapper.transport.doRead()
    wrapper.transport.doWrite()
    assert client.recv(100) == b"hello"
    assert daemon.lines[0].startswith("accept service=echo/unix ")


def test_stopping_without_connections_is_done_at_once(daemon: _Daemon, tmp_path: Path) -> None:
    """The close of each listener is logged, its socket file is removed, and the stop is complete at once."""
    daemon.start()
    with LogCatcher() as log:
        assert daemon.stop().called
    assert [event["connections"] for event in log.named("stop")] == [0]
    assert [event["service"] for event in log.named("close")] == ["echo/unix", "chargen/unix", "discard/unixgram"]
    assert log.named("close")[2]["datagrams"] == 0
    assert daemon.manager.messages[-1] == "STOPPING=1 STATUS=stopping"
    assert not daemon.ports
    assert not list(tmp_path.iterdir())
    daemon.reactor.advance(0)
    assert not daemon.reactor.getDelayedCalls()


def test_kept_sockets_outlive_the_daemon(tmp_path: Path) -> None:
    """A client that connects between two daemons waits, and is served by the next daemon."""
    text = f"echo {tmp_path}/echo/unix\n"
    first = _Daemon(text, ManagerDouble(keeps=True))
    first.start()
    (name,) = [each.rpartition("FDNAME=")[2] for each in first.manager.messages if each.startswith("FDSTORE=1")]
    (listener,) = first.supervisor._listeners.values()
    kept = listener.opened.socket.dup()
    assert first.stop().called
    assert (tmp_path / "echo").is_socket()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "echo"))
        second = _Daemon(text, ManagerDouble(keeps=True), SocketPool([InheritedSocket(name, kept)]))
        with LogCatcher() as log:
            second.start()
        assert [event["origin"] for event in log.named("listen")] == ["store"]
        assert not [each for each in second.manager.messages if each.startswith("FDSTORE=1")]
        for port in second.ports:
            port.doRead()
        assert len(second.tracker("echo/unix").connections) == 1
        second.close()


def test_status_has_the_number_of_connections(daemon: _Daemon, tmp_path: Path) -> None:
    """A changed status is sent to the service manager seconds later, and not after the stop has begun."""
    daemon.start()
    before = len(daemon.manager.messages)
    daemon.connect(tmp_path / "echo")
    daemon.reactor.pump([5.0, 5.0])
    assert daemon.manager.messages[before:] == ["STATUS=services: 3, listeners: 3, connections: 1"]
    daemon.stop()
    daemon.supervisor.abort_connections()
    daemon.reactor.advance(20)
    assert daemon.manager.messages[before + 1 :] == ["STOPPING=1 STATUS=stopping"]


def test_connection_is_closed_after_shutdown_timeout(daemon: _Daemon, tmp_path: Path) -> None:
    """At the stop a connection stays open for shutdown_timeout; then it is closed, which completes the stop."""
    daemon.start()
    daemon.connect(tmp_path / "echo")
    stopped = daemon.stop()
    daemon.reactor.advance(2.999)
    assert not stopped.called
    assert len(daemon.lines) == 1
    daemon.reactor.advance(0.001)
    daemon.reactor.advance(0)
    assert [bool(stopped.called)] == [True]
    assert " reason=shutdown " in daemon.lines[-1]
    assert not daemon.reactor.getDelayedCalls()


def test_second_stop_aborts_connections(daemon: _Daemon, tmp_path: Path) -> None:
    """abort_connections() ends every connection at once, with reason=shutdown."""
    daemon.start()
    daemon.connect(tmp_path / "echo")
    stopped = daemon.stop()
    daemon.supervisor.abort_connections()
    daemon.reactor.advance(0)
    assert stopped.called
    assert " reason=shutdown " in daemon.lines[-1]


def test_all_services_share_one_budget(daemon: _Daemon, tmp_path: Path) -> None:
    """At the limit all stream ports are paused and datagram ports are not; a freed descriptor resumes all of them."""
    daemon.start()
    for name in ("echo", "echo", "chargen"):
        daemon.connect(tmp_path / name)
    counts = daemon.supervisor.descriptors
    assert counts["open"] >= counts["limit"]
    assert daemon.supervisor.connections == 2
    assert [type(port).__name__ for port in daemon.ports] == ["DatagramPort"]
    daemon.supervisor.abort_connections()
    daemon.reactor.advance(0)
    daemon.reactor.advance(1)
    assert len(daemon.ports) == 3


def _shown(daemon: _Daemon) -> dict[str, tuple[int, int]]:
    """Return the accepted and open connections of each service in the registry."""
    services = daemon.registry.snapshot().services
    return {each.about.id: (each.accepted, each.active) for each in services}


def test_registry_counts_services(daemon: _Daemon, tmp_path: Path) -> None:
    """The registry has each service with its addresses, its open connections and their traffic so far."""
    assert daemon.registry.state == "starting"
    daemon.start()
    assert daemon.registry.state == "ready"
    client = daemon.connect(tmp_path / "echo")
    client.sendall(b"hello")
    next(each for each in daemon.reactor.readers if hasattr(each, "dataReceived") or hasattr(each, "protocol")).doRead()
    assert _shown(daemon) == {"echo/unix": (1, 1), "chargen/unix": (0, 0), "discard/unixgram": (0, 0)}
    echo, _, discard = daemon.registry.snapshot().services
    assert (echo.bytes_in, echo.about.addresses) == (5, (str(tmp_path / "echo"),))
    assert not discard.about.stream
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
        asker.sendto(b"12", str(tmp_path / "discard"))
    for port in daemon.ports:
        port.doRead()
    daemon.stop()
    assert daemon.registry.state == "stopping"
    discard = daemon.registry.snapshot().services[2]
    assert (discard.datagrams, discard.bytes_in) == (1, 2)


def test_registry_after_a_reload(daemon: _Daemon, tmp_path: Path) -> None:
    """Removed services are shown until their last connection has ended; the counters of the others continue."""
    daemon.start()
    daemon.connect(tmp_path / "echo")
    daemon.connect(tmp_path / "chargen")
    endpoints, _ = check(
        config_of(f"chargen {tmp_path}/chargen/unix instances=7\nupper {tmp_path}/upper/unix"),
        FakeFiles(), FakeMachine(),
    )  # fmt: skip
    daemon.supervisor.change_to(DesiredServices(tuple(endpoints)))
    assert _shown(daemon) == {"echo/unix": (1, 1), "chargen/unix": (1, 1), "upper/unix": (0, 0)}
    assert [each.about.max_connections for each in daemon.registry.snapshot().services] == [None, 7, None]
    assert daemon.registry.reloads_done == 1
    daemon.supervisor.abort_connections()
    daemon.reactor.advance(0)
    assert "echo/unix" not in _shown(daemon)


def test_a_factory_is_started_and_stopped_with_its_listeners(tmp_path: Path) -> None:
    """startFactory() and stopFactory() are called, also when a reload replaces the factory."""
    calls: list[str] = []
    _RecordingFactory.calls = calls
    line = f"mine {tmp_path}/mine/unix factory=tests.unit.test_supervisor:_RecordingFactory"
    daemon = _Daemon(line)
    try:
        daemon.start()
        assert calls == ["start"]
        endpoints, _ = check(config_of(f"{line} instances=3"), FakeFiles(), FakeMachine())
        daemon.supervisor.change_to(DesiredServices(tuple(endpoints)))
        assert calls == ["start", "start", "stop"]
        daemon.stop()
        assert calls == ["start", "start", "stop", "stop"]
    finally:
        daemon.close()


class _RecordingFactory(Factory):
    """Factory that records its start and stop."""

    noisy = False
    calls: ClassVar[list[str]] = []

    def startFactory(self) -> None:
        """Record the call."""
        self.calls.append("start")

    def stopFactory(self) -> None:
        """Record the call."""
        self.calls.append("stop")
