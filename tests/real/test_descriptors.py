"""Daemons with few descriptors: no service keeps another from accepting, and none waits for itself."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import ssl
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.certificates import Authority
from tests.real.daemon import PATIENCE, Daemon, exchange

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


def _limit(descriptors: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


@pytest.fixture
def folder(open_folder: Path) -> Path:
    """Has a certificate, and the control socket."""
    (open_folder / "server").touch(0o600)
    (open_folder / "server").write_bytes(CA.sign("localhost", "127.0.0.1").both)
    return open_folder


class _Watch:
    """Asks services and the control socket again and again, and remembers the worst time of each.

    Args:
        asked: by name what asks once.
    """

    def __init__(self, asked: dict[str, Callable[[], object]]) -> None:
        self.worst = dict.fromkeys(asked, 0.0)
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=each) for each in asked.items()]

    def _run(self, name: str, ask: Callable[[], object]) -> None:
        while not self._stop.wait(0.02):
            began = time.monotonic()
            try:
                ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is to tell it
                self.wrong.append(f"{name}: {error!r}")
                return
            self.worst[name] = max(self.worst[name], time.monotonic() - began)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Ask while something happens."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE)


def _echoes(port: int) -> None:
    assert exchange(socket.create_connection(("127.0.0.1", port), PATIENCE), b"hello") == b"hello"


def _status(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b'{"command":"status"}\n')
        with client.makefile("rb") as answers:
            assert "services" in json.loads(answers.readline())["result"]


def _burst(port: int, count: int, context: ssl.SSLContext | None) -> None:
    """So many clients connect, say something, and all close again, before they are answered or after."""
    clients = [socket.socket() for _ in range(count)]
    try:
        for client in clients:
            # Who finds the kernel's queue full tries again, and is not waited for.
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        select.select([], clients[:1], [], PATIENCE)
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                client.send(_first_words(context))
        time.sleep(0.2)
    finally:
        for client in clients:
            client.close()


def _first_words(context: ssl.SSLContext | None) -> bytes:
    if context is None:
        return b"?"
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("front", ["redir", "chain", "secure"])
@pytest.mark.parametrize("descriptors", [150, 300, pytest.param(1024, marks=pytest.mark.load)])
def test_a_redirection_to_the_same_daemon(
    start: Callable[..., Daemon], folder: Path, descriptors: int, front: str
) -> None:
    """Bursts of more clients than there are descriptors leave other services and svcctl alone, and it recovers."""
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
    watch = _Watch(
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
    # It takes far less. What it must not do is wait for the burst.
    assert max(watch.worst.values()) < 5, watch.worst
    assert daemon.stop() == 0
