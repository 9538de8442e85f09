"""The states of a spawned connection, for every order of events."""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from svcd.access.admission import ConnectionSlot, GlobalLimit
from svcd.connections.admission_queue import ServiceAdmission
from svcd.connections.context import ConnectionContext
from svcd.connections.descriptor_budget import DescriptorBudget
from svcd.connections.spawned import SpawnedTracker
from svcd.connections.spawned_connection import KILL_SECONDS, TRANSITIONS, SpawnedConnection, SpawnedState
from svcd.log.formats import TextFormat
from svcd.log.writer import LogWriter
from svcd.process.messages import Ended, Started
from tests.doubles import FakeFiles, FakeReactor, FakeResolver, list_sink, service_of

if TYPE_CHECKING:
    from collections.abc import Callable


SERVICE = service_of("cat 0/tcp server=/bin/cat")


class _FakeLauncherClient:
    """LauncherClient that records signals and forgotten connections."""

    def __init__(self) -> None:
        self.failing = False
        self.waiting: set[int] = set()
        self.sent: set[int] = set()
        self.signals: list[int] = []
        self.forgotten: list[int] = []

    def start(self, connection_id: int, _environment: bytes, fd: int) -> None:
        os.close(fd)
        self.waiting.add(connection_id)

    def drop(self, connection_id: int) -> bool:
        found = connection_id in self.waiting
        self.waiting.discard(connection_id)
        return found

    def cancel(self, connection_id: int) -> bool:
        """Drop a connection unless it was sent; return whether no report will follow."""
        return connection_id not in self.waiting or (connection_id not in self.sent and self.drop(connection_id))

    def signal(self, _connection_id: int, wanted: int) -> None:
        self.signals.append(wanted)

    def forget_connection(self, connection_id: int) -> None:
        self.forgotten.append(connection_id)


class _FakeTerminator:
    """TlsTerminator that records its calls; the test ends the client's connection."""

    def __init__(self) -> None:
        self.closed = False
        self.failure_text = ""
        self.final_byte_counts = 5, 7
        self.websocket = None
        self.calls: list[str] = []

    def end(self, *, linger: bool = True) -> None:
        self.calls.append("end" if linger else "end now")

    def set_outcome(self, code: int, reason: str) -> None:
        pass

    def abort(self) -> None:
        self.calls.append("abort")

    def byte_counts(self) -> tuple[int, int]:
        return self.final_byte_counts

    def info(self, *, subject: bool) -> dict[str, object]:
        return {"subject": subject}


class _Case:
    """One connection, and the events that can occur."""

    def __init__(self, *, tls: bool) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.budget = DescriptorBudget(100, self.reactor)
        self.launcher: Any = _FakeLauncherClient()
        service = SERVICE
        log_writer = LogWriter(list_sink(self.lines), TextFormat(stamped=False))
        context = ConnectionContext(
            self.reactor,
            log_writer,
            FakeFiles(),
            FakeResolver(),
            self.budget,
            GlobalLimit(),
            clock=self.reactor.seconds,
        )
        self.admission = ServiceAdmission(context, service)
        self.tracker = SpawnedTracker(service, context, self.admission, lambda _tracker: self.launcher)
        slot = self.admission.admit("192.0.2.1", 0.0)
        assert isinstance(slot, ConnectionSlot)
        self.connection = self.tracker._add("192.0.2.1:1", slot)
        self.closed = 0
        self.connection.on_closed = self._count
        self.terminator: Any = None
        if tls:
            self.terminator = _FakeTerminator()
            self.connection.begin_handshake(self.terminator)
        else:
            self.handshake_done()

    def _count(self) -> None:
        self.closed += 1

    @property
    def state(self) -> SpawnedState:
        return self.connection.state

    def handshake_done(self) -> None:
        """Complete the handshake; without TLS start the process."""
        if self.state in (SpawnedState.ACCEPTED, SpawnedState.HANDSHAKE):
            self.connection.start(os.open(os.devnull, os.O_RDONLY), b"")

    def handshake_failed(self) -> None:
        """Fail the handshake because of the client, with a reason that is logged."""
        if self.state is SpawnedState.HANDSHAKE:
            self.terminator.failure_text = "no certificate"
            self.client_leaves()

    def client_leaves(self) -> None:
        """End the client's connection; without TLS only the process notices it."""
        if self.terminator is not None and not self.terminator.closed:
            self.terminator.closed = True
            self.connection.client_closed()

    def is_sent(self) -> None:
        """Send the connection to the launcher."""
        self.launcher.sent |= self.launcher.waiting

    def process_starts(self) -> None:
        """Report the start of the process."""
        if self.launcher.drop(1):
            self.tracker.process_started(Started(1, 500))

    def start_fails(self) -> None:
        """Report that the program can't be started."""
        if self.launcher.drop(1):
            self.tracker.start_failed(1, 2)

    @property
    def _runs(self) -> bool:
        return self.connection.pid != 0 and self.state not in (SpawnedState.CLOSING, SpawnedState.CLOSED)

    def process_ends(self) -> None:
        """Report the exit of the process."""
        if self._runs:
            self.tracker.process_ended(Ended(1, 0))

    def launcher_is_lost(self) -> None:
        """Lose the launcher: the exit of the process is unknown, or whether there was one."""
        if self._runs or self.launcher.drop(1):
            self.tracker.process_lost(1)

    def kick(self) -> None:
        """Close the connection by svcctl kick, unless it is closed."""
        if self.tracker.connections:
            self.connection.abort("kicked")

    def shutdown(self) -> None:
        """Stop the daemon: drain the connection, and abort it after the timeout."""
        if self.tracker.connections:
            self.connection.drain()
        if self.tracker.connections:
            self.connection.abort("shutdown")

    def time_passes(self) -> None:
        """Let the timer of the connection expire."""
        self.reactor.advance(KILL_SECONDS)


EVENTS = [
    _Case.is_sent,
    _Case.process_starts,
    _Case.start_fails,
    _Case.process_ends,
    _Case.launcher_is_lost,
    _Case.kick,
    _Case.shutdown,
    _Case.time_passes,
]
#: Events that occur only with TLS.
TLS_EVENTS = [_Case.handshake_done, _Case.handshake_failed, _Case.client_leaves]


@pytest.fixture(autouse=True)
def transitions(monkeypatch: pytest.MonkeyPatch) -> set[tuple[SpawnedState, SpawnedState]]:
    """The transitions in a test; each has to be in TRANSITIONS."""
    seen: set[tuple[SpawnedState, SpawnedState]] = set()
    enter = SpawnedConnection._enter

    def checked(self: SpawnedConnection, state: SpawnedState) -> None:
        assert state in TRANSITIONS[self.state]
        seen.add((self.state, state))
        enter(self, state)

    monkeypatch.setattr(SpawnedConnection, "_enter", checked)
    return seen


def _check_end(case: _Case) -> None:
    """End the connection if it is open, and compare all counts and log lines."""
    case.process_starts()
    case.process_ends()
    case.client_leaves()
    assert case.state is SpawnedState.CLOSED
    assert case.closed == 1
    assert [line.split()[0] for line in case.lines if not line.startswith("fail")] == ["accept", "end"]
    assert sum(line.startswith("fail") for line in case.lines) <= 1
    assert (case.tracker.connections, case.tracker.unlogged, case.budget.open) == ({}, 0, 0)
    assert (case.admission.admission.open, case.tracker.counters.children) == (0, 0)
    assert case.reactor.getDelayedCalls() == []
    assert sum(case.tracker.counters.ended.values()) == 1


@pytest.mark.parametrize("tls", [False, True])
def test_every_order_of_events_ends_the_connection_once(
    tls: bool, transitions: set[tuple[SpawnedState, SpawnedState]]
) -> None:
    """Any order of events leads to one accept line and one end line, and all counts return to their start."""
    for events in itertools.permutations(EVENTS + TLS_EVENTS if tls else EVENTS, 4):
        case = _Case(tls=tls)
        for event in events:
            event(case)
        _check_end(case)
    wanted = {(before, after) for before, afters in TRANSITIONS.items() for after in afters}
    if tls:
        # All transitions of the table occur, except those of connections without TLS or with a host name lookup.
        assert transitions >= {
            pair for pair in wanted if SpawnedState.ACCEPTED not in pair and SpawnedState.CLOSED not in pair
        }
        assert (SpawnedState.HANDSHAKE, SpawnedState.CLOSED) in transitions
        assert (SpawnedState.CLOSING, SpawnedState.CLOSED) in transitions
    else:
        assert transitions >= {(before, after) for before, after in wanted if before is SpawnedState.STARTING} - {
            (SpawnedState.STARTING, SpawnedState.CLOSING)
        }


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([_Case.process_starts, _Case.process_ends], "done"),
        ([_Case.start_fails], "failed"),
        ([_Case.launcher_is_lost], "unknown"),
        ([_Case.process_starts, _Case.launcher_is_lost], "unknown"),
        ([_Case.kick], "kicked"),
        ([_Case.process_starts, _Case.kick, _Case.process_ends], "kicked"),
        ([_Case.process_starts, _Case.kick, _Case.shutdown, _Case.process_ends], "kicked"),
        ([_Case.shutdown], "shutdown"),
        ([_Case.is_sent, _Case.kick, _Case.start_fails], "kicked"),
        ([_Case.is_sent, _Case.kick, _Case.launcher_is_lost], "unknown"),
        ([_Case.is_sent, _Case.kick, _Case.time_passes], "kicked"),
        ([_Case.is_sent, _Case.kick, _Case.process_starts, _Case.process_ends], "kicked"),
        ([_Case.is_sent, _Case.shutdown, _Case.time_passes], "shutdown"),
        ([_Case.process_starts, _Case.shutdown, _Case.time_passes, _Case.time_passes], "unknown"),
    ],
)
def test_the_first_cause_is_the_reason(events: list[Callable[[_Case], None]], reason: str) -> None:
    """The end line has the reason of the first event; the end of a process that can't be killed is unknown."""
    case = _Case(tls=False)
    for event in events:
        event(case)
    assert case.state is SpawnedState.CLOSED
    assert f" reason={reason} " in case.lines[-1]
    _check_end(case)


@pytest.mark.parametrize(
    ("events", "calls"),
    [
        ([_Case.process_ends], ["end"]),
        ([_Case.kick, _Case.process_ends], ["end now"]),
        ([_Case.kick, _Case.process_ends, _Case.time_passes], ["end now", "abort"]),
        ([_Case.kick, _Case.time_passes, _Case.process_ends], ["abort"]),
        ([_Case.process_ends, _Case.kick], ["end", "abort"]),
        ([_Case.client_leaves, _Case.process_ends], []),
    ],
)
def test_output_of_the_process_to_a_tls_client(events: list[Callable[[_Case], None]], calls: list[str]) -> None:
    """The output is sent with a lingering close after an exit, without one after SIGTERM, not at all after SIGKILL."""
    case = _Case(tls=True)
    case.handshake_done()
    case.process_starts()
    for event in events:
        event(case)
    assert case.terminator.calls == calls
    assert (case.state is SpawnedState.CLOSED) is case.terminator.closed
    _check_end(case)


def test_aborted_connection_waits_for_the_report_of_its_process() -> None:
    """An aborted connection that was sent to the launcher waits for the report of its process, which gets SIGTERM."""
    case = _Case(tls=False)
    case.is_sent()
    case.kick()
    states = [case.state]
    assert case.closed == 0
    case.reactor.advance(KILL_SECONDS / 2)
    case.process_starts()
    states.append(case.state)
    assert states == [SpawnedState.STARTING, SpawnedState.TERMINATING]
    assert case.launcher.signals == [signal.SIGTERM]
    case.reactor.advance(KILL_SECONDS / 2)
    assert case.launcher.signals == [signal.SIGTERM, signal.SIGKILL]
    case.process_ends()
    assert case.closed == 1
    _check_end(case)


def test_sigterm_then_sigkill() -> None:
    """Each process group gets SIGTERM once, then SIGKILL until it ends."""
    case = _Case(tls=False)
    case.process_starts()
    states = [case.state]
    for event in (case.kick, case.time_passes, case.time_passes):
        event()
        states.append(case.state)
    wanted = [SpawnedState.RUNNING, SpawnedState.TERMINATING, SpawnedState.KILLING, SpawnedState.KILLING]
    assert states == wanted
    assert case.launcher.signals == [signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]
    case.shutdown()
    case.time_passes()
    assert case.launcher.forgotten == [1]
    _check_end(case)
