"""TimeoutSweeper, with a clock that the tests advance."""

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


class _Connection:
    """Connection whose byte counts the test sets."""

    def __init__(self, service: _Service, connection_id: int) -> None:
        self._service = service
        self.connection_id = connection_id
        self.started = service.clock.seconds()
        self.counts: tuple[int, int] | None = (0, 0)
        self.aborts: list[tuple[str, float]] = []
        self.stays = False
        self.raises = False
        self.checks = 0

    def move(self, received: int = 0, taken: int = 0) -> None:
        """Add to the byte counts."""
        assert self.counts is not None
        self.counts = self.counts[0] + received, self.counts[1] + taken

    def traffic(self) -> tuple[int, int] | None:
        """Return the byte counts."""
        self.checks += 1
        if self.raises:
            raise ZeroDivisionError
        return self.counts

    def abort(self, cause: str) -> None:
        """Record the cause and the time, and remove the connection."""
        self.aborts.append((cause, self._service.clock.seconds()))
        if not self.stays:
            del self._service.connections[self.connection_id]


class _Service:
    """A TimeoutSweeper and its connections."""

    def __init__(self, **times: float) -> None:
        self.clock = Clock()
        self.connections: dict[int, _Connection] = {}
        self.sweeper = TimeoutSweeper(Timeouts(**times), self.connections, self.clock.seconds, self.clock.callLater)

    def begin(self) -> _Connection:
        """Add a connection."""
        connection_id = max(self.connections, default=0) + 1
        connection = self.connections[connection_id] = _Connection(self, connection_id)
        self.sweeper.wake()
        return connection

    def run(self, seconds: float, step: float = 0.01) -> None:
        """Advance the clock in steps."""
        self.clock.pump([step] * round(seconds / step))


def _only_abort(connection: _Connection) -> tuple[str, float]:
    (abort,) = connection.aborts
    return abort


@pytest.mark.parametrize(
    ("times", "interval"),
    [
        ({"idle": 8.0}, 0.5),
        ({"idle": 80.0, "session": 16.0}, 1.0),
        ({"session": 0.1}, 0.05),
        ({"idle": 3600.0}, 5.0),
    ],
)
def test_interval_of_sweeps(times: dict[str, float], interval: float) -> None:
    """There are 16 sweeps in the shortest timeout, but at most 20 a second and at least one in 5 seconds."""
    assert Timeouts(**times).interval == interval


def test_no_sweeps_without_timeouts_or_connections() -> None:
    """No timer runs without timeouts, and none without connections."""
    service = _Service()
    service.begin()
    assert not service.clock.getDelayedCalls()
    service = _Service(idle=1.0)
    assert not service.clock.getDelayedCalls()
    connection = service.begin()
    service.begin()
    assert len(service.clock.getDelayedCalls()) == 1
    service.run(2)
    assert connection.aborts
    assert not service.clock.getDelayedCalls()


@pytest.mark.parametrize("name", ["session", "idle", "first_byte"])
def test_timeout_closes_in_time(name: str) -> None:
    """A connection is closed never early and at most an eighth late, with the name of the timeout as cause."""
    service = _Service(**{name: 8.0})
    service.run(0.3)
    connection = service.begin()
    service.run(10)
    cause, when = _only_abort(connection)
    assert cause == name
    assert 8.0 <= when - connection.started <= 9.0


@given(st.lists(st.floats(0.01, 7.9), max_size=6), st.booleans())
def test_idle_counts_from_the_last_byte(pauses: Sequence[float], taken: bool) -> None:
    """idle_timeout counts from the last byte in either direction."""
    service = _Service(idle=8.0)
    connection = service.begin()
    for pause in pauses:
        service.run(pause)
        connection.move(**{"taken" if taken else "received": 1})
        last = service.clock.seconds()
    if not pauses:
        last = 0.0
    assert not connection.aborts
    service.run(9.1)
    cause, when = _only_abort(connection)
    assert cause == "idle"
    assert 8.0 - 1e-6 <= when - last <= 9.0 + 0.02


def test_first_byte_is_checked_once() -> None:
    """A connection whose first byte arrived in time is not checked again; bytes sent to a client do not count."""
    service = _Service(first_byte=8.0)
    active, silent = service.begin(), service.begin()
    active.move(received=1)
    silent.move(taken=1)
    service.run(20)
    assert not active.aborts
    assert active.checks == 1
    assert _only_abort(silent)[0] == "first_byte"


def test_timeouts_apply_together() -> None:
    """A connection with a byte a second is not idle, but session_timeout closes it."""
    service = _Service(idle=2.0, first_byte=1.0, session=6.0)
    busy, silent, stopped = service.begin(), service.begin(), service.begin()
    stopped.move(received=1)
    for _ in range(8):
        if not busy.aborts:
            busy.move(received=1)
        service.run(1)
    assert _only_abort(silent)[0] == "first_byte"
    assert _only_abort(stopped)[0] == "idle"
    cause, when = _only_abort(busy)
    assert cause == "session"
    assert 6.0 <= when <= 6.25


def test_unknown_byte_counts_are_not_idle() -> None:
    """To a connection with unknown byte counts only session_timeout applies."""
    service = _Service(idle=1.0, first_byte=1.0, session=4.0)
    connection = service.begin()
    connection.counts = None
    service.run(5)
    assert _only_abort(connection)[0] == "session"


def test_exception_does_not_end_a_sweep() -> None:
    """After an exception of one connection the timeouts of the others still apply."""
    service = _Service(idle=1.0)
    broken, other = service.begin(), service.begin()
    broken.raises = True
    with LogCatcher() as log:
        service.run(2)
    assert log.failures
    assert other.aborts
    assert not broken.aborts


def test_sweep_in_slices() -> None:
    """A sweep over many connections is split, so that the reactor can run in between; all timeouts apply."""
    service = _Service()
    calls: list[Callable[[], None]] = []
    sweeper = TimeoutSweeper(
        Timeouts(session=8.0), service.connections, service.clock.seconds, lambda _delay, call: calls.append(call)
    )
    connections = [service.begin() for _ in range(3 * SLICE + 1)]
    sweeper.wake()
    service.clock.advance(8.0)
    calls.pop()()
    assert sum(bool(connection.aborts) for connection in connections) == SLICE
    # A connection that ends by itself meanwhile is not aborted.
    del service.connections[connections[-1].connection_id]
    while calls:
        calls.pop()()
    assert [bool(connection.aborts) for connection in connections] == [True] * 3 * SLICE + [False]


def test_new_timeouts_apply_to_open_connections() -> None:
    """After retune() the new timeouts apply to open connections."""
    service = _Service()
    connection = service.begin()
    service.run(1)
    service.sweeper.retune(Timeouts(session=4.0))
    service.run(4)
    assert 4.0 <= _only_abort(connection)[1] <= 4.5


def test_timeouts_of_options() -> None:
    """Without an option there is no timeout."""
    options = service_of("echo 7/tcp idle_timeout=1m first_byte_timeout=2s session_timeout=1h").options
    assert Timeouts.of(options) == Timeouts(3600.0, 60.0, 2.0)
    assert Timeouts.of(service_of("echo 7/tcp idle_timeout=none").options) == Timeouts()


@pytest.mark.parametrize("value", ["0", "0s", "0.0000001", "-1", "soon"])
def test_zero_is_no_timeout(value: str) -> None:
    """0 is an error: no limit must be written as such."""
    (problem,) = problems_of(f"echo 7/tcp idle_timeout={value}")
    assert "above 0; or none" in problem
