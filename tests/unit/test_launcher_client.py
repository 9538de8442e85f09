"""The daemon's end of a launcher, with the test as the launcher."""

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
    """A launcher client, its events, and its launcher, which the test plays."""

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

    def process_started(self, number: int, pid: int) -> None:
        self.events.append(("started", number, pid))

    def process_ended(self, report: Ended) -> None:
        self.events.append(report)

    def start_failed(self, number: int, errno: int) -> None:
        self.events.append(("failed", number, errno))

    def process_lost(self, number: int) -> None:
        self.events.append(("lost", number))

    def stderr_line(self, number: int, text: bytes) -> None:
        self.events.append(("output", number, text))

    def dropped(self, lines: int, size: int) -> None:
        self.events.append(("dropped", lines, size))

    def module_changed(self, module: str) -> None:
        self.events.append(("module changed", module))

    def threads_stuck(self) -> None:
        self.events.append("worn")

    def unavailable(self, problem: str) -> None:
        """Note it, if it is new."""
        if problem or self.problem:
            self.problem = problem
            self.events.append(("unavailable", problem))

    def launcher_restarted(self) -> None:
        """Note."""
        self.events.append("restarted")

    def queue_drained(self) -> None:
        self.events.append("room")

    def attach(self, pid: int = 100) -> None:
        """Attach a launcher that has not reported yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.launcher = theirs
        self.launcher_client.attach(ours, pid)

    def begin(self, number: int, pid: int) -> None:
        """Let the launcher start what it was sent."""
        self.report(Starting(number), Started(number, pid))

    def serve(self, number: int = 1) -> socket.socket:
        """Hand a connection over; returns the client's end."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.clients.append(ours)
        self.launcher_client.start(number, b"A=1", theirs.detach())
        return ours

    def report(self, *messages: Message) -> None:
        """Let the launcher report."""
        assert self.launcher is not None
        for message in messages:
            self.launcher.send(pack(message))
        self.read()

    def order(self) -> tuple[Message, int | None]:
        """Return the next message to the launcher, and its descriptor."""
        assert self.launcher is not None
        packet, rights, _, _ = self.launcher.recvmsg(MAX_PACKET, socket.CMSG_SPACE(4))
        return parse(packet), FD_STRUCT.unpack(rights[0][2])[0] if rights else None

    def take_connection(self) -> int:
        """Take a connection as the launcher does; returns its number."""
        order, descriptor = self.order()
        assert isinstance(order, Connection)
        assert descriptor is not None
        os.close(descriptor)
        return order.connection_id

    def close(self) -> None:
        """End everything."""
        self.launcher_client.stop()
        for each in [*self.clients, self.launcher]:
            if each is not None:
                each.close()

    def read(self) -> None:
        """Let the daemon read what the launcher has reported."""
        if self.launcher_client._connection is not None:
            self.launcher_client._connection.doRead()

    def die(self) -> None:
        """End the launcher."""
        assert self.launcher is not None
        self.launcher.close()
        self.read()


@pytest.fixture
def service() -> Iterator[_Service]:
    """A service whose launcher the test plays."""
    made = _Service()
    yield made
    made.close()


def test_the_first_connection_has_a_launcher_started(service: _Service) -> None:
    """It is asked for once, and what came before it was ready is handed over in its order."""
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
    """What the launcher gets is the client's connection itself."""
    service.attach()
    service.report(Ready())
    client = service.serve(7)
    order, descriptor = service.order()
    assert order == Connection(7, b"A=1")
    assert descriptor is not None
    os.write(descriptor, b"hello")
    os.close(descriptor)
    assert client.recv(10) == b"hello"


def test_our_copy_is_closed_when_the_handler_has_started(service: _Service) -> None:
    """From then on the handler alone decides when the client sees the end."""
    service.attach()
    service.report(Ready())
    client = service.serve(1)
    assert service.take_connection() == 1
    service.begin(1, 55)
    assert client.recv(10) == b""
    assert service.events == [("started", 1, 55)]
    assert service.launcher_client.pids == {1: 55}


def test_reports_are_passed_on(service: _Service) -> None:
    """From the start to the end, and what was written in between, before it and after it."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.report(
        Starting(1), Started(1, 55), StderrLine(1, b"hi"), Ended(1, 256), StderrLine(1, b"rest"), Dropped(3, 40)
    )
    texts = [("started", 1, 55), ("output", 1, b"hi"), Ended(1, 256), ("output", 1, b"rest"), ("dropped", 3, 40)]
    assert (service.events, service.killed) == (texts, [])


def test_a_failed_start_closes_the_connection(service: _Service) -> None:
    """The client sees the end of its connection, and an event has the reason."""
    service.attach()
    service.report(Ready())
    client = service.serve(1)
    service.take_connection()
    service.report(Failed(1, errno.ENOENT))
    assert client.recv(10) == b""
    assert service.events == [("failed", 1, errno.ENOENT)]


def test_a_lost_launcher_costs_no_connection(service: _Service) -> None:
    """What it had not started is given to the next, which comes after a pause."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.serve(2)
    service.begin(1, 55)
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


def test_losses_one_after_the_other_are_further_apart(service: _Service) -> None:
    """The pause doubles up to half a minute, and is short again after a good life."""
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


def test_a_connection_that_kills_launchers_is_given_up(service: _Service) -> None:
    """After three launchers it is the connection's fault, and it is closed."""
    client = service.serve(1)
    for _ in range(3):
        service.attach()
        service.report(Ready())
        service.take_connection()
        service.die()
        service.reactor.advance(30)
    assert service.events == ["restarted", "restarted", ("failed", 1, 0)]
    assert client.recv(10) == b""


def test_a_launcher_that_can_not_begin_is_told_with_its_reason(service: _Service) -> None:
    """Its own words stand in the log."""
    service.serve(1)
    service.attach()
    with LogCatcher() as log:
        service.report(Ready(b"can't take the user 7"))
    assert log.named("launcher")[0]["reason"] == "can't take the user 7"


#: Packets that a launcher may not send when it is ready, connections 1 to 3 were sent, 2 is starting, 3 has started.
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
    "output of nobody": pack(StderrLine(7, b"x")),
    "output in one piece": pack(StderrLine(1, b"x" * (MAX_BLOCK + 1))),
    "Idle with a process": pack(Idle()),
    "Changed unasked": pack(Changed(b"m")),
}


@pytest.mark.parametrize("packet", WRONG.values(), ids=WRONG.keys())
def test_a_launcher_that_breaks_the_protocol_is_ended(service: _Service, packet: bytes) -> None:
    """It is killed, with one line in the log, and another one is started; its connections are others' from then on."""
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
def test_nothing_comes_before_ready(service: _Service, report: Message) -> None:
    """A launcher that is not ready may not report on connections."""
    service.serve(1)
    service.attach()
    service.report(report)
    assert service.killed == [100]


def test_a_reason_has_a_greatest_length(service: _Service) -> None:
    """It becomes a line of the log."""
    service.attach()
    service.report(Ready(b"x" * (MAX_REASON + 1)))
    assert service.killed == [100]


@pytest.mark.parametrize("report", [StderrLine(0, b"x"), Dropped(1, 1)])
def test_more_output_than_a_launcher_lets_through(report: Message) -> None:
    """One that does not keep to stderr_rate is ended; what its socket holds is no reason."""
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


#: Reports with numbers that may have been sent, and with others.
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
def test_whatever_is_reported_memory_is_bounded_by_what_was_sent(steps: list[Message | int]) -> None:
    """Each connection is reported to start at most once, and to be over at most once, and not before."""
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
def test_any_packets_leave_the_link_usable(packets: list[bytes]) -> None:
    """Nothing is raised, and the next launcher serves."""
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


def test_so_many_are_sent_before_an_answer(service: _Service) -> None:
    """A launcher that answers nothing costs the daemon no memory for connections that are given up meanwhile."""
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


def test_a_launcher_that_is_lost_in_the_middle_of_a_start(service: _Service) -> None:
    """The process may or may not exist: no other launcher starts one for that connection."""
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


def test_an_idle_launcher_ends(service: _Service) -> None:
    """The next connection has another one started, which is no restart; nothing waits in between."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    service.begin(1, 55)
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


def test_a_launcher_with_a_connection_on_its_way_does_not_end(service: _Service) -> None:
    """The connection crosses the report, and is served; the launcher may report again when that is over."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.report(Idle())
    assert (service.launcher_client.ready, service.killed) == (True, [])
    assert service.take_connection() == 1
    service.begin(1, 55)
    service.report(Ended(1, 0), Idle())
    assert (service.launcher_client.ready, service.killed) == (False, [])


def test_a_module_is_asked_for(service: _Service) -> None:
    """The answer is passed on once; a launcher that is not there has imported nothing."""
    service.launcher_client.check_module()
    service.attach()
    service.report(Ready())
    service.launcher_client.check_module()
    assert service.order() == (CheckModule(), None)
    service.report(Changed(b"m"))
    assert service.events == [("module changed", "m")]
    service.report(Changed(b"m"))
    assert service.killed == [100]


def test_threads_that_are_given_up_wear_a_launcher_out() -> None:
    """They go on as long as their launcher, so another one takes its place before they are many."""
    service = _Service(threads=True)
    service.attach()
    service.report(Ready())
    for number in range(1, 34):
        service.serve(number)
        service.take_connection()
        service.report(Started(number, 100), Ended(number, 9))
    assert (service.events.count("worn"), service.killed) == (1, [])
    service.report(Starting(33))
    assert service.killed == [100]
    service.close()


@pytest.mark.parametrize("well", [True, False])
def test_a_launcher_can_be_started_without_a_connection(service: _Service, well: bool) -> None:
    """The Deferred fires when it is ready, or fails with the reason."""
    results: list[Any] = []
    service.launcher_client.when_ready().addBoth(results.append)
    assert service.launches == 1
    service.attach(200)
    service.report(Ready(b"" if well else b"no module"))
    assert results == [200] if well else str(results[0].value) == "no module"


def test_a_connection_follows_to_the_next_launcher(service: _Service) -> None:
    """A connection that was moved to the replacement can be dropped and signalled by the first client."""
    other = _Service()
    service.serve(1)
    service.serve(2)
    service.launcher_client.replace_by(other.launcher_client)
    other.attach(300)
    other.report(Ready())
    assert [other.take_connection(), other.take_connection()] == [1, 2]
    other.begin(1, 77)
    service.launcher_client.signal(1, signal.SIGTERM)
    assert other.order() == (Signal(1, 77, signal.SIGTERM), None)
    assert service.launcher_client.drop(2)
    assert not service.launcher_client.failing
    other.die()
    assert service.launcher_client.failing
    other.close()


def test_an_output_limit_lets_so_much_through() -> None:
    """Lines and bytes each have their bucket; what is dropped takes nothing from it; time fills both."""
    clock = Clock()
    limit = OutputLimit(2, MAX_BLOCK, clock.seconds)
    assert [limit.take(10) for _ in range(3)] == [True, True, False]
    clock.advance(0.5)
    assert [limit.take(MAX_BLOCK), limit.take(MAX_BLOCK)] == [True, False]
    clock.advance(100)
    assert [limit.take(MAX_BLOCK - 5), limit.take(6), limit.take(5)] == [True, False, True]


def test_a_protocol_forgets_what_is_over() -> None:
    """Its memory is that of open connections."""
    protocol = LauncherProtocol()
    protocol.check(Ready())
    for number in range(1, 100):
        protocol.connection_sent(number)
        for report in (Starting(number), Started(number, 5), Ended(number, 0)):
            assert not protocol.idle
            protocol.check(report)
    assert protocol.idle
    assert not protocol.full


def test_so_many_wait_and_no_more(service: _Service) -> None:
    """`full` is true at the limit, and an event follows when there is room again."""
    service.attach()
    service.report(Ready())
    for number in range(MAX_WAITING):
        assert not service.launcher_client.full
        service.serve(number)
    assert service.launcher_client.full
    service.begin(0, 55)
    assert not service.launcher_client.full
    assert service.events == [("started", 0, 55), "room"] or service.events == ["room", ("started", 0, 55)]


def test_signals_go_by_number_and_pid(service: _Service) -> None:
    """A signal names both connection and pid; a connection without a process gets none."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    service.launcher_client.signal(1, signal.SIGTERM)
    service.begin(1, 55)
    service.launcher_client.signal(1, signal.SIGTERM)
    assert service.order() == (Signal(1, 55, signal.SIGTERM), None)


def test_a_handler_of_a_dropped_connection_is_killed(service: _Service) -> None:
    """A handler that starts for a dropped connection is killed: nothing else would end it."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    assert service.launcher_client.drop(1)
    service.begin(1, 55)
    assert service.order() == (Signal(1, 55, signal.SIGKILL), None)
    assert (service.events, service.launcher_client.pids) == ([], {})


def test_a_connection_that_no_launcher_was_sent_is_canceled_at_once(service: _Service) -> None:
    """It can't have a process, whether there is no launcher or the launcher is not ready."""
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
def test_a_connection_that_was_sent_is_reported_though_it_is_canceled(service: _Service, result: str) -> None:
    """It may have a process already, so the launcher's report is passed on."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    assert not service.launcher_client.cancel(1)
    if result == "started":
        service.begin(1, 55)
        assert service.events == [("started", 1, 55)]
    else:
        service.report(Failed(1, errno.ENOENT))
        assert service.events == [("failed", 1, errno.ENOENT)]


def test_a_canceled_connection_gets_no_other_launcher(service: _Service) -> None:
    """A launcher that is lost before it reports a start has started nothing; no other launcher gets the connection."""
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
    """Its socket is closed only after the process of a dropped connection is reported and killed."""
    other = _Service()
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.take_connection()
    service.launcher_client.replace_by(other.launcher_client)
    assert service.launcher_client.drop(1)
    assert not service.launcher_client.stopped
    if result == "started":
        service.begin(1, 55)
        assert service.order() == (Signal(1, 55, signal.SIGKILL), None)
    else:
        service.report(Failed(1, errno.ENOENT))
    assert service.launcher_client.stopped
    assert service.events == []
    other.close()


def test_the_zygote_reports_exits_of_orphans(service: _Service) -> None:
    """Handlers outlive their launcher; the zygote reports each exit with its status, once."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.serve(2)
    service.begin(1, 55)
    service.begin(2, 56)
    service.events.clear()
    assert service.launcher is not None
    service.launcher.send(pack(Ended(2, 9)))
    service.launcher.close()
    # The zygote may report first; the launcher's own last reports are handled before that.
    service.launcher_client.orphan_exited(55, 256)
    service.launcher_client.orphan_exited(55, 256)
    assert service.events == [Ended(2, 9), Ended(1, 256)]


def test_orphans_are_forgotten_with_the_zygote(service: _Service) -> None:
    """Nothing is left that could report their exit."""
    service.attach()
    service.report(Ready())
    service.serve(1)
    service.begin(1, 55)
    service.events.clear()
    service.die()
    service.launcher_client.zygote_lost()
    assert service.events == [("lost", 1)]


def test_a_stopped_client_ends_its_launcher(service: _Service) -> None:
    """The launcher sees the end of its socket; queued connections are closed; nothing is started again."""
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
