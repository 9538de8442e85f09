"""Daemons with few descriptors: no service prevents another from accepting, and none waits for itself."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.real.daemon import PATIENCE, Daemon, exchange
from tests.real.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CA = Authority()

SERVICES = """
@defaults bind=127.0.0.1 log_on_success=none
echo    {echo}/tcp4
redir   {redir}/tcp4 redirect=127.0.0.1:{echo}
chain   0/tcp4 redirect=127.0.0.1:{redir}
secure  0/tcp4 redirect=127.0.0.1:{echo} tls_cert={folder}/server
other   0/tcp4 echo
cat     0/tcp4 server=/bin/cat
"""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@pytest.fixture(autouse=True)
def _own_descriptors() -> Iterator[None]:
    """Raise the soft limit of descriptors, usually 1024, for the clients of these tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"the clients need 4,096 descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _limit(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """Return a directory with a certificate, for the control socket."""
    (open_folder / "server").touch(0o600)
    (open_folder / "server").write_bytes(CA.sign("localhost", "127.0.0.1").bundle)
    return open_folder


def _echoes(port: int) -> None:
    assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"hello") == b"hello"


def _status(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b'{"command":"status"}\n')
        with client.makefile("rb") as answers:
            assert "services" in json.loads(answers.readline())["result"]


class _Client:
    """A client of a burst, with TLS, or without TLS and with a byte to send.

    Args:
        port: port of the service.
        context: TLS context.
    """

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self.socket = socket.socket()
        # A client that finds the queue of the kernel full tries again; the test does not wait for it.
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.done = context is None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is None:
            self._out.write(b"?")
        else:
            self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def step(self) -> None:
        """Send and receive what is possible now; the daemon resets the connection if its handshake takes too long."""
        with contextlib.suppress(OSError):
            if not self.done:
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.do_handshake()
                    self._tls.write(b"?")
                    self.done = True
            if self._out.pending:
                self.socket.send(self._out.read())
            if not self.done and (data := self.socket.recv(65_536)):
                self._in.write(data)


def _burst(port: int, count: int, context: ssl.SSLContext | None) -> None:
    """Connect many clients at once, send from each, and close all, whether they were accepted or not."""
    clients = [_Client(port, context) for _ in range(count)]
    try:
        select.select([], [clients[0].socket], [], PATIENCE)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for client in clients:
                client.step()
    finally:
        for client in clients:
            client.socket.close()


@pytest.mark.parametrize("front", ["redir", "chain", "secure"])
@pytest.mark.parametrize("descriptors", [150, 300, pytest.param(1024, marks=pytest.mark.load)])
def test_redirection_to_the_same_daemon(
    start: Callable[..., Daemon], folder: Path, descriptors: int, front: str
) -> None:
    """Bursts of more clients than descriptors do not block other services and svcctl, and the service recovers."""
    echo, redir = _free_ports(2)
    daemon = start(
        SERVICES.format(folder=folder, echo=echo, redir=redir),
        "--control",
        str(folder / "control"),
        preexec_fn=partial(_limit, descriptors),
    )
    context = None
    if front == "secure":
        context = ssl.create_default_context(cadata=CA.pem.decode())
    port = daemon.port(f"{front}/tcp4")
    watch = Watch(
        {
            "other": partial(_echoes, daemon.port("other/tcp4")),
            "cat": partial(_echoes, daemon.port("cat/tcp4")),
            "svcctl": partial(_status, folder / "control"),
        }
    )
    with watch.going_on():
        for _ in range(3):
            _burst(port, min(descriptors, 800), context)
        if context is None:
            _echoes(port)
        else:
            with (
                socket.create_connection(("127.0.0.1", port), PATIENCE) as client,
                context.wrap_socket(client, server_hostname="localhost") as tls,
            ):
                tls.sendall(b"hello")
                assert tls.recv(100) == b"hello"
        _echoes(echo)
    assert watch.wrong == []
    # It takes far less; the bound excludes that it waits for the burst.
    assert max(watch.worst.values()) < 5, watch.worst
    assert daemon.stop() == 0
