"""Kernel information about sockets and addresses, and imports in the background."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from svcd.net.address_watch import AddressWatcher
from svcd.net.port_owner import Process, socket_owner
from svcd.process.background_imports import import_in_background
from tests.doubles import FakeReactor

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("family", "kind", "host"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
        (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
    ],
)
def test_the_owner_of_a_port(family: int, kind: int, host: str) -> None:
    """The owner of a port is found for its address and the wildcard address, and not for another port."""
    with socket.socket(family, kind) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        for address in (host, "::" if ":" in host else "0.0.0.0"):
            owner = socket_owner(kind, address, port)
            assert owner is not None
            assert owner.pid == os.getpid()
            assert str(owner).endswith(f" (pid {os.getpid()})")
        other = "127.0.0.2" if family == socket.AF_INET else "::2"
        assert not _is_own(socket_owner(kind, other, port))
    # Another process may have bound the port by now.
    assert not _is_own(socket_owner(kind, host, port))


def _is_own(owner: Process | None) -> bool:
    return owner is not None and owner.pid == os.getpid()


def test_the_owner_of_a_path(tmp_path: Path) -> None:
    """The owner of a UNIX socket is found by its path."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(path)
        taken.listen()
        owner = socket_owner(socket.SOCK_STREAM, "", 0, path)
        assert owner is not None
        assert owner.pid == os.getpid()
    assert socket_owner(socket.SOCK_STREAM, "", 0, path) is None


def test_changes_of_addresses_are_collected() -> None:
    """Several netlink messages are one call after 0.2 s; after stop() there is none."""
    reactor, calls = FakeReactor(), []
    watcher = AddressWatcher(reactor, lambda: calls.append(1))
    watcher.start()
    if watcher.fileno() < 0:
        pytest.skip("no netlink here")
    for _ in range(3):
        watcher.doRead()
    reactor.advance(0.2)
    assert calls == [1]
    watcher.doRead()
    watcher.stop()
    reactor.advance(1)
    assert calls == [1]
    assert reactor.readers == set()
    assert watcher.fileno() == -1


def test_an_import_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow import goes on in the background and is found by the next call; a failed one is tried again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    (tmp_path / "slow_module.py").write_text(f"with open({str(fifo)!r}) as gate:\n    gate.read()\nthing = 1\n")
    found = import_in_background(["slow_module:thing"], 0.01)["slow_module:thing"]
    assert found.reason is None
    again = import_in_background(["slow_module:thing"], 0.01)["slow_module:thing"]
    assert again is found
    assert again.seconds > 0
    fifo.open("w").close()
    found.wait(30)
    assert found.reason == ""
    failed = import_in_background(["no_such_module:thing", "os:path"], 30)
    assert "No module named" in str(failed["no_such_module:thing"].reason)
    assert failed["os:path"].reason == ""
    (tmp_path / "no_such_module.py").write_text("thing = 1\n")
    import importlib

    importlib.invalidate_caches()
    assert import_in_background(["no_such_module:thing"], 30)["no_such_module:thing"].reason == ""
    del sys.modules["no_such_module"], sys.modules["slow_module"]


def test_imports_in_the_background_do_not_delay_the_exit() -> None:
    """An import that does not end does not keep the interpreter from exiting."""
    code = (
        "import sys, types, time; from svcd.process import background_imports as b\n"
        "b.import_object = lambda reference: time.sleep(3600)\n"
        "print(b.import_in_background(['x:y'], 0.01)['x:y'].reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "None\n")
