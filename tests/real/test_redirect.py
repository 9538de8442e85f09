"""Connections that a real daemon redirects to real servers, on both reactors."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import svcd
from tests.real.daemon import PATIENCE, Daemon, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTE = 1 << 20


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return a listening socket of the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


@pytest.fixture(params=["uv", "epoll"])
def redirected(
    request: pytest.FixtureRequest, start: Callable[..., Daemon], listener: socket.socket, tmp_path: Path
) -> Daemon:
    """Return a daemon that redirects connections over TCP and at a UNIX socket to the listener."""
    port = listener.getsockname()[1]
    services = (
        f"@defaults bind=127.0.0.1\n"
        f"to 0/tcp4 redirect=127.0.0.1:{port} connect_timeout=5s\n"
        f"named 0/tcp4 redirect=localhost:{port}\n"
        f"local {tmp_path}/local/unix redirect=127.0.0.1:{port}\n"
    )
    return start(services, twistd_arguments=("-r", request.param))


@pytest.fixture
def pair(redirected: Daemon, listener: socket.socket) -> Iterator[Callable[..., tuple[socket.socket, socket.socket]]]:
    """Return a function that connects a client and returns both ends of its redirected connection."""
    with contextlib.ExitStack() as stack:

        def make(service: str = "to/tcp4", family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
            client = stack.enter_context(redirected.connect(service, family))
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(PATIENCE)
            return client, server

        yield make


def _digest_of_all(sock: socket.socket) -> tuple[int, str]:
    """Read up to the end, and return the size and the digest."""
    digest, count = hashlib.sha256(), 0
    while piece := sock.recv(MEGABYTE):
        digest.update(piece)
        count += len(piece)
    return count, digest.hexdigest()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_redirect_to_echo(start: Callable[..., Daemon]) -> None:
    """A client that half-closes gets all data back through two daemons."""
    echo = start("echo 0/tcp4 bind=127.0.0.1\n")
    front = start(f"front 0/tcp4 bind=127.0.0.1 redirect=127.0.0.1:{echo.port('echo/tcp4')}\n")
    data = os.urandom(3 * MEGABYTE)
    client = front.connect("front/tcp4")

    def send() -> None:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert _digest_of_all(client) == (len(data), hashlib.sha256(data).hexdigest())
    sender.join(PATIENCE)
    client.close()
    (end,) = front.wait_event("end", "front/tcp4")
    assert (end["in"], end["out"], end["reason"]) == (str(len(data)), str(len(data)), "done")
    assert front.addresses("front/tcp4")
    assert f"runs=127.0.0.1:{echo.port('echo/tcp4')}" in "\n".join(front.lines)


@pytest.mark.load
@pytest.mark.parametrize(
    ("service", "family"), [("to/tcp4", socket.AF_INET), ("named/tcp4", socket.AF_INET), ("local/unix", socket.AF_UNIX)]
)
def test_bulk_data_in_both_directions(pair: Any, redirected: Daemon, service: str, family: int) -> None:
    """20 MB in each direction arrive intact, each with its end, and the connection closes in order."""
    client, server = pair(service, family)
    data = {client: os.urandom(20 * MEGABYTE), server: os.urandom(20 * MEGABYTE)}

    def send(sock: socket.socket) -> None:
        sock.sendall(data[sock])
        sock.shutdown(socket.SHUT_WR)

    results: dict[socket.socket, tuple[int, str]] = {}
    threads = [threading.Thread(target=send, args=(sock,)) for sock in (client, server)]
    threads.append(threading.Thread(target=lambda: results.update({server: _digest_of_all(server)})))
    for thread in threads:
        thread.start()
    results[client] = _digest_of_all(client)
    for thread in threads:
        thread.join(PATIENCE)
    expected = [(20 * MEGABYTE, hashlib.sha256(data[sock]).hexdigest()) for sock in (server, client)]
    assert [results[client], results[server]] == expected
    (end,) = redirected.wait_event("end", service)
    assert (end["reason"], end["in"], end["out"]) == ("done", str(20 * MEGABYTE), str(20 * MEGABYTE))


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close(pair: Any, redirected: Daemon, first: str) -> None:
    """A half-close by either side reaches the other side, which may go on sending."""
    client, server = pair()
    one, other = (client, server) if first == "client" else (server, client)
    one.sendall(b"that is all")
    one.shutdown(socket.SHUT_WR)
    assert _digest_of_all(other)[0] == 11
    for _ in range(3):
        other.sendall(b"more")
        assert one.recv(100) == b"more"
    other.close()
    assert one.recv(100) == b""
    (end,) = redirected.wait_event("end", "to/tcp4")
    assert end["reason"] == "done"


@pytest.mark.parametrize("first", ["client", "server"])
def test_reset_reaches_the_other_end(pair: Any, redirected: Daemon, first: str) -> None:
    """A reset by either side resets the other side; the log names the side."""
    client, server = pair()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    one, other = (client, server) if first == "client" else (server, client)
    _reset(one)
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    (end,) = redirected.wait_event("end", "to/tcp4")
    assert end["reason"] == ("lost" if first == "client" else "aborted")


@pytest.mark.parametrize("slow", ["client", "server"])
def test_end_that_does_not_read(pair: Any, redirected: Daemon, slow: str) -> None:
    """The daemon stops reading from the other end and keeps little; all data arrive in the end."""
    client, server = pair()
    one, other = (client, server) if slow == "client" else (server, client)
    before = redirected.memory()
    other.setblocking(False)
    sent, quiet_since = 0, time.monotonic()
    piece = bytes(MEGABYTE)
    while time.monotonic() - quiet_since < 1 and sent < 200 * MEGABYTE:
        try:
            sent += other.send(piece)
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    # The buffers of the kernel for both connections hold some megabytes.
    assert sent < 50 * MEGABYTE
    assert redirected.memory() - before < 4 * MEGABYTE
    other.setblocking(True)
    other.shutdown(socket.SHUT_WR)
    assert _digest_of_all(one)[0] == sent


def test_server_that_does_not_listen(redirected: Daemon, listener: socket.socket) -> None:
    """The client is closed, the log has the reason, and the daemon connects again for the next client."""
    address = listener.getsockname()
    listener.close()
    for count in (1, 2):
        assert exchange(redirected.connect("to/tcp4")) == b""
        fail = redirected.wait_event("fail", "to/tcp4", count)[-1]
        assert fail["reason"] == f"can't connect to 127.0.0.1:{address[1]}: Connection refused"
        assert fail["id"] == redirected.wait_event("end", "to/tcp4", count)[-1]["id"]
        assert redirected.wait_event("end", "to/tcp4", count)[-1]["reason"] == "failed"
    with (
        socket.create_server(address) as again,
        redirected.connect("to/tcp4") as client,
        again.accept()[0] as server,
    ):
        client.sendall(b"x")
        assert server.recv(1) == b"x"


def test_server_that_does_not_accept(start: Callable[..., Daemon]) -> None:
    """After connect_timeout the client is closed."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        # Until the queue is full, and the kernel does not answer any more.
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        daemon = start(f"to 0/tcp4 bind=127.0.0.1 redirect=127.0.0.1:{port} connect_timeout=0.5s\n")
        began = time.monotonic()
        assert exchange(daemon.connect("to/tcp4")) == b""
        assert time.monotonic() - began < 10
        (fail,) = daemon.wait_event("fail", "to/tcp4")
        assert fail["reason"] == f"can't connect to 127.0.0.1:{port}: it does not answer"


def test_unknown_host_name(start: Callable[..., Daemon]) -> None:
    """The name is looked up for each connection; if it is not found the connection fails."""
    daemon = start("to 0/tcp4 bind=127.0.0.1 redirect=no-such-host.invalid:9\n")
    assert exchange(daemon.connect("to/tcp4")) == b""
    (fail,) = daemon.wait_event("fail", "to/tcp4")
    assert fail["reason"].startswith("can't connect to no-such-host.invalid:9: ")


@pytest.mark.load
def test_no_descriptor_leaks(pair: Any, redirected: Daemon) -> None:
    """Both connections of each client are closed, whatever ended them."""
    before = 0
    for number in range(21):
        client, server = pair()
        if number % 4 == 1:
            _reset(client)
        elif number % 4 == 2:
            _reset(server)
        client.close()
        server.close()
        if number == 0:
            # What a reactor opens once, for its first connection out, is open from now on.
            redirected.wait_event("end", "to/tcp4")
            time.sleep(0.5)
            before = redirected.descriptors()
    redirected.wait_event("end", "to/tcp4", 21)
    deadline = time.monotonic() + PATIENCE
    while redirected.descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert redirected.descriptors() <= before


def test_factory_of_a_user(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """It is served like a built-in service: its connections are counted and logged."""
    (tmp_path / "shouts.py").write_text(
        "from twisted.internet.protocol import Factory, Protocol\n"
        "class Shout(Protocol):\n"
        "    def dataReceived(self, data):\n"
        "        self.transport.write(data.upper() + self.factory.end)\n"
        "        self.transport.loseConnection()\n"
        "def make(options):\n"
        "    factory = Factory.forProtocol(Shout)\n"
        "    factory.end = options.description.encode()\n"
        "    return factory\n"
    )
    daemon = start("shout 0/tcp4 bind=127.0.0.1 factory=shouts:make description=!\n", env=_with_modules_of(tmp_path))
    with daemon.connect("shout/tcp4") as client:
        client.sendall(b"hey")
        assert _digest_of_all(client)[0] == 4
    (end,) = daemon.wait_event("end", "shout/tcp4")
    assert (end["in"], end["out"], end["reason"]) == ("3", "4", "done")
    assert any("runs=shouts:make" in line for line in daemon.lines)


def _with_modules_of(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(svcd.__file__).parent.parent)])}


def test_factory_that_raises(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """The daemon does not start, and the reason is a single line."""
    (tmp_path / "broken.py").write_text("def make():\n    return 1 / 0\n")
    daemon = start(
        "x 0/tcp4 bind=127.0.0.1 factory=broken:make\n",
        ready=False,
        env=_with_modules_of(tmp_path),
    )
    assert daemon.process.wait(PATIENCE) == 78
    line = daemon.wait_for(lambda line: "factory:" in line)[0]
    assert "broken:make raises ZeroDivisionError: division by zero" in line
    assert "Traceback" not in "\n".join(daemon.lines)
