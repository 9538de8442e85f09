"""LauncherClient, with the test in place of the launcher."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from svcd.process.launcher_client import MAX_WAITING, LauncherClient
from svcd.process.launcher_protocol import MAX_UNANSWERED, LauncherProtocol
from svcd.process.messages import (
    FD_STRUCT,
    MAX_PACKET,
    MAX_REASON,
    Changed,
    CheckModule,
    Connection,
    Dropped,
    Ended,
    Failed,
    Idle,
    LauncherStarted,
    Message,
    Ready,
    Signal,
    Started,
    Starting,
    StderrLine,
    pack,
    parse,
)
from svcd.process.spec import LaunchSpec, ProcessCredentials
from svcd.process.stderr import MAX_BLOCK, OutputLimit
from tests.doubles import FakeReactor, LogCatcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svcd.process.launcher_client import LauncherEvents


class _Service:
    """A launcher client, its recorded events, and the launcher's end of its socket, which the test uses."""

    def __init__(self, **options: Any) -> None:
        self.reactor = FakeReactor()
        self.events: list[object] = []
        self.problem = ""
        self.launches = 0
        self.zygote_signals: list[Signal] = []
        self.launcher: socket.socket | None = None
        self.clients: list[socket.socket] = []
        self.killed: list[int] = []
        self.launcher_client = LauncherClient(
            self.reactor, LaunchSpec("cat/tcp", ProcessCredentials(), {}, handler="m:f", **options), self, self
        )

    def launch(self, launcher_client: LauncherClient) -> None:
        assert launcher_client is self.launcher_client
        self.launches += 1

    def signal(self, signal: Signal) -> None:
        self.zygote_signals.append(signal)

    def kill(self, pid: int) -> None:
        self.killed.append(pid)

    def make_replacement(self, reports: LauncherEvents) -> LauncherClient:
        raise NotImplementedError

    def process_started(self, report: Started) -> None:
        self.events.append(("started", report.connection_id, report.pid))

    def process_ended(self, report: Ended) -> None:
        self.events.append(report)

    def start_failed(self, connection_id: int, errno: int) -> None:
        self.events.append(("failed", connection_id, errno))

    def process_lost(self, connection_id: int) -> None:
        self.events.append(("lost", connection_id))

    def stderr_line(self, connection_id: int, text: bytes) -> None:
        self.events.append(("output", connection_id, text))

    def dropped(self, lines: int, size: int) -> None:
        self.events.append(("dropped", lines, size))

    def module_changed(self, module: str) -> None:
        self.events.append(("module changed", module))

    def threads_stuck(self) -> None:
        self.events.append("threads stuck")

    def unavailable(self, problem: str) -> None:
        """Record a new problem, or its end."""
        if problem or self.problem:
            self.problem = problem
            self.events.append(("unavailable", problem))

    def launcher_restarted(self) -> None:
        """Record the call."""
        self.events.append("restarted")

    def queue_drained(self) -> None:
        self.events.append("room")

    def attach(self, pid: int = 100) -> None:
        """Attach a launcher that has not reported yet."""
        daemon_end, self.launcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.launcher.setblocking(False)
        self.launcher_client.attach(daemon_end, pid)

    def start_handler(self, connection_id: int, pid: int) -> None:
        """Report the start of a handler."""
        self.report(Starting(connection_id), Started(connection_id, pid))

    def serve(self, connection_id: int = 1) -> socket.socket:
        """Pass a connection to the launcher client; return the client's end."""
        client, connection = socket.socketpair()
        client.settimeout(10)
        self.clients.append(client)
        self.launcher_client.start(connection_id, b"A=1", connection.detach())
        return client

    def report(self, *messages: Message) -> None:
        """Send reports of the launcher."""
        assert self.launcher is not None
        for message in messages:
            self.launcher.send(pack(message))
        self.read()

    def order(self) -> tuple[Message, int | None]:
        """Return the next message to the launcher, and its fd."""
        assert self.launcher is not None
        packet, rights, _, _ = self.launcher.recvmsg(MAX_PACKET, socket.CMSG_SPACE(4))
        return parse(packet), FD_STRUCT.unpack(rights[0][2])[0] if rights else None

    def take_connection(self) -> int:
        """Receive a connection as the launcher does; return its id."""
        order, fd = self.order()
        assert isinstance(order, Connection)
        assert fd is not None
        os.close(fd)
        return order.connection_id

    def close(self) -> None:
        """Stop the client, and close all sockets."""
        self.launcher_client.stop()
        for each in [*self.clients, self.launcher]:
            if each is not None:
                each.close()

    def read(self) -> None:
        """Let the client read the reports of the launcher."""
        if self.launcher_client._connection is not None:
            self.launcher_client._connection.doRead()

    def die(self) -> None:
        """End the launcher, and let the client notice it."""
        assert self.launcher is not None
        self.launcher.close()
        self.read()


@pytest.fixture
def service() -> Iterator[_Service]:
    """A service with the test in place of its launcher."""
    made = _Service()
    yield made
    made.close()


def test_first_connection_starts_a_launcher(service: _Service) -> None:
    """The launcher is requested once; connections are sent in their order once it is ready."""
    service.serve(1)
    service.serve(2)
    assert service.launches == 1
    service.attach()
    with pytest.raises(BlockingIOError):
        service.order()
    service.report(Ready())
    assert [service.take_connection(), service.take_connection()] == [1, 2]
    assert service.launcher_client.ready


def test_a_connection_is_handed_over_with_its_environment(service: _Service) -> None:
    """The launcher gets the environment and the descriptor of the connection."""
    service.attach()
    service.report(Ready())
    client = service.serve(7)
    order, descriptor = service.order()
    assert order == Connection(7, b"A=1")
    assert descriptor is not None
    os.write(descriptor, b"hello")
    os.close(descriptor)
    assert client.recv(10) == b"hello"


def test_descriptor_is_closed_after_the_start_of_the_handler(service: _Service) -> None:
    """After a Started report the daemon has no descriptor of the connection, so the handler decides its end."""
    service.attach()
    service.report(Ready())
    client = service.serve(1)
    assert service.take_connection() == 1
    service.start_handler(1, 55)
    assert client.recv(10) == b""
    assert service.events == [("started", 1, 55)]
    assert service.launcher_client.pids == {1: 55}


def test_reports_are_passed_on(service: _Service) -> None:
    """Start, exit and output are passed on as events, also output after the exit."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.report(
        Starting(1), Started(1, 55), StderrLine(1, b"hi"), Ended(1, 256), StderrLine(1, b"rest"), Dropped(3, 40)
    )
    texts = [("started", 1, 55), ("output", 1, b"hi"), Ended(1, 256), ("output", 1, b"rest"), ("dropped", 3, 40)]
    assert (service.events, service.killed) == (texts, [])


def test_a_failed_start_closes_the_connection(service: _Service) -> None:
    """The connection is closed, and the event has the errno."""
    service.attach()
    service.report(Ready())
    client = service.serve(1)
    service.take_connection()
    service.report(Failed(1, errno.ENOENT))
    assert client.recv(10) == b""
    assert service.events == [("failed", 1, errno.ENOENT)]


def test_connections_of_a_lost_launcher_go_to_the_next(service: _Service) -> None:
    """Connections without a process are sent to the next launcher, which is started after a pause."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.serve(2)
    service.start_handler(1, 55)
    with LogCatcher() as log:
        service.die()
    (lost,) = log.named("launcher")
    assert (lost["state"], lost["pid"], lost["retry"]) == ("lost", 100, 0.1)
    assert not service.launcher_client.ready
    assert service.launches == 0
    service.reactor.advance(0.2)
    assert service.launches == 1
    service.attach(101)
    service.report(Ready())
    assert service.take_connection() == 2


def test_pauses_between_starts_grow(service: _Service) -> None:
    """The pause doubles up to 30 seconds, and is short again after a long run."""
    pauses = []
    service.serve(1)
    for _ in range(11):
        service.attach()
        with LogCatcher() as log:
            service.die()
        pauses.append(log.named("launcher")[0]["retry"])
        service.reactor.advance(pauses[-1])
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == 30.0
    service.attach()
    service.report(Ready())
    service.reactor.advance(60)
    with LogCatcher() as log:
        service.die()
    assert log.named("launcher")[0]["retry"] == 0.1


def test_connection_that_crashes_launchers_is_closed(service: _Service) -> None:
    """A connection is closed after the loss of three launchers that it was sent to."""
    client = service.serve(1)
    for _ in range(3):
        service.attach()
        service.report(Ready())
        service.take_connection()
        service.die()
        service.reactor.advance(30)
    assert service.events == ["restarted", "restarted", ("failed", 1, 0)]
    assert client.recv(10) == b""


def test_launcher_that_can_not_start_is_logged(service: _Service) -> None:
    """The log line has the reason that the launcher reported."""
    service.serve(1)
    service.attach()
    with LogCatcher() as log:
        service.report(Ready(b"can't set the user 7"))
    assert log.named("launcher")[0]["reason"] == "can't set the user 7"


#: Packets that are not allowed from a ready launcher: connections 1 to 3 were sent, 2 is starting, 3 has started.
WRONG = {
    "no message": b"junk",
    "cut off": b"E",
    "empty": b"",
    "an order": pack(Signal(1, 2, 3)),
    "the zygote's": pack(LauncherStarted(1, 2)),
    "too long": pack(StderrLine(1, b"x" * MAX_PACKET)) + b"x",
    "a second Ready": pack(Ready()),
    "Starting unknown": pack(Starting(7)),
    "Starting again": pack(Starting(2)),
    "Started unknown": pack(Started(7, 55)),
    "Started unannounced": pack(Started(1, 55)),
    "Started again": pack(Started(3, 57)),
    "Started without a pid": pack(Started(2, 0)),
    "Failed unknown": pack(Failed(7, 1)),
    "Failed when started": pack(Failed(3, 1)),
    "Failed for no reason": pack(Failed(1, 0)),
    "Failed for no known one": pack(Failed(1, 5000)),
    "Ended unknown": pack(Ended(7, 0)),
    "Ended unstarted": pack(Ended(2, 0)),
    "Ended with no status": pack(Ended(3, -1)),
    "Ended by a stop": pack(Ended(3, 0x137F)),
    "Ended with no number": pack(Ended(3, 0, float("nan"))),
    "Ended with less than no time": pack(Ended(3, 0, 0.0, -1.0)),
    "Ended with no count": pack(Ended(3, 0, 0.0, 0.0, -2)),
    "output of an unknown connection": pack(StderrLine(7, b"x")),
    "output in one piece": pack(StderrLine(1, b"x" * (MAX_BLOCK + 1))),
    "Idle with a process": pack(Idle()),
    "Changed unasked": pack(Changed(b"m")),
}


@pytest.mark.parametrize("packet", WRONG.values(), ids=WRONG.keys())
def test_launcher_that_breaks_the_protocol_is_killed(service: _Service, packet: bytes) -> None:
    """It is killed, with one log line, and another launcher is started and gets its connections."""
    service.attach()
    service.report(Ready())
    for number in (1, 2, 3):
        service.serve(number)
    service.report(Starting(2), Starting(3), Started(3, 57))
    service.events.clear()
    assert service.launcher is not None
    service.launcher.send(packet)
    with LogCatcher() as log:
        service.read()
    (lost,) = log.named("launcher")
    assert (lost["state"], lost["pid"], lost["retry"]) == ("lost", 100, 0.1)
    assert str(lost["reason"]).startswith("protocol error: ")
    assert service.killed == [100]
    assert not service.launcher_client.ready
    assert service.launcher_client.orphaned == {3: 57}
    assert service.events == [("lost", 2)]
    service.launcher.close()
    service.reactor.advance(0.2)
    service.attach(101)
    service.report(Ready())
    assert service.take_connection() == 1


@pytest.mark.parametrize("report", [Starting(1), StderrLine(0, b"x"), Idle(), Dropped(1, 1), Ended(1, 0)])
def test_report_before_ready_is_a_protocol_error(service: _Service, report: Message) -> None:
    """A launcher that reports a connection before Ready is killed."""
    service.serve(1)
    service.attach()
    service.report(report)
    assert service.killed == [100]


def test_reason_that_is_too_long_is_a_protocol_error(service: _Service) -> None:
    """A launcher that reports a reason longer than MAX_REASON, which would be logged, is killed."""
    service.attach()
    service.report(Ready(b"x" * (MAX_REASON + 1)))
    assert service.killed == [100]


@pytest.mark.parametrize("report", [StderrLine(0, b"x"), Dropped(1, 1)])
def test_output_beyond_stderr_rate_is_a_protocol_error(report: Message) -> None:
    """A launcher that exceeds stderr_rate is killed, but not for output that its socket could hold."""
    service = _Service(stderr_lines=10, stderr_bytes=65_536)
    service.attach()
    service.report(Ready())
    for _ in range(1034):
        service.report(report)
    assert service.killed == []
    service.reactor.advance(0.1)
    service.report(report)
    assert service.killed == []
    service.report(report)
    assert service.killed == [100]
    service.close()


#: Reports with ids of sent connections, and with others.
_NUMBERS = st.integers(0, 5)
_COUNTS = st.sampled_from([-2, -1, 0, 5])
_REPORTS: st.SearchStrategy[Message] = st.one_of(
    st.builds(Starting, _NUMBERS),
    st.builds(Started, _NUMBERS, st.integers(-1, 60)),
    st.builds(Failed, _NUMBERS, st.integers(-1, 40)),
    st.builds(Ended, _NUMBERS, st.sampled_from([0, 9, 256, 0x137F]), st.floats(), st.floats(), _COUNTS, _COUNTS),
    st.builds(StderrLine, _NUMBERS, st.binary(max_size=5)),
    st.builds(Dropped, _NUMBERS, _NUMBERS),
    st.builds(Ready, st.sampled_from([b"", b"no"])),
    st.just(Idle()),
    st.just(Changed(b"m")),
)


@given(st.lists(st.one_of(_REPORTS, _NUMBERS.map(lambda number: number + 1)), max_size=40))
def test_reports_do_not_grow_memory(steps: list[Message | int]) -> None:
    """For any reports the state is bounded by the sent connections; each starts once and ends once at most."""
    service = _Service()
    service.attach()
    service.report(Ready())
    with contextlib.closing(service):
        _check_bounds(service, steps)


def _check_bounds(service: _Service, steps: list[Message | int]) -> None:
    sent: set[int] = set()
    for step in steps:
        if service.launcher_client._connection is None:
            break
        if isinstance(step, int):
            if step not in sent:
                sent.add(step)
                service.serve(step)
        else:
            service.report(step)
    launcher_client = service.launcher_client
    assert launcher_client.pids.keys() | launcher_client.orphaned.keys() <= sent
    if launcher_client._connection is not None:
        assert len(launcher_client._connection.protocol._states) <= len(sent)
    assert len(launcher_client._queue._signals) <= len(sent)
    started = [each[1] for each in service.events if isinstance(each, tuple) and each[0] == "started"]
    over = [each.connection_id for each in service.events if isinstance(each, Ended)]
    over += [each[1] for each in service.events if isinstance(each, tuple) and each[0] in ("failed", "lost")]
    assert len(started) == len(set(started))
    assert len(over) == len(set(over))
    assert {*started, *over} <= sent


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_client_survives_any_packets(packets: list[bytes]) -> None:
    """Random packets raise no exception, and the next launcher serves."""
    service = _Service()
    service.attach()
    service.report(Ready())
    with contextlib.closing(service):
        _check_use(service, packets)


def _check_use(service: _Service, packets: list[bytes]) -> None:
    assert service.launcher is not None
    for packet in packets:
        with contextlib.suppress(BrokenPipeError):
            service.launcher.send(packet)
        service.read()
    service.serve(1)
    if not service.launcher_client.ready:
        service.reactor.advance(1)
        service.launcher.close()
        service.attach(101)
        service.report(Ready())
    while True:
        order, descriptor = service.order()
        if isinstance(order, Connection):
            break
    assert descriptor is not None
    os.close(descriptor)
    assert order.connection_id == 1


def test_limit_of_unanswered_connections(service: _Service) -> None:
    """A launcher that does not answer gets MAX_UNANSWERED connections at most, also if these are dropped meanwhile."""
    service.attach()
    service.report(Ready())
    assert service.launcher is not None
    service.launcher.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for number in range(1, MAX_UNANSWERED + 100):
        service.serve(number)
        service.reactor.advance(0.1)
        while not service.reactor.getDelayedCalls() and number <= MAX_UNANSWERED:
            service.take_connection()
            break
        assert service.launcher_client.drop(number)
    assert service.launcher_client._connection is not None
    assert len(service.launcher_client._connection.protocol._states) == MAX_UNANSWERED
    service.serve(1000)
    with pytest.raises(BlockingIOError):
        service.order()
    service.report(Starting(1), Failed(1, 11))
    assert service.take_connection() == 1000


def test_launcher_lost_after_starting(service: _Service) -> None:
    """After a Starting report the process may exist, so no other launcher gets the connection."""
    service.attach()
    service.report(Ready())
    client = service.serve(1)
    service.serve(2)
    service.report(Starting(1))
    service.die()
    assert service.events == [("lost", 1)]
    assert client.recv(10) == b""
    service.reactor.advance(0.2)
    service.attach(101)
    service.report(Ready())
    assert service.take_connection() == 2


def test_idle_launcher_is_closed(service: _Service) -> None:
    """The socket of an idle launcher is closed; the next connection starts another one, not counted as a restart."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    service.start_handler(1, 55)
    service.report(Ended(1, 0))
    with LogCatcher() as log:
        service.report(Idle())
    assert [(line["state"], line["pid"]) for line in log.named("launcher")] == [("idle", 100)]
    assert service.launcher is not None
    assert service.launcher.recv(10) == b""
    assert (service.launcher_client.failing, service.launcher_client.pid, service.reactor.getDelayedCalls()) == (
        False,
        0,
        [],
    )
    service.launcher.close()
    service.events.clear()
    service.serve(2)
    assert service.launches == 1
    service.attach(101)
    service.report(Ready())
    assert service.take_connection() == 2
    assert service.events == []


def test_idle_report_is_ignored_after_a_sent_connection(service: _Service) -> None:
    """A connection sent before the Idle report arrived is served; the launcher may report Idle again after that."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.report(Idle())
    assert (service.launcher_client.ready, service.killed) == (True, [])
    assert service.take_connection() == 1
    service.start_handler(1, 55)
    service.report(Ended(1, 0), Idle())
    assert (service.launcher_client.ready, service.killed) == (False, [])


def test_module_check(service: _Service) -> None:
    """check_module() sends CheckModule if there is a launcher, and one Changed report is passed on."""
    service.launcher_client.check_module()
    service.attach()
    service.report(Ready())
    service.launcher_client.check_module()
    assert service.order() == (CheckModule(), None)
    service.report(Changed(b"m"))
    assert service.events == [("module changed", "m")]
    service.report(Changed(b"m"))
    assert service.killed == [100]


def test_launcher_with_stuck_threads() -> None:
    """An event is sent once when a launcher has too many threads that can't be ended."""
    service = _Service(threads=True)
    service.attach()
    service.report(Ready())
    for number in range(1, 34):
        service.serve(number)
        service.take_connection()
        service.report(Started(number, 100), Ended(number, 9))
    assert (service.events.count("threads stuck"), service.killed) == (1, [])
    service.report(Starting(33))
    assert service.killed == [100]
    service.close()


@pytest.mark.parametrize("well", [True, False])
def test_a_launcher_can_be_started_without_a_connection(service: _Service, well: bool) -> None:
    """The Deferred of when_ready() fires with the pid, or fails with the reason."""
    results: list[Any] = []
    service.launcher_client.when_ready().addBoth(results.append)
    assert service.launches == 1
    service.attach(200)
    service.report(Ready(b"" if well else b"no module"))
    assert results == [200] if well else str(results[0].value) == "no module"


def test_replaced_client_forwards_to_its_replacement(service: _Service) -> None:
    """A connection that was moved to the replacement can be dropped and signalled by the first client."""
    other = _Service()
    service.serve(1)
    service.serve(2)
    service.launcher_client.replace_by(other.launcher_client)
    other.attach(300)
    other.report(Ready())
    assert [other.take_connection(), other.take_connection()] == [1, 2]
    other.start_handler(1, 77)
    service.launcher_client.signal(1, signal.SIGTERM)
    assert other.order() == (Signal(1, 77, signal.SIGTERM), None)
    assert service.launcher_client.drop(2)
    assert not service.launcher_client.failing
    other.die()
    assert service.launcher_client.failing
    other.close()


def test_output_limit() -> None:
    """Lines and bytes have separate buckets; dropped lines take nothing from them; both fill with time."""
    clock = Clock()
    limit = OutputLimit(2, MAX_BLOCK, clock.seconds)
    assert [limit.take(10) for _ in range(3)] == [True, True, False]
    clock.advance(0.5)
    assert [limit.take(MAX_BLOCK), limit.take(MAX_BLOCK)] == [True, False]
    clock.advance(100)
    assert [limit.take(MAX_BLOCK - 5), limit.take(6), limit.take(5)] == [True, False, True]


def test_protocol_keeps_no_ended_connections() -> None:
    """The state of LauncherProtocol has open connections only."""
    protocol = LauncherProtocol()
    protocol.check(Ready())
    for number in range(1, 100):
        protocol.connection_sent(number)
        for report in (Starting(number), Started(number, 5), Ended(number, 0)):
            assert not protocol.idle
            protocol.check(report)
    assert protocol.idle
    assert not protocol.full


def test_limit_of_waiting_connections(service: _Service) -> None:
    """`full` is true at MAX_WAITING connections, and an event follows once there is room again."""
    service.attach()
    service.report(Ready())
    for number in range(MAX_WAITING):
        assert not service.launcher_client.full
        service.serve(number)
    assert service.launcher_client.full
    service.start_handler(0, 55)
    assert not service.launcher_client.full
    assert service.events == [("started", 0, 55), "room"] or service.events == ["room", ("started", 0, 55)]


def test_signal_has_connection_and_pid(service: _Service) -> None:
    """A signal message has the connection id and the pid; without a process none is sent."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    service.launcher_client.signal(1, signal.SIGTERM)
    service.start_handler(1, 55)
    service.launcher_client.signal(1, signal.SIGTERM)
    assert service.order() == (Signal(1, 55, signal.SIGTERM), None)


def test_a_handler_of_a_dropped_connection_is_killed(service: _Service) -> None:
    """A handler that starts for a dropped connection is killed: nothing else would end it."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    assert service.launcher_client.drop(1)
    service.start_handler(1, 55)
    assert service.order() == (Signal(1, 55, signal.SIGKILL), None)
    assert (service.events, service.launcher_client.pids) == ([], {})


def test_connection_that_was_not_sent_is_canceled_at_once(service: _Service) -> None:
    """cancel() returns True without a launcher, and with one that is not ready: there can't be a process."""
    service.serve(1)
    assert service.launcher_client.cancel(1)
    service.attach()
    service.serve(2)
    assert service.launcher_client.cancel(2)
    service.report(Ready())
    with pytest.raises(BlockingIOError):
        service.order()
    assert service.launcher_client.cancel(1)


@pytest.mark.parametrize("result", ["started", "failed"])
def test_canceled_connection_that_was_sent_is_reported(service: _Service, result: str) -> None:
    """A canceled connection that was sent may have a process, so the launcher's report is passed on."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    assert not service.launcher_client.cancel(1)
    if result == "started":
        service.start_handler(1, 55)
        assert service.events == [("started", 1, 55)]
    else:
        service.report(Failed(1, errno.ENOENT))
        assert service.events == [("failed", 1, errno.ENOENT)]


def test_a_canceled_connection_gets_no_other_launcher(service: _Service) -> None:
    """If the launcher is lost before it reports a start, the canceled connection is not sent to another launcher."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.serve(2)
    service.take_connection()
    service.take_connection()
    assert not service.launcher_client.cancel(1)
    service.die()
    assert service.events == [("failed", 1, 0)]
    service.reactor.advance(10)
    service.attach(200)
    service.report(Ready())
    assert service.take_connection() == 2


@pytest.mark.parametrize("result", ["started", "failed"])
def test_a_replaced_launcher_stays_until_dropped_connections_are_reported(service: _Service, result: str) -> None:
    """The socket of a replaced launcher is closed after the process of a dropped connection is reported and killed."""
    other = _Service()
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    service.launcher_client.replace_by(other.launcher_client)
    assert service.launcher_client.drop(1)
    assert not service.launcher_client.stopped
    if result == "started":
        service.start_handler(1, 55)
        assert service.order() == (Signal(1, 55, signal.SIGKILL), None)
    else:
        service.report(Failed(1, errno.ENOENT))
    assert service.launcher_client.stopped
    assert service.events == []
    other.close()


def test_the_zygote_reports_exits_of_orphans(service: _Service) -> None:
    """The zygote reports the exits of handlers whose launcher was lost; each is passed on once, with its status."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.serve(2)
    service.start_handler(1, 55)
    service.start_handler(2, 56)
    service.events.clear()
    assert service.launcher is not None
    service.launcher.send(pack(Ended(2, 9)))
    service.launcher.close()
    # The zygote may report first; the last reports of the launcher are handled before its report.
    service.launcher_client.orphan_exited(55, 256)
    service.launcher_client.orphan_exited(55, 256)
    assert service.events == [Ended(2, 9), Ended(1, 256)]


def test_orphans_are_lost_with_the_zygote(service: _Service) -> None:
    """Without the zygote the exit of orphaned handlers can't be reported: they are reported as lost."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.start_handler(1, 55)
    service.events.clear()
    service.die()
    service.launcher_client.zygote_lost()
    assert service.events == [("lost", 1)]


def test_a_stopped_client_ends_its_launcher(service: _Service) -> None:
    """stop() closes the launcher's socket and the queued connections, and no launcher is started again."""
    service.attach()
    client = service.serve(1)
    service.launcher_client.stop()
    assert service.events == [("failed", 1, 0)]
    assert service.launcher is not None
    assert service.launcher.recv(10) == b""
    assert client.recv(10) == b""
    service.launcher_client.ensure_launcher()
    service.reactor.advance(60)
    assert service.launches == 0
    assert not service.reactor.getDelayedCalls()
