"""Notifications of the service manager (sd_notify(3)), and sockets in its file descriptor store."""

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
    """Notification socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind(address)

    def receive(self) -> tuple[str, list[int]]:
        """Receive a message, and the descriptors sent with it."""
        message, rights, _, _ = self.socket.recvmsg(4096, 1024)
        numbers = array.array("i")
        for _, _, data in rights:
            numbers.frombytes(data)
        return message.decode(), list(numbers)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[_Listener]:
    """Yield a service manager with the socket `notify`."""
    made = _Listener(str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def manager(tmp_path: Path, listener: _Listener) -> Iterator[ServiceManager]:
    """Yield a ServiceManager for that socket."""
    assert listener.socket.fileno() >= 0
    made = ServiceManager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_are_sent(tmp_path: Path, abstract: bool) -> None:
    """States are sent as one datagram, to a path or an abstract name, over one socket."""
    name = f"svcd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    listener = _Listener(f"\0{name}" if abstract else name)
    manager = ServiceManager(f"@{name}" if abstract else name)
    assert manager.present
    assert manager.send("READY=1", "STATUS=fine")
    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208 - the names alone
    manager.send("STOPPING=1")
    assert os.listdir("/proc/self/fd") == descriptors  # noqa: PTH208 - the names alone
    assert [listener.receive(), listener.receive()] == [("READY=1\nSTATUS=fine", []), ("STOPPING=1", [])]
    manager.close()
    listener.socket.close()


def test_without_a_listening_manager(tmp_path: Path) -> None:
    """Without an address, or with a missing or dead one, nothing is sent and nothing is raised."""
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


def test_the_messages(manager: ServiceManager, listener: _Listener) -> None:
    """Messages are as in sd_notify(3); a line feed in a status can't begin an assignment."""
    manager.ready("all\nSTOPPING=1")
    manager.reloading()
    manager.stopping()
    assert listener.receive()[0] == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=all STOPPING=1"
    first, _, second = listener.receive()[0].partition("\n")
    assert first == "RELOADING=1"
    microseconds = int(second.removeprefix("MONOTONIC_USEC="))
    assert 0 <= time.monotonic() * 1e6 - microseconds < 10e6
    assert listener.receive()[0] == "STOPPING=1\nSTATUS=stopping"


def test_a_socket_is_stored_and_removed(manager: ServiceManager, listener: _Listener) -> None:
    """A socket is stored under a name, and removed by that."""
    with socket.create_server(("127.0.0.1", 0)) as kept:
        assert manager.store_fd("svcd/-/x", kept)
        message, (descriptor,) = listener.receive()
        with socket.socket(fileno=descriptor) as copy:
            assert copy.getsockname() == kept.getsockname()
    assert message == "FDSTORE=1\nFDPOLL=0\nFDNAME=svcd/-/x"
    manager.remove_fd("svcd/-/x")
    assert listener.receive() == ("FDSTOREREMOVE=1\nFDNAME=svcd/-/x", [])


def test_a_restarted_manager(tmp_path: Path, manager: ServiceManager, listener: _Listener) -> None:
    """A restarted manager receives all messages that are sent after its start."""
    manager.send("STATUS=1")
    listener.socket.close()
    assert not manager.send("STATUS=2")
    (tmp_path / "notify").unlink()
    restarted = _Listener(str(tmp_path / "notify"))
    assert manager.send("STATUS=3")
    assert restarted.receive()[0] == "STATUS=3"
    restarted.socket.close()


def test_a_full_queue(manager: ServiceManager, listener: _Listener) -> None:
    """With a full queue send() blocks, or fails with wait=False, as for WATCHDOG=1."""
    sent = 0
    while manager.send("WATCHDOG=1", wait=False):
        sent += 1
    assert sent
    reader = threading.Timer(0.1, listener.receive)
    reader.start()
    assert manager.send("READY=1")
    reader.join()


def test_a_barrier(manager: ServiceManager, listener: _Listener) -> None:
    """barrier() returns when the manager closes the descriptor, or after its timeout."""
    assert not manager.barrier(0.05)
    message, (first,) = listener.receive()
    assert message == "BARRIER=1"
    os.close(first)

    def close_descriptor() -> None:
        os.close(listener.receive()[1][0])

    reader = threading.Timer(0.05, close_descriptor)
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
def test_a_manager_from_the_environment(variables: dict[str, str], watchdog: float | None) -> None:
    """The manager is found in the environment; its variables are removed, so that handlers do not see them."""
    environment = {"HOME": "/", "NOTIFY_SOCKET": "/nowhere", **variables}
    manager = ServiceManager.from_environment(environment, 17)
    assert environment == {"HOME": "/"}
    assert manager.present
    assert manager.watchdog == watchdog
    assert ServiceManager.from_environment(variables, 17).watchdog is None


def test_watchdog_messages() -> None:
    """WATCHDOG=1 is sent twice in its interval, and STATUS= when it has changed; none is sent after stop()."""
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


def test_a_reload_is_notified() -> None:
    """RELOADING=1 is sent at the beginning of a reload, and READY=1 with the status at its end."""
    manager = ManagerDouble()
    status_reporter = StatusReporter(Clock(), manager, lambda: "two")
    status_reporter.reloading()
    status_reporter.reloaded()
    assert manager.messages[0].startswith("RELOADING=1 MONOTONIC_USEC=")
    assert manager.messages[1] == f"READY=1 MAINPID={os.getpid()} STATUS=two"


def test_a_daemon_that_stops_at_once() -> None:
    """A daemon that stops at once does not send READY=1."""
    clock, manager = Clock(), ManagerDouble(watchdog=4.0)
    status_reporter = StatusReporter(clock, manager, lambda: "")
    status_reporter.start()
    status_reporter.stopping()
    clock.advance(10)
    assert manager.messages == ["STOPPING=1 STATUS=stopping"]
    status_reporter.stop()


def test_without_a_manager_there_are_no_timers() -> None:
    """Without a service manager there are no timers."""
    clock = Clock()
    status_reporter = StatusReporter(clock, ServiceManager(), lambda: "")
    status_reporter.start()
    status_reporter.stopping()
    status_reporter.stop()
    assert not clock.getDelayedCalls()
