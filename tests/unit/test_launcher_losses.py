"""Queued messages of a launcher client whose launcher is busy, lost, or without a zygote."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from svcd.process.messages import Connection, Ended, Message, Ready, Signal, pack
from tests.unit.test_launcher_client import _Service

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 1000


@pytest.fixture
def service() -> Iterator[_Service]:
    """A service with the test in place of its launcher."""
    made = _Service()
    yield made
    made.launcher_client.stop()
    for each in [*made.clients, made.launcher]:
        if each is not None:
            each.close()


def start_handlers(service: _Service, count: int) -> None:
    """Report handlers of `count` connections, with pids above 5,000,000, which no process has."""
    service.attach()
    service.report(Ready())
    for number in range(1, count + 1):
        service.launcher_client.start(number, b"", os.open(os.devnull, os.O_RDONLY))
        service.take_connection()
        service.start_handler(number, 5_000_000 + number)
    service.events.clear()


def next_order(service: _Service) -> tuple[Message, int | None]:
    """Return the next message to the launcher and its descriptor; wait for a retry if there is none."""
    try:
        return service.order()
    except BlockingIOError:
        service.reactor.advance(0.1)
        return service.order()


def test_more_signals_than_a_socket_holds(service: _Service) -> None:
    """All signals reach a launcher whose socket can't hold them at once."""
    start_handlers(service, MANY)
    for number in range(1, MANY + 1):
        service.launcher_client.signal(number, signal.SIGTERM)
    taken = [next_order(service) for _ in range(MANY)]
    assert taken == [(Signal(number, 5_000_000 + number, signal.SIGTERM), None) for number in range(1, MANY + 1)]
    assert not service.reactor.getDelayedCalls()


def test_connection_waits_for_room_in_the_socket(service: _Service) -> None:
    """A connection is sent once the full socket of the launcher has room again."""
    start_handlers(service, MANY)
    for number in range(1, MANY + 1):
        service.launcher_client.signal(number, signal.SIGTERM)
    service.serve(MANY + 1)
    for _ in range(MANY):
        next_order(service)
    order, descriptor = next_order(service)
    assert isinstance(order, Connection)
    assert order.connection_id == MANY + 1
    assert descriptor is not None
    os.close(descriptor)


def test_signals_for_orphans_go_to_the_zygote(service: _Service) -> None:
    """Signals that were queued at the loss of the launcher, and later ones, are sent by the zygote."""
    start_handlers(service, MANY)
    service.launcher_client.signal(1, signal.SIGTERM)
    assert service.order() == (Signal(1, 5_000_001, signal.SIGTERM), None)
    for number in range(1, MANY + 1):
        service.launcher_client.signal(number, signal.SIGTERM)
    assert service.zygote_signals == []
    service.die()
    unsent = [each.connection_id for each in service.zygote_signals]
    # Signals that were sent to the launcher are not repeated: it may have executed them.
    assert unsent == list(range(unsent[0], MANY + 1))
    service.launcher_client.signal(1, signal.SIGKILL)
    assert service.zygote_signals[-1] == Signal(1, 5_000_001, signal.SIGKILL)
    service.launcher_client.orphan_exited(5_000_001, 9)
    service.launcher_client.signal(1, signal.SIGKILL)
    assert len(service.zygote_signals) == len(unsent) + 1
    # Orphans that have exited unnoticed are found without a launcher.
    service.events.clear()
    service.launcher_client.orphaned = {2: os.getpid(), 3: 5_000_003}
    service.reactor.advance(0.1)
    assert service.launches == 0
    # There is no process with the pid of connection 3.
    assert service.events == [("lost", 3)]


def test_zygote_lost_with_a_request(service: _Service) -> None:
    """A zygote lost before it starts the launcher is not a failed start: there is no pause."""
    service.serve(1)
    assert service.launches == 1
    service.launcher_client.zygote_lost()
    assert (service.launcher_client.failing, service.reactor.getDelayedCalls()) == (False, [])
    service.attach()
    service.report(Ready())
    assert service.take_connection() == 1


def test_launchers_outlive_their_zygote(service: _Service) -> None:
    """Handlers of a launcher that is lost after its zygote are reported as lost at once."""
    start_handlers(service, 2)
    service.launcher_client.zygote_lost()
    assert service.events == []
    service.die()
    assert service.events == [("lost", 1), ("lost", 2)]


def test_all_reports_of_a_dead_launcher_are_read(service: _Service) -> None:
    """All reports that the launcher has left are handled before the zygote's report of an exit."""
    start_handlers(service, 200)
    assert service.launcher is not None
    for number in range(1, 200):
        service.launcher.send(pack(Ended(number, 0)))
    service.launcher.close()
    service.launcher_client.orphan_exited(5_000_200, 9)
    assert service.events == [*(Ended(number, 0) for number in range(1, 200)), Ended(200, 9)]


def test_reports_of_a_forgotten_connection_are_ignored(service: _Service) -> None:
    """Reports after forget_connection() are not passed on."""
    start_handlers(service, 1)
    service.launcher_client.forget_connection(1)
    service.report(Ended(1, 0))
    assert service.events == []


def test_the_socket_of_a_stopped_client(service: _Service) -> None:
    """Messages that could not be sent are dropped when the client stops."""
    start_handlers(service, MANY)
    for number in range(1, MANY + 1):
        service.launcher_client.signal(number, signal.SIGTERM)
    assert service.reactor.getDelayedCalls()
    service.launcher_client.stop()
    assert not service.reactor.getDelayedCalls()
    assert isinstance(service.launcher, socket.socket)
