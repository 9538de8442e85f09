"""Deadlines kept by sweeps, with time by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from svcd.connections.timeouts import SLICE, Timeouts, TimeoutSweeper
from tests.doubles import LogCatcher, problems_of, service_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _Session:
    """A connection whose bytes the test moves."""

    def __init__(self, house: _House, number: int) -> None:
        self._house = house
        self.connection_id = number
        self.started = house.clock.seconds()
        self.moved: tuple[int, int] | None = (0, 0)
        self.cuts: list[tuple[str, float]] = []
        self.stays = False
        self.raises = False
        self.asked = 0

    def move(self, received: int = 0, taken: int = 0) -> None:
        """Bytes move."""
        assert self.moved is not None
        self.moved = self.moved[0] + received, self.moved[1] + taken

    def traffic(self) -> tuple[int, int] | None:
        """As counted."""
        self.asked += 1
        if self.raises:
            raise ZeroDivisionError
        return self.moved

    def abort(self, cause: str) -> None:
        """End."""
        self.cuts.append((cause, self._house.clock.seconds()))
        if not self.stays:
            del self._house.sessions[self.connection_id]


class _House:
    """Deadlines and the sessions they watch."""

    def __init__(self, **times: float) -> None:
        self.clock = Clock()
        self.sessions: dict[int, _Session] = {}
        self.deadlines = TimeoutSweeper(Timeouts(**times), self.sessions, self.clock.seconds, self.clock.callLater)

    def begin(self) -> _Session:
        """One more."""
        number = max(self.sessions, default=0) + 1
        session = self.sessions[number] = _Session(self, number)
        self.deadlines.wake()
        return session

    def run(self, seconds: float, step: float = 0.01) -> None:
        """Time goes by."""
        self.clock.pump([step] * round(seconds / step))


def _one_cut(session: _Session) -> tuple[str, float]:
    (cut,) = session.cuts
    return cut


@pytest.mark.parametrize(
    ("times", "interval"),
    [({"idle": 8.0}, 0.5), ({"idle": 80.0, "session": 16.0}, 1.0), ({"session": 0.1}, 0.05), ({"idle": 3600.0}, 5.0)],
)
def test_sweeps_come_sixteen_in_the_shortest_deadline(times: dict[str, float], interval: float) -> None:
    """But twenty a second at most, and one in five seconds at least."""
    assert Timeouts(**times).interval == interval


def test_without_deadlines_and_without_connections_nothing_is_done() -> None:
    """No timer runs then."""
    house = _House()
    house.begin()
    assert not house.clock.getDelayedCalls()
    house = _House(idle=1.0)
    assert not house.clock.getDelayedCalls()
    session = house.begin()
    house.begin()
    assert len(house.clock.getDelayedCalls()) == 1
    house.run(2)
    assert session.cuts
    assert not house.clock.getDelayedCalls()


@pytest.mark.parametrize("name", ["session", "idle", "first_byte"])
def test_a_deadline_is_kept(name: str) -> None:
    """Never early, and at most an eighth late; the cause is the deadline's name."""
    house = _House(**{name: 8.0})
    house.run(0.3)
    session = house.begin()
    house.run(10)
    cause, when = _one_cut(session)
    assert cause == name
    assert 8.0 <= when - session.started <= 9.0


@given(st.lists(st.floats(0.01, 7.9), max_size=6), st.booleans())
def test_idle_counts_from_the_last_byte(pauses: Sequence[float], taken: bool) -> None:
    """Whichever way it moved."""
    house = _House(idle=8.0)
    session = house.begin()
    for pause in pauses:
        house.run(pause)
        session.move(**{"taken" if taken else "received": 1})
        last = house.clock.seconds()
    if not pauses:
        last = 0.0
    assert not session.cuts
    house.run(9.1)
    cause, when = _one_cut(session)
    assert cause == "idle"
    assert 8.0 - 1e-6 <= when - last <= 9.0 + 0.02


def test_a_first_byte_is_asked_for_once() -> None:
    """Whoever has spoken in time is never asked again, and a byte that comes later does not save a silent one."""
    house = _House(first_byte=8.0)
    speaks, silent = house.begin(), house.begin()
    speaks.move(received=1)
    silent.move(taken=1)
    house.run(20)
    assert not speaks.cuts
    assert speaks.asked == 1
    assert _one_cut(silent)[0] == "first_byte"


def test_deadlines_hold_side_by_side() -> None:
    """A byte a second keeps a connection from being idle, but not from lasting too long."""
    house = _House(idle=2.0, first_byte=1.0, session=6.0)
    busy, silent, stopped = house.begin(), house.begin(), house.begin()
    stopped.move(received=1)
    for _ in range(8):
        if not busy.cuts:
            busy.move(received=1)
        house.run(1)
    assert _one_cut(silent)[0] == "first_byte"
    assert _one_cut(stopped)[0] == "idle"
    cause, when = _one_cut(busy)
    assert cause == "session"
    assert 6.0 <= when <= 6.25


def test_what_can_not_be_seen_is_not_idle() -> None:
    """A session whose bytes nobody counts has its session_timeout alone."""
    house = _House(idle=1.0, first_byte=1.0, session=4.0)
    session = house.begin()
    session.moved = None
    house.run(5)
    assert _one_cut(session)[0] == "session"


def test_a_mistake_ends_no_sweep() -> None:
    """The others have deadlines too."""
    house = _House(idle=1.0)
    broken, other = house.begin(), house.begin()
    broken.raises = True
    with LogCatcher() as log:
        house.run(2)
    assert log.failures
    assert other.cuts
    assert not broken.cuts


def test_a_sweep_goes_in_slices() -> None:
    """With many connections the reactor has its turn in between, and all have their deadlines."""
    house = _House()
    calls: list[Callable[[], None]] = []
    deadlines = TimeoutSweeper(
        Timeouts(session=8.0), house.sessions, house.clock.seconds, lambda _delay, call: calls.append(call)
    )
    sessions = [house.begin() for _ in range(3 * SLICE + 1)]
    deadlines.wake()
    house.clock.advance(8.0)
    calls.pop()()
    assert sum(bool(session.cuts) for session in sessions) == SLICE
    # One that goes by itself meanwhile is not ended.
    del house.sessions[sessions[-1].connection_id]
    while calls:
        calls.pop()()
    assert [bool(session.cuts) for session in sessions] == [True] * 3 * SLICE + [False]


def test_other_times_hold_for_open_connections() -> None:
    """As after a reload."""
    house = _House()
    session = house.begin()
    house.run(1)
    house.deadlines.retune(Timeouts(session=4.0))
    house.run(4)
    assert 4.0 <= _one_cut(session)[1] <= 4.5


def test_times_are_those_of_the_options() -> None:
    """Without an option there is no deadline."""
    options = service_of("echo 7/tcp idle_timeout=1m first_byte_timeout=2s session_timeout=1h").options
    assert Timeouts.of(options) == Timeouts(3600.0, 60.0, 2.0)
    assert Timeouts.of(service_of("echo 7/tcp idle_timeout=none").options) == Timeouts()


@pytest.mark.parametrize("value", ["0", "0s", "0.0000001", "-1", "soon"])
def test_no_time_at_all_is_no_deadline(value: str) -> None:
    """Where others take 0 for no limit, we ask to say so."""
    (problem,) = problems_of(f"echo 7/tcp idle_timeout={value}")
    assert "above 0; or none" in problem
