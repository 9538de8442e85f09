"""SpawnedTracker and WaitPort, with a fake launcher client."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from twisted.internet.defer import Deferred

from svcd.access.admission import GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.spawned import SpawnedTracker
from svcd.connections.spawned_connection import KILL_SECONDS
from svcd.connections.wait_port import WaitPort
from svcd.errors import CommandError
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.process.messages import Ended, Started
from svcd.process.pidfd import PidfdChild
from svcd.sockets import accept_helper as acceptor
from svcd.sockets.accept_helper import AcceptHelper
from svcd.sockets.holder_process import HolderProcess
from svcd.sockets.ports import DescriptorPort
from svcd.wire.proxy_header import ProxyHeader
from tests.doubles import FakeFiles, FakeReactor, FakeResolver, LogCatcher, list_sink, service_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class _FakeLauncherClient:
    """LauncherClient that keeps connections until the test starts their processes."""

    def __init__(self) -> None:
        self.full = False
        self.ready, self.failing = True, False
        self.waiting: dict[int, tuple[bytes, int]] = {}
        self.signals: list[tuple[int, int]] = []
        self.forgotten: list[int] = []
        self.launcher_starts = 0
        self.pid = 500
        self.stopped = False
        self.replacement: _FakeLauncherClient | None = None
        self.replaced_by: _FakeLauncherClient | None = None
        self.when_ready_result: Deferred[int] = Deferred()

    def make_replacement(self) -> _FakeLauncherClient:
        assert self.replacement is not None
        return self.replacement

    def when_ready(self) -> Deferred[int]:
        return self.when_ready_result

    def replace_by(self, replacement: _FakeLauncherClient) -> None:
        self.replaced_by = replacement

    def stop(self) -> None:
        self.stopped = True

    def start(self, connection_id: int, environment: bytes, fd: int) -> None:
        self.waiting[connection_id] = environment, fd

    def drop(self, connection_id: int) -> bool:
        found = self.waiting.pop(connection_id, None)
        if found is not None:
            os.close(found[1])
        return found is not None

    def cancel(self, connection_id: int) -> bool:
        """Drop a connection; none was sent to a launcher."""
        self.drop(connection_id)
        return True

    def signal(self, connection_id: int, signal_number: int) -> None:
        self.signals.append((connection_id, signal_number))

    def forget_connection(self, connection_id: int) -> None:
        self.forgotten.append(connection_id)

    def ensure_launcher(self) -> None:
        self.launcher_starts += 1


class _Spawned:
    """A SpawnedTracker and the objects that it uses."""

    def __init__(self, line: str, files: FakeFiles | None = None, *, short: bool = False) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.names = FakeResolver()
        self.budget = DescriptorBudget(100, self.reactor)
        self.launcher_client = _FakeLauncherClient()
        service = service_of(line)
        log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False), anonymize=short)
        self.global_limit = GlobalLimit()
        context = ConnectionContext(
            self.reactor, log_writer, files or FakeFiles(), self.names, self.budget, self.global_limit,
            clock=self.reactor.seconds,
        )  # fmt: skip
        self.service_admission = ServiceAdmission(context, service)
        self.tracker = SpawnedTracker(
            service,
            context,
            self.service_admission,
            lambda _tracker: self.launcher_client,  # type: ignore[arg-type, return-value]
        )
        self.tracker.start_timeouts(self.reactor.callLater)
        self.clients: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)

    def connect(self) -> socket.socket:
        """Return a client whose connection was passed to the tracker."""
        client = self.dial()
        fd, sockaddr = self.listener._accept()  # type: ignore[attr-defined]
        self.tracker.take(fd, sockaddr, socket.AF_INET)
        return client

    def dial(self) -> socket.socket:
        """Return a client in the queue of the listener."""
        client = socket.create_connection(self.listener.getsockname(), 10)
        self.clients.append(client)
        return client

    def start_process(self, connection_id: int, pid: int = 500) -> None:
        """Report the start of a process, as the launcher client does."""
        self.launcher_client.drop(connection_id)
        self.tracker.process_started(Started(connection_id, pid))

    def close(self) -> None:
        """Close the remaining sockets."""
        for connection_id in list(self.launcher_client.waiting):
            self.launcher_client.drop(connection_id)
        for each in [*self.clients, self.listener]:
            each.close()


@pytest.fixture
def spawned() -> Iterator[Callable[[str], _Spawned]]:
    """Function that creates a tracker for options of a service."""
    made: list[_Spawned] = []

    def make(
        options: str = "", where: str = "0/tcp", files: FakeFiles | None = None, *, short: bool = False
    ) -> _Spawned:
        made.append(_Spawned(f"cat {where} server=/bin/cat {options}", files, short=short))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_connection_is_logged_from_its_process_to_its_end(spawned: Callable[..., _Spawned]) -> None:
    """The accept line waits for the pid; the end line has the exit status and the CPU time."""
    daemon = spawned()
    host, port = daemon.connect().getsockname()
    assert daemon.lines == []
    daemon.start_process(1)
    daemon.reactor.advance(1.5)
    daemon.tracker.process_ended(Ended(1, 3 << 8, 0.25, 0.125))
    accept, end = daemon.lines
    assert accept == f"accept service=cat/tcp peer={host}:{port} id=1 count=1 pid=500"
    assert end.startswith(f"end service=cat/tcp peer={host}:{port} id=1 seconds=1.500 reason=done count=0 pid=500 ")
    assert end.endswith(" exit=3 user=0.250 system=0.125")


def test_traffic_is_logged_with_log_on_success(spawned: Callable[..., _Spawned]) -> None:
    """With log_on_success=TRAFFIC the end line has the byte counts of the launcher."""
    daemon = spawned("log_on_success=TRAFFIC")
    daemon.connect()
    daemon.start_process(1)
    daemon.tracker.process_ended(Ended(1, 0, bytes_in=5, bytes_out=7))
    assert daemon.lines[-1] == "end service=cat/tcp id=1 in=5 out=7 count=0"


def test_without_its_pid_a_connection_is_logged_at_once(spawned: Callable[..., _Spawned]) -> None:
    """Without PID in log_on_success the accept line is written at once."""
    daemon = spawned("log_on_success=HOST")
    daemon.connect()
    assert len(daemon.lines) == 1


def test_a_signal_ends_a_process_by_its_name(spawned: Callable[..., _Spawned]) -> None:
    """The end line has the name of a signal that svcd has not sent."""
    daemon = spawned("log_on_success=EXIT")
    daemon.connect()
    daemon.start_process(1)
    daemon.tracker.process_ended(Ended(1, signal.SIGSEGV))
    assert "reason=killed" in daemon.lines[-1]
    assert "exit=SIGSEGV" in daemon.lines[-1]


def test_failed_start_of_a_process_is_logged(spawned: Callable[..., _Spawned]) -> None:
    """The fail line has the error of the system; the connection and its descriptor are not counted any more."""
    daemon = spawned()
    daemon.connect()
    daemon.launcher_client.drop(1)
    daemon.tracker.start_failed(1, errno.ENOENT)
    assert [line.split()[0] for line in daemon.lines] == ["accept", "fail", "end"]
    assert 'reason="can\'t start it: No such file or directory"' in daemon.lines[1]
    assert "reason=failed" in daemon.lines[2]
    assert (daemon.tracker.connections, daemon.budget.open) == ({}, 0)


def test_environment_of_a_connection(spawned: Callable[..., _Spawned]) -> None:
    """The environment has both addresses and the number of connections."""
    daemon = spawned()
    daemon.connect()
    _, port = daemon.connect().getsockname()
    environment, _ = daemon.launcher_client.waiting[2]
    values = dict(item.split(b"=", 1) for item in environment.split(b"\0"))
    assert values[b"TCPREMOTEPORT"] == b"%d" % port
    assert values[b"TCPLOCALPORT"] == b"%d" % daemon.listener.getsockname()[1]
    assert values[b"TCPCONNNUM"] == b"2"


SOURCE, DESTINATION = ("192.0.2.1", 40_000), ("198.51.100.7", 443)


def test_client_from_a_proxy_header(spawned: Callable[..., _Spawned]) -> None:
    """The client in the PROXY header is logged and passed on, with the proxy's address; the header is not counted."""
    daemon = spawned("log_on_success=HOST,TRAFFIC idle_timeout=1h")
    proxy = daemon.dial()
    fd, _ = daemon.listener._accept()  # type: ignore[attr-defined]
    daemon.tracker.take(fd, SOURCE, socket.AF_INET, ProxyHeader(28, SOURCE, DESTINATION))
    values = dict(item.split(b"=", 1) for item in daemon.launcher_client.waiting[1][0].split(b"\0"))
    near, far, proxied = (
        (values[f"{name}".encode()].decode(), int(values[port.encode()]))
        for name, port in (("TCPLOCALIP", "TCPLOCALPORT"), ("REMOTE_ADDR", "REMOTE_PORT"), ("PROXY_ADDR", "PROXY_PORT"))
    )
    assert (near, far, proxied) == (DESTINATION, SOURCE, proxy.getsockname())
    # The kernel counts the bytes of the proxy's connection.
    proxy.sendall(b"x" * 30)
    assert daemon.tracker.connections[1].traffic() == (2, 0)
    daemon.start_process(1)
    daemon.tracker.process_ended(Ended(1, 0, bytes_in=30, bytes_out=7))
    assert daemon.lines[-1].startswith("end service=cat/tcp peer=192.0.2.1:40000 id=1 in=2 out=7 ")
    daemon.tracker.view.close()


def test_client_from_a_proxy_header_at_a_unix_socket(spawned: Callable[..., _Spawned]) -> None:
    """The client has the address in the PROXY header; the environment also has the pid of the proxy."""
    daemon = spawned(where="/run/cat/unix")
    ours, theirs = socket.socketpair()
    with theirs:
        daemon.tracker.take(ours.detach(), SOURCE, socket.AF_UNIX, ProxyHeader(28, SOURCE, DESTINATION))
        values = dict(item.split(b"=", 1) for item in daemon.launcher_client.waiting[1][0].split(b"\0"))
        daemon.start_process(1)
    assert (values[b"PROTO"], values[b"TCPREMOTEIP"], values[b"TCPLOCALPORT"]) == (b"TCP", b"192.0.2.1", b"443")
    assert values[b"UNIXREMOTEPID"] == b"%d" % os.getpid()
    assert "peer=192.0.2.1:40000" in daemon.lines[0]


def test_local_proxy_header(spawned: Callable[..., _Spawned]) -> None:
    """With a LOCAL header the proxy itself is the client, and the environment has no PROXY_ADDR."""
    daemon = spawned()
    proxy = daemon.dial()
    fd, sockaddr = daemon.listener._accept()  # type: ignore[attr-defined]
    daemon.tracker.take(fd, sockaddr, socket.AF_INET, ProxyHeader(16))
    values = dict(item.split(b"=", 1) for item in daemon.launcher_client.waiting[1][0].split(b"\0"))
    assert values[b"TCPREMOTEPORT"] == b"%d" % proxy.getsockname()[1]
    assert b"PROXY_ADDR" not in values


def test_process_waits_for_the_host_name(spawned: Callable[..., _Spawned]) -> None:
    """With resolve=yes the process starts once the host names are known, and gets them."""
    daemon = spawned("resolve=yes")
    daemon.connect()
    assert not daemon.launcher_client.waiting
    daemon.names.answer("client.example")
    assert not daemon.launcher_client.waiting
    session = daemon.tracker.connections[1]
    assert session.info()["state"] == "host-name"
    daemon.names.answer("server.example")
    assert session.info()["state"] == "starting"
    assert b"TCPREMOTEHOST=client.example\0TCPLOCALHOST=server.example\0" in daemon.launcher_client.waiting[1][0]
    daemon.start_process(1)
    assert session.info()["state"] == "open"
    assert "host=client.example" in daemon.lines[0]


def test_anonymized_addresses_apply_to_the_log_only(spawned: Callable[..., _Spawned]) -> None:
    """With anonymized addresses the log has only the network; the process still gets the address and host name."""
    daemon = spawned("resolve=yes", short=True)
    host, port = daemon.connect().getsockname()
    daemon.names.answer("client.example")
    daemon.names.answer(None)
    environment = daemon.launcher_client.waiting[1][0]
    assert b"TCPREMOTEHOST=client.example" in environment
    assert f"TCPREMOTEIP={host}\0TCPREMOTEPORT={port}".encode() in environment
    daemon.launcher_client.drop(1)
    daemon.tracker.start_failed(1, errno.ENOENT)
    assert [line.split()[0] for line in daemon.lines] == ["accept", "fail", "end"]
    assert all(" peer=127.0.0.0 id=1 " in line and "client" not in line for line in daemon.lines)


@pytest.mark.parametrize("known", [0, 1])
def test_a_connection_may_end_before_its_name_is_known(spawned: Callable[..., _Spawned], known: int) -> None:
    """A connection aborted before both host names are known is closed, and no process is started."""
    daemon = spawned("resolve=yes")
    client = daemon.connect()
    for _ in range(known):
        daemon.names.answer("client.example")
    daemon.tracker.connections[1].abort("shutdown")
    assert "reason=shutdown" in daemon.lines[-1]
    for _ in range(2 - known):
        daemon.names.answer("client.example")
    assert not daemon.launcher_client.waiting
    assert client.recv(1) == b""
    assert daemon.budget.open == 0


def test_descriptor_without_a_connection_is_closed(spawned: Callable[..., _Spawned]) -> None:
    """A descriptor that is not a connection any more is closed without a log line."""
    daemon = spawned()
    daemon.tracker.take(os.open(os.devnull, os.O_RDONLY), ("192.0.2.1", 1), socket.AF_INET)
    assert not daemon.tracker.connections


def test_session_timeout_ends_a_process(spawned: Callable[..., _Spawned]) -> None:
    """After session_timeout the process gets SIGTERM, then SIGKILL, and the end line has the reason."""
    daemon = spawned("session_timeout=5s")
    daemon.connect()
    daemon.start_process(1)
    daemon.reactor.pump([0.1] * 49)
    assert daemon.launcher_client.signals == []
    daemon.reactor.pump([0.1] * 7)
    assert daemon.launcher_client.signals == [(1, signal.SIGTERM)]
    daemon.reactor.advance(KILL_SECONDS)
    assert daemon.launcher_client.signals == [(1, signal.SIGTERM), (1, signal.SIGKILL)]
    daemon.tracker.process_ended(Ended(1, signal.SIGKILL))
    assert "reason=session" in daemon.lines[-1]
    daemon.reactor.advance(1)
    assert not daemon.reactor.getDelayedCalls()


def test_process_that_survives_sigkill_does_not_delay_the_stop(spawned: Callable[..., _Spawned]) -> None:
    """SIGKILL is repeated; at the stop of the daemon the connection ends without its exit, with reason=unknown."""
    daemon = spawned("session_timeout=5s")
    daemon.connect()
    daemon.start_process(1)
    daemon.reactor.advance(5)
    for _ in range(3):
        daemon.reactor.advance(KILL_SECONDS)
    assert daemon.launcher_client.signals == [(1, signal.SIGTERM), *[(1, signal.SIGKILL)] * 3]
    (session,) = daemon.tracker.connections.values()
    session.drain()
    # A second abort() does not send SIGTERM again.
    session.abort("shutdown")
    assert len(daemon.launcher_client.signals) == 4
    daemon.reactor.advance(KILL_SECONDS)
    assert daemon.launcher_client.forgotten == [1]
    assert "reason=unknown" in daemon.lines[-1]
    daemon.reactor.advance(1)
    assert not daemon.reactor.getDelayedCalls()


def test_a_signal_without_a_name_ends_a_process(spawned: Callable[..., _Spawned]) -> None:
    """A real-time signal is logged by its number."""
    daemon = spawned()
    daemon.connect()
    daemon.start_process(1)
    daemon.tracker.process_ended(Ended(1, 40))
    assert "exit=SIG40" in daemon.lines[-1]


def test_stderr_line_is_logged(spawned: Callable[..., _Spawned]) -> None:
    """A line is logged with the service, the connection and the pid; bytes that are not text are escaped."""
    daemon = spawned("stderr=log")
    daemon.connect()
    daemon.start_process(1)
    with LogCatcher() as log:
        daemon.tracker.stderr_line(1, b"caf\xe9")
        daemon.tracker.stderr_line(9, b"late")
    first, second = log.named("output")
    assert (first["service"], first["id"], first["pid"], first["text"]) == ("cat/tcp", 1, 500, "caf\\xe9")
    assert "id" not in second


def test_drain_without_a_launcher_aborts_waiting_connections(spawned: Callable[..., _Spawned]) -> None:
    """A stopping daemon does not wait for connections whose launcher can't start."""
    daemon = spawned()
    daemon.connect()
    daemon.launcher_client.failing = True
    empty = daemon.tracker.when_empty()
    daemon.tracker.connections[1].drain()
    assert empty.called
    assert daemon.budget.open == 0


def test_launcher_of_a_python_handler_starts_early() -> None:
    """The launcher of a Python handler starts with the daemon, that of a program with the first connection."""
    program, handler = _Spawned("a 0/tcp server=/bin/cat"), _Spawned("b 0/tcp python=m:f")
    for each in (program, handler):
        each.tracker.start_early()
        each.close()
    assert (program.launcher_client.launcher_starts, handler.launcher_client.launcher_starts) == (0, 1)


def test_port_is_paused_while_the_launch_queue_is_full(spawned: Callable[..., _Spawned]) -> None:
    """While the queue is full a client waits in the kernel's queue; it is accepted once there is room."""
    daemon = spawned()
    port = DescriptorPort(daemon.reactor, daemon.listener, daemon.tracker.take, daemon.tracker.may_accept, lambda: None)
    daemon.tracker.when_room(port.resume)
    port.startListening()
    daemon.dial()
    daemon.launcher_client.full = True
    port.doRead()
    assert (len(daemon.tracker.connections), daemon.reactor.readers) == (0, set())
    daemon.launcher_client.full = False
    daemon.tracker.queue_drained()
    assert daemon.reactor.readers == {port}
    port.doRead()
    assert len(daemon.tracker.connections) == 1
    port.stopListening()
    assert daemon.reactor.readers == set()


def test_port_survives_an_exception_of_its_handler(spawned: Callable[..., _Spawned]) -> None:
    """The port continues to accept after a connection could not be served."""
    daemon = spawned()
    taken: list[Any] = []

    def take(descriptor: int, name: Any, family: int) -> None:
        os.close(descriptor)
        taken.append((name, family))
        raise RuntimeError("no")

    port = DescriptorPort(daemon.reactor, daemon.listener, take, lambda: True, lambda: None)
    port.startListening()
    for _ in range(2):
        daemon.dial()
    with LogCatcher() as log:
        port.doRead()
    assert len(taken) == 2
    assert len([event for event in log.events if "could not be served" in event.get("log_format", "")]) == 2


@contextlib.contextmanager
def _process(*, ends_on_sigterm: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that leads a session, and that ends on SIGTERM or ignores it."""
    code = "" if ends_on_sigterm else "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    words = [sys.executable, "-I", "-S", "-c", f"{code}print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


class _Datagrams:
    """A datagram service with wait=yes."""

    def __init__(self, make: Callable[..., _Spawned], options: str = "", *, short: bool = False) -> None:
        self.daemon = make(f"wait=yes {options}", "0/udp", short=short)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port = WaitPort(self.daemon.reactor, self.sock, self.daemon.tracker)
        self.port.startListening()
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(self.sock.getsockname())
        self.daemon.clients += [self.sock, self.client]
        self.number = 0

    @property
    def watched(self) -> bool:
        """Whether the port watches the socket for a datagram."""
        return self.port in self.daemon.reactor.readers

    def run(self, seconds: float, *, read: bool) -> None:
        """Start a process, which runs for some seconds, reads the datagram or leaves it, and exits."""
        self.port.doRead()
        self.number += 1
        self.daemon.start_process(self.number)
        assert self.sock.getblocking()
        assert not self.watched
        if read:
            self.sock.recv(100)
        self.daemon.reactor.advance(seconds)
        self.daemon.tracker.process_ended(Ended(self.number, 0))


def test_a_datagram_starts_a_process_that_has_the_socket(spawned: Callable[..., _Spawned]) -> None:
    """The process gets the sender's address; the port watches the socket again after its exit."""
    service = _Datagrams(spawned)
    assert service.watched
    service.client.send(b"hello")
    service.port.doRead()
    environment, _ = service.daemon.launcher_client.waiting[1]
    port = service.client.getsockname()[1]
    assert b"PROTO=UDP\0" in environment
    assert b"TCPREMOTEPORT=%d\0" % port in environment
    service.daemon.start_process(1)
    assert f"peer=127.0.0.1:{port} " in service.daemon.lines[0]
    service.sock.recv(10)
    service.daemon.tracker.process_ended(Ended(1, 0))
    assert service.watched


def test_sender_of_a_datagram_is_anonymized(spawned: Callable[..., _Spawned]) -> None:
    """With anonymized addresses the accept line of a datagram's process has only the network."""
    service = _Datagrams(spawned, short=True)
    service.client.send(b"hello")
    service.port.doRead()
    service.daemon.start_process(1)
    assert " peer=127.0.0.0 " in service.daemon.lines[0]


def test_processes_that_leave_the_datagram_unread_pause_the_port(spawned: Callable[..., _Spawned]) -> None:
    """After 10 such processes the port is paused, twice as long each time, until a process runs long enough."""
    service = _Datagrams(spawned)
    service.client.send(b"hello")
    for _ in range(10):
        assert service.watched
        service.run(0, read=False)
    pauses = []
    for _ in range(9):
        (call,) = service.daemon.reactor.getDelayedCalls()
        pauses.append(call.getTime() - service.daemon.reactor.seconds())
        assert not service.watched
        service.daemon.reactor.advance(pauses[-1])
        assert service.watched
        service.run(0, read=False)
    assert pauses[:3] == [0.5, 1, 2]
    assert pauses[-1] == 30
    service.daemon.reactor.advance(30)
    service.run(2, read=False)
    assert service.watched


def test_short_processes_that_read_the_datagram_do_not_pause_the_port(spawned: Callable[..., _Spawned]) -> None:
    """The port is not paused after short processes that have read their datagrams."""
    service = _Datagrams(spawned)
    for _ in range(30):
        service.client.send(b"hello")
        service.run(0, read=True)
        assert service.watched


def test_paused_wait_port_stops(spawned: Callable[..., _Spawned]) -> None:
    """A paused port that is stopped does not resume."""
    service = _Datagrams(spawned)
    service.client.send(b"hello")
    for _ in range(10):
        service.run(0, read=False)
    service.port.stopListening()
    assert not service.daemon.reactor.getDelayedCalls()
    assert not service.watched


def test_idle_timeout_by_byte_counts_of_the_kernel(spawned: Callable[..., _Spawned]) -> None:
    """The process of an idle connection gets SIGTERM once; a connection with traffic stays until session_timeout."""
    daemon = spawned("idle_timeout=8s session_timeout=9s")
    idle, busy = daemon.connect(), daemon.connect()
    descriptors = [os.dup(descriptor) for _, descriptor in daemon.launcher_client.waiting.values()]
    daemon.start_process(1)
    daemon.start_process(2)
    for _ in range(35):
        daemon.reactor.advance(0.25)
        busy.send(b"x")
    assert daemon.launcher_client.signals[0] == (1, signal.SIGTERM)
    assert (2, signal.SIGTERM) not in daemon.launcher_client.signals
    daemon.reactor.pump([0.25] * 8)
    daemon.tracker.process_ended(Ended(1, signal.SIGTERM))
    daemon.tracker.process_ended(Ended(2, signal.SIGTERM))
    assert [line.partition("reason=")[2].split()[0] for line in daemon.lines[-2:]] == ["idle", "session"]
    assert daemon.launcher_client.signals.count((1, signal.SIGTERM)) == 1
    for descriptor in descriptors:
        os.close(descriptor)
    idle.close()


BANNERS = FakeFiles({"/in": "in\n", "/out": "out\n"})


def _counts(daemon: _Spawned) -> tuple[int, int, int]:
    return daemon.service_admission.admission.open, daemon.global_limit.open, daemon.budget.open


def test_connection_has_a_slot_until_its_process_exits(spawned: Callable[..., _Spawned]) -> None:
    """The descriptor is counted until the process starts, the slot until it exits."""
    daemon = spawned()
    daemon.connect()
    assert _counts(daemon) == (1, 1, 1)
    daemon.start_process(1)
    assert _counts(daemon) == (1, 1, 0)
    daemon.tracker.process_ended(Ended(1, 0))
    assert _counts(daemon) == (0, 0, 0)


@pytest.mark.parametrize("way", ["failed", "given up", "forgotten", "unknown", "cut", "gone"])
def test_slot_is_released_in_any_case(spawned: Callable[..., _Spawned], way: str) -> None:
    """The slot is released after a failed start, a lost launcher, a stop, and for a client that has disconnected."""
    daemon = spawned()
    if way == "gone":
        daemon.tracker.take(os.open(os.devnull, os.O_RDONLY), ("192.0.2.1", 1), socket.AF_INET)
    else:
        daemon.connect()
    match way:
        case "failed":
            daemon.launcher_client.drop(1)
            daemon.tracker.start_failed(1, errno.ENOENT)
        case "given up":
            daemon.launcher_client.drop(1)
            daemon.tracker.start_failed(1, 0)
        case "forgotten":
            daemon.start_process(1)
            daemon.tracker.process_lost(1)
        case "unknown":
            # The launcher was lost while it started the process.
            daemon.launcher_client.drop(1)
            daemon.tracker.process_lost(1)
            assert [line.split()[0] for line in daemon.lines] == ["accept", "end"]
            assert "reason=unknown" in daemon.lines[1]
        case "cut":
            daemon.tracker.connections[1].abort("shutdown")
    assert _counts(daemon) == (0, 0, 0)
    assert not daemon.tracker.connections


def test_launcher_reports_are_logged(spawned: Callable[..., _Spawned]) -> None:
    """Dropped lines are logged with the rule, changed modules with the remedy."""
    daemon = spawned("stderr_rate=5/s,1M/s")
    with LogCatcher() as log:
        daemon.tracker.dropped(7, 100)
        daemon.tracker.module_changed("mod")
    (dropped,) = log.named("dropped")
    assert (dropped["lines"], dropped["bytes"], dropped["rule"]) == (7, 100, "stderr_rate=5/s,1M/s")
    (changed,) = log.named("module-changed")
    assert changed["text"] == "module mod changed on disk; restart its launcher with svcctl restart cat/tcp"


@pytest.mark.parametrize("meanwhile", ["nothing", "a reload", "a failure"])
def test_a_launcher_is_restarted(spawned: Callable[..., _Spawned], meanwhile: str) -> None:
    """The new launcher serves once it is ready; it is stopped if it fails or a reload has replaced the old one."""
    daemon = spawned()
    tracker: Any = daemon.tracker
    results: list[Any] = []
    before, after, other = daemon.launcher_client, _FakeLauncherClient(), _FakeLauncherClient()
    before.replacement = after
    tracker.restart().addBoth(results.append)
    assert (tracker.launcher_client, results) == (before, [])
    if meanwhile == "a reload":
        tracker.use_launcher_client(other)
    if meanwhile == "a failure":
        after.when_ready_result.errback(CommandError("no module"))
    else:
        after.when_ready_result.callback(12)
    if meanwhile == "nothing":
        assert results == [{"service": "cat/tcp", "pid": 12, "before": 500}]
        assert (tracker.launcher_client, before.replaced_by, after.stopped) == (after, after, False)
    else:
        assert isinstance(results[0].value, CommandError)
        assert tracker.launcher_client is (other if meanwhile == "a reload" else before)
        assert after.stopped


def test_refused_client_gets_the_banner_and_no_process(spawned: Callable[..., _Spawned]) -> None:
    """A refused client gets banner_fail also if it has sent data, and no process is started."""
    daemon = spawned("instances=1 banner_fail=/out", files=BANNERS)
    daemon.connect()
    client = daemon.dial()
    client.sendall(b"x" * 1000)
    fd, sockaddr = daemon.listener._accept()  # type: ignore[attr-defined]
    daemon.tracker.take(fd, sockaddr, socket.AF_INET)
    assert client.recv(100) == b"out\n"
    assert client.recv(100) == b""
    assert list(daemon.launcher_client.waiting) == [1]
    host, port = client.getsockname()
    assert daemon.lines == [
        f'refuse service=cat/tcp peer={host}:{port} reason=instances count=1 rule="instances=1 (s:1:37)"'
    ]
    daemon.reactor.advance(2)
    assert not daemon.reactor.readers
    assert _counts(daemon) == (1, 1, 1)


def test_64_processes_are_the_default(spawned: Callable[..., _Spawned]) -> None:
    """Without instances= the 65th connection is refused."""
    daemon = spawned()
    for _ in range(64):
        daemon.connect()
    assert daemon.connect().recv(1) == b""
    assert 'rule="instances=64 (the default)"' in daemon.lines[-1]


def test_banner_is_sent_before_the_process_starts(spawned: Callable[..., _Spawned]) -> None:
    """The daemon itself sends banner_success."""
    daemon = spawned("banner_success=/in", files=BANNERS)
    assert daemon.connect().recv(100) == b"in\n"


def test_admission_by_host_name(spawned: Callable[..., _Spawned]) -> None:
    """After the lookup the process is started, or the client is refused without an accept line."""
    daemon = spawned("only_from=.example banner_fail=/out banner_success=/in", files=BANNERS)
    for name in ("good.example", "elsewhere.test", None):
        client = daemon.connect()
        assert _counts(daemon) == (1, 1, 1)
        assert not daemon.launcher_client.waiting
        daemon.names.answer(name)
        if name == "good.example":
            assert client.recv(100) == b"in\n"
            assert b"TCPREMOTEHOST" not in daemon.launcher_client.waiting[1][0]
            daemon.start_process(1)
            daemon.tracker.process_ended(Ended(1, 0))
        else:
            assert client.recv(100) == b"out\n"
        daemon.reactor.advance(2)
        assert _counts(daemon) == (0, 0, 0)
    assert [line.split()[0] for line in daemon.lines] == ["accept", "end", "refuse", "refuse"]


def test_abort_before_the_host_name_is_known(spawned: Callable[..., _Spawned]) -> None:
    """A connection that is aborted before its admission is not logged."""
    daemon = spawned("only_from=.example")
    client = daemon.connect()
    daemon.tracker.connections[1].abort("shutdown")
    assert _counts(daemon) == (0, 0, 0)
    daemon.names.answer("good.example")
    assert client.recv(1) == b""
    assert daemon.lines == []
    assert not daemon.launcher_client.waiting


def test_port_is_paused_at_the_limit_with_queue(spawned: Callable[..., _Spawned]) -> None:
    """With on_limit=queue and instances=1 connections are accepted one after the other."""
    daemon = spawned("instances=1 on_limit=queue")
    port = DescriptorPort(daemon.reactor, daemon.listener, daemon.tracker.take, daemon.tracker.may_accept, lambda: None)
    daemon.service_admission.listen(port.pause, port.resume)
    port.startListening()
    for _ in range(2):
        daemon.dial()
    port.doRead()
    assert (list(daemon.tracker.connections), daemon.reactor.readers) == ([1], set())
    daemon.start_process(1)
    daemon.tracker.process_ended(Ended(1, 0))
    assert daemon.reactor.readers == {port}
    port.doRead()
    assert list(daemon.tracker.connections) == [2]


def test_client_from_another_port_is_queued(spawned: Callable[..., _Spawned]) -> None:
    """With on_limit=queue connections from a port that is not paused, such as tcpmux's, are queued and not refused."""
    daemon = spawned("instances=1 on_limit=queue")
    clients = [daemon.connect() for _ in range(4)]
    assert list(daemon.launcher_client.waiting) == [1]
    assert daemon.budget.open == 4
    waiting = daemon.tracker.all_connections()[:3]
    host, port = clients[1].getsockname()
    facts = waiting[0].info()
    assert (facts["peer"], facts["state"]) == (f"{host}:{port}", "room")
    waiting[0].abort("kicked")
    assert clients[1].recv(1) == b""
    daemon.start_process(1)
    daemon.tracker.process_ended(Ended(1, 0))
    (second,) = daemon.launcher_client.waiting
    assert daemon.budget.open == 2
    daemon.start_process(second)
    (last,) = daemon.tracker.pending
    last.drain()
    assert clients[3].recv(1) == b""
    assert daemon.service_admission.refusals.counts == {}
    daemon.tracker.process_ended(Ended(second, 0))
    assert (daemon.budget.open, daemon.global_limit.open, daemon.tracker.all_connections()) == (0, 0, [])


def test_a_unix_sockets_client_is_admitted_as_local(tmp_path: Path, spawned: Callable[..., _Spawned]) -> None:
    """A client at a UNIX socket has no address: any only_from refuses it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        for options, opened in (("", 1), ("only_from=127.0.0.1", 0)):
            daemon = spawned(options, where=f"{tmp_path}/s/unix")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
                fd, sockaddr = listener._accept()  # type: ignore[attr-defined]
                daemon.tracker.take(fd, sockaddr, socket.AF_UNIX)
                assert _counts(daemon) == (opened,) * 3
    peer = f"pid:{os.getpid()}/uid:{os.getuid()}"
    assert f"refuse service=cat/unix peer={peer} reason=address" in daemon.lines[0]


@pytest.mark.parametrize("options", ["no_access=127.0.0.1", "no_access=.example", "access_zone=UTC rate=1/h"])
def test_refused_datagram_is_discarded(spawned: Callable[..., _Spawned], options: str) -> None:
    """A refused datagram is read and discarded at once, also with rules about host names."""
    service = _Datagrams(spawned, options)
    if "rate" in options:
        service.client.send(b"first")
        service.run(0, read=True)
    service.client.send(b"hello")
    service.port.doRead()
    assert not service.daemon.tracker.connections
    assert service.watched
    with pytest.raises(BlockingIOError):
        service.sock.recv(10, socket.MSG_DONTWAIT)
    assert service.daemon.lines[-1].startswith(
        f"refuse service=cat/udp peer=127.0.0.1:{service.client.getsockname()[1]} "
    )
    assert _counts(service.daemon) == (0, 0, 0)


def test_client_of_a_wait_port_is_refused(spawned: Callable[..., _Spawned]) -> None:
    """If a condition refuses all clients, a client of a listening socket is accepted by a helper, and closed."""
    daemon = spawned("wait=yes max_load=0.01 banner_fail=/out", files=BANNERS)
    daemon.service_admission.admission._load = lambda: 1.0
    daemon.service_admission.admission.retune(daemon.service_admission.admission.rules)
    port = WaitPort(daemon.reactor, daemon.listener, daemon.tracker)
    port.startListening()
    # The flags of the socket do not matter: here accept(2) in the daemon would block.
    daemon.listener.setblocking(True)
    for _ in range(2):
        client = daemon.dial()
        port.doRead()
        assert port not in daemon.reactor.readers
        daemon.reactor.wait_for(AcceptHelper).doRead()
        assert client.recv(100) == b"out\n"
        assert not daemon.tracker.connections
        assert port in daemon.reactor.readers
    port.stopListening()
    assert "peer=- reason=load" in daemon.lines[0]
    daemon.reactor.wait_for(PidfdChild).doRead()
    daemon.reactor.advance(10)
    assert not daemon.reactor.readers


def test_blocking_accept_times_out(spawned: Callable[..., _Spawned], monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process accepts the client first, the helper ends after a timeout and the port continues."""
    daemon = spawned()
    monkeypatch.setattr(acceptor, "_CODE", acceptor._CODE.replace("signal.alarm(2)", "signal.setitimer(0, 0.05)"))
    done: list[int] = []
    daemon.listener.setblocking(True)
    accepts = AcceptHelper(daemon.reactor, daemon.listener, done.append)
    accepts.accept()
    daemon.reactor.wait_for(AcceptHelper).doRead()
    assert (done, accepts.waiting) == ([-1], False)
    daemon.reactor.wait_for(PidfdChild).doRead()
    assert not daemon.reactor.readers
    # The next accept has another process; it does not block on a non-blocking socket.
    daemon.listener.setblocking(False)
    accepts.accept()
    daemon.reactor.wait_for(AcceptHelper).doRead()
    assert done == [-1, -1]
    daemon.reactor.advance(5)
    daemon.reactor.wait_for(PidfdChild).doRead()
    assert not daemon.reactor.readers


def test_port_is_paused_while_a_process_of_the_old_daemon_runs(spawned: Callable[..., _Spawned]) -> None:
    """The port is paused until the process exits; a process that has already exited does not pause it."""
    service = _Datagrams(spawned)
    with _process() as process:
        service.port.hold(process.pid)
        assert (service.port.busy, service.port.process, service.watched) == (True, process.pid, False)
        service.client.send(b"hello")
        service.port.doRead()
        service.port.resume()
        assert not service.watched
        assert not service.daemon.tracker.connections
    service.daemon.reactor.wait_for(HolderProcess).doRead()
    assert (service.port.busy, service.port.process, service.watched) == (False, 0, True)
    service.port.hold(process.pid)
    assert not service.port.busy


@pytest.mark.parametrize("ends_on_sigterm", [True, False])
def test_dismiss_ends_a_process_of_the_old_daemon(spawned: Callable[..., _Spawned], ends_on_sigterm: bool) -> None:
    """dismiss() sends SIGTERM, and SIGKILL after shutdown_timeout; a second call changes nothing."""
    service = _Datagrams(spawned, "shutdown_timeout=3s")
    with _process(ends_on_sigterm=ends_on_sigterm) as process:
        service.port.hold(process.pid)
        service.port.dismiss()
        service.port.dismiss()
        if not ends_on_sigterm:
            service.daemon.reactor.advance(2.9)
            assert process.poll() is None
            service.daemon.reactor.advance(0.2)
        assert process.wait(60) == -(signal.SIGTERM if ends_on_sigterm else signal.SIGKILL)
    service.daemon.reactor.wait_for(HolderProcess).doRead()
    assert not service.daemon.reactor.getDelayedCalls()
    assert not service.port.busy


def test_dismiss_ends_the_process(spawned: Callable[..., _Spawned]) -> None:
    """dismiss() sends SIGTERM, and SIGKILL after shutdown_timeout, or earlier after an abort."""
    service = _Datagrams(spawned, "shutdown_timeout=1m")
    service.client.send(b"hello")
    service.port.doRead()
    service.daemon.start_process(1)
    service.port.stopListening()
    service.port.dismiss()
    assert service.daemon.launcher_client.signals == [(1, signal.SIGTERM)]
    service.daemon.reactor.advance(50)
    assert len(service.daemon.launcher_client.signals) == 1
    service.daemon.tracker.connections[1].abort("shutdown")
    service.daemon.reactor.advance(KILL_SECONDS)
    assert service.daemon.launcher_client.signals == [(1, signal.SIGTERM), (1, signal.SIGKILL)]


def test_a_socket_goes_to_another_service(spawned: Callable[..., _Spawned]) -> None:
    """The port of the new service watches the socket once the former service's process has exited after SIGTERM."""
    service = _Datagrams(spawned)
    service.client.send(b"hello")
    service.port.doRead()
    service.daemon.start_process(1, 815)
    other = WaitPort(service.daemon.reactor, service.sock, service.daemon.tracker)
    service.port.stopListening()
    other.follow(service.port)
    other.startListening()
    assert service.daemon.launcher_client.signals == [(1, signal.SIGTERM)]
    assert (other.busy, other.process) == (True, 815)
    assert other not in service.daemon.reactor.readers
    service.daemon.tracker.process_ended(Ended(1, 15))
    assert not other.busy
    assert service.daemon.reactor.readers == {other}


def test_withdraw_cancels_a_process_without_a_launcher(spawned: Callable[..., _Spawned]) -> None:
    """withdraw() cancels a process only while no launcher is ready; the datagram stays in the socket."""
    service = _Datagrams(spawned)
    service.client.send(b"hello")
    service.port.doRead()
    service.port.withdraw()
    assert service.port.busy
    service.daemon.launcher_client.ready = False
    service.port.withdraw()
    assert not service.port.busy
    assert service.sock.recv(10) == b"hello"
