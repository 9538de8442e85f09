"""Abstract sockets, Multipath TCP and buffer sizes in a running daemon, also over reload and upgrade."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from svcd.host.info import Host
from svcd.net.socket_options import IPPROTO_MPTCP, unix_address
from tests.real import preloaded
from tests.real.daemon import PATIENCE, environment, exchange
from tests.real.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.daemon import Daemon

REACTORS = ["uv", "epoll", "asyncio"]


def _dial(name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    client.settimeout(PATIENCE)
    try:
        if kind == socket.SOCK_DGRAM:
            client.bind("")
        client.connect(unix_address(name))
    except BaseException:
        client.close()
        raise
    return client


def _reload(daemon: Daemon, text: str) -> None:
    before = len([line for line in daemon.lines if " reload " in line])
    daemon.file.write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload " in line, before + 1)


def _svcctl(path: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "svcd", "--control", str(path), *words, "--json"]
    done = preloaded.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 2)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("reactor", REACTORS)
def test_abstract_sockets_serve(start: Callable[..., Daemon], reactor: str, tmp_path: Path) -> None:
    """They serve built-in services, programs and wait=yes, streams and datagrams, over a reload, until the stop."""
    name = f"@svcd-test/{os.getpid()}/{tmp_path.name}"
    lines = [f"up {name}/up/unix upper", f"log {name}/log/unixgram echo", f"cat {name}/cat/unix server=/bin/cat"]
    lines.append(f"web {name}/web/unix http")
    daemon = start("\n".join(lines), twistd_arguments=["--reactor", reactor])
    assert daemon.addresses("up/unix") == [f"{name}/up"]
    with _dial(f"{name}/up") as old:
        old.sendall(b"a")
        assert old.recv(10) == b"A"
        _reload(daemon, "\n".join([*lines, f"new {name}/new/unix echo"]).replace("up/unix upper", "up/unix echo"))
        assert exchange(_dial(f"{name}/up"), b"a") == b"a"
        old.sendall(b"b")
        assert old.recv(10) == b"B"
    assert exchange(_dial(f"{name}/new"), b"n") == b"n"
    assert exchange(_dial(f"{name}/cat"), b"c") == b"c"
    assert exchange(_dial(f"{name}/web"), b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.")
    with _dial(f"{name}/log", socket.SOCK_DGRAM) as asker:
        asker.send(b"d")
        assert asker.recv(10) == b"d"
    assert daemon.stop() == 0
    assert not any("Traceback" in line for line in daemon.lines)
    with pytest.raises(ConnectionRefusedError):
        _dial(f"{name}/up")


def test_upgrade_hands_over_special_sockets(start: Callable[..., Daemon], open_folder: Path) -> None:
    """The new daemon serves abstract sockets, sockets with buffer sizes and with Multipath TCP."""
    name = f"@svcd-test/{os.getpid()}/{open_folder.name}"
    multipath = " mptcp=yes" if Host().has_mptcp() else ""
    text = f"up {name}/unix upper\necho 0/tcp bind=127.0.0.1 rcvbuf=16K{multipath}\n"
    daemon = start(text, "--control", str(open_folder / "control"))
    old = daemon.addresses("echo/tcp")
    found = _svcctl(open_folder / "control", "upgrade")
    assert exchange(_dial(name), b"a") == b"A"
    assert daemon.wait_event("listen", "up/unix", 2)[1]["origin"] == "store"
    again = daemon.wait_event("listen", "echo/tcp", 2)[1]
    assert (again["origin"], [again["address"]]) == ("store", old)
    assert exchange(daemon.connect("echo/tcp"), b"a") == b"a"
    _svcctl(open_folder / "control", "stop")
    Process(int(str(found["pid"]))).wait()
    with pytest.raises(ConnectionRefusedError):
        _dial(name)


@pytest.mark.parametrize("reactor", REACTORS)
def test_clients_of_multipath_tcp_and_others(start: Callable[..., Daemon], reactor: str) -> None:
    """One socket serves both, for built-in services and programs; a reload turns mptcp= on and off."""
    if not Host().has_mptcp():
        pytest.skip("this kernel has no Multipath TCP")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = f"@defaults bind=127.0.0.1\necho {port}/tcp mptcp=yes\ncat 0/tcp server=/bin/cat mptcp=yes\n"
    daemon = start(text, twistd_arguments=["--reactor", reactor])
    for service in ("echo/tcp", "cat/tcp"):
        for protocol in (0, IPPROTO_MPTCP):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
                client.settimeout(PATIENCE)
                client.connect(("127.0.0.1", daemon.port(service)))
                client.sendall(b"a" * 100_000)
                client.shutdown(socket.SHUT_WR)
                got = 0
                while piece := client.recv(65_536):
                    got += len(piece)
                assert got == 100_000
    assert " in=100000 out=100000 " in daemon.wait_for(lambda line: " end service=echo/tcp " in line, 2)[0]
    for each in ("", " mptcp=yes", " rcvbuf=16K", " rcvbuf=16K sndbuf=32K", " sndbuf=64K", ""):
        _reload(daemon, f"echo {port}/tcp bind=127.0.0.1{each}\n")
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        assert exchange(client, b"a") == b"a"
    assert not any("Traceback" in line for line in daemon.lines)


@pytest.mark.parametrize("reactor", REACTORS)
def test_buffer_sizes(start: Callable[..., Daemon], reactor: str) -> None:
    """For a client that does not read the kernel keeps no more than the buffer, and the service waits."""
    daemon = start(
        "@defaults bind=127.0.0.1\nsmall 0/tcp chargen sndbuf=8K\nask 0/udp echo rcvbuf=64K sndbuf=64K\n",
        twistd_arguments=["--reactor", reactor],
    )
    with daemon.connect("small/tcp") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        assert client.recv(10)
    with daemon.connect("ask/udp") as asker:
        asker.send(b"x")
        assert asker.recv(10) == b"x"
    with contextlib.suppress(OSError):
        assert daemon.stop() == 0
