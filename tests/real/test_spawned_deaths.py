"""Handlers, launchers, the zygote and the daemon are killed while they work."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

from tests.real.daemon import PATIENCE, exchange
from tests.real.processes import Process, all_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

SERVICES = "@defaults instances=none\ncat 0/tcp bind=127.0.0.1 server=/bin/cat\n"
MANY = 100


def idle_cats(daemon: Daemon, count: int = MANY, service: str = "cat/tcp") -> list[socket.socket]:
    """Return clients whose handlers have answered once."""
    # Looked up once, because the log grows with each client.
    address = ("127.0.0.1", daemon.port(service))
    clients = [socket.create_connection(address, PATIENCE) for _ in range(count)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    for number, client in enumerate(clients):
        assert client.recv(100) == b"%d" % number
    return clients


class ClientThread:
    """A thread of clients that connect one after the other; `answers` has the answer of each."""

    def __init__(self, daemon: Daemon, service: str = "cat/tcp", count: int = MANY) -> None:
        self._daemon = daemon
        self._service = service
        self._count = count
        self.answers: list[bytes] = []
        self.some = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        daemon.addresses(service)
        self._thread.start()

    def _run(self) -> None:
        for number in range(self._count):
            try:
                self.answers.append(exchange(self._daemon.connect(self._service), b"x"))
            except OSError as error:
                self.answers.append(str(error).encode())
            if number == 20:
                self.some.set()

    def all(self) -> list[bytes]:
        """Stop the clients and return their answers."""
        self._thread.join()
        return self.answers


def still_echo(clients: list[socket.socket]) -> None:
    """Check that the handlers answer, and close their clients."""
    for client in clients:
        client.sendall(b"still there")
    for client in clients:
        assert client.recv(100) == b"still there"
        assert exchange(client) == b""


def test_killed_handler(start: Callable[..., Daemon]) -> None:
    """A killed handler ends only that connection; the end line has the signal, also one without a name."""
    daemon = start(
        SERVICES + "real 0/tcp bind=127.0.0.1 server=\"/bin/sh -c 'kill -40 $$'\"\n"
        "fault 0/tcp bind=127.0.0.1 server=\"/bin/sh -c 'kill -SEGV $$'\"\n"
    )
    clients = idle_cats(daemon, 2)
    first, second = daemon.handlers("cat/tcp", 2)
    os.kill(first, signal.SIGKILL)
    with clients[0]:
        assert clients[0].recv(1) == b""
    (end,) = daemon.wait_event("end", "cat/tcp")
    assert (end["pid"], end["reason"], end["exit"]) == (str(first), "killed", "SIGKILL")
    still_echo(clients[1:])
    end = daemon.wait_event("end", "cat/tcp", 2)[1]
    assert (end["pid"], end["reason"], end["exit"]) == (str(second), "done", "0")
    for _ in range(2):
        exchange(daemon.connect("real/tcp"))
        exchange(daemon.connect("fault/tcp"))
    assert {(end["reason"], end["exit"]) for end in daemon.wait_event("end", "real/tcp", 2)} == {("killed", "SIG40")}
    assert {(end["reason"], end["exit"]) for end in daemon.wait_event("end", "fault/tcp", 2)} == {("killed", "SIGSEGV")}
    assert not daemon.wait_for(lambda line: " state=lost " in line, 0)
    assert daemon.stop() == 0


def test_killed_launcher(start: Callable[..., Daemon]) -> None:
    """100 handlers go on without their launcher and their ends are logged; a new launcher serves new connections."""
    daemon = start(SERVICES)
    clients = idle_cats(daemon)
    coming = ClientThread(daemon)
    coming.some.wait()
    launcher = daemon.launcher("cat/tcp")
    os.kill(launcher, signal.SIGKILL)
    assert coming.all() == [b"x"] * MANY
    assert daemon.launcher("cat/tcp", 2) != launcher
    (lost,) = daemon.wait_for(lambda line: " state=lost " in line)
    assert "retry=0.1" in lost
    still_echo(clients)
    ends = [(end["reason"], end["exit"]) for end in daemon.wait_event("end", "cat/tcp", 2 * MANY)]
    # Exits that the killed launcher has not reported are unknown: one, a few on a loaded machine.
    assert ends.count(("done", "0")) >= 2 * MANY - 3
    assert set(ends) <= {("done", "0"), ("unknown", "-")}
    assert daemon.wait_event("end", "cat/tcp", 2 * MANY)[-1]["count"] == "0"
    assert daemon.stop() == 0


def test_launcher_killed_repeatedly(start: Callable[..., Daemon]) -> None:
    """It is started again each time, after longer and longer delays, and clients wait for it."""
    daemon = start(SERVICES)
    for count in range(1, 4):
        assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
        os.kill(daemon.launcher("cat/tcp", count), signal.SIGKILL)
        lost = daemon.wait_for(lambda line: " state=lost " in line, count)
    assert [line.rpartition("retry=")[2] for line in lost] == ["0.1", "0.2", "0.4"]
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    assert daemon.stop() == 0


def test_handlers_of_a_lost_launcher_are_ended(start: Callable[..., Daemon]) -> None:
    """Timeouts end a handler whose launcher was lost, also right after the loss."""
    daemon = start("cat 0/tcp bind=127.0.0.1 server=/bin/cat session_timeout=0.5\n")
    clients = idle_cats(daemon, 3)
    daemon.handlers("cat/tcp", 3)
    os.kill(daemon.launcher("cat/tcp"), signal.SIGKILL)
    for client in clients:
        with client:
            assert client.recv(1) == b""
    ends = daemon.wait_event("end", "cat/tcp", 3)
    assert {(end["reason"], end["exit"]) for end in ends} == {("session", "SIGTERM")}
    # Also when the daemon stops without a launcher.
    clients = idle_cats(daemon, 3)
    daemon.handlers("cat/tcp", 6)
    os.kill(daemon.launcher("cat/tcp", 2), signal.SIGKILL)
    assert daemon.stop() == 0
    for client in clients:
        with client:
            assert client.recv(1) == b""


def test_killed_zygote(start: Callable[..., Daemon]) -> None:
    """Launchers go on without a zygote; a new zygote is started, and replaces launchers that are lost later."""
    daemon = start(SERVICES)
    clients = idle_cats(daemon)
    coming = ClientThread(daemon)
    coming.some.wait()
    os.kill(daemon.zygote(), signal.SIGKILL)
    assert coming.all() == [b"x"] * MANY
    (lost,) = daemon.wait_for(lambda line: " zygote " in line and " state=lost " in line)
    assert 'reason="signal 9"' in lost
    daemon.zygote(2)
    still_echo(clients[:50])
    assert {end["exit"] for end in daemon.wait_event("end", "cat/tcp", 150)} == {"0"}
    # No process reports the exits of the handlers of the first zygote's launcher.
    os.kill(daemon.launcher("cat/tcp"), signal.SIGKILL)
    unknown = daemon.wait_event("end", "cat/tcp", 200)[150:]
    assert {(end["reason"], end["exit"]) for end in unknown} == {("unknown", "-")}
    still_echo(clients[50:])
    assert exchange(daemon.connect("cat/tcp"), b"x") == b"x"
    assert daemon.stop() == 0


def test_zygote_killed_with_an_order(start: Callable[..., Daemon]) -> None:
    """If the zygote is killed before it starts a launcher, the launcher of the next zygote serves the client."""
    daemon = start(SERVICES)
    os.kill(daemon.zygote(), signal.SIGSTOP)
    client = daemon.connect("cat/tcp")
    # The order has been sent when the daemon answers the next client.
    wait_until(lambda: Process(daemon.process.pid).stat()[0] == "S", "the daemon rests")
    os.kill(daemon.zygote(), signal.SIGKILL)
    assert exchange(client, b"x") == b"x"
    assert daemon.stop() == 0


def test_killed_daemon(start: Callable[..., Daemon]) -> None:
    """If the daemon is killed its launchers and zygote end; 100 handlers serve their clients to the end."""
    daemon = start(SERVICES + "logged 0/tcp bind=127.0.0.1 server=/bin/cat stderr=log\n")
    clients = idle_cats(daemon) + idle_cats(daemon, 5, "logged/tcp")
    pids = [*daemon.handlers("cat/tcp", MANY), *daemon.handlers("logged/tcp", 5), daemon.launcher("logged/tcp")]
    handlers = [Process(pid) for pid in pids]
    coming = ClientThread(daemon)
    coming.some.wait()
    helpers = [Process(daemon.zygote()), Process(daemon.launcher("cat/tcp"))]
    daemon.process.kill()
    daemon.process.wait()
    all_gone(helpers)
    # Later clients are refused; no client hangs.
    assert set(coming.all()) <= {b"x", b"", b"[Errno 111] Connection refused", b"[Errno 104] Connection reset by peer"}
    still_echo(clients)
    all_gone(handlers)
