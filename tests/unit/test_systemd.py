"""Notifications to the service manager, and sockets in its file descriptor store."""

from __future__ import annotations

import array
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from twisted.internet.task import Clock

from svcd.host.systemd import ServiceManager, StatusReporter
from tests.doubles import ManagerDouble

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Listener:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind(address)

    def heard(self) -> tuple[str, list[int]]:
        """A message, and the descriptors that came with it."""
        message, rights, _, _ = self.socket.recvmsg(4096, 1024)
        numbers = array.array("i")
        for _, _, data in rights:
            numbers.frombytes(data)
        return message.decode(), list(numbers)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[_Listener]:
    """A service manager at the path `notify`."""
    made = _Listener(str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def manager(tmp_path: Path, listener: _Listener) -> Iterator[ServiceManager]:
    """What talks to it."""
    assert listener.socket.fileno() >= 0
    made = ServiceManager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_manager_hears_of_it(tmp_path: Path, abstract: bool) -> None:
    """States arrive as one datagram, at a path as at an abstract name, over one socket."""
    name = f"svcd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    listener = _Listener(f"\0{name}" if abstract else name)
    manager = ServiceManager(f"@{name}" if abstract else name)
    assert manager.present
    assert manager.send("READY=1", "STATUS=fine")
    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208 - the names alone
    manager.send("STOPPING=1")
    assert os.listdir("/proc/self/fd") == descriptors  # noqa: PTH208 - the names alone
    assert [listener.heard(), listener.heard()] == [("READY=1\nSTATUS=fine", []), ("STOPPING=1", [])]
    manager.close()
    listener.socket.close()


def test_nobody_needs_to_listen(tmp_path: Path) -> None:
    """Without an address, at a missing or a dead one, nothing happens and nothing is raised."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(tmp_path / "dead"))
    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208 - the names alone
    for address in (None, "", str(tmp_path / "missing"), str(tmp_path / "dead"), "@svcd-nobody", "x" * 300):
        manager = ServiceManager(address, 3.0)
        assert not manager.send("READY=1")
        assert not manager.barrier()
        manager.ready()
        assert manager.present is bool(address)
        assert (manager.watchdog is None) is not manager.present
    assert os.listdir("/proc/self/fd") == descriptors  # noqa: PTH208 - the names alone


def test_the_words_of_the_protocol(manager: ServiceManager, listener: _Listener) -> None:
    """As sd_notify(3) has them; a line feed in a status can't begin an assignment."""
    manager.ready("all\nSTOPPING=1")
    manager.reloading()
    manager.stopping()
    assert listener.heard()[0] == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=all STOPPING=1"
    first, _, second = listener.heard()[0].partition("\n")
    assert first == "RELOADING=1"
    microseconds = int(second.removeprefix("MONOTONIC_USEC="))
    assert 0 <= time.monotonic() * 1e6 - microseconds < 10e6
    assert listener.heard()[0] == "STOPPING=1\nSTATUS=stopping"


def test_a_socket_is_stored_and_forgotten(manager: ServiceManager, listener: _Listener) -> None:
    """It goes along with its name, and is the same one at the other end."""
    with socket.create_server(("127.0.0.1", 0)) as kept:
        assert manager.store_fd("svcd/-/x", kept)
        message, (descriptor,) = listener.heard()
        with socket.socket(fileno=descriptor) as copy:
            assert copy.getsockname() == kept.getsockname()
    assert message == "FDSTORE=1\nFDPOLL=0\nFDNAME=svcd/-/x"
    manager.remove_fd("svcd/-/x")
    assert listener.heard() == ("FDSTOREREMOVE=1\nFDNAME=svcd/-/x", [])


def test_a_manager_that_is_started_anew_is_found_again(
    tmp_path: Path, manager: ServiceManager, listener: _Listener
) -> None:
    """No message to the restarted manager is lost."""
    manager.send("STATUS=1")
    listener.socket.close()
    assert not manager.send("STATUS=2")
    (tmp_path / "notify").unlink()
    again = _Listener(str(tmp_path / "notify"))
    assert manager.send("STATUS=3")
    assert again.heard()[0] == "STATUS=3"
    again.socket.close()


def test_whoever_is_patient_waits_for_room(manager: ServiceManager, listener: _Listener) -> None:
    """A full queue costs a sign of life, which comes again, and delays what comes once."""
    sent = 0
    while manager.send("WATCHDOG=1", wait=False):
        sent += 1
    assert sent
    reader = threading.Timer(0.1, listener.heard)
    reader.start()
    assert manager.send("READY=1")
    reader.join()


def test_a_barrier_is_passed_when_the_manager_gets_there(manager: ServiceManager, listener: _Listener) -> None:
    """It closes the descriptor; one that never does is not waited for without end."""
    assert not manager.barrier(0.05)
    message, (first,) = listener.heard()
    assert message == "BARRIER=1"
    os.close(first)

    def pass_it() -> None:
        os.close(listener.heard()[1][0])

    reader = threading.Timer(0.05, pass_it)
    reader.start()
    assert manager.barrier()
    reader.join()


@pytest.mark.parametrize(
    ("variables", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "17"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "18"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_environment_names_the_manager(variables: dict[str, str], watchdog: float | None) -> None:
    """Its variables are taken out, so that no handler believes that it is asked."""
    environment = {"HOME": "/", "NOTIFY_SOCKET": "/nowhere", **variables}
    manager = ServiceManager.from_environment(environment, 17)
    assert environment == {"HOME": "/"}
    assert manager.present
    assert manager.watchdog == watchdog
    assert ServiceManager.from_environment(variables, 17).watchdog is None


def test_signs_of_life_come_from_the_reactor() -> None:
    """Twice in the time that is allowed, from its timers; the status only when it has changed; none after the end."""
    clock = Clock()
    manager = ManagerDouble(watchdog=4.0)
    status = ["one"]
    status_reporter = StatusReporter(clock, manager, lambda: status[0])
    status_reporter.start()
    assert manager.messages == []
    clock.advance(0)
    assert manager.messages.pop() == f"READY=1 MAINPID={os.getpid()} STATUS=one"
    clock.pump([1.0] * 5)
    assert manager.messages == ["WATCHDOG=1"] * 2
    status[0] = "two"
    clock.pump([1.0] * 10)
    assert sorted(manager.messages) == ["STATUS=two", *["WATCHDOG=1"] * 7]
    manager.messages.clear()
    status_reporter.stopping()
    clock.pump([1.0] * 4)
    assert manager.messages == ["STOPPING=1 STATUS=stopping", "WATCHDOG=1", "WATCHDOG=1"]
    status_reporter.stop()
    assert not clock.getDelayedCalls()


def test_a_reload_is_told() -> None:
    """When it begins, and with the status when it is over."""
    manager = ManagerDouble()
    status_reporter = StatusReporter(Clock(), manager, lambda: "two")
    status_reporter.reloading()
    status_reporter.reloaded()
    assert manager.messages[0].startswith("RELOADING=1 MONOTONIC_USEC=")
    assert manager.messages[1] == f"READY=1 MAINPID={os.getpid()} STATUS=two"


def test_a_daemon_that_stops_at_once_was_never_ready() -> None:
    """No message is left to be sent."""
    clock, manager = Clock(), ManagerDouble(watchdog=4.0)
    status_reporter = StatusReporter(clock, manager, lambda: "")
    status_reporter.start()
    status_reporter.stopping()
    clock.advance(10)
    assert manager.messages == ["STOPPING=1 STATUS=stopping"]
    status_reporter.stop()


def test_without_a_manager_there_is_no_status_reporter() -> None:
    """There are no timers without a manager."""
    clock = Clock()
    status_reporter = StatusReporter(clock, ServiceManager(), lambda: "")
    status_reporter.start()
    status_reporter.stopping()
    status_reporter.stop()
    assert not clock.getDelayedCalls()
