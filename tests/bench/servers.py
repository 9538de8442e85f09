"""Echo servers that are compared, and the modes of each."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from tests.bench.running import (
    HERE,
    Kind,
    Running,
    free_port,
    has,
    prints_its_port,
    spawn,
    svcd_with,
    wait_for,
    which,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SERVERS"]

_ECHO_PORT = 7
TCP = frozenset({"pingpong 1", "pingpong 64", "pingpong 1000", "bulk", "connect", "idle", "start"})
EVERYTHING = TCP | {"udp"}


def _xinetd(pin: list[str], folder: Path) -> Running:
    port = free_port()
    ids = "user = root\n" if os.geteuid() == 0 else ""
    common = f"wait = {{}}\n{ids}type = INTERNAL UNLISTED\nport = {port}\nbind = 127.0.0.1\ndisable = no\n"
    config = folder / f"xinetd-{port}"
    config.write_text(
        "defaults\n{\ninstances = UNLIMITED\ncps = 0 0\nlog_type = FILE /dev/null\n}\n"
        f"service echo\n{{\nid = t\nsocket_type = stream\nprotocol = tcp\n{common.format('no')}}}\n"
        f"service echo\n{{\nid = u\nsocket_type = dgram\nprotocol = udp\n{common.format('yes')}}}\n"
    )
    words = [*pin, which("xinetd"), "-dontfork", "-f", str(config), "-pidfile", str(folder / f"pid-{port}")]
    process = spawn(words, folder)
    wait_for(port)
    return Running(process, port)


def _inetd(pin: list[str], folder: Path) -> Running:
    # Its built-ins are named as in /etc/services, so it needs port 7, and root for that.
    config = folder / "inetd.conf"
    config.write_text("127.0.0.1:echo stream tcp nowait root internal\n127.0.0.1:echo dgram udp wait root internal\n")
    process = spawn([*pin, which("inetd"), "-i", "-R", "1000000", str(config)], folder)
    wait_for(_ECHO_PORT)
    return Running(process, _ECHO_PORT)


def _can_run_inetd() -> bool:
    if os.geteuid() != 0 or not has("inetd")():
        return False
    try:
        socket.create_server(("127.0.0.1", _ECHO_PORT)).close()
    except OSError:
        return False
    return True


_PEERS = [sys.executable, str(HERE / "peers.py")]

SERVERS = [
    Kind("C epoll", prints_its_port("FOLDER/echo"), EVERYTHING),
    # With the buffer size of uvloop: the bytes that are read at once determine most of bulk.
    Kind("C epoll, 256 kB", prints_its_port("FOLDER/echo", "256000"), frozenset({"bulk"})),
    Kind("svcd echo (uv)", svcd_with("echo", "-r", "uv"), EVERYTHING),
    Kind("svcd echo (uv), no log", svcd_with("echo log_on_success=none", "-r", "uv"), frozenset({"connect"})),
    Kind("svcd upper (uv)", svcd_with("upper", "-r", "uv"), TCP - {"start", "idle", "connect"}),
    Kind("svcd echo (epoll)", svcd_with("echo", "-r", "epoll"), EVERYTHING),
    Kind("Go net", prints_its_port("FOLDER/echo-go"), EVERYTHING, has("go")),
    Kind("uvloop", prints_its_port(*_PEERS, "uvloop"), EVERYTHING),
    Kind("asyncio", prints_its_port(*_PEERS, "asyncio"), EVERYTHING),
    Kind("plain Twisted", prints_its_port(*_PEERS, "twisted"), EVERYTHING - {"connect"}),
    Kind("xinetd", _xinetd, EVERYTHING - {"pingpong 1000"}, has("xinetd")),
    # It accepts no datagrams from the loopback network, and not thousands of connections.
    Kind("openbsd-inetd", _inetd, TCP - {"pingpong 1000", "connect", "idle"}, _can_run_inetd),
]
