"""Datagram services with forged source addresses: no loops, no amplification."""

from __future__ import annotations

import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.daemon import fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.daemon import Daemon

#: Time for which a loop is observed, in seconds.
_WATCHED = 2.0


def _forge(source: tuple[str, int], target: tuple[str, int], data: bytes) -> None:
    """Send a datagram with a forged source (RFC 768, RFC 791); needs root."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    # Without a checksum, which IPv4 allows.
    udp = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(head + addresses + udp, (target[0], 0))


def _free_low_port() -> int:
    for port in range(1023, 700, -1):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.skip("no port below 1024 is free")


def _loop(one: Daemon, other: Daemon) -> float:
    """Start a loop between two echo services; return the processor time of both, as a share of a core."""
    _forge(("127.0.0.1", one.port("echo/udp4")), ("127.0.0.1", other.port("echo/udp4")), b"x" * 64)
    used = one.cpu_seconds() + other.cpu_seconds()
    began = time.monotonic()
    select.select([], [], [], _WATCHED)
    return (one.cpu_seconds() + other.cpu_seconds() - used) / (time.monotonic() - began)


def _datagrams(daemon: Daemon) -> tuple[int, int]:
    """Stop a daemon; return how many datagrams it received, and how many of them it ignored."""
    assert daemon.stop() == 0
    (line,) = [line for line in daemon.lines if " close service=echo/udp4 " in line]
    found = fields(line)
    return int(found["datagrams"]), int(found["ignored"])


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_loop_of_low_ports(start: Callable[..., Daemon]) -> None:
    """A forged datagram gets no answer."""
    one = start(f"echo {_free_low_port()}/udp4 bind=127.0.0.1\n")
    other = start(f"echo {_free_low_port()}/udp4 bind=127.0.0.1\n")
    share = _loop(one, other)
    print(f"ports below 1024: {share:.1%} of a core")
    other.wait_for(lambda line: " refuse service=echo/udp4 " in line and "reason=port" in line)
    assert _datagrams(other) == (1, 1)
    assert _datagrams(one) == (0, 0)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_loop_of_other_ports(start: Callable[..., Daemon]) -> None:
    """The rate limit of a source ends the loop, or limits it to a few percent of a core."""
    one, other = start("echo 0/udp4 bind=127.0.0.1\n"), start("echo 0/udp4 bind=127.0.0.1\n")
    share = _loop(one, other)
    counts = _datagrams(one), _datagrams(other)
    print(f"other ports: {share:.1%} of a core; datagrams and ignored of each: {counts}")
    assert all(received <= 1000 + 1000 * (_WATCHED + 20) for received, _ in counts)
    assert share < 0.5


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_multicast_and_broadcast_sources(start: Callable[..., Daemon]) -> None:
    """Multicast, broadcast and unspecified sources get no answer."""
    daemon = start("echo 0/udp4\n")
    for host in ("127.255.255.255", "224.0.0.1", "255.255.255.255"):
        _forge((host, 40_000), ("127.0.0.1", daemon.port("echo/udp4")), b"x")
    with daemon.connect("echo/udp4") as client:
        client.send(b"hello")
        assert client.recv(10) == b"hello"
    received, ignored = _datagrams(daemon)
    # The kernel drops some of these sources.
    assert ignored == received - 1


def test_no_builtin_is_an_amplifier(start: Callable[..., Daemon]) -> None:
    """An answer has at most as many bytes as its question, or 28; daytime and time answer even an empty one."""
    daemon = start(
        "@defaults bind=127.0.0.1 per_source_rate=none\n"
        "echo 0/udp\ndiscard 0/udp\nchargen 0/udp\nqotd 0/udp\ndaytime 0/udp\ntime 0/udp\n"
        "long 0/udp chargen amplify=yes\n"
    )
    for name in ("echo", "chargen", "qotd", "daytime", "time", "long"):
        with daemon.connect(f"{name}/udp") as client:
            for size in (0, 1, 27, 28, 29, 100, 600):
                client.send(bytes(size))
                answer = client.recv(2000)
                assert len(answer) <= max(size, 28) or name == "long"
                if name == "daytime":
                    assert answer.endswith(b"\r\n")
                if name == "time":
                    assert len(answer) == 4
                if name == "long":
                    assert len(answer) > 400
    with daemon.connect("discard/udp") as client:
        client.send(b"x")
        assert not select.select([client], [], [], 0.2)[0]


def test_access_rules(start: Callable[..., Daemon]) -> None:
    """only_from and no_access apply; a refusal is in the log with its rule, and in the count at the end."""
    daemon = start("echo 0/udp4 bind=127.0.0.1 only_from=127.0.0.0/8 no_access=127.0.0.5\n")
    target = ("127.0.0.1", daemon.port("echo/udp4"))
    for host, answered in (("127.0.0.2", True), ("127.0.0.5", False), ("127.0.0.6", True)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((host, 0))
            client.sendto(b"x", target)
            assert bool(select.select([client], [], [], 10 if answered else 0.3)[0]) is answered
    (line,) = daemon.wait_for(lambda line: " refuse service=echo/udp4 peer=127.0.0.5:" in line)
    assert fields(line)["reason"] == "address"
    assert fields(line)["rule"].startswith("no_access=127.0.0.5 ")
    assert _datagrams(daemon) == (3, 1)


@pytest.mark.parametrize("reactor", ["uv", "epoll", "asyncio"])
def test_host_names_in_access_rules(start: Callable[..., Daemon], reactor: str) -> None:
    """The first datagram waits until they are looked up; after a reload they are known at once."""
    text = "@defaults only_from=localhost{}\necho 0/udp4\necho 0/tcp4\n"
    daemon = start(text.format(""), twistd_arguments=["--reactor", reactor])
    target = ("127.0.0.1", daemon.port("echo/udp4"))

    def asked(host: str, *, answered: bool) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((host, 0))
            client.sendto(b"x", target)
            return bool(select.select([client], [], [], 10 if answered else 0.3)[0])

    assert asked("127.0.0.1", answered=True)
    assert not asked("127.0.0.2", answered=False)
    daemon.file.write_text(text.format(",127.0.0.2 no_access=localhost"))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for(lambda line: " reload " in line)
    assert not asked("127.0.0.1", answered=False)
    assert asked("127.0.0.2", answered=True)
    lines = daemon.wait_for(lambda line: " refuse service=echo/udp4 " in line, 2)
    assert fields(lines[0])["rule"].startswith("only_from (")
    assert fields(lines[1])["rule"].startswith("no_access=localhost (")
