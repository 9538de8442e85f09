"""The states of a spawned connection, by every order of events in memory."""

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
from svcd.process.messages import Ended
from tests.doubles import FakeFiles, FakeReactor, FakeResolver, list_sink, service_of

if TYPE_CHECKING:
    from collections.abc import Callable


SERVICE = service_of("cat 0/tcp server=/bin/cat")


class _Launcher:
    """What a connection asks of its LauncherClient."""

    def __init__(self) -> None:
        self.failing = False
        self.waiting: set[int] = set()
        self.sent: set[int] = set()
        self.signals: list[int] = []
        self.forgotten: list[int] = []

    def start(self, number: int, _environment: bytes, fd: int) -> None:
        os.close(fd)
        self.waiting.add(number)

    def drop(self, number: int) -> bool:
        found = number in self.waiting
        self.waiting.discard(number)
        return found

    def cancel(self, number: int) -> bool:
        """Drop it unless it was sent; returns whether nothing will be reported."""
        return number not in self.waiting or (number not in self.sent and self.drop(number))

    def signal(self, _number: int, wanted: int) -> None:
        self.signals.append(wanted)

    def forget_connection(self, number: int) -> None:
        self.forgotten.append(number)


class _Terminator:
    """What a connection asks of its TlsTerminator; the test ends the client's connection."""

    def __init__(self) -> None:
        self.closed = False
        self.failure_text = ""
        self.final_byte_counts = 5, 7
        self.calls: list[str] = []

    def end(self, *, linger: bool = True) -> None:
        self.calls.append("end" if linger else "end now")

    def abort(self) -> None:
        self.calls.append("abort")

    def byte_counts(self) -> tuple[int, int]:
        return self.final_byte_counts

    def info(self, *, subject: bool) -> dict[str, object]:
        return {"subject": subject}


class _Case:
    """One connection, and the events that can happen to it."""

    def __init__(self, *, tls: bool) -> None:
        self.reactor = FakeReactor()
        self.lines: list[str] = []
        self.budget = DescriptorBudget(100, self.reactor)
        self.launcher: Any = _Launcher()
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
            self.terminator = _Terminator()
            self.connection.begin_handshake(self.terminator)
        else:
            self.handshake_done()

    def _count(self) -> None:
        self.closed += 1

    @property
    def state(self) -> SpawnedState:
        return self.connection.state

    def handshake_done(self) -> None:
        """The handshake is done; without TLS there is none."""
        if self.state in (SpawnedState.ACCEPTED, SpawnedState.HANDSHAKE):
            self.connection.start(os.open(os.devnull, os.O_RDONLY), b"")

    def handshake_failed(self) -> None:
        """The client breaks off the handshake, with a reason that is logged."""
        if self.state is SpawnedState.HANDSHAKE:
            self.terminator.failure_text = "no certificate"
            self.client_leaves()

    def client_leaves(self) -> None:
        """The client's connection is over; without TLS the process alone sees that."""
        if self.terminator is not None and not self.terminator.closed:
            self.terminator.closed = True
            self.connection.client_gone()

    def is_sent(self) -> None:
        """The launcher is sent the connection."""
        self.launcher.sent |= self.launcher.waiting

    def process_starts(self) -> None:
        """The launcher reports a process."""
        if self.launcher.drop(1):
            self.tracker.process_started(1, 500)

    def start_fails(self) -> None:
        """The launcher reports that it can't start the program."""
        if self.launcher.drop(1):
            self.tracker.start_failed(1, 2)

    @property
    def _runs(self) -> bool:
        return self.connection.pid != 0 and self.state not in (SpawnedState.CLOSING, SpawnedState.CLOSED)

    def process_ends(self) -> None:
        """The launcher reports the end of the process."""
        if self._runs:
            self.tracker.process_ended(Ended(1, 0))

    def launcher_is_lost(self) -> None:
        """The launcher has ended, and it is unknown what became of the process, or whether there was one."""
        if self._runs or self.launcher.drop(1):
            self.tracker.process_lost(1)

    def kick(self) -> None:
        """An operator closes the connection; connections that are closed can't be found."""
        if self.tracker.connections:
            self.connection.abort("kicked")

    def shutdown(self) -> None:
        """The daemon stops: connections are drained, and aborted when the time is over."""
        if self.tracker.connections:
            self.connection.drain()
        if self.tracker.connections:
            self.connection.abort("shutdown")

    def time_passes(self) -> None:
        """The timer of the connection runs."""
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
#: Those that only the daemon's end of a TLS connection sees.
TLS_EVENTS = [_Case.handshake_done, _Case.handshake_failed, _Case.client_leaves]


@pytest.fixture(autouse=True)
def transitions(monkeypatch: pytest.MonkeyPatch) -> set[tuple[SpawnedState, SpawnedState]]:
    """The transitions that a test has seen; each has to be in the table."""
    seen: set[tuple[SpawnedState, SpawnedState]] = set()
    enter = SpawnedConnection._enter

    def checked(self: SpawnedConnection, state: SpawnedState) -> None:
        assert state in TRANSITIONS[self.state]
        seen.add((self.state, state))
        enter(self, state)

    monkeypatch.setattr(SpawnedConnection, "_enter", checked)
    return seen


def _check_end(case: _Case) -> None:
    """End what is left, and compare everything that is counted or logged."""
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
    """Whatever happens first, there is one accept line and one end line, and every count is as before."""
    for events in itertools.permutations(EVENTS + TLS_EVENTS if tls else EVENTS, 4):
        case = _Case(tls=tls)
        for event in events:
            event(case)
        _check_end(case)
    wanted = {(before, after) for before, afters in TRANSITIONS.items() for after in afters}
    if tls:
        # What the table allows happens, but for what only connections without TLS or a host name do.
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
    """The end line has the reason of the event that came first; a process that can't be killed is not known to end."""
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
def test_a_tls_client_gets_what_its_process_has_written(
    events: list[Callable[[_Case], None]], calls: list[str]
) -> None:
    """In time: at leisure after the end of the process, quickly after SIGTERM, and not at all after SIGKILL."""
    case = _Case(tls=True)
    case.handshake_done()
    case.process_starts()
    for event in events:
        event(case)
    assert case.terminator.calls == calls
    assert (case.state is SpawnedState.CLOSED) is case.terminator.closed
    _check_end(case)


def test_a_process_that_may_exist_is_awaited_and_ended() -> None:
    """An aborted connection that the launcher was sent stays until its process is reported, gets SIGTERM and ends."""
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
